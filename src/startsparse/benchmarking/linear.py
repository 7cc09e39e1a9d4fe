"""Linear layers: one training step (or the forward pass alone) against dense, masked-dense and torch-CSR.

    python benchmarks/kernels/bench_linear.py --sizes 512 1024 2048 --batch 128

Numbers above 1 are times faster than dense ``F.linear`` in float32, in the same interleaved run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timing import arguments, medians, report, step
from torch_csr import csr_linear

from startsparse import kernels


def contenders(size: int, batch: int, sparsity: float, forward: bool) -> dict:
    """Name -> call, for one layer of ``size`` x ``size``."""
    torch.manual_seed(0)
    count = round(size * size * (1 - sparsity))
    positions = torch.randperm(size * size)[:count].sort().values
    pattern = kernels.Pattern.build(positions, size, size)
    weight = torch.randn(size, size)
    mask = torch.zeros(size * size).index_fill_(0, positions, 1.0).view(size, size)
    values = pattern.take_from(weight).requires_grad_()
    weight = (weight * mask).requires_grad_()
    bias = torch.randn(size, requires_grad=True)
    x, dy = torch.randn(batch, size, requires_grad=True), torch.randn(batch, size)
    lanes = kernels.lanes_for(batch)
    blocked = kernels.to_blocked(x.detach(), lanes).requires_grad_()
    blocked_dy = kernels.to_blocked(dy, lanes)
    feature_major, feature_dy = x.detach().t().contiguous().requires_grad_(), dy.t().contiguous()
    csr = csr_linear(weight.detach(), mask)
    csr_values = csr.values.clone().requires_grad_()
    calls = {
        "dense": ([x, weight, bias], lambda: F.linear(x, weight, bias), dy),
        "masked": ([x, weight, bias], lambda: F.linear(x, weight * mask, bias), dy),
        "torch-csr": (
            [feature_major, csr_values, bias],
            lambda: csr(feature_major, csr_values, bias),
            feature_dy,
        ),
        "drop-in": (
            [x, values, bias],
            lambda: kernels.sparse_linear(x, values, pattern.blob, size, bias),
            dy,
        ),
        "native": (
            [blocked, values, bias],
            lambda: kernels.sparse_linear(blocked, values, pattern.blob, size, bias, batch=batch),
            blocked_dy,
        ),
    }
    if forward:
        return {name: torch.no_grad()(call) for name, (_, call, _) in calls.items()}
    return {name: step(inputs, call, dy) for name, (inputs, call, dy) in calls.items()}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024])
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--forward", action="store_true", help="the forward pass alone, without gradients")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for size in options.sizes:
        for batch in options.batch:
            for sparsity in options.sparsity:
                times = medians(
                    contenders(size, batch, sparsity, options.forward), options.seconds, options.cold
                )
                dense = times.pop("dense")
                row = {"size": size, "batch": batch, "sparsity": sparsity, "dense ms": dense * 1e3}
                rows.append(row | {name: dense / taken for name, taken in times.items()})
    report(rows, options.json)


if __name__ == "__main__":
    main()
