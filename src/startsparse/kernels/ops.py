"""The operators, registered with torch: ``startsparse::sparse_linear``, ``sparse_conv2d`` and the blocked layout's two.

They have fake implementations, gradients and an autocast rule (float32 inside, whatever the region's dtype), so they work
under ``torch.compile``, ``torch.export`` and autocast. Shapes and dtypes are checked here; a pattern's blob is checked for what
constant time allows (its header and size), so give them blobs that ``Pattern.build`` made.

All activations and values are float32 on the CPU. Each weight's gradient has the shape of ``values``: the dense gradient never
exists. Second derivatives are not implemented, and say so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from startsparse.kernels.geometry import ConvShape, Layer, conv_layer, lanes_for, linear_layer
from startsparse.kernels.library import backend, threads
from startsparse.kernels.observe import notify

_FEW = 1 << 15  # multiply-adds that are not worth waking a second thread for

_library = torch.library.Library("startsparse", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_CONV = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups"
_library.define(
    "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor pattern, SymInt out_features, SymInt? batch=None) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "sparse_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor pattern, SymInt? batch, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    f"sparse_conv2d(Tensor x, Tensor values, Tensor? bias, Tensor pattern, SymInt out_channels, {_CONV}, SymInt? batch=None)"
    " -> Tensor",
    tags=_TAGS,
)
_library.define(
    f"sparse_conv2d_backward(Tensor dy, Tensor x, Tensor values, Tensor pattern, {_CONV}, SymInt? batch, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define("to_blocked(Tensor x, SymInt lanes) -> Tensor", tags=_TAGS)
_library.define("from_blocked(Tensor x, SymInt batch) -> Tensor", tags=_TAGS)


# ---- what a call must look like ------------------------------------------------------------------------------------


def _require(condition: bool, *words: object) -> None:
    if not condition:
        raise ValueError("startsparse: " + " ".join(str(word) for word in words))


def _check_tensors(values: Tensor, bias: Tensor | None, pattern: Tensor, outputs: int, **activations: Tensor) -> None:
    """Dtype, device and the shapes that do not depend on the layer."""
    tensors = {"values": values, **activations, **({} if bias is None else {"bias": bias})}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise ValueError(
                f"startsparse: {name} must be a float32 tensor on the CPU, not {tensor.dtype} {tensor.layout} on {tensor.device}"
            )
    if pattern.dtype != torch.uint8 or pattern.device.type != "cpu" or pattern.dim() != 1 or not pattern.is_contiguous():
        raise ValueError("startsparse: the pattern must be a contiguous 1-d uint8 tensor on the CPU, as Pattern.build makes it")
    if pattern.numel() < 128:
        raise ValueError("startsparse: the pattern is not one that Pattern.build made (or it was cut short)")
    rows, nnz = _rows_and_weights(pattern)
    if values.shape != (nnz,):
        raise ValueError(f"startsparse: values must be [{nnz}], one per weight of the pattern, not {list(values.shape)}")
    if rows != outputs or (bias is not None and bias.shape != (outputs,)):
        shape = None if bias is None else list(bias.shape)
        raise ValueError(f"startsparse: the pattern has {rows} outputs, the bias is {shape}, but {outputs} outputs were asked for")


def _rows_and_weights(pattern: Tensor) -> tuple[int, int]:
    head = pattern[16:48].view(torch.int64).tolist()
    return head[0], head[3]


def _linear(x: Tensor, batch: int | None) -> tuple[Layer, int]:
    """The layer that takes x: row-major [..., features], or blocked [tiles, features, lanes] of ``batch`` items."""
    if batch is None:
        _require(x.dim() >= 1, "x must be [..., features], not", list(x.shape))
        features = x.shape[-1]
        items = x.numel() // features if features else x.shape[:-1].numel()
        return linear_layer(items, features, lanes_for(items), False), items
    _require(x.dim() == 3, "blocked x must be [tiles, features, lanes], not", list(x.shape))
    _check_blocked(x, batch)
    return linear_layer(batch, x.shape[1], x.shape[2], True), batch


def _conv(x: Tensor, batch: int | None, kernel, stride, padding, dilation, groups: int) -> tuple[Layer, int]:
    """The convolution that takes x: row-major [batch, channels, height, width], or blocked with lanes last."""
    dims = "[batch, channels, height, width]" if batch is None else "[tiles, channels, height, width, lanes]"
    _require(x.dim() == (4 if batch is None else 5), "x must be", dims, "not", list(x.shape))
    shape = ConvShape(
        x.shape[1], (x.shape[2], x.shape[3]), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups
    )
    _require(groups > 0 and x.shape[1] % groups == 0, x.shape[1], "channels do not divide into", groups, "groups")
    _require(min(*kernel, *stride, *dilation) > 0 and min(padding) >= 0, "no such convolution:", shape)
    _require(min(shape.out_size) > 0, "the kernel", list(kernel), "is larger than the padded image of", list(x.shape[2:4]))
    if batch is None:
        return conv_layer(x.shape[0], shape, conv_lanes(x.shape[0], shape), False), x.shape[0]
    _check_blocked(x, batch)
    return conv_layer(batch, shape, x.shape[-1], True), batch


def conv_lanes(batch: int, shape: ConvShape) -> int:
    """Items per tile for a convolution: its lines fill the vectors as well."""
    height, width = shape.out_size
    return lanes_for(batch, height * width if shape.kernel[1] == 1 else width)


def _check_blocked(x: Tensor, batch: int) -> None:
    tiles, lanes = x.shape[0], x.shape[-1]
    _require(lanes > 0 and lanes % 16 == 0, "blocked x needs a multiple of 16 lanes, not", lanes)
    _require(tiles == -(-batch // lanes), tiles, "tiles of", lanes, "lanes do not hold a batch of", batch)


def _team(values: Tensor, layer: Layer) -> int:
    g = layer.geometry
    return 1 if values.numel() * g.batch * g.out_pixels <= _FEW and g.batch * g.channels * g.plane <= _FEW else threads()


# ---- passes --------------------------------------------------------------------------------------------------------


def _forward(layer: Layer, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: tuple[int, ...]) -> Tensor:
    y = torch.empty(shape, dtype=torch.float32)
    bias = None if bias is None else bias.contiguous()
    backend().forward(layer, pattern, x.contiguous(), values.contiguous(), bias, y, _team(values, layer))
    return y


def _backward(
    layer: Layer, dy: Tensor, x: Tensor, values: Tensor, pattern: Tensor, outputs: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, values and bias; an unwanted one is empty."""
    shapes = (x.shape, values.shape, (outputs,))
    grads = [torch.empty(shape if want else (0,), dtype=torch.float32) for shape, want in zip(shapes, wanted, strict=True)]
    given = [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    backend().backward(layer, pattern, x, dy, values, *given, _team(values, layer))
    return tuple(grads)


def _linear_forward(x, values, bias, pattern, out_features, batch=None):
    _check_tensors(values, bias, pattern, out_features, x=x)
    layer, _ = _linear(x, batch)
    return _forward(layer, x, values, bias, pattern, _linear_shape(x, out_features, batch))


def _linear_backward(dy, x, values, pattern, batch, wanted):
    outputs = dy.shape[-1] if batch is None else dy.shape[1]
    _check_tensors(values, None, pattern, outputs, x=x, dy=dy)
    layer, _ = _linear(x, batch)
    _require(dy.shape == _linear_shape(x, outputs, batch), "dy is", list(dy.shape), "but x is", list(x.shape))
    if batch is None:
        notify(pattern, x, dy)
    return _backward(layer, dy, x, values, pattern, outputs, wanted)


def _conv_forward(x, values, bias, pattern, out_channels, kernel_size, stride, padding, dilation, groups, batch=None):
    _check_tensors(values, bias, pattern, out_channels, x=x)
    layer, _ = _conv(x, batch, kernel_size, stride, padding, dilation, groups)
    _check_groups(pattern, groups)
    return _forward(layer, x, values, bias, pattern, _conv_shape(x, out_channels, layer.conv.out_size))


def _conv_backward(dy, x, values, pattern, kernel_size, stride, padding, dilation, groups, batch, wanted):
    _check_tensors(values, None, pattern, dy.shape[1], x=x, dy=dy)
    layer, _ = _conv(x, batch, kernel_size, stride, padding, dilation, groups)
    _check_groups(pattern, groups)
    expected = _conv_shape(x, dy.shape[1], layer.conv.out_size)
    _require(dy.shape == expected, "dy is", list(dy.shape), "but must be", list(expected))
    if batch is None:
        notify(pattern, x, dy)
    return _backward(layer, dy, x, values, pattern, dy.shape[1], wanted)


def _check_groups(pattern: Tensor, groups: int) -> None:
    built = int(pattern[32:40].view(torch.int64))
    _require(built == groups, "the pattern was built for", built, "groups, not", groups)


def _to_blocked(x: Tensor, lanes: int) -> Tensor:
    _require(x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() >= 2, "x must be float32 [batch, channels, ...]")
    _require(lanes > 0 and lanes % 16 == 0, "lanes must be a multiple of 16, not", lanes)
    blocked = torch.empty(_blocked_shape(x, lanes), dtype=torch.float32)
    layer = linear_layer(x.shape[0], x.shape[1:].numel(), lanes, False)
    backend().pack(layer, x.contiguous(), blocked, threads())
    return blocked


def _from_blocked(x: Tensor, batch: int) -> Tensor:
    _require(x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() >= 3, "x must be float32 [tiles, channels, ..., lanes]")
    _check_blocked(x, batch)
    out = torch.empty((batch, *x.shape[1:-1]), dtype=torch.float32)
    layer = linear_layer(batch, x.shape[1:-1].numel(), x.shape[-1], False)
    backend().unpack(layer, x.contiguous(), out, threads())
    return out


# ---- shapes, for real and fake tensors -----------------------------------------------------------------------------


def _linear_shape(x: Tensor, out_features: int, batch: int | None) -> tuple[int, ...]:
    return (*x.shape[:-1], out_features) if batch is None else (x.shape[0], out_features, x.shape[2])


def _conv_shape(x: Tensor, out_channels: int, out_size: tuple[int, int]) -> tuple[int, ...]:
    return (x.shape[0], out_channels, *out_size, *x.shape[4:])


def _blocked_shape(x: Tensor, lanes: int) -> tuple[int, ...]:
    return ((x.shape[0] + lanes - 1) // lanes, *x.shape[1:], lanes)


def _fake_grads(x: Tensor, values: Tensor, outputs: int, wanted: list[bool]) -> tuple[Tensor, ...]:
    shapes = (x.shape, values.shape, (outputs,))
    return tuple(x.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))


def _fake_conv(x, values, bias, pattern, out_channels, kernel_size, stride, padding, dilation, groups, batch=None):
    shape = ConvShape(x.shape[1], (x.shape[2], x.shape[3]), tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    return x.new_empty(_conv_shape(x, out_channels, shape.out_size))


_IMPLEMENTATIONS = {
    "sparse_linear": (
        _linear_forward,
        lambda x, values, bias, pattern, out_features, batch=None: x.new_empty(_linear_shape(x, out_features, batch)),
    ),
    "sparse_linear_backward": (
        _linear_backward,
        lambda dy, x, values, pattern, batch, wanted: _fake_grads(
            x, values, dy.shape[-1] if batch is None else dy.shape[1], wanted
        ),
    ),
    "sparse_conv2d": (_conv_forward, _fake_conv),
    "sparse_conv2d_backward": (
        _conv_backward,
        lambda dy, x, values, pattern, kernel_size, stride, padding, dilation, groups, batch, wanted: _fake_grads(
            x, values, dy.shape[1], wanted
        ),
    ),
    "to_blocked": (_to_blocked, lambda x, lanes: x.new_empty(_blocked_shape(x, lanes))),
    "from_blocked": (_from_blocked, lambda x, batch: x.new_empty((batch, *x.shape[1:-1]))),
}

for _name, (_real, _fake) in _IMPLEMENTATIONS.items():
    torch.library.impl(f"startsparse::{_name}", "CPU", _real, lib=_library)
    torch.library.register_fake(f"startsparse::{_name}", _fake, lib=_library)
    torch.library.register_autocast(f"startsparse::{_name}", "cpu", torch.float32, lib=_library)


# ---- gradients -----------------------------------------------------------------------------------------------------


def _save(ctx, inputs, output):
    x, values, bias, pattern, _, *ctx.rest = inputs
    ctx.save_for_backward(x, values, pattern)
    ctx.wanted = (*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2])


def _gradients(ctx, dy, op):
    x, values, pattern = ctx.saved_tensors
    *conv, batch = ctx.rest
    grads = op(dy, x, values, pattern, *conv, batch, ctx.wanted)
    return (*(grad if want else None for grad, want in zip(grads, ctx.wanted, strict=True)), None, None, *(None for _ in ctx.rest))


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("startsparse: sparse layers have no second derivative; use the masked execution for that")


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
