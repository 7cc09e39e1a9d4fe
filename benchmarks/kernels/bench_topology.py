"""What a topology event costs, as a share of the training steps between two events.

    python benchmarks/kernels/bench_topology.py --sizes 1024 4096 --every 100

An event drops and grows a share of a layer's weights: the new pattern is built, and the values and two
moments move. What a method's whole update costs on top is in ``benchmarks/update_cost.py``.
"""

from __future__ import annotations

import torch
from timing import arguments, medians, report, step

from startsparse import kernels


def contenders(size: int, batch: int, sparsity: float, share: float) -> dict:
    """Name -> call, for one layer of ``size`` x ``size``."""
    torch.manual_seed(0)
    count = round(size * size * (1 - sparsity))
    positions = torch.randperm(size * size)[:count].sort().values
    free = torch.ones(size * size, dtype=torch.bool).index_fill_(0, positions, False).nonzero().flatten()
    moved = round(count * share)
    drop = positions[torch.randperm(count)[:moved]].sort().values
    grow = free[torch.randperm(len(free))[:moved]].sort().values
    pattern = kernels.Pattern.build(positions, size, size)
    values = torch.randn(count, requires_grad=True)
    state = [values.detach(), torch.randn(count), torch.rand(count)]
    x, dy = torch.randn(batch, size, requires_grad=True), torch.randn(batch, size)
    return {
        "step": step([x, values], lambda: kernels.sparse_linear(x, values, pattern.blob, size), dy),
        "event": lambda: pattern.move(pattern.changed(drop, grow), state),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--share", type=float, default=0.2, help="of the weights that an event replaces")
    parser.add_argument("--every", type=int, default=100, help="steps from one event to the next")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for size in options.sizes:
        for sparsity in options.sparsity:
            calls = contenders(size, options.batch, sparsity, options.share)
            times = medians(calls, options.seconds, options.cold)
            between = options.every * times["step"]
            row: dict = {"size": size, "sparsity": sparsity} | {f"{n} ms": t * 1e3 for n, t in times.items()}
            row["event %"] = 100 * times["event"] / between
            rows.append(row)
    report(rows, options.json)


if __name__ == "__main__":
    main()
