"""What a topology update costs under sparse execution, spread over 100 steps: SET (no gradient) and RigL.

An update step is timed against a plain step of the same net in the same run; two Linear layers, 95 %, batch 128, Adam.

    python benchmarks/update_cost.py [--json benchmarks/logs/update_cost.jsonl]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

import startsparse as ss

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import timing

EVERY = 5


def measure(method: type, width: int, rounds: int) -> dict:
    """Medians of plain and update steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    steps = EVERY * rounds
    chosen = method(0.05, update_interval=EVERY, drop_schedule="constant", update_end=steps)
    _ = ss.attach(model, optimizer, chosen, execution="sparse")
    x = torch.randn(128, width)
    plain, update = [], []
    for step in range(steps):
        start = time.perf_counter()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        (update if step and step % EVERY == 0 else plain).append(time.perf_counter() - start)
    step, with_update = statistics.median(plain), statistics.median(update[1:])
    amortised = 100 * (with_update - step) / (100 * step)
    row = {"method": method.name, "width": width, "step ms": 1e3 * step, "update step ms": 1e3 * with_update}
    return row | {"% over 100 steps": amortised}


def main() -> None:
    """Every method at every width."""
    options = timing.arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(m, w, 30 if w == 1024 else 12) for w in (1024, 4096) for m in (ss.SET, ss.RigL)]
    timing.report(rows, options.json)


if __name__ == "__main__":
    main()
