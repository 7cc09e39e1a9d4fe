"""A ticket: the weights that live, the values they begin with, and what it was drawn from. Data, no model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..masks import num_active, pack, unpack
from ..names import nearest, plain

FORMAT = 1


@dataclass(frozen=True)
class Ticket:
    """What a level trains.

    Args:
        masks: parameter name -> bool tensor of the weight's shape.
        weights: plain name -> parameter or buffer that training begins with; zeros need not be in place.
        initial: the same at initialisation, before anything was trained.
        sources: name -> bool tensor of the positions that may live; layers that are not named are free.
        step: the optimizer step ``weights`` are of; 0 is initialisation.
    """

    masks: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0

    @property
    def num_active(self) -> int:
        """Live weights."""
        return num_active(self.masks)

    @property
    def num_weights(self) -> int:
        """Weights of the sparse layers."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def density(self) -> float:
        """Live weights over all weights of the sparse layers."""
        return self.num_active / self.num_weights

    @torch.no_grad()
    def put(self, model: nn.Module) -> None:
        """Give a model of this architecture the ticket's weights, zeros in place.

        Raises:
            ValueError: a tensor of model or ticket is missing in the other, or has another shape. The model is
                untouched then.
        """
        held = dict(tensors(model))
        missing, unknown = (
            [n for n in held if n not in self.weights],
            [n for n in self.weights if n not in held],
        )
        if missing or unknown:
            hint = nearest(unknown[0], list(held)) if unknown else ""
            raise ValueError(
                f"the ticket is of another architecture: it lacks {missing}, the model lacks {unknown} {hint}".strip()
            )
        for name, tensor in held.items():
            if tensor.shape != self.weights[name].shape:
                raise ValueError(
                    f"the ticket is of another architecture: its {name} is {tuple(self.weights[name].shape)}, the "
                    f"model's {tuple(tensor.shape)}"
                )
        for name, tensor in held.items():
            tensor.copy_(self.weights[name])
            if name in self.masks:
                tensor.masked_fill_(~self.masks[name].to(tensor.device), 0)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors; masks are one bit a weight."""
        return {
            "format": FORMAT,
            "masks": {name: pack(mask) for name, mask in self.masks.items()},
            "sources": {name: pack(mask) for name, mask in self.sources.items()},
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "weights": dict(self.weights),
            "initial": dict(self.initial),
            "step": self.step,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Ticket:
        """The inverse of ``state_dict``.

        Raises:
            ValueError: this is not the state of a ticket, or it is damaged.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise ValueError(f"this is not the state of a ticket of format {FORMAT}")
        absent = [
            key for key in ("masks", "sources", "shapes", "weights", "initial", "step") if key not in state
        ]
        if absent:
            raise ValueError(f"the ticket's state lacks {', '.join(absent)}: it is damaged or cut short")
        shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        return cls(
            {name: unpack(bits, shapes[name]) for name, bits in state["masks"].items()},
            dict(state["weights"]),
            dict(state["initial"]),
            {name: unpack(bits, shapes[name]) for name, bits in state["sources"].items()},
            state["step"],
        )


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by plain name, tied ones once."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        yield plain(name), tensor


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, by plain name."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model)}
