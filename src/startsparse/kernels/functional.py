"""The operators as functions with names and defaults; what they check and compute is in ``ops``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.compiler import is_compiling

from startsparse.kernels import eager, node, ops
from startsparse.kernels.geometry import Pair, lanes_for

_functorch = getattr(torch._C, "_functorch")  # noqa: B009 - the type checker does not know it
_DIFFERENTIATING = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)


def sparse_linear(
    x: Tensor,
    values: Tensor,
    pattern: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    *,
    batch: int | None = None,
) -> Tensor:
    """``x @ W.T + bias`` with the live weights only.

    Args:
        x: float32 [..., in_features]; or blocked [tiles, in_features, lanes] where ``batch`` is given.
        values: float32 [nnz], in value order (see ``pattern``).
        pattern: ``Pattern.blob`` of the [out_features, in_features] weight.
        out_features: Rows of the weight.
        bias: float32 [out_features].
        batch: Items in a blocked x. Lanes beyond them are ignored by the gradients.

    Returns:
        [..., out_features], or blocked [tiles, out_features, lanes].
    """
    if not is_compiling() and node.linear is not None:
        y = node.linear(x, values, bias, pattern, out_features, batch)
        if y is not NotImplemented:
            return y
    if eager.is_plain(x, values, bias, pattern):
        return eager.run(ops.LINEAR, x, values, bias, pattern, out_features, batch)
    _refuse_transforms(x, values, bias)
    return torch.ops.startsparse.sparse_linear(x, values, bias, pattern, out_features, batch)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    pattern: Tensor,
    out_channels: int,
    kernel_size: Pair,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    batch: int | None = None,
) -> Tensor:
    """``conv2d`` with the live weights only, padded with zeros.

    Args:
        x: float32 [batch, channels, height, width]; or blocked [tiles, channels, height, width, lanes] where
            ``batch`` is given.
        values: float32 [nnz], in value order.
        pattern: ``Pattern.blob`` of the weight as [out_channels, channels/groups * kernel height * kernel
            width], built with the same ``groups``.
        out_channels: Rows of the weight.
        kernel_size, stride, padding, dilation: (vertical, horizontal), in pixels.
        bias: float32 [out_channels].
        groups: As for ``torch.nn.functional.conv2d``.
        batch: Items in a blocked x.

    Returns:
        [batch, out_channels, out height, out width], or blocked with the lanes last.
    """
    kernel_size, stride, padding, dilation = map(_pair, (kernel_size, stride, padding, dilation))
    rest = (out_channels, kernel_size, stride, padding, dilation, groups, batch)
    if not is_compiling() and node.conv2d is not None:
        y = node.conv2d(x, values, bias, pattern, *rest)
        if y is not NotImplemented:
            return y
    if eager.is_plain(x, values, bias, pattern):
        return eager.run(ops.CONV2D, x, values, bias, pattern, *rest)
    _refuse_transforms(x, values, bias)
    return torch.ops.startsparse.sparse_conv2d(x, values, bias, pattern, *rest)


def to_blocked(x: Tensor, lanes: int | None = None) -> Tensor:
    """[batch, channels, ...] -> [tiles, channels, ..., lanes], items of a tile innermost, missing ones zero.

    Element-wise functions and additions work on the result as they are. ``lanes`` is a multiple of 16; by
    default one that suits a linear layer.
    """
    return torch.ops.startsparse.to_blocked(x, lanes_for(x.shape[0]) if lanes is None else lanes)


def from_blocked(x: Tensor, batch: int) -> Tensor:
    """[tiles, channels, ..., lanes] -> [batch, channels, ...]."""
    return torch.ops.startsparse.from_blocked(x, batch)


def _refuse_transforms(*tensors: Tensor | None) -> None:
    """Refuse transforms that differentiate: forward mode would take the tangents of a registered operator for zero.

    Raises:
        RuntimeError: says what does instead.
    """
    if is_compiling():
        return
    around = _functorch.get_interpreter_stack() or []
    if any(one.key() in _DIFFERENTIATING for one in around):
        raise RuntimeError(
            "startsparse: torch.func.grad, vjp, jvp and what is built on them do not reach sparse layers: use "
            "torch.autograd, or the masked execution"
        )
    if eager.in_forward_mode() and any(t is not None and unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            "startsparse: sparse layers have no forward-mode derivative (torch.autograd.forward_ad): use reverse mode, "
            "or the masked execution"
        )


def _pair(n: int | Sequence[int]) -> Pair:
    """A number for both directions, or one for each."""
    if isinstance(n, int):
        return n, n
    vertical, horizontal = n
    return vertical, horizontal
