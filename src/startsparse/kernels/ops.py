"""The operators, registered with torch: ``startsparse::sparse_linear``, ``sparse_conv2d`` and the blocked
layout's two.

They have fake implementations, gradients and an autocast rule (float32 inside, whatever the region's dtype),
so they work under ``torch.compile``, ``torch.export`` and autocast. Shapes and dtypes are checked here; a
pattern's blob is checked for what constant time allows (its header and size), so give them blobs that
``Pattern.build`` made.

All activations and values are float32 on the CPU. Each weight's gradient has the shape of ``values``: the
dense gradient never exists. Second derivatives are not implemented, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from startsparse.kernels import eager
from startsparse.kernels.checks import (
    check_blocked,
    check_float,
    check_weight,
    conv_along,
    conv_of,
    conv_shape,
    linear_of,
    require,
)
from startsparse.kernels.geometry import ConvShape, Layer, Pair, linear_layer
from startsparse.kernels.library import backend, threads
from startsparse.kernels.observe import notify


class Call(NamedTuple):
    """What follows from a call's shapes.

    Attributes:
        layer: what is computed.
        shape: of the result.
        outputs: of the layer.
        team: threads that are worth waking.
        along: the same for the forward pass, where there are so few items that vectors are rather filled along lines
            of the image; with the compiled kernels.
    """

    layer: Layer
    shape: tuple[int, ...]
    outputs: int
    team: int
    along: Layer | None = None


FEW = 1 << 18  # multiply-adds that are not worth waking a second thread for

_library = torch.library.Library("startsparse", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_CONV = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups"
_library.define(
    "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor pattern, SymInt out_features, "
    "SymInt? batch=None) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "sparse_linear_backward("
    "Tensor dy, Tensor x, Tensor values, Tensor pattern, SymInt? batch, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "sparse_conv2d(Tensor x, Tensor values, Tensor? bias, Tensor pattern, SymInt out_channels, "
    f"{_CONV}, SymInt? batch=None)"
    " -> Tensor",
    tags=_TAGS,
)
_library.define(
    "sparse_conv2d_backward(Tensor dy, Tensor x, Tensor values, Tensor pattern, "
    f"{_CONV}, SymInt? batch, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define("to_blocked(Tensor x, SymInt lanes) -> Tensor", tags=_TAGS)
_library.define("from_blocked(Tensor x, SymInt batch) -> Tensor", tags=_TAGS)


# ---- passes --------------------------------------------------------------------------------------


def _team(weights: int, layer: Layer, most: int) -> int:
    g = layer.geometry
    few = weights * g.batch * g.out_pixels <= FEW and g.batch * g.channels * g.plane <= FEW
    return 1 if few else most


def _forward(call: Call, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor) -> Tensor:
    kernels, y = backend(), torch.empty(call.shape, dtype=torch.float32)
    layer = call.layer if call.along is None or kernels.name != "native" else call.along
    bias = None if bias is None else bias.contiguous()
    kernels.forward(layer, pattern, x.contiguous(), values.contiguous(), bias, y, call.team)
    return y


def _backward(
    call: Call, dy: Tensor, x: Tensor, values: Tensor, pattern: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those gradients of x, values and bias that are wanted."""
    layer, shape, outputs, team, _ = call
    check_float("dy", dy)
    if dy.shape != shape:
        raise ValueError(f"startsparse: dy must be {list(shape)}, not {list(dy.shape)}")
    if not layer.geometry.blocked:
        notify(pattern, x, dy)
    want_x, want_values, want_bias = wanted
    x, values = x.contiguous(), values.contiguous()
    dx = torch.empty_like(x) if want_x else None
    dw = torch.empty_like(values) if want_values else None
    db = torch.empty(outputs, dtype=torch.float32) if want_bias else None
    team = min(team, threads())  # fewer than in the forward pass, perhaps
    backend().backward(layer, pattern, x, dy.contiguous(), values, dx, dw, db, team)
    return dx, dw, db


def _linear_call(x, values, bias, pattern, out_features, batch=None) -> Call:
    check_float("x", x)
    check_weight(pattern, values, bias, out_features, 1)
    return _linear_plan(x.shape, out_features, batch, values.numel(), threads())


