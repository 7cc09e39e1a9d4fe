"""What a call must look like, in words where it does not, and the layer that follows from its shapes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from startsparse.kernels.geometry import ConvShape, Layer, conv_layer, lanes_for, linear_lanes, linear_layer
from startsparse.kernels.library import threads

_HEADER = ctypes.c_int64 * 16


def require(condition: bool, words: str, *values: object) -> None:
    """Raise ``words``, formatted with ``values``, unless the condition holds."""
    if not condition:
        raise ValueError("startsparse: " + words.format(*values))


def check_float(name: str, tensor: Tensor) -> None:
    """A kernel's operand: float32, on the CPU, strided."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu or tensor.layout != torch.strided:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}"
        raise ValueError(f"startsparse: {name} must be a float32 tensor on the CPU, not {kind}")


def check_weight(pattern: Tensor, values: Tensor, bias: Tensor | None, outputs: int, groups: int) -> None:
    """The pattern, its values and the bias belong together, and to ``outputs`` outputs in ``groups``."""
    check_float("values", values)
    if bias is not None:
        check_float("bias", bias)
    if not (
        pattern.dtype == torch.uint8 and pattern.is_cpu and pattern.dim() == 1 and pattern.is_contiguous()
    ):
        raise ValueError("startsparse: the pattern must be a contiguous 1-d uint8 tensor on the CPU")
    if pattern.numel() < 128:
        raise ValueError("startsparse: the pattern is not one that Pattern.build made (or it was cut short)")
    rows, _, built_groups, nnz = _HEADER.from_address(pattern.data_ptr())[2:6]
    if values.shape == (nnz,) and rows == outputs and built_groups == groups:
        if bias is None or bias.shape == (outputs,):
            return
        raise ValueError(f"startsparse: the bias must be [{outputs}], not {list(bias.shape)}")
    shape = list(values.shape)
    require(shape == [nnz], "values must be [{}], one per weight of the pattern, not {}", nnz, shape)
    require(rows == outputs, "the pattern has {} outputs, but {} were asked for", rows, outputs)
    require(built_groups == groups, "the pattern was built for {} groups, not {}", built_groups, groups)


def columns_of(pattern: Tensor) -> int:
    """Columns of the weight of a checked pattern; of one group."""
    return _HEADER.from_address(pattern.data_ptr())[3]


def linear_of(x: Tensor, batch: int | None, weights: int, outputs: int) -> Layer:
    """The layer that takes x: row-major [..., features], or blocked [tiles, features, lanes]."""
    if batch is None:
        if x.dim() < 1:
            raise ValueError("startsparse: x must be [..., features], not a number")
        features = x.shape[-1]
        items = x.numel() // features if features else x.shape[:-1].numel()
        lanes = linear_lanes(items, features + outputs, weights, threads())
        return linear_layer(items, features, lanes, False)
    require(x.dim() == 3, "blocked x must be [tiles, features, lanes], not {}", list(x.shape))
    check_blocked(x, batch)
    return linear_layer(batch, x.shape[1], x.shape[2], True)


def conv_of(x: Tensor, batch: int | None, shape: ConvShape) -> Layer:
    """The convolution that takes x: row-major [batch, channels, height, width], or blocked, lanes last."""
    if batch is None:
        return conv_layer(x.shape[0], shape, conv_lanes(x.shape[0], shape), False)
    check_blocked(x, batch)
    return conv_layer(batch, shape, x.shape[-1], True)


def conv_shape(x: Tensor, batch: int | None, arguments: Sequence) -> ConvShape:
    """The shape of a convolution of x with these ``kernel_size, stride, padding, dilation, groups``."""
    dims = "[batch, channels, height, width]" if batch is None else "[tiles, channels, height, width, lanes]"
    require(x.dim() == (4 if batch is None else 5), "x must be {}, not {}", dims, list(x.shape))
    *pairs, groups = arguments
    kernel, stride, padding, dilation = (tuple(pair) for pair in pairs)
    channels = x.shape[1]
    divides = groups > 0 and channels % groups == 0
    require(divides, "{} channels do not divide into {} groups", channels, groups)
    shape = ConvShape(channels, (x.shape[2], x.shape[3]), kernel, stride, padding, dilation, groups)
    sane = min(*kernel, *stride, *dilation) > 0 and min(padding) >= 0
    require(sane, "there is no such convolution: {}", shape)
    require(min(shape.out_size) > 0, "the kernel is larger than the padded image: {}", shape)
    return shape


def conv_lanes(batch: int, shape: ConvShape) -> int:
    """Items per tile that suit a convolution: its lines fill the vectors as well."""
    height, width = shape.out_size
    return lanes_for(batch, height * width if shape.kernel[1] == 1 else width)


def check_blocked(x: Tensor, batch: int) -> None:
    """Blocked [tiles, ..., lanes] holds this batch."""
    tiles, lanes = x.shape[0], x.shape[-1]
    require(lanes > 0 and lanes % 16 == 0, "blocked x needs a multiple of 16 lanes, not {}", lanes)
    fits = batch >= 0 and tiles == -(-batch // lanes)
    require(fits, "{} tiles of {} lanes do not hold a batch of {}", tiles, lanes, batch)
