"""What a run cost: samples seen dense and sparse, FLOPs counted, time measured."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import inference_flops, training_flops
from ..execution.hooks import nothing
from ..layers import Layer


@dataclass(frozen=True)
class Budget:
    """Costs of training; they add up.

    Args:
        dense_samples: samples seen while all weights lived.
        sparse_samples: samples seen while fewer did.
        flops: of the sparse layers, counted: a multiply and an add for each use of a live weight, forward and both
            backward products; None if there was no example input to count uses by.
        dense_flops: the same samples through the dense net.
        seconds: measured.

    Example:
        >>> Budget(100, 0, 6e6, 6e6, 1.0) + Budget(0, 50, 3e5, 3e6, 0.5)
        Budget(dense_samples=100, sparse_samples=50, flops=6300000.0, dense_flops=9000000.0, seconds=1.5)
    """

    dense_samples: int = 0
    sparse_samples: int = 0
    flops: float | None = 0.0
    dense_flops: float | None = 0.0
    seconds: float = 0.0

    def __add__(self, other: Budget) -> Budget:
        return Budget(
            self.dense_samples + other.dense_samples,
            self.sparse_samples + other.sparse_samples,
            _sum(self.flops, other.flops),
            _sum(self.dense_flops, other.dense_flops),
            self.seconds + other.seconds,
        )

    @property
    def samples(self) -> int:
        """All samples seen."""
        return self.dense_samples + self.sparse_samples

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _sum(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine + theirs


class _Watch:
    """Runs before a forward pass; a copy of the model is not watched."""

    def __init__(self, meter: weakref.ref, keeps: Any):
        self._meter, self._keeps = meter, keeps

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        meter = self._meter()
        if meter is not None and module.training and torch.is_grad_enabled():
            first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            meter.samples += 0 if first is None else len(first)

    def __deepcopy__(self, memo: dict) -> Any:
        return nothing

    def __reduce__(self) -> Any:
        return _inert, ()


def _inert() -> Any:
    return nothing


class Meter:
    """Counts the samples a model is trained on, and the time since it was made.

    Args:
        model: every forward pass in training mode with gradients counts; a batch is the first axis of the first tensor.
        keeps: lives as long as the model does, or until ``stop``.
    """

    def __init__(self, model: nn.Module, keeps: Any = None):
        self.samples = 0
        self._begun = time.perf_counter()
        self._handle = model.register_forward_pre_hook(_Watch(weakref.ref(self), keeps), with_kwargs=True)

    def stop(self) -> None:
        """Count no more."""
        self._handle.remove()

    def read(
        self, layers: Mapping[str, Layer], counts: Mapping[str, int], uses: Mapping[str, float] | None
    ) -> Budget:
        """The costs so far of training ``counts`` live weights a layer."""
        sizes = {name: math.prod(layer.shape) for name, layer in layers.items()}
        dense = sum(counts.values()) == sum(sizes.values())
        flops = whole = None
        if uses is not None:
            flops = self.samples * training_flops(counts, sizes, uses, 0.0)
            whole = self.samples * 3 * inference_flops(sizes, uses)
        mine = (self.samples, 0) if dense else (0, self.samples)
        return Budget(*mine, flops, whole, time.perf_counter() - self._begun)