@lru_cache(maxsize=4096)
def _linear_plan(x: torch.Size, outputs: int, batch: int | None, weights: int, most: int) -> Call:
    layer = linear_of(x, batch, weights, outputs, most)
    return Call(layer, _linear_shape(x, outputs, batch), outputs, _team(weights, layer, most))


def _conv_call(
    x, values, bias, pattern, out_channels, kernel, stride, padding, dilation, groups, batch=None
) -> Call:
    check_float("x", x)
    pairs = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    call = _conv_plan(x.shape, out_channels, pairs, groups, batch, values.numel(), threads())
    check_weight(pattern, values, bias, out_channels, groups)
    return call


@lru_cache(maxsize=4096)
def _conv_plan(
    x: torch.Size,
    outputs: int,
    pairs: tuple[Pair, ...],
    groups: int,
    batch: int | None,
    weights: int,
    most: int,
) -> Call:
    shape = conv_shape(x, batch, pairs, groups)
    layer = conv_of(x, batch, shape)
    along = conv_along(x[0], shape) if batch is None else None
    return Call(layer, _conv_out_shape(x, outputs, shape), outputs, _team(weights, layer, most), along)


def _linear_forward(x, values, bias, pattern, *rest):
    return _forward(_linear_call(x, values, bias, pattern, *rest), x, values, bias, pattern)


def _linear_backward(dy, x, values, pattern, batch, wanted):
    outputs = dy.shape[-1 if batch is None else 1]
    call = _linear_call(x, values, None, pattern, outputs, batch)
    return _whole(_backward(call, dy, x, values, pattern, wanted), values)


def _conv_forward(x, values, bias, pattern, *rest):
    return _forward(_conv_call(x, values, bias, pattern, *rest), x, values, bias, pattern)


def _conv_backward(dy, x, values, pattern, kernel, stride, padding, dilation, groups, batch, wanted):
    outputs = dy.shape[1]
    conv = kernel, stride, padding, dilation, groups
    call = _conv_call(x, values, None, pattern, outputs, *conv, batch)
    return _whole(_backward(call, dy, x, values, pattern, wanted), values)


def _whole(grads: tuple[Tensor | None, ...], values: Tensor) -> tuple[Tensor, ...]:
    """As operators return them: an unwanted one is empty."""
    return tuple(values.new_empty(0) if grad is None else grad for grad in grads)


def _to_blocked(x: Tensor, lanes: int) -> Tensor:
    check_float("x", x)
    require(x.dim() >= 2, "x must be [batch, channels, ...], not {}", list(x.shape))
    require(lanes > 0 and lanes % 16 == 0, "lanes must be a multiple of 16, not {}", lanes)
    blocked = torch.empty(_blocked_shape(x, lanes), dtype=torch.float32)
    layer = linear_layer(x.shape[0], x.shape[1:].numel(), lanes, False)
    backend().pack(layer, x.contiguous(), blocked, threads())
    return blocked


def _from_blocked(x: Tensor, batch: int) -> Tensor:
    check_float("x", x)
    require(x.dim() >= 3, "x must be [tiles, channels, ..., lanes], not {}", list(x.shape))
    check_blocked(x.shape, batch)
    out = torch.empty((batch, *x.shape[1:-1]), dtype=torch.float32)
    layer = linear_layer(batch, x.shape[1:-1].numel(), x.shape[-1], False)
    backend().unpack(layer, x.contiguous(), out, threads())
    return out


# ---- shapes, for real and fake tensors -----------------------------------------------------------


def _linear_shape(x: torch.Size, out_features: int, batch: int | None) -> tuple[int, ...]:
    return (*x[:-1], out_features) if batch is None else (x[0], out_features, x[2])


def _conv_out_shape(x: torch.Size, out_channels: int, shape: ConvShape) -> tuple[int, ...]:
    return (x[0], out_channels, *shape.out_size, *x[4:])


