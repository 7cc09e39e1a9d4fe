"""Timing that can be believed on a busy machine.

Contenders run interleaved, in random order. Each sample follows an untimed call of the same contender, so that
it finds the caches as its own steps leave them, as in training; ``--cold`` leaves that call out, and times each
contender on what the others left in the caches. A sample during which the process was pre-empted (its count of
involuntary context switches moved) is dropped. What is reported is the median of the clean samples, and ratios
of medians of one such run; times of different runs are not compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def medians(
    contenders: dict[str, Callable[[], object]], seconds: float = 1.0, cold: bool = False
) -> dict[str, float]:
    """Median seconds of one call of each contender.

    Args:
        contenders: Name -> what to time.
        seconds: About how long to measure, all together.
        cold: Leave out the untimed call before each sample.
    """
    for call in contenders.values():
        for _ in range(3):
            call()
    clean: dict[str, list[float]] = {name: [] for name in contenders}
    dropped: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(len(clean[n]) + len(dropped[n]) for n in order) < 5:
        shuffle(order)
        for name in order:
            if not cold:
                contenders[name]()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            start = time.perf_counter()
            contenders[name]()
            taken = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            (clean if before == after else dropped)[name].append(taken)
    return {name: statistics.median(clean[name] or dropped[name]) for name in contenders}


def step(
    inputs: list[torch.Tensor], call: Callable[[], torch.Tensor], dy: torch.Tensor
) -> Callable[[], None]:
    """One training step of a layer: forward and all gradients, set to None first."""

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        call().backward(dy)

    return run


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long to measure each row")
    parser.add_argument("--cold", action="store_true", help="no untimed call before each sample")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object per line")
    return parser


def report(rows: list[dict], path: Path | None) -> None:
    """Print rows as a table; append them to ``path`` with what they were measured on."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    for line in [names, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if path:
        where = {
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        with path.open("a") as file:
            file.writelines(json.dumps({**row, **where}) + "\n" for row in rows)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
