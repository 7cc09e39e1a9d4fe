"""Random Sparse Network Transformation: what the weights outside a ticket know is pressed into those inside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from ..criteria import magnitude
from ..distributions import Distribution
from ..draw import Drawn, key, words
from ..masks import fingerprint, validate
from ..schedules import as_step
from ..selection import top_k, top_k_across
from .base import GLOBAL, LEAVING, Changes, Views, layer_counts
from .prune import Prune
from .view import Change, LayerView

RAMPS = {
    "linear": lambda p: p,
    "square": lambda p: p * p,
    "cube": lambda p: p**3,
    "constant": lambda p: 1.0,
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
}
TICKETS = ("random", "magnitude")
PENALTIES = ("auto", "gradient", "decoupled")


@dataclass(frozen=True)
class RST(Prune):
    """Random Sparse Network Transformation: all weights train while those outside a ticket are pulled to zero.

    A ticket is drawn at attachment and stays. The strength of the pull rises to ``bound`` and stays there; then
    the ticket is masked, the optimizer begins anew, and the run goes on as fine-tuning. Until then ``sparse.masks`` is
    all of the source and ``sparse.target_masks`` the ticket. The learning rate is the loop's.

    Args:
        density: of the ticket.
        distribution: of the ticket; "global" draws or ranks over all layers together.
        dense_ends: whether the ticket holds all of the first and the last layer, and the rule shares out the rest.
        ticket: "random", "magnitude" (the largest weights at attachment; from a pre-trained net that is growing
            regularisation), or masks: name -> bool tensor.
        ramp: how the strength rises: "linear", "square", "cube", "constant" or "cosine".
        bound: the strength it rises to; 0 only postpones masking, infinity masks at once.
        ramp_steps, stabilise_steps: how long it rises and then stays, in steps or fractions of the run.
        interval: steps from one rise to the next.
        cycles: tickets on the way, nested, each with a ramp of its own; the steps are those of all cycles together.
        penalty: "gradient" adds strength * weight to the gradient; "decoupled" shrinks weights by learning rate *
            strength after the step; "auto" is the first for SGD and the second for all else, which would
            normalise the first away.

    References:
        Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, https://arxiv.org/abs/2203.04248
        Wang et al., Neural Pruning via Growing Regularization, ICLR 2021, https://arxiv.org/abs/2012.09243

    Fidelity:
        Phases are fractions of the run here; ``RST.authors(...)`` has the constants of the authors' code. Their one-shot
        command masks the smallest initial weights, not random ones (``ticket="magnitude"``), and their iterative code
        finds earlier masks again by size; here the nested masks are kept. A decoupled pull has no momentum in it, so it
        needs more steps.

    Example:
        >>> rst = RST(density=0.1, ramp_steps=4, stabilise_steps=3)
        >>> [rst.strength(step, None) for step in range(8)], rst.masks_at(None)
        ([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.0], 6)
    """

    distribution: Distribution = "erk"
    dense_ends: bool = False
    ticket: str | Mapping[str, Tensor] = "random"
    ramp: str = "linear"
    bound: float = 1.0
    ramp_steps: int | float = 0.3
    stabilise_steps: int | float = 0.24
    interval: int = 1
    cycles: int = 1
    penalty: str = "auto"

    name: ClassVar[str] = "rst"
    paper: ClassVar[str] = "Bai et al. 2022"
    summary: ClassVar[str] = "pull all but a random ticket to zero, then mask it"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.ticket, Mapping):
            self._one_of("ticket", TICKETS)
        self._one_of("ramp", tuple(RAMPS))
        self._one_of("penalty", PENALTIES)
        if not isinstance(self.dense_ends, bool):
            raise ValueError(f"{self.name}: dense_ends must be True or False, got {self.dense_ends!r}")
        if self.dense_ends and (not isinstance(self.distribution, str) or self.distribution == GLOBAL):
            raise ValueError(
                f"{self.name}: dense_ends needs a rule for the other layers, distribution={self.distribution!r} is none"
            )
        for field in ("interval", "cycles"):
            self._integer(field, low=1)
        if isinstance(self.bound, bool) or not isinstance(self.bound, int | float) or not self.bound >= 0:
            raise ValueError(f"{self.name}: bound must be >= 0, got {self.bound!r}")
        for field in ("ramp_steps", "stabilise_steps"):
            _ = as_step(getattr(self, field), 1, f"{self.name}: {field}")

    @classmethod
    def authors(cls, density: float, cycles: int = 1, **changes: Any) -> RST:
        """The constants of the authors' code: first and last layer dense, the others alike.

        One cycle rises to 1 in 10,000 updates every 5 steps and stays for 40,000; several take 20,000 steps each.
        They assume SGD with learning rate 0.001 and momentum 0.9 until masking.

        Example:
            >>> RST.authors(0.02).masks_at(None), RST.authors(0.02, cycles=5).masks_at(None)
            (89995, 99999)
        """
        one = cycles == 1
        steps = {"ramp_steps": 50_000, "stabilise_steps": 40_000, "interval": 5}
        many = {"ramp_steps": 10_000 * cycles, "stabilise_steps": 10_000 * cycles, "interval": 1}
        fixed = {"distribution": "uniform", "dense_ends": True, "cycles": cycles} | (steps if one else many)
        return cls(density, **cast("dict[str, Any]", fixed | changes))

    def hyper_parameters(self) -> dict[str, Any]:
        fields = super().hyper_parameters()
        if isinstance(self.ticket, Mapping):
            fields["ticket"] = f"masks {fingerprint(self.ticket)[:16]}"
        return fields

    # -- when --------------------------------------------------------------------------------------------------

    def _cycle(self, total_steps: int | None) -> tuple[int, int, int]:
        """(updates of the strength, steps of the ramp before its last update, steps) of one cycle."""
        ramp = as_step(self.ramp_steps, total_steps, "ramp_steps") // self.cycles
        stay = as_step(self.stabilise_steps, total_steps, "stabilise_steps") // self.cycles
        updates = -(-ramp // self.interval)
        rising = (updates - 1) * self.interval if updates else -1
        return updates, rising, rising + stay + 1

    def masks_at(self, total_steps: int | None) -> int:
        """The step after which the ticket is masked; -1 is at attachment."""
        if math.isinf(self.bound):
            return -1
        return self.cycles * self._cycle(total_steps)[2] - 1

    def strength(self, step: int, total_steps: int | None) -> float:
        """How strongly weights outside the ticket are pulled at a step (the lambda of the paper)."""
        if step > self.masks_at(total_steps) or not self.bound:
            return 0.0
        updates, _, length = self._cycle(total_steps)
        done = min(step % length // self.interval + 1, updates)
        return self.bound * RAMPS[self.ramp](done / updates) if updates else float(self.bound)

    def decay(self, rate: float, total_steps: int | None) -> float:
        last = self.masks_at(total_steps)
        if last < 0 or not self.bound:
            return math.inf
        first = last + 1 - self._cycle(total_steps)[2]  # those of the last cycle have had the shortest time
        return rate * sum(self.strength(step, total_steps) for step in range(first, last + 1))

    def check(self, views: Views, total_steps: int | None) -> None:
        super().check(views, total_steps)
        last = self.masks_at(total_steps)
        if total_steps is not None and last >= total_steps:
            raise ValueError(
                f"rst: ramp_steps={self.ramp_steps} and stabilise_steps={self.stabilise_steps} mask the ticket after step "
                f"{last}, and the run has {total_steps} steps: shorten them or lengthen the run"
            )
        if isinstance(self.ticket, Mapping):
            self._check_ticket(self.ticket, views)

    def _check_ticket(self, ticket: Mapping[str, Tensor], views: Views) -> None:
        try:
            validate(ticket, {name: tuple(view.shape) for name, view in views.items()})
        except ValueError as error:
            raise ValueError(f"rst: the ticket is of another architecture: {error}") from error
        live = sum(int(mask.sum()) for mask in ticket.values())
        total = sum(mask.numel() for mask in ticket.values())
        if live != round(self.density * total):
            raise ValueError(
                f"rst: the ticket has {live} of {total} weights, density {self.density:g} says {round(self.density * total)}: "
                f"give density={live / total:.6g}"
            )
        for name, view in views.items():
            if view.source is not None and bool((ticket[name].reshape(-1) & ~view.source.cpu()).any()):
                raise ValueError(f"rst: the ticket has weights of {name} outside the source")

    def rule(self, views: Views) -> Distribution:
        if self.dense_ends:
            return {next(iter(views)): 1.0, list(views)[-1]: 1.0, "*": cast("str", self.distribution)}
        return self.distribution

    def due(self, step: int, total_steps: int | None) -> bool:
        last = self.masks_at(total_steps)
        if step in (-1, last):
            return True
        return 0 <= step < last and (step + 1) % self._cycle(total_steps)[2] == 0

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        return start_count if step < self.masks_at(total_steps) else round(self.density * total)

    def phase(self, step: int, total_steps: int | None) -> str:
        return "transforming" if step <= self.masks_at(total_steps) else "fine-tuning"

    def remembers(self, step: int, total_steps: int | None) -> tuple[str, ...]:
        return (LEAVING,) if step <= self.masks_at(total_steps) else ()

    def begins_anew(self, step: int, total_steps: int | None) -> bool:
        return step >= 0 and step == self.masks_at(total_steps)

    # -- which -------------------------------------------------------------------------------------------------

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        last = self.masks_at(total_steps)
        cycle = 0 if step < 0 else (step + 1) // self._cycle(total_steps)[2]
        if step < last or step < 0:
            leaving = self._leaving(views, cycle)
            if step < last:
                return {n: Change(_NONE, _NONE, memory={LEAVING: mask}) for n, mask in leaving.items()}
        else:
            leaving = {name: view.memory[LEAVING] for name, view in views.items()}
        changes = {}
        for name, view in views.items():
            live = view.active_positions()
            changes[name] = Change(live[leaving[name].reshape(-1).to(live.device)[live]], _NONE, memory={})
        return changes

    def counts(self, total: int, start_count: int) -> list[int]:
        """Live weights of the ticket of each cycle: the same share of the rest leaves at each.

        Example:
            >>> RST(density=0.3, cycles=5).counts(1000, 1000)
            [786, 618, 486, 382, 300]
        """
        final = round(self.density * total)
        keep = (final / start_count) ** (1 / self.cycles)
        return [round(start_count * keep**cycle) for cycle in range(1, self.cycles)] + [final]

    def _leaving(self, views: Views, cycle: int) -> dict[str, Tensor]:
        """Bool masks of the live positions outside this cycle's ticket; they hold those of the cycle before."""
        total = sum(math.prod(view.shape) for view in views.values())
        start = sum(view.num_active for view in views.values())
        count = self.counts(total, start)[cycle]
        room = {name: _staying(view) for name, view in views.items()}
        if cycle == self.cycles - 1 and isinstance(self.ticket, Mapping):
            kept = {name: mask.reshape(-1).to(room[name].device) for name, mask in self.ticket.items()}
        else:
            kept = self._kept(views, room, count, total)
        out = {}
        for name, view in views.items():
            leaving = torch.zeros(math.prod(view.shape), dtype=torch.bool, device=room[name].device)
            leaving[view.active_positions()] = True
            out[name] = (leaving & ~kept[name]).view(view.shape)
        return out

    def _kept(self, views: Views, room: Mapping[str, Tensor], count: int, total: int) -> dict[str, Tensor]:
        """``count`` of the positions in ``room`` (flat bool), by the ticket's rule."""
        if self.ticket == "random" and self.distribution != GLOBAL:
            wanted = self._counts(views, room, count / total)
            return {name: self._drawn(views[name], room[name], wanted[name]) for name in views}
        scores = {name: self._scores(view, room[name]) for name, view in views.items()}
        if self.distribution == GLOBAL or isinstance(self.ticket, Mapping):
            return top_k_across(scores, count)
        wanted = self._counts(views, room, count / total)
        return {name: top_k(scores[name], wanted[name], what=name) for name in views}

    def _counts(self, views: Views, room: Mapping[str, Tensor], density: float) -> dict[str, int]:
        capacity = {name: int(where.sum()) for name, where in room.items()}
        return layer_counts(self.rule(views), views, density, capacity=capacity)

    def _drawn(self, view: LayerView, room: Tensor, count: int) -> Tensor:
        drawn = Drawn("exact", self.seed, view.name, len(room), count=count)
        return torch.from_numpy(drawn.mask(room.cpu().numpy())).to(room.device)

    def _scores(self, view: LayerView, room: Tensor) -> Tensor:
        if self.ticket == "magnitude":
            scores = torch.zeros(len(room), device=room.device)
            scores[view.active_positions()] = magnitude(view.active_weights()).to(scores.dtype)
        else:
            raw = (
                words(key("ticket", self.seed, view.name), 0, (len(room) + 1) // 2).astype("<u8").view("<u4")
            )
            scores = torch.from_numpy(raw[: len(room)].astype(np.float64)).to(room.device)
        if isinstance(self.ticket, Mapping):
            scores[self.ticket[view.name].reshape(-1).to(room.device)] = torch.inf
        return scores.masked_fill(~room, -torch.inf)


_NONE = torch.empty(0, dtype=torch.int64)


def _staying(view: LayerView) -> Tensor:
    """Flat bool of the live positions that no earlier cycle's ticket left out."""
    room = torch.zeros(math.prod(view.shape), dtype=torch.bool, device=view.active_positions().device)
    room[view.active_positions()] = True
    leaving = view.memory.get(LEAVING)
    return room if leaving is None else room & ~leaving.reshape(-1).to(room.device)
