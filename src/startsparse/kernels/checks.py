"""What a call must look like, in words where it does not, and the layer that follows from its shapes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from startsparse.kernels.geometry import (
    ConvShape,
    Layer,
    Pair,
    conv_layer,
    lanes_for,
    linear_lanes,
    linear_layer,
)

_HEADER = ctypes.c_int64 * 16
_FLOAT, _STRIDED, _BYTE = torch.float32, torch.strided, torch.uint8


def require(condition: bool, words: str, *values: object) -> None:
    """Raise ``words``, formatted with ``values``, unless the condition holds."""
    if not condition:
        raise ValueError("startsparse: " + words.format(*values))


def check_float(name: str, tensor: Tensor) -> None:
    """A kernel's operand: float32, on the CPU, strided."""
    if tensor.dtype is not _FLOAT or not tensor.is_cpu or tensor.layout is not _STRIDED:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}"
        raise ValueError(f"startsparse: {name} must be a float32 tensor on the CPU, not {kind}")


def check_weight(pattern: Tensor, values: Tensor, bias: Tensor | None, outputs: int, groups: int) -> int:
    """The pattern, its values and the bias belong together, and to ``outputs`` outputs in ``groups``.

    Returns:
        Columns of the weight; of one group.
    """
    if not (values.dtype is _FLOAT and values.is_cpu and values.layout is _STRIDED):
        check_float("values", values)  # says it in words
    if bias is not None and not (bias.dtype is _FLOAT and bias.is_cpu and bias.layout is _STRIDED):
        check_float("bias", bias)
    if not (pattern.dtype is _BYTE and pattern.is_cpu and pattern.dim() == 1 and pattern.is_contiguous()):
        raise ValueError("startsparse: the pattern must be a contiguous 1-d uint8 tensor on the CPU")
    if pattern.numel() < 128:
        raise ValueError("startsparse: the pattern is not one that Pattern.build made (or it was cut short)")
    rows, columns, built_groups, nnz = _HEADER.from_address(pattern.data_ptr())[2:6]
    if values.shape == (nnz,) and rows == outputs and built_groups == groups:
        if bias is None or bias.shape == (outputs,):
            return columns
        raise ValueError(f"startsparse: the bias must be [{outputs}], not {list(bias.shape)}")
    shape = list(values.shape)
    require(shape == [nnz], "values must be [{}], one per weight of the pattern, not {}", nnz, shape)
    require(rows == outputs, "the pattern has {} outputs, but {} were asked for", rows, outputs)
    require(built_groups == groups, "the pattern was built for {} groups, not {}", built_groups, groups)
    return columns


def linear_of(x: torch.Size, batch: int | None, weights: int, outputs: int, threads: int) -> Layer:
    """The layer that takes x of this shape: row-major [..., features], or blocked [tiles, features, lanes]."""
    if batch is None:
        if not x:
            raise ValueError("startsparse: x must be [..., features], not a number")
        features, items = x[-1], x[:-1].numel()
        lanes = linear_lanes(items, features + outputs, weights, threads)
        return linear_layer(items, features, lanes, False)
    require(len(x) == 3, "blocked x must be [tiles, features, lanes], not {}", list(x))
    check_blocked(x, batch)
    return linear_layer(batch, x[1], x[2], True)


def conv_of(x: torch.Size, batch: int | None, shape: ConvShape) -> Layer:
    """The convolution that takes x of this shape: row-major [batch, channels, height, width], or blocked, lanes last."""
    if batch is None:
        return conv_layer(x[0], shape, conv_lanes(x[0], shape), False)
    check_blocked(x, batch)
    return conv_layer(batch, shape, x[-1], True)


def conv_along(items: int, shape: ConvShape) -> Layer | None:
    """The convolution of one item after the other, row-major, where that is less than tiles of 16 items are; or None."""
    if not 0 < items < 16:
        return None
    layer = conv_layer(items, shape, 1, True)
    height, width = shape.out_size
    return layer if items * layer.geometry.line < 16 * height * width else None


def conv_shape(x: torch.Size, batch: int | None, pairs: Sequence[Pair], groups: int) -> ConvShape:
    """The shape of a convolution of x, of this shape, with these ``kernel_size, stride, padding, dilation``."""
    dims = "[batch, channels, height, width]" if batch is None else "[tiles, channels, height, width, lanes]"
    require(len(x) == (4 if batch is None else 5), "x must be {}, not {}", dims, list(x))
    kernel, stride, padding, dilation = pairs
    channels = x[1]
    divides = groups > 0 and channels % groups == 0
    require(divides, "{} channels do not divide into {} groups", channels, groups)
    shape = ConvShape(channels, (x[2], x[3]), kernel, stride, padding, dilation, groups)
    sane = min(*kernel, *stride, *dilation) > 0 and min(padding) >= 0
    require(sane, "there is no such convolution: {}", shape)
    require(min(shape.out_size) > 0, "the kernel is larger than the padded image: {}", shape)
    return shape


def conv_lanes(batch: int, shape: ConvShape) -> int:
    """Items per tile that suit a convolution: its lines fill the vectors as well."""
    height, width = shape.out_size
    return lanes_for(batch, height * width if shape.kernel[1] == 1 else width)


def check_blocked(x: torch.Size, batch: int) -> None:
    """Blocked [tiles, ..., lanes] holds this batch."""
    tiles, lanes = x[0], x[-1]
    require(lanes > 0 and lanes % 16 == 0, "blocked x needs a multiple of 16 lanes, not {}", lanes)
    fits = batch >= 0 and tiles == -(-batch // lanes)
    require(fits, "{} tiles of {} lanes do not hold a batch of {}", tiles, lanes, batch)
