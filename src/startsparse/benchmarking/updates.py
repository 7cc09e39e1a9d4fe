"""What a topology update costs under sparse execution, spread over 100 steps: SET (no gradient) and RigL.

Two linear layers with Adam. Update steps and plain steps of the same run are compared: by the wall clock, and by the
processor time of all threads, which a busy machine disturbs less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from torch import nn

import startsparse as ss

from .timing import Options, Row

_EVERY = 5  # steps from one update to the next, here
_SPREAD = 100  # steps over which the cost is spread in the figure


def rows(options: Options) -> Iterator[Row]:
    """One row for each width and method."""
    for width in options.sizes or ((512,) if options.quick else (1024, 4096)):
        for sparsity in options.sparsities or (0.95,):
            for method in (ss.SET, ss.RigL):
                yield measured(method, width, (options.batches or (128,))[0], sparsity, options)


def measured(method: type, width: int, batch: int, sparsity: float, options: Options) -> Row:
    """Medians of plain and of update steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    steps = 10**6
    chosen = method(1 - sparsity, update_interval=_EVERY, drop_schedule="constant", update_end=steps)
    _ = ss.attach(model, optimizer, chosen, total_steps=steps, execution="sparse")
    x = torch.randn(batch, width)
    plain: list[tuple[float, float]] = []
    update: list[tuple[float, float]] = []
    end, step = time.perf_counter() + options.seconds, 0
    while time.perf_counter() < end or len(update) < 4:
        wall, cpu = time.perf_counter(), time.process_time()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken = time.perf_counter() - wall, time.process_time() - cpu
        (update if step and step % _EVERY == 0 else plain).append(taken)
        step += 1
    step_wall, step_cpu = (statistics.median(times) for times in zip(*plain[1:], strict=True))
    wall, cpu = (statistics.median(times) for times in zip(*update[1:], strict=True))
    return {
        "method": method.name,  # type: ignore[attr-defined]
        "width": width,
        "batch": batch,
        "sparsity": sparsity,
        "step ms": 1e3 * step_wall,
        "update step ms": 1e3 * wall,
        f"% over {_SPREAD}": 100 * (wall - step_wall) / (_SPREAD * step_wall),
        f"% over {_SPREAD}, CPU": 100 * (cpu - step_cpu) / (_SPREAD * step_cpu),
        "updates": len(update),
    }
