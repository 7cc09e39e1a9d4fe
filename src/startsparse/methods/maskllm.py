"""MaskLLM: a category for every group of weights, one of all its N:M patterns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from . import first_scores
from .search import Layers, Scored, progress, uniform
from .search_scopes import grouped, layout_of, ungrouped
from .soft_masks import SoftSearch


@dataclass(frozen=True)
class MaskLLM(SoftSearch):
    """Categorical N:M masks over frozen weights: every group of M has a logit for each pattern of N active ones.

    A layer computes with the mean pattern under ``softmax((logit * scale + gumbel noise) / temperature)``; the scale
    rises, the temperature falls, and the likeliest pattern stays. Exactly N of every M at every step in ``masks``.

    Args:
        density: N / M.
        scope: the pattern, "N:M".
        init: criterion of the mask that is favoured at first: "magnitude", "wanda", "ria", "taylor", "snip", "grasp".
        std: of the first logits; ``prior`` times it favours the patterns that agree with that mask.
        prior: strength of that mask at first.
        scale_begin, scale_end, temperature_begin, temperature_end: linear over the run.
        bonus: on the squared norm of the weights that are kept, falling to zero over the run.

    References:
        Fang et al., MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models, NeurIPS 2024, section 3,
        https://arxiv.org/abs/2409.17481

    Fidelity:
        The rule of the authors' code, with a magnitude prior where theirs is SparseGPT's mask by default; ``init="wanda"``
        is the nearest to that. Noise is drawn once a step, not in every forward pass. Meant for Adam(W), the authors use a learning rate of 5e-4 and weight decay 0.1.

    Example:
        >>> MaskLLM().patterns().int()
        tensor([[1, 1, 0, 0],
                [1, 0, 1, 0],
                [1, 0, 0, 1],
                [0, 1, 1, 0],
                [0, 1, 0, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """

    density: float = 0.5
    scope: str = "2:4"
    init: str = "magnitude"
    std: float = 0.01
    prior: float = 3.0
    scale_begin: float = 100.0
    scale_end: float = 500.0
    temperature_begin: float = 4.0
    temperature_end: float = 0.05
    bonus: float = 1e-5
    classifier: str = field(default="exclude", kw_only=True)

    name: ClassVar[str] = "maskllm"
    paper: ClassVar[str] = "Fang et al. 2024"
    summary: ClassVar[str] = "a trained N:M pattern for every group"
    exact: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        layout = layout_of(self.scope)
        if layout.kind != "n:m" or not math.isclose(
            self.density, layout.numbers[0] / layout.numbers[1], rel_tol=1e-6
        ):
            raise ValueError(
                f"{self.name}: scope must be an N:M pattern of density N / M, got scope={self.scope!r} and "
                f"density={self.density!r}"
            )
        if math.comb(layout.numbers[1], layout.numbers[0]) > 1000:
            raise ValueError(f"{self.name}: {self.scope} has too many patterns for a logit each")
        self._one_of("init", tuple(first_scores.CRITERIA))
        for key in ("std", "prior", "bonus"):
            self._number(key, 0, 1e30)
        for key in ("scale_begin", "scale_end", "temperature_begin", "temperature_end"):
            self._number(key, 0, 1e30, open_low=True)

    @property
    def signal(self) -> str | None:
        """What has to be measured for the first mask."""
        return first_scores.CRITERIA[self.init].signal

    @property
    def needs(self) -> tuple[str, ...]:
        return first_scores.needs(self.signal)

    def patterns(self) -> Tensor:
        """All patterns, (patterns, M), float32 of 0 and 1."""
        active, size = layout_of(self.scope).numbers
        chosen = list(itertools.combinations(range(size), active))
        return torch.zeros(len(chosen), size).scatter_(1, torch.tensor(chosen), 1.0)

    def check(self, layers: Layers, total_steps: int | None) -> None:
        super().check(layers, total_steps)
        layout = layout_of(self.scope)
        layout.check({name: layer.shape for name, layer in layers.items()})
        for name, layer in layers.items():
            allowed = self._allowed(layer)
            if allowed is not None and not bool(allowed.any(1).all()):
                raise ValueError(
                    f"{self.name}: the source of {name} leaves groups without a {layout} pattern"
                )

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        layout, patterns = layout_of(self.scope), self.patterns()
        criterion = first_scores.CRITERIA[self.init]
        for name, layer in layers.items():
            table = patterns.to(layer.weight.device)
            scores = criterion.score(layer.weight.float(), signals.get(name, layer.weight))
            lowest = scores.min().clamp_max(0) - 1
            kept = grouped(layer.inside(scores, float(lowest)), layout) @ table.T
            best = table[kept.argmax(1)]  # the highest of each group
            shape = (len(best), len(table))
            first, second = (uniform(shape, self.seed, f"logits {i}", name) for i in (1, 2))
            normal = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
            favour = (best @ table.T - 1) * (self.std * self.prior)
            layer.score = (normal * self.std).float().to(favour.device) + favour
            layer.count = len(best) * layout.numbers[0]
        for name, mask in self.choose(layers, 0, total_steps).items():
            layers[name].mask = mask

    def _allowed(self, layer: Scored) -> Tensor | None:
        """Which patterns of each group lie inside the source, (groups, patterns)."""
        if layer.source is None:
            return None
        outside = grouped(~layer.source, layout_of(self.scope)).float()
        return outside @ self.patterns().T.to(outside.device) == 0

    def _logits(self, layer: Scored) -> Tensor:
        allowed = self._allowed(layer)
        return layer.score if allowed is None else layer.score.masked_fill(~allowed, -math.inf)

    def _scale(self, step: int, total_steps: int | None) -> tuple[float, float]:
        done = progress(step, total_steps)
        scale = self.scale_begin + done * (self.scale_end - self.scale_begin)
        return scale, self.temperature_begin + done * (self.temperature_end - self.temperature_begin)

    def _likely(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        scale, temperature = self._scale(step, total_steps)
        drawn = uniform(tuple(layer.score.shape), self.seed, f"mask {step}", layer.name)
        gumbel = (-(-drawn.log()).log()).float().to(layer.score.device)
        return ((self._logits(layer) * scale + gumbel) / temperature).softmax(1)

    def soft_mask(self, layer: Scored, step: int, total_steps: int | None) -> Tensor:
        likely = self._likely(layer, step, total_steps)
        mean = likely @ self.patterns().to(likely.device)
        return ungrouped(mean, layout_of(self.scope), layer.shape)

    def score_gradient(self, layer: Scored, signal: Tensor, step: int, total_steps: int | None) -> Tensor:
        likely = self._likely(layer, step, total_steps)
        scale, temperature = self._scale(step, total_steps)
        slope = grouped(signal, layout_of(self.scope)) @ self.patterns().T.to(likely.device)
        return scale / temperature * likely * (slope - (likely * slope).sum(1, keepdim=True))

    def penalty(self, layer: Scored, step: int, total_steps: int | None) -> Tensor | None:
        bonus = self.bonus * (1 - progress(step, total_steps))
        if bonus == 0:
            return None
        soft = self.soft_mask(layer, step, total_steps)
        return self.score_gradient(
            layer, -2 * bonus * layer.weight.float().square() * soft, step, total_steps
        )

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        layout, masks = layout_of(self.scope), {}
        for name, layer in layers.items():
            logits = self._logits(layer)
            best = self.patterns().to(logits.device)[logits.argmax(1)]
            masks[name] = ungrouped(best, layout, layer.shape).bool()
        return masks

    def target(self, layers: Layers, step: int, total_steps: int | None) -> int:  # type: ignore[override]
        return sum(layer.count for layer in layers.values())
