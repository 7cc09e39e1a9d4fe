"""Modules one after the other: sparse layers among them run as one operation where they can.

That is so for linear layers in a row (``kernels.chain``) and for convolutions with their batch norms and ReLUs
(``fused``), whose activations stay blocked to the end. Everything else is called, as ever, and so is everything that
somebody looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import Link, chained_linear, has_node
from ..kernels.geometry import ConvShape
from . import fused, noted
from .fused import Blocked, unobserved
from .modules import SparseConv2d, SparseLinear

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_FEW_TRAINED, _FEW = 32, 256  # items whose linear layers are called one by one, with and without gradients
Pairs = list[tuple[nn.Module, nn.Module]]


class Activations:
    """A value on its way: in torch's layout, in that of fused blocks, or in both; converted once, where it is asked for."""

    __slots__ = ("_blocked", "_rows")

    def __init__(self, rows: Any = None, blocked: Blocked | None = None):
        self._rows, self._blocked = rows, blocked

    def rows(self) -> Any:
        """In torch's layout (or what is no tensor at all)."""
        if self._rows is None and self._blocked is not None:
            self._rows = fused.rows(self._blocked)
        return self._rows

    def blocked(self) -> Blocked | None:
        """In the layout of fused blocks, or None where that cannot be."""
        if self._blocked is None and isinstance(self._rows, Tensor) and fused.able(self._rows):
            self._blocked = fused.pack(self._rows)
        return self._blocked

    def held(self) -> Blocked | None:
        """In the layout of fused blocks if it is there already."""
        return self._blocked

    def able(self) -> bool:
        """Whether ``blocked`` would give something."""
        return self._blocked is not None or (isinstance(self._rows, Tensor) and fused.able(self._rows))

    @property
    def must_be_packed(self) -> bool:
        """Whether the other layout costs a pass: not where it is there."""
        return self._blocked is None

    @property
    def batch(self) -> int:
        """Items."""
        return self._rows.shape[0] if self._blocked is None else self._blocked.batch

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item."""
        return tuple(self._rows.shape[1:] if self._blocked is None else self._blocked.tensor.shape[1:-1])


def through(
    modules: Sequence[nn.Module],
    x: Activations,
    way: Activations | None = None,
    last: nn.Module | None = None,
    onward: bool = False,
) -> Activations:
    """Each module's output into the next one.

    Args:
        modules: one after the other.
        x: into the first.
        way: is added to what the last of them gives.
        last: is called after that (a ReLU).
        onward: whether the output goes where fused blocks take it.
    """
    at = 0
    while at < len(modules):
        y, after = None, at + 1
        if type(modules[at]) is SparseLinear:
            y, after = _linear(modules, at, x)
        elif type(modules[at]) is SparseConv2d:
            y, after = _convolutions(modules, at, x, way, last, onward)
        if y is None:
            for module in modules[at:after]:
                x = Activations(module(x.rows()))
        else:
            x = y
        at = after
    if at > len(modules):
        return x  # the rest was part of the last operation
    if way is not None:
        x = Activations(x.rows() + way.rows())
    return x if last is None else Activations(last(x.rows()))


def can_run_together(modules: Sequence[nn.Module]) -> bool:
    """Whether modules in a row have sparse layers that could be one operation."""
    kinds = [type(module) for module in modules if type(module) is not nn.Identity]
    return num_pairs(kinds) > 1 or kinds.count(SparseLinear) > 1


def num_pairs(kinds: Sequence[type]) -> int:
    """How many sparse convolutions have their norm right behind them."""
    return sum(pair == (SparseConv2d, nn.BatchNorm2d) for pair in pairwise(kinds))


def _linear(modules: Sequence[nn.Module], start: int, x: Activations) -> tuple[Activations | None, int]:
    """What the linear layers give that begin here and run together, or None, and what comes after them."""
    layers: list[SparseLinear] = []
    relu: list[bool] = []
    after = start + 1
    for at in range(start, len(modules)):
        module = modules[at]
        if module is None or not unobserved(module):
            break
        if type(module) is SparseLinear:
            layers.append(module)
            relu.append(False)
            after = at + 1
        elif not layers:
            break
        elif type(module) is nn.ReLU:
            relu[-1] = True
        elif not _does_nothing(module):
            break
    if len(layers) < 2:
        noted.alone(modules[start], "no linear layer next to it that could run with it")
        return None, start + 1
    relu[-1] = False  # what follows the last layer is called by itself
    links = [Link(m.weight, m.bias, m.pattern, m.out_features, r) for m, r in zip(layers, relu, strict=True)]
    y = None if _too_few(x.rows()) else chained_linear(x.rows(), links)
    if y is None:
        for layer in layers:
            noted.alone(layer, "too few items to gain by it, or not a plain call with the compiled kernels")
        return None, after
    noted.together(layers)
    return Activations(y), after


def _too_few(x: Any) -> bool:
    """Whether the layers' own calls, where they are compiled, cost less than entering Python for all of them at once."""
    few = _FEW_TRAINED if torch.is_grad_enabled() else _FEW
    return isinstance(x, Tensor) and x.shape[:-1].numel() <= few and has_node()


