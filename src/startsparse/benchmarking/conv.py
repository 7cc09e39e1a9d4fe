"""Convolutions: one training step against the better of dense NCHW and dense channels-last.

    python benchmarks/kernels/bench_conv.py                    # 3 x 3, the shapes of small ResNets
    python benchmarks/kernels/bench_conv.py --pointwise        # 1 x 1, the shapes of ResNet-50

Numbers above 1 are times faster than dense float32, in the same interleaved run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timing import arguments, medians, report, step

from startsparse import kernels
from startsparse.kernels.checks import conv_lanes
from startsparse.kernels.geometry import ConvShape

SQUARE = [(16, 16, 32), (32, 32, 16), (64, 64, 8), (128, 128, 16), (256, 256, 8), (512, 512, 4)]
POINTWISE = [(64, 256, 56), (256, 64, 56), (512, 128, 28), (256, 1024, 14), (1024, 256, 14), (2048, 512, 7)]


def contenders(channels: int, outputs: int, image: int, kernel: int, batch: int, sparsity: float) -> dict:
    """Name -> call, for one convolution of stride 1 that keeps the image's size."""
    torch.manual_seed(0)
    shape = (outputs, channels, kernel, kernel)
    padding = (kernel // 2, kernel // 2)
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
    lanes = conv_lanes(batch, ConvShape(channels, (image, image), (kernel, kernel), padding=padding))
    blocked, blocked_dy = (
        kernels.to_blocked(x.detach(), lanes).requires_grad_(),
        kernels.to_blocked(dy, lanes),
    )

    def sparse(x: torch.Tensor, batch: int | None) -> torch.Tensor:
        return kernels.sparse_conv2d(
            x, values, pattern.blob, outputs, (kernel, kernel), padding=padding, batch=batch
        )

    return {
        "nchw": step([x, weight], lambda: F.conv2d(x, weight, padding=padding), dy),
        "nhwc": step([x_last, weight_last], lambda: F.conv2d(x_last, weight_last, padding=padding), dy_last),
        "masked": step([x, weight], lambda: F.conv2d(x, weight * mask, padding=padding), dy),
        "drop-in": step([x, values], lambda: sparse(x, None), dy),
        "native": step([blocked, values], lambda: sparse(blocked, batch), blocked_dy),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--pointwise", action="store_true", help="1 x 1 convolutions of ResNet-50 shapes")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.6, 0.9, 0.95, 0.99])
    parser.add_argument("--shape", type=int, nargs=3, metavar=("IN", "OUT", "IMAGE"), help="one shape only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = [tuple(options.shape)] if options.shape else POINTWISE if options.pointwise else SQUARE
    kernel = 1 if options.pointwise else 3
    rows = []
    for channels, outputs, image in shapes:
        for batch in options.batch:
            for sparsity in options.sparsity:
                calls = contenders(channels, outputs, image, kernel, batch, sparsity)
                times = medians(calls, options.seconds, options.cold)
                dense = min(times.pop("nchw"), times.pop("nhwc"))
                row = {"in": channels, "out": outputs, "image": image, "batch": batch, "sparsity": sparsity}
                rows.append(row | {"dense ms": dense * 1e3} | {n: dense / t for n, t in times.items()})
    report(rows, options.json)


if __name__ == "__main__":
    main()