def _blocked_shape(x: Tensor, lanes: int) -> tuple[int, ...]:
    return ((x.shape[0] + lanes - 1) // lanes, *x.shape[1:], lanes)


def _grads(x: Tensor, values: Tensor, outputs: int, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of x, values and bias; none for an unwanted one."""
    want_x, want_values, want_bias = wanted
    dx = x.new_empty(x.shape if want_x else (0,))
    dw = values.new_empty(values.shape if want_values else (0,))
    return dx, dw, values.new_empty((outputs,) if want_bias else (0,))


def _fake_linear(x, values, bias, pattern, out_features, batch=None):
    return x.new_empty(_linear_shape(x.shape, out_features, batch))


def _fake_linear_backward(dy, x, values, pattern, batch, wanted):
    return _grads(x, values, dy.shape[-1 if batch is None else 1], wanted)


def _fake_conv(x, values, bias, pattern, out_channels, kernel, stride, padding, dilation, groups, batch=None):
    shape = ConvShape(
        x.shape[1], (x.shape[2], x.shape[3]), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    )
    return x.new_empty(_conv_out_shape(x.shape, out_channels, shape))


def _fake_conv_backward(dy, x, values, pattern, kernel, stride, padding, dilation, groups, batch, wanted):
    return _grads(x, values, dy.shape[1], wanted)


_IMPLEMENTATIONS = {
    "sparse_linear": (_linear_forward, _fake_linear),
    "sparse_linear_backward": (_linear_backward, _fake_linear_backward),
    "sparse_conv2d": (_conv_forward, _fake_conv),
    "sparse_conv2d_backward": (_conv_backward, _fake_conv_backward),
    "to_blocked": (_to_blocked, lambda x, lanes: x.new_empty(_blocked_shape(x, lanes))),
    "from_blocked": (_from_blocked, lambda x, batch: x.new_empty((batch, *x.shape[1:-1]))),
}

for _name, (_real, _fake) in _IMPLEMENTATIONS.items():
    torch.library.impl(f"startsparse::{_name}", "CPU", _real, lib=_library)
    torch.library.register_fake(f"startsparse::{_name}", _fake, lib=_library)
    torch.library.register_autocast(f"startsparse::{_name}", "cpu", torch.float32, lib=_library)


# ---- gradients -----------------------------------------------------------------------------------


def _save(ctx, inputs, output):
    x, values, bias, pattern, _, *ctx.rest = inputs
    ctx.save_for_backward(x, values, pattern)
    ctx.wanted = (*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2])


def _gradients(ctx, dy, op):
    x, values, pattern = ctx.saved_tensors
    *conv, batch = ctx.rest
    grads = op(dy, x, values, pattern, *conv, batch, ctx.wanted)
    return (
        *(grad if want else None for grad, want in zip(grads, ctx.wanted, strict=True)),
        None,
        None,
        *(None for _ in ctx.rest),
    )


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "startsparse: sparse layers have no second derivative; use the masked execution for that"
    )


torch.library.register_autograd(
    "startsparse::sparse_linear",
    lambda ctx, dy: _gradients(ctx, dy, torch.ops.startsparse.sparse_linear_backward),
    setup_context=_save,
    lib=_library,
)
torch.library.register_autograd(
    "startsparse::sparse_conv2d",
    lambda ctx, dy: _gradients(ctx, dy, torch.ops.startsparse.sparse_conv2d_backward),
    setup_context=_save,
    lib=_library,
)
for _name in ("sparse_linear_backward", "sparse_conv2d_backward"):
    torch.library.register_autograd(f"startsparse::{_name}", _no_second_derivative, lib=_library)


def _remember(name):
    def setup(ctx, inputs, output):
        ctx.size = inputs[0].shape[0] if name == "to_blocked" else inputs[0].shape[-1]

    return setup


torch.library.register_autograd(
    "startsparse::to_blocked",
    lambda ctx, dy: (torch.ops.startsparse.from_blocked(dy, ctx.size), None),
    setup_context=_remember("to_blocked"),
    lib=_library,
)
torch.library.register_autograd(
    "startsparse::from_blocked",
    lambda ctx, dy: (torch.ops.startsparse.to_blocked(dy, ctx.size), None),
    setup_context=_remember("from_blocked"),
    lib=_library,
)


# ---- the same passes, for eager calls ------------------------------------------------------------

LINEAR = eager.Passes(_linear_call, _forward, _backward, torch.ops.startsparse.sparse_linear_backward)
CONV2D = eager.Passes(_conv_call, _forward, _backward, torch.ops.startsparse.sparse_conv2d_backward)
