"""What every score search is: hyper-parameters, and pure functions from scores to masks and back.

A search never changes a weight. Every layer has scores, the trained parameters; a method turns them into a mask and,
where it is not simply the weight on the mask, into the values the layer computes with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import draw
from ..distributions import Scaled
from ..names import nearest
from ..scalars import make_plain
from .renewal import Standing, Swap

BATCH_NORM = ("update", "freeze", "reestimate")
CLASSIFIER = ("exclude", "include")


@dataclass
class Scored:
    """One layer under a search.

    Attributes:
        name: the parameter's name.
        weight: its values, which never change; of the weight's shape, dense.
        source: bool of the weight's shape, the positions that may ever be active; None: all.
        score: what is trained, float32: of the weight's shape, or of a shape of the method's own.
        mask: bool of the weight's shape, True = active.
        count: active weights at the end of the search, where the method has a budget.
        moments: running averages of the method, by name, of the score's shape.
        locked: bool of the weight's shape, the positions that are always active; None: none.
        standing: where the active weights are, while ``mask`` is the one it knows; not state.
    """

    name: str
    weight: Tensor
    source: Tensor | None = None
    score: Tensor = field(default_factory=lambda: torch.empty(0))
    mask: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    count: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    locked: Tensor | None = None
    standing: Standing | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.weight.shape)

    @property
    def capacity(self) -> int:
        """Positions that may be active."""
        return self.weight.numel() if self.source is None else int(self.source.sum())

    def inside(self, values: Tensor, outside: float) -> Tensor:
        """``values`` (of the weight's shape), with ``outside`` at the positions that may never be active."""
        return values if self.source is None else values.masked_fill(~self.source, outside)

    def ranking(self, values: Tensor) -> Tensor:
        """``values`` to be ranked: last what may never be active, first what is locked in."""
        inside = self.inside(values, -math.inf)
        return inside if self.locked is None else inside.masked_fill(self.locked, math.inf)

    def stand(self) -> Standing:
        """Where the active weights are, found anew if ``mask`` is another."""
        if self.standing is None or self.standing.mask is not self.mask:
            self.standing = Standing(self.mask)
        return self.standing

    def change(self, swap: Swap) -> None:
        """Take over the mask a swap leads to; the one before stays as it is."""
        mask = swap.after(self.mask)
        if swap.slots is not None and self.standing is not None and self.standing.mask is self.mask:
            self.standing.move(swap, mask)
        self.mask = mask


Layers = Mapping[str, Scored]


@dataclass(frozen=True)
class SearchMethod:
    """Base of the methods that search a mask over weights that stay as they are; given to ``ss.search``.

    Args:
        seed: of every random decision of the method.
        batch_norm: "update" (running statistics follow the loop's train and eval modes, as the papers do),
            "freeze" (batch-norm layers stay in evaluation mode) or "reestimate" (as "update", and measured anew at
            ``finish(data=...)``).
        classifier: "exclude" leaves the last layer dense and out of the search, unless ``layers=`` names it;
            "include" searches every layer.
    """

    seed: int = field(default=0, kw_only=True)
    batch_norm: str = field(default="update", kw_only=True)
    classifier: str = field(default="exclude", kw_only=True)

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    kind: ClassVar[str] = "search"
    exact: ClassVar[bool] = True  # the number of active weights is the scheduled one at every step
    soft: ClassVar[bool] = False  # layers compute with something else than the weight on the mask

    def __post_init__(self):
        make_plain(self)
        self._integer("seed", low=None)
        self._one_of("batch_norm", BATCH_NORM)
        self._one_of("classifier", CLASSIFIER)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the first scores are made from beside the weights: of "data" and "loss_fn"."""
        return ()

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Hyper-parameters that are a schedule over ``total_steps``."""
        return ()

    def hyper_parameters(self) -> dict[str, Any]:
        """The fields as plain data, as ``methods.make`` takes them."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}

    @property
    def looks_before_steps(self) -> bool:
        """Whether ``penalty`` or ``observe`` does something, for which the gradients must be there before the step."""
        return type(self).penalty is not SearchMethod.penalty

    # -- what a method answers ---------------------------------------------------------------------------------

    def check(self, layers: Layers, total_steps: int | None) -> None:
        """Refuse, before anything is touched, what cannot work; raises ValueError."""

    def begin(self, layers: Layers, signals: Mapping[str, Tensor], total_steps: int | None) -> None:
        """Set ``score``, ``mask`` and ``count`` of every layer.

        Args:
            layers: with their weights and sources.
            signals: name -> what ``needs`` asked to be measured, of the weight's shape.
            total_steps: length of the search, or None.
        """
        raise TypeError(f"{type(self).__name__} does not say how it begins")

    def base(self, layer: Scored) -> Tensor:
        """What a mask multiplies: the layer computes with mask times this, and so the gradient by the mask is taken."""
        return layer.weight

    def score_gradient(self, layer: Scored, signal: Tensor, step: int, total_steps: int | None) -> Tensor:
        """The gradient of the score.

        Args:
            layer: the layer.
            signal: gradient of the loss by the layer's mask, float32: the dense gradient of its values times ``base``,
                zero outside the source.
            step: steps done before this one.
            total_steps: length of the search, or None.
        """
        return signal

    def observe(self, layer: Scored, gradient: Tensor) -> None:
        """See the score's gradient of a step that is about to be made (of all micro-batches and processes)."""

    def penalty(self, layer: Scored, step: int, total_steps: int | None) -> Tensor | None:
        """What is added to the score's gradient once a step; None for nothing."""
        return None

    def project(self, layers: Layers, step: int, total_steps: int | None) -> None:
        """Change scores in place after ``step`` steps, before masks are chosen."""

    def choose(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        """The masks after ``step`` steps."""
        raise TypeError(f"{type(self).__name__} does not say how masks are chosen")

    def swaps(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Swap]:
        """How masks change after ``step`` steps: what leads to those of ``choose``."""
        masks = self.choose(layers, step, total_steps)
        return {name: Swap.between(layers[name].mask, mask) for name, mask in masks.items()}

    def values(self, layer: Scored, step: int, total_steps: int | None) -> Tensor | None:
        """What the layer computes with after ``step`` steps, where it is not the weight on the mask."""
        return None

    def final(self, layers: Layers, step: int, total_steps: int | None) -> dict[str, Tensor]:
        """The masks that are handed over at the end."""
        return {name: layer.mask for name, layer in layers.items()}

    def final_values(self, layer: Scored) -> Tensor | None:
        """The values that are handed over, where they are not the weight on the mask."""
        return None

    def target(self, layers: Layers, step: int, total_steps: int | None) -> int | None:
        """Active weights scheduled after ``step`` steps; None where the number is what the scores make of it."""
        return sum(layer.count for layer in layers.values())

    # -- checks ------------------------------------------------------------------------------------------------

    def _integer(self, key: str, low: int | None) -> None:
        value = getattr(self, key)
        if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
            bound = "" if low is None else f" >= {low}"
            raise ValueError(f"{self.name}: {key} must be an int{bound}, got {value!r}")

    def _number(self, key: str, low: float, high: float, open_low: bool = False) -> None:
        value = getattr(self, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (open_low and value == low):
            left = "(" if open_low else "["
            raise ValueError(f"{self.name}: {key} must be in {left}{low:g}, {high:g}], got {value!r}")

    def _one_of(self, key: str, allowed: Sequence[str]) -> None:
        value = getattr(self, key)
        if value not in allowed:
            raise ValueError(f"{self.name}: unknown {key} {value!r}: {nearest(str(value), list(allowed))}")


def progress(step: int, total_steps: int | None) -> float:
    """The share of a run that is done, in [0, 1]; 1 where nobody knows how long it is."""
    return min(step / total_steps, 1.0) if total_steps else 1.0


def uniform(shape: Sequence[int], seed: int, rule: str, name: str) -> Tensor:
    """Numbers of (0, 1), float64, a pure function of (rule, seed, name): the same on every machine.

    Example:
        >>> bool(torch.equal(uniform((3,), 0, "scores", "w"), uniform((5,), 0, "scores", "w")[:3]))
        True
    """
    size = int(np.prod(shape))
    pairs = draw.words(draw.key(rule, seed, name), 0, (size + 1) // 2).astype("<u8").view("<u4")[:size]
    return torch.from_numpy((pairs + 0.5) * 2.0**-32).reshape(tuple(shape))


def _plain(value: Any) -> Any:
    if isinstance(value, Scaled):
        return {"scaled": dict(value.base)}
    return dict(value) if isinstance(value, Mapping) else value
