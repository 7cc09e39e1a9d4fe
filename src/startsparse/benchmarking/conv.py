"""Convolutions: one training step against the better of dense NCHW and dense channels-last, and others.

Numbers above 1 are times faster than dense float32, in the same interleaved run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .. import kernels
from ..kernels.checks import conv_lanes
from ..kernels.geometry import ConvShape
from . import rivals
from .timing import Options, Row, measure, step

SQUARE = [(16, 16, 32), (32, 32, 16), (64, 64, 8), (128, 128, 16), (256, 256, 8), (512, 512, 4)]
POINTWISE = [(64, 256, 56), (256, 64, 56), (512, 128, 28), (256, 1024, 14), (1024, 256, 14), (2048, 512, 7)]
"""Channels in and out, and the image's side: those of small ResNets, and the 1 x 1 ones of ResNet-50."""


def square(options: Options) -> Iterator[Row]:
    """3 x 3 convolutions, the shapes of small ResNets; ``sizes`` chooses by the number of channels."""
    return _rows(SQUARE[1:3] if options.quick else SQUARE, 3, 128, options)


def pointwise(options: Options) -> Iterator[Row]:
    """1 x 1 convolutions, the shapes of ResNet-50; ``sizes`` chooses by the number of input channels."""
    return _rows(POINTWISE[4:5] if options.quick else POINTWISE, 1, 32, options)


def _rows(shapes: list[tuple[int, int, int]], kernel: int, batch: int, options: Options) -> Iterator[Row]:
    if options.sizes:
        image = {shape[0]: shape for shape in [*shapes, *((n, n, 8) for n in options.sizes)][::-1]}
        shapes = [image[size] for size in options.sizes]
    for channels, outputs, side in shapes:
        for items in options.batches or (batch,):
            for sparsity in options.sparsities or ((0.9,) if options.quick else (0.6, 0.9, 0.95, 0.99)):
                times = measure(contenders(channels, outputs, side, kernel, items, sparsity), options)
                row = {"in": channels, "out": outputs, "image": side, "batch": items, "sparsity": sparsity}
                yield row | times.against("nchw", "nhwc")


def contenders(
    channels: int, outputs: int, image: int, kernel: int, batch: int, sparsity: float
) -> dict[str, Callable[[], None]]:
    """Name -> training step, for one convolution of stride 1 that keeps the image's size."""
    torch.manual_seed(0)
    shape = (outputs, channels, kernel, kernel)
    padding = kernel // 2
    total = outputs * channels * kernel * kernel
    positions = torch.randperm(total)[: round(total * (1 - sparsity))].sort().values
    pattern = kernels.Pattern.build(positions, outputs, channels * kernel * kernel, taps=kernel * kernel)
    mask = torch.zeros(total).index_fill_(0, positions, 1.0).view(shape)
    weight = (torch.randn(shape) * mask).requires_grad_()
    values = pattern.take_from(weight).requires_grad_()
    x = torch.randn(batch, channels, image, image, requires_grad=True)
    dy = torch.randn(batch, outputs, image, image)
    last = torch.channels_last
    x_last = x.detach().contiguous(memory_format=last).requires_grad_()
    weight_last = weight.detach().contiguous(memory_format=last).requires_grad_()
    dy_last = dy.contiguous(memory_format=last)
    geometry = ConvShape(channels, (image, image), (kernel, kernel), padding=(padding, padding))
    lanes = conv_lanes(batch, geometry)
    blocked, blocked_dy = (
        kernels.to_blocked(x.detach(), lanes).requires_grad_(),
        kernels.to_blocked(dy, lanes),
    )

    def ours(x: torch.Tensor, batch: int | None) -> torch.Tensor:
        pads = (padding, padding)
        return kernels.sparse_conv2d(
            x, values, pattern.blob, outputs, (kernel, kernel), padding=pads, batch=batch
        )

    return {
        "nchw": step([x, weight], lambda: F.conv2d(x, weight, padding=padding), dy),
        "nhwc": step([x_last, weight_last], lambda: F.conv2d(x_last, weight_last, padding=padding), dy_last),
        "masked": step([x, weight], lambda: F.conv2d(x, weight * mask, padding=padding), dy),
        **rivals.conv(weight.detach(), padding, x, dy),
        "drop-in": step([x, values], lambda: ours(x, None), dy),
        "native": step([blocked, values], lambda: ours(blocked, batch), blocked_dy),
    }
