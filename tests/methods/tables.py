"""What the hand-made tables are written with: one layer of a few weights whose gradient is what we say it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import startsparse as ss


def bits(text: str) -> Tensor:
    """A mask from "1 0 0 1"."""
    return torch.tensor([word == "1" for word in text.split()])


def written(mask: Tensor) -> str:
    """The inverse of ``bits``."""
    return " ".join("1" if live else "0" for live in mask.reshape(-1).tolist())


def layer(weights: Sequence[float]) -> nn.Module:
    """A net ``fc`` of one output without bias, whose weights are these: the gradient of its output is the input."""
    linear = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([weights]))
    return nn.Sequential(OrderedDict(fc=linear))


def give_gradient(model: nn.Module, gradient: Sequence[float]) -> None:
    """Back-propagate so that the dense gradient of ``layer(...)`` is this one."""
    model(torch.tensor([gradient])).sum().backward()


def attach_with_mask(model, optimizer, method, mask: str, total_steps: int = 100, source: str | None = None):
    """Attach, then put the layer onto a mask of ours, as loading a state would."""
    inside = None if source is None else masks(source)
    weights = model.fc.weight.detach().clone()
    sparse = ss.attach(model, optimizer, method, source=inside, total_steps=total_steps)
    donor = layer([1.0] * len(mask.split()))
    live = int(bits(mask).sum())
    given = ss.attach(
        donor,
        torch.optim.SGD(donor.parameters(), lr=0.0),
        ss.Static(live / bits(mask).numel()),
        source=masks(mask),
    )
    sparse.load_state_dict(sparse.state_dict() | {"masks": given.state_dict()["masks"]})
    assert written(sparse.masks["fc.weight"]) == mask
    with torch.no_grad():
        model.fc.weight.copy_(weights * bits(mask))
    return sparse


def masks(text: str) -> ss.MaskSource:
    """A source of these positions."""
    return ss.MaskSource({"fc.weight": bits(text).view(1, -1)})
