"""Blocks of convolutions and batch norms, with a ReLU after each but perhaps the last, as one operation.

    x -> conv -> norm -> relu -> conv -> norm (+ a way around) -> relu

Between the links only what the convolutions compute is ever written: see ``norms``. Activations are blocked,
[tiles, channels, height, width, lanes].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from startsparse.kernels import observe
from startsparse.kernels.checks import check_float, check_weight, require
from startsparse.kernels.functional import from_blocked
from startsparse.kernels.geometry import ConvShape, Layer, Pair, conv_layer
from startsparse.kernels.library import backend
from startsparse.kernels.native import NativeBackend
from startsparse.kernels.norms import Fused, Norm


@dataclass(frozen=True)
class ConvNorm:
    """A sparse convolution and the batch norm after it.

    Attributes:
        values, pattern, bias: of the convolution; ``kernel_size`` to ``groups`` as in ``sparse_conv2d``.
        eps, norm_weight, norm_bias: of the norm; without weight and bias it has none.
        running: mean and variance to use; None: those of the batch.
    """

    values: Tensor
    pattern: Tensor
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: Tensor | None
    eps: float
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    running: tuple[Tensor, Tensor] | None = None

    def layer(self, x_shape: Sequence[int], batch: int) -> Layer:
        """The convolution of a blocked x of this shape."""
        _, channels, height, width, lanes = x_shape
        shape = ConvShape(
            channels, (height, width), self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        )
        require(min(shape.out_size) > 0, "the kernel is larger than the padded image: {}", shape)
        check_weight(self.pattern, self.values, self.bias, self.out_channels, self.groups)
        return conv_layer(batch, shape, lanes, True)

    def parameters(self) -> tuple[Tensor | None, ...]:
        """Those that may want a gradient."""
        return self.values, self.bias, self.norm_weight, self.norm_bias


def available() -> bool:
    """Whether blocks can be computed: with the compiled kernels only."""
    return isinstance(backend(), NativeBackend)


def run_block(
    x: Tensor, batch: int, links: Sequence[ConvNorm], around: Tensor | None = None, relu: bool = True
) -> tuple[Tensor, list[Norm]]:
    """The output of a block, blocked, and its norms (those of the batch have moments for running statistics).

    Args:
        x: float32 [tiles, channels, height, width, lanes]; lanes a multiple of 16.
        batch: items in x.
        links: one or more.
        around: is added to the last norm's output, of its shape; x itself is recognised.
        relu: whether there is one at the end, too.
    """
    check_float("x", x)
    norms: list[Norm] = []
    parameters = [p for link in links for p in link.parameters()]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, around, *parameters)):
        own = around is x
        out = _Block.apply(x, None if own else around, own, batch, tuple(links), relu, norms, *parameters)
        return out, norms  # type: ignore[return-value]
    return _forward(x, around, batch, links, relu, norms)[0], norms


@cache
def _fused(native: NativeBackend) -> Fused:
    return Fused(native)


def _kernels() -> Fused:
    native = backend()
    assert isinstance(native, NativeBackend)
    return _fused(native)


def _forward(
    x: Tensor, around: Tensor | None, batch: int, links: Sequence[ConvNorm], relu: bool, norms: list[Norm]
) -> tuple[Tensor, list[Tensor]]:
    """The output, and what each convolution gave."""
    kernels, computed, pre = _kernels(), [], None
    x = x.contiguous()
    for link in links:
        layer = link.layer(x.shape, batch)
        assert layer.conv is not None
        y = x.new_empty((x.shape[0], link.out_channels, *layer.conv.out_size, x.shape[4]))
        moments = None if link.running else x.new_empty(y.shape[0], link.out_channels, 2)
        kernels.forward(layer, link.pattern, x, pre, link.values.contiguous(), link.bias, y, moments)
        of_norm = link.eps, link.norm_weight, link.norm_bias
        if moments is None:
            assert link.running is not None
            norms.append(kernels.running_norm(*link.running, *of_norm))
        else:
            norms.append(kernels.batch_norm(y, batch, moments, *of_norm))
        computed.append(y)
        x, pre = y, norms[-1].pre
    if around is not None:
        require(around.shape == x.shape, "what goes around must be {}, not {}", x.shape, around.shape)
        around = around.contiguous()
    out = torch.empty_like(x)
    kernels.apply(x, norms[-1].pre, around, relu, out, batch)
    return out, computed


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, around, own, batch, links, relu, norms, *parameters):
        x = x.contiguous()
        out, computed = _forward(x, x if own else around, batch, links, relu, norms)
        kept = [t for y, norm in zip(computed, norms, strict=True) for t in (y, *norm)]
        ctx.save_for_backward(x, out if relu else None, *kept, *(link.values for link in links))
        ctx.call = batch, links, own
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout):
        batch, links, own = ctx.call
        x, out, *kept = ctx.saved_tensors
        want_x, want_around, *_ = ctx.needs_input_grad
        wanted = ctx.needs_input_grad[7:]
        kernels, n = _kernels(), len(links)
        ys, pres, mores = kept[0 : 3 * n : 3], kept[1 : 3 * n : 3], kept[2 : 3 * n : 3]
        dout = dout.contiguous()
        around = dz = dout if out is None else torch.empty_like(dout)
        sums = kernels.gate(dout, out, ys[-1], pres[-1], dz, batch)
        grads: list[Tensor | None] = []
        dx = None
        for i in reversed(range(n)):
            link, y = links[i], ys[i]
            want_values, want_bias, want_weight, want_shift = wanted[4 * i : 4 * i + 4]
            post, dweight, dshift = kernels.norm_gradient(y, batch, sums, pres[i], mores[i])
            source, pre = (x, None) if i == 0 else (ys[i - 1], pres[i - 1])
            if observe.is_watched(link.pattern):
                observe.notify(link.pattern, *_seen(source, pre, dz, y, post, batch))
            dx = torch.empty_like(source) if i or want_x else None
            dw = torch.empty_like(link.values) if want_values else None
            db = link.values.new_empty(link.out_channels) if want_bias else None
            before = None if i == 0 else y.new_empty(source.shape[0], source.shape[1], 2)
            kernels.backward(
                link.layer(source.shape, batch), link.pattern, source, pre, link.values.contiguous(), dz, y, post,
                around if own and i == 0 else None, dx, dw, db, before,
            )  # fmt: skip
            grads[:0] = dw, db, dweight if want_weight else None, dshift if want_shift else None
            if before is not None and dx is not None:
                dz, sums = dx, before
        return dx, around if want_around else None, None, None, None, None, None, *grads


def _seen(
    source: Tensor, pre: Tensor | None, dz: Tensor, y: Tensor, post: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """The row-major input and output gradient of a convolution."""
    a, b, mean, c = post.view(4, 1, -1, 1, 1, 1)
    if pre is not None:
        scale, shift, _ = pre.view(3, 1, -1, 1, 1, 1)
        source = (source * scale + shift).relu()
    return from_blocked(source, batch), from_blocked(a * dz + b * (y - mean) + c, batch)