def _convolutions(
    modules: Sequence[nn.Module],
    start: int,
    x: Activations,
    way: Activations | None,
    last: nn.Module | None,
    onward: bool,
) -> tuple[Activations | None, int]:
    """What the convolutions give that begin here and run together, or None, and what comes after them.

    That is more than there are modules where ``way`` and ``last`` were part of it.
    """
    conv = modules[start]
    if not x.able():
        noted.alone(conv, "a batch too small, a tensor that is not plain float32, or fused blocks are off")
        return None, start + 1
    pairs, relu, after = _pairs(modules, start, x.batch)
    single = len(pairs) == 1 and x.must_be_packed and not (onward or way)
    if single and not _pairs(modules, after, x.batch)[0]:
        noted.alone(conv, "by itself with its norm, which gains nothing")
        return None, start + 1
    inside = x.blocked() if pairs else None
    if inside is None:
        return None, start + 1
    beside = None
    if way is not None and after == len(modules) and not relu:
        beside = _beside(inside, pairs, way, last)
    if beside is not None:
        relu, after = last is not None, after + 1
    y = fused.chain(inside, pairs, beside, relu)
    return (None, start + 1) if y is None else (Activations(blocked=y), after)


def _pairs(modules: Sequence[nn.Module], start: int, batch: int) -> tuple[Pairs, bool, int]:
    """The convolutions with their norms that begin here, whether a ReLU follows the last, and what comes after."""
    found: Pairs = []
    relu, after = False, start
    while after < len(modules) and type(conv := modules[after]) is SparseConv2d:
        at = _past(modules, after + 1)
        norm = modules[at] if at < len(modules) else None
        why = "nothing follows it" if norm is None else fused.obstacle(conv, norm, batch)
        if why or norm is None:
            noted.alone(conv, why)
            break
        found.append((conv, norm))
        after = _past(modules, at + 1)
        relu = after < len(modules) and type(modules[after]) is nn.ReLU and unobserved(modules[after])
        if not relu:
            break
        after = _past(modules, after + 1)
    return found, relu, after


def _past(modules: Sequence[nn.Module], at: int) -> int:
    """The first module from here that does something, or that somebody looks at."""
    while at < len(modules) and _does_nothing(modules[at]) and unobserved(modules[at]):
        at += 1
    return at


def _does_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) in DROPOUTS and not module.training)


def _beside(inside: Blocked, pairs: Pairs, way: Activations, last: nn.Module | None) -> Blocked | None:
    """What goes around the pairs, as they take it, or None where it does not fit."""
    if last is not None and not (type(last) is nn.ReLU and unobserved(last)):
        return None
    if not way.able() or way.batch != inside.batch:
        return None
    _, _, *size, _ = inside.tensor.shape
    for conv, _ in pairs:
        assert isinstance(conv, SparseConv2d)
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        size = ConvShape(conv.dense_shape[1] * conv.groups, (size[0], size[1]), *geometry).out_size
    return way.blocked() if way.shape == (pairs[-1][0].out_channels, *size) else None
