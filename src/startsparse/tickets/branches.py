"""What a ticket is compared with: the same mask on fresh weights, other masks of its counts. Tickets in, tickets out.

All draws are functions of the seed and the layer's name; torch's generators are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..draw import Drawn, Permutation
from ..names import nearest
from .ticket import Ticket


def reinitialise(ticket: Ticket, seed: int = 0) -> Ticket:
    """The mask on fresh initial weights: those of the net, permuted inside each tensor.

    Any initialisation whose values are independent and of one law within a tensor is drawn anew by that, whatever the
    law; buffers begin as they did.

    References:
        Frankle and Carbin 2019, section 2 (random reinitialisation), https://arxiv.org/abs/1803.03635

    Example:
        >>> ticket = Ticket({"w": torch.tensor([True, False])}, {"w": torch.ones(2)}, {"w": torch.arange(2.0)}, step=9)
        >>> sorted(reinitialise(ticket).weights["w"].tolist()), reinitialise(ticket).step
        ([0.0, 1.0], 0)
    """
    if not ticket.initial:
        raise ValueError("the ticket does not know its net's initial weights, so they cannot be drawn anew")
    return replace(ticket, weights={n: _permuted(n, t, seed) for n, t in ticket.initial.items()}, step=0)


def shuffle(ticket: Ticket, seed: int = 0) -> Ticket:
    """As many live weights in each layer, at other places of its source; their values are those of the same step.

    References:
        Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, ICLR 2021,
        https://arxiv.org/abs/2009.08576

    Example:
        >>> ticket = Ticket({"w": torch.arange(8) < 3}, {"w": torch.ones(8)})
        >>> shuffle(ticket).masks["w"].tolist()
        [True, False, False, True, False, False, False, True]
    """
    masks = {}
    for name, mask in ticket.masks.items():
        drawn = Drawn("exact", seed, f"shuffle:{name}", mask.numel(), count=int(mask.sum()))
        source = ticket.sources.get(name)
        drawn_mask = drawn.mask(None if source is None else source.reshape(-1).cpu().numpy())
        masks[name] = torch.from_numpy(drawn_mask).view(mask.shape).to(mask.device)
    return replace(ticket, masks=masks)


def randomise(ticket: Ticket, seed: int = 0) -> Ticket:
    """A random net of the ticket's layer-wise densities: mask and weights are both drawn anew.

    References:
        Su et al., Sanity-Checking Pruning Methods, NeurIPS 2020, https://arxiv.org/abs/2009.11094
    """
    return reinitialise(shuffle(ticket, seed), seed)


def retrain(ticket: Ticket, seed: int = 0) -> Ticket:
    """The ticket itself, to be trained by another recipe."""
    return ticket


BRANCHES: dict[str, Callable[[Ticket, int], Ticket]] = {
    "reinit": reinitialise,
    "shuffle": shuffle,
    "random": randomise,
    "retrain": retrain,
}


def branch(kind: str) -> Callable[[Ticket, int], Ticket]:
    """A branch by name.

    Raises:
        ValueError: there is none of this name.
    """
    if kind not in BRANCHES:
        raise ValueError(f"unknown branch {kind!r}: {nearest(str(kind), list(BRANCHES))}")
    return BRANCHES[kind]


def _permuted(name: str, tensor: Tensor, seed: int) -> Tensor:
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return tensor.clone()
    order = Permutation(tensor.numel(), "reinit", seed, name).positions(0, tensor.numel())
    return tensor.reshape(-1)[torch.from_numpy(order).to(tensor.device)].view(tensor.shape)
