"""Masks that are numbers in (0, 1) until the end: continuous sparsification and ProbMask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import as_step, cubic
from ..selection import top_k_across
from .search import Layers, Scored, SearchMethod, progress, uniform

_EDGE = 1e-6  # probabilities stay so far from 0 and 1 where their logarithms are taken


@dataclass(frozen=True)
class SoftSearch(SearchMethod):
    """A search whose layers compute with weight times a number that becomes 0 or 1; needs ``total_steps``."""

    classifier: str = field(default="include", kw_only=True)

    exact: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def check(self, layers: Layers, total_steps: int | None) -> None:
        if total_steps is None:
            raise ValueError(f"{self.name} sharpens its masks over the run: give total_steps=")

    def soft_mask(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        """What each weight is multiplied by, of its shape."""
        raise TypeError(f"{type(self).__name__} does not say what its masks are")

    def values(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        return layer.weight * self.soft_mask(layer, step, total_steps)

    def target(self, layers: Layers, step: int, total_steps: int | None) -> None:
        return None


@dataclass(frozen=True)
class ContinuousSparsification(SoftSearch):
    """Continuous sparsification over frozen weights: sigmoids of the scores that become steps.

    The mask is ``sigmoid(beta * score) / sigmoid(first_score)``, ``beta`` rising from 1 to ``beta_end``
    exponentially; at the end weights with a positive score stay.

    Args:
        first_score: of every weight: higher is denser.
        beta_end: sharpness at the end.
        penalty: on the sum of the masks.

    References:
        Savarese, Silva, Maire, Winning the Lottery with Continuous Sparsification, NeurIPS 2020, section 3,
        https://arxiv.org/abs/1912.04427

    Fidelity:
        One round, weights frozen; beta rises with every step, the authors' with every epoch. The weights handed over
        are multiplied by ``1 / sigmoid(first_score)``, as all are during the search. Meant for SGD with
        learning rate 0.1, momentum 0.9 (nesterov) and no weight decay on the scores.

    Example:
        >>> cs = ContinuousSparsification()
        >>> [round(cs.beta(step, 100)) for step in (0, 50, 100)]
        [1, 14, 200]
    """

    first_score: float = 0.0
    beta_end: float = 200.0
    penalty_weight: float = 1e-8

    name: ClassVar[str] = "continuous-sparsification"
    paper: ClassVar[str] = "Savarese et al. 2020"
    summary: ClassVar[str] = "sigmoid masks that sharpen into steps"

    def __post_init__(self):
        super().__post_init__()
        self._number("first_score", -1e30, 1e30)
        self._number("beta_end", 1, 1e30)
        self._number("penalty_weight", 0, 1e30)

    def beta(self, step: int, total_steps: int | None) -> float:
        """Sharpness after ``step`` steps."""
        return self.beta_end ** progress(step, total_steps)

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        for layer in layers.values():
            layer.score = torch.full(layer.shape, self.first_score, device=layer.weight.device)
        for name, mask in self.choose(layers, 0, total_steps).items():
            layers[name].mask = mask

    def soft_mask(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        return (self.beta(step, total_steps) * layer.score).sigmoid() * (1 + math.exp(-self.first_score))

    def _slope(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        beta = self.beta(step, total_steps)
        gate = (beta * layer.score).sigmoid()
        return beta * gate * (1 - gate) * (1 + math.exp(-self.first_score))

    def score_gradient(self, layer: Scored, signal: Tensor, step: int, total_steps: int | None) -> Tensor:
        return signal * self._slope(layer, step, total_steps)

    def penalty(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        return layer.inside(self.penalty_weight * self._slope(layer, step, total_steps), 0)

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        return {name: layer.inside(layer.score > 0, False) for name, layer in layers.items()}

    def final_values(self, layer: Scored) -> Tensor:
        return torch.where(layer.mask, layer.weight * (1 + math.exp(-self.first_score)), 0)


@dataclass(frozen=True)
class ProbMask(SoftSearch):
    """ProbMask over frozen weights: scores are probabilities, their sum over all layers is held at the budget.

    Masks are ``sigmoid((logit(score) + logistic noise) / temperature)``, the temperature falling from 1 to 0.03; after
    every step all scores are lowered by one number and cut to [0, 1] so that their sum is the scheduled count, which
    falls along a cubic curve. At the end the highest probabilities stay, exactly ``density`` of all weights.

    Args:
        density: active weights over all weights of the searched layers at the end, in (0, 1].
        update_begin, update_end: between them the density falls from 1, as steps or fractions of the run.

    References:
        Zhou et al., Effective Sparsification of Neural Networks with Global Sparsity Constraint, CVPR 2021,
        section 3, https://arxiv.org/abs/2105.01571

    Fidelity:
        Weights are frozen; one sample a step, where the authors average two; the end takes the most probable weights
        where theirs takes the best of ten samples. Meant for Adam with learning rate 6e-3.

    Example:
        >>> mask = ProbMask(density=0.1)
        >>> [round(mask.scheduled_density(step, 100), 3) for step in (0, 16, 60, 100)]
        [1.0, 1.0, 0.1, 0.1]
    """

    density: float
    update_begin: int | float = 0.16
    update_end: int | float = 0.6

    name: ClassVar[str] = "probmask"
    paper: ClassVar[str] = "Zhou et al. 2021"
    summary: ClassVar[str] = "trained probabilities under one budget"

    def __post_init__(self):
        super().__post_init__()
        self._number("density", 0, 1, open_low=True)
        for key in ("update_begin", "update_end"):
            _ = as_step(getattr(self, key), 1, f"{self.name}: {key}")

    def check(self, layers: Layers, total_steps: int | None) -> None:
        super().check(layers, total_steps)
        total, room = (
            sum(f) for f in zip(*((w.weight.numel(), w.capacity) for w in layers.values()), strict=True)
        )
        if not 0 < round(self.density * total) <= room:
            raise ValueError(
                f"{self.name}: density {self.density:g} asks for {round(self.density * total)} weights of the {room} "
                "that the source allows"
            )
        first, last = self._bounds(total_steps)
        if last <= first:
            raise ValueError(
                f"{self.name}: update_end={self.update_end!r} is not after {self.update_begin!r}"
            )

    def _bounds(self, total_steps: int | None) -> tuple[int, int]:
        return (
            as_step(self.update_begin, total_steps, "update_begin"),
            as_step(self.update_end, total_steps, "update_end"),
        )

    def scheduled_density(self, step: int, total_steps: int | None) -> float:
        """The share of all weights the probabilities add up to, after ``step`` steps."""
        first, last = self._bounds(total_steps)
        return cubic(1.0, self.density, (step - first) / (last - first))

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        for layer in layers.values():
            layer.score = layer.inside(torch.ones(layer.shape, device=layer.weight.device), 0.0)
        for name, mask in self.choose(layers, 0, total_steps).items():
            layers[name].mask = mask

    def _sharpness(self, step: int, total_steps: int | None) -> float:
        return 1 / (0.97 * (1 - progress(step, total_steps)) + 0.03)

    def soft_mask(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        drawn = uniform(layer.shape, self.seed, f"mask {step}", layer.name).float().to(layer.score.device)
        logits = layer.score.clamp(_EDGE, 1 - _EDGE).logit() + drawn.clamp(_EDGE, 1 - _EDGE).logit()
        return layer.inside((logits * self._sharpness(step, total_steps)).sigmoid(), 0)

    def score_gradient(self, layer: Scored, signal: Tensor, step: int, total_steps: int | None) -> Tensor:
        soft, score = self.soft_mask(layer, step, total_steps), layer.score.clamp(_EDGE, 1 - _EDGE)
        return signal * soft * (1 - soft) * self._sharpness(step, total_steps) / (score * (1 - score))

    def project(self, layers: Layers, step: int, total_steps: int | None) -> None:
        total = sum(layer.weight.numel() for layer in layers.values())
        budget = max(self.scheduled_density(step, total_steps) * total, 1.0)
        scores = [layer.score for layer in layers.values()]

        def left(lowered: float) -> float:
            return sum(float((score - lowered).clamp(0, 1).sum(dtype=torch.float64)) for score in scores)

        low, high = 0.0, max(float(score.max()) for score in scores)
        if left(low) > budget:
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if left(middle) > budget else (low, middle)
            low = high
        for layer in layers.values():
            _ = layer.score.sub_(low).clamp_(0, 1)
            if layer.source is not None:
                _ = layer.score.masked_fill_(~layer.source, 0)

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        return {name: layer.inside(layer.score > 0.5, False) for name, layer in layers.items()}

    def final(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        total = sum(layer.weight.numel() for layer in layers.values())
        keys = {name: layer.inside(layer.score, -math.inf) for name, layer in layers.items()}
        return top_k_across(keys, round(self.density * total))
