"""Pruning at initialisation by passes of its own: GraSP keeps the gradient's flow, SynFlow that of the synapses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..selection import top_k, top_k_across
from .base import GLOBAL, Changes, Views, layer_counts, masks_of, prune_to
from .prune import Prune
from .view import Change

if TYPE_CHECKING:
    from ..passes import Passes


@dataclass(frozen=True)
class AtInit(Prune):
    """A method that scores the weights at attachment, once, and trains those that are left."""

    prunes_later: ClassVar[bool] = False

    def due(self, step: int, total_steps: int | None) -> bool:
        return step == -1

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        return round(self.density * total)


@dataclass(frozen=True)
class GraSP(AtInit):
    """Pruning at initialisation that keeps the flow of the gradient: weight times Hessian-gradient product.

    Removing a weight w changes the squared norm of the gradient by -w (Hg) to first order; the weights whose going
    would shrink it most stay.

    Args:
        batches: batches of ``data`` that are scored, each in two halves as in the paper (25 samples a class make one).
        temperature: the outputs are divided by it before the loss.

    References:
        Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, ICLR 2020, section 4,
        https://arxiv.org/abs/2002.07376

    Fidelity:
        The sign is that of the authors' code: scores S = -w (Hg), the highest are removed. The count is exact, where
        the authors' threshold keeps the weight at the boundary and all ties. Weights keep their own initialisation
        (the code may re-initialise linear layers), and nothing is clamped to leave a layer weights.

    Example:
        >>> GraSP(density=0.05).needs
        ('data', 'loss_fn')
    """

    batches: int = 1
    temperature: float = 200.0

    name: ClassVar[str] = "grasp"
    paper: ClassVar[str] = "Wang et al. 2020"
    summary: ClassVar[str] = "keep the weights the gradient's norm depends on"
    passes: ClassVar[tuple[str, ...]] = ("data", "loss_fn")

    def __post_init__(self):
        super().__post_init__()
        self._integer("batches", low=1)
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < math.inf:
            raise ValueError(f"grasp: temperature must be a number > 0, got {self.temperature!r}")

    def begin(self, views: Views, passes: Passes, target: int) -> Changes:
        live = {name: view.active_positions() for name, view in views.items()}
        data = passes.batches(self.batches)
        product = passes.hessian_gradients(masks_of(views, live), data, self.temperature)
        scores = {name: views[name].active_weights() * _at(product[name], live[name]) for name in views}
        return prune_to(views, scores, target, self)


@dataclass(frozen=True)
class SynFlow(AtInit):
    """Pruning at initialisation without data, in many rounds, by the synaptic flow through each weight.

    The score is abs(w * dR/dw), where R is the sum of the outputs for an input of ones with all parameters made
    absolute. After round k of n the density is density^(k/n): what is left is scored anew.

    Args:
        rounds: how many; one round can empty a layer, the authors' 100 hardly.

    References:
        Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, NeurIPS 2020,
        section 6, https://arxiv.org/abs/2006.05467

    Fidelity:
        Computed in float64, counts are exact after each round. The flow is conserved from layer to layer in nets of
        weights, ReLUs, pooling and batch norms at their running statistics; so that it stays near that elsewhere,
        layer, group, instance and RMS norms only scale and shift during the passes. Attention still breaks it: the
        weights behind a softmax hardly carry flow. Therefore every layer keeps at least one weight, its best, if the
        budget has one for each layer. With a source of density s the rounds go from s to the density.

    Example:
        >>> SynFlow(density=0.05).needs
        ('example_input',)
    """

    rounds: int = 100

    name: ClassVar[str] = "synflow"
    paper: ClassVar[str] = "Tanaka et al. 2020"
    summary: ClassVar[str] = "keep the weights that flow passes, without data"
    passes: ClassVar[tuple[str, ...]] = ("example_input",)

    def __post_init__(self):
        super().__post_init__()
        self._integer("rounds", low=1)

    def begin(self, views: Views, passes: Passes, target: int) -> Changes:
        live = {name: view.active_positions() for name, view in views.items()}
        first = {name: len(positions) for name, positions in live.items()}
        last = None if self.distribution == GLOBAL else layer_counts(self.distribution, views, self.density)
        left = live
        for done in range(1, self.rounds + 1):
            share = done / self.rounds
            flow = passes.synaptic_flow(masks_of(views, left))
            scores = {name: _at(flow[name], positions) for name, positions in left.items()}
            if last is None:
                kept = _best(scores, _between(sum(first.values()), target, share))
            else:
                kept = {n: top_k(scores[n], _between(first[n], last[n], share), what=n) for n in scores}
            left = {name: positions[kept[name]] for name, positions in left.items()}
        none = torch.empty(0, dtype=torch.int64)
        return {n: Change(live[n][~torch.isin(live[n], left[n], assume_unique=True)], none) for n in views}


def _between(first: int, last: int, share: float) -> int:
    """Weights left after a share of the rounds: exponential from first to last."""
    return last if share == 1 or not first else round(first * (last / first) ** share)


def _best(scores: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The ``count`` highest over all layers; every layer that has some keeps its best, if there are enough."""
    first = {name: score.clone() for name, score in scores.items()}
    if count >= sum(bool(len(score)) for score in first.values()):
        for score in first.values():
            if len(score):
                score[score.argmax()] = torch.inf
    return top_k_across(first, count)


def _at(signal: Tensor, positions: Tensor) -> Tensor:
    return signal.reshape(-1)[positions]
