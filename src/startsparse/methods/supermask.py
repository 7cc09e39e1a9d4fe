"""Masks by a threshold or by chance, each weight for itself: Piggyback and supermasks. How many live, emerges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .search import Layers, Scored, SearchMethod, uniform


@dataclass(frozen=True)
class Piggyback(SearchMethod):
    """Piggyback: a weight is active while its score is above a threshold; one mask a task over one backbone.

    Args:
        threshold: of the scores.
        first_score: every score at first; above the threshold all weights are active.

    References:
        Mallya, Davis, Lazebnik, Piggyback: Adapting a Single Network to Multiple Tasks by Learning to Mask Weights,
        ECCV 2018, section 3, https://arxiv.org/abs/1801.06519

    Fidelity:
        The binary masks of the authors' code. The new classifier is the user's: give it ``requires_grad=True`` after
        ``ss.search`` and its parameters to the same optimizer. Meant for Adam with learning rate 1e-4, 30 epochs.

    Example:
        >>> Piggyback().threshold
        0.005
    """

    threshold: float = 5e-3
    first_score: float = 1e-2

    name: ClassVar[str] = "piggyback"
    paper: ClassVar[str] = "Mallya et al. 2018"
    summary: ClassVar[str] = "a mask a task: scores above a threshold"
    exact: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        for key in ("threshold", "first_score"):
            self._number(key, -1e30, 1e30)

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        for layer in layers.values():
            layer.score = torch.full(layer.shape, self.first_score, device=layer.weight.device)
        for name, mask in self.choose(layers, 0, total_steps).items():
            layers[name].mask = mask

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        return {n: layer.inside(layer.score > self.threshold, False) for n, layer in layers.items()}

    def target(self, layers: Layers, step: int, total_steps: int | None) -> None:
        return None


@dataclass(frozen=True)
class Supermask(SearchMethod):
    """Supermasks: a weight is active with probability sigmoid(score), drawn anew for every step.

    Args:
        signed_constant: compute with ``sign(weight) * std(weights of the layer)`` instead of the weight.
        rescale: multiply a layer's values by its number of weights over its active ones.

    References:
        Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, NeurIPS 2019, section 5,
        https://arxiv.org/abs/1905.01067

    Fidelity:
        One draw a step, from words of (seed, step, layer), so that all processes draw alike; the authors draw in every
        forward pass. The factor of ``rescale`` counts as a constant in the gradient. ``finish`` hands over the most
        likely mask. Meant for SGD with learning rate 100 and momentum 0.9 on fully connected nets.

    Example:
        >>> Supermask().rescale
        True
    """

    signed_constant: bool = True
    rescale: bool = True
    classifier: str = field(default="include", kw_only=True)

    name: ClassVar[str] = "supermask"
    paper: ClassVar[str] = "Zhou et al. 2019"
    summary: ClassVar[str] = "masks drawn with trained probabilities"
    exact: ClassVar[bool] = False
    soft: ClassVar[bool] = True

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        for layer in layers.values():
            layer.score = torch.zeros(layer.shape, device=layer.weight.device)
        for name, mask in self.choose(layers, 0, total_steps).items():
            layers[name].mask = mask

    def base(self, layer: Scored) -> Tensor:
        base = layer.weight
        if self.signed_constant:
            base = base.sign() * (base.std() if base.numel() > 1 else base.abs().max())
        if self.rescale:
            base = base * (layer.capacity / max(int(layer.mask.sum()), 1))
        return base

    def score_gradient(self, layer: Scored, signal: Tensor, step: int, total_steps: int | None) -> Tensor:
        likely = layer.score.sigmoid()
        return signal * likely * (1 - likely)

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        masks = {}
        for name, layer in layers.items():
            drawn = uniform(layer.shape, self.seed, f"mask {step}", name).to(layer.score.device)
            masks[name] = layer.inside(drawn < layer.score.sigmoid(), False)
        return masks

    def values(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        return torch.where(layer.mask, self.base(layer), 0)

    def final(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        return {name: layer.inside(layer.score > 0, False) for name, layer in layers.items()}

    def final_values(self, layer: Scored) -> Tensor:
        return torch.where(layer.mask, self.base(layer), 0)

    def target(self, layers: Layers, step: int, total_steps: int | None) -> None:
        return None
