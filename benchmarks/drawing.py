"""Claim: drawing the masks of a model of 100 million weights takes at most twice the time of ``torch.bernoulli``.

    python benchmarks/drawing.py              # prints ratios, writes benchmarks/logs/drawing.json
    python benchmarks/drawing.py --repeats 9  # exit status 1 if a ratio is above --bar (2.0)

Both forms of torch's draw are timed on the same shapes: ``torch.bernoulli(p)`` of a tensor of probabilities, and
``tensor.bernoulli_(p)`` into memory that is there already. They and ours take turns, layer by layer and round by round,
so that a busy machine slows down all of them. Ours ends as a bool tensor, and its counts are checked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from startsparse.draw import Drawn

WAYS = ("exact", "torch.bernoulli(p)", "bernoulli", "bernoulli_(p)")  # ours and torch's in turn
DENSITIES = (0.05, 0.1, 0.3, 0.5)
LOG = Path(__file__).parent / "logs" / "drawing.json"


def shapes() -> dict[str, tuple[int, ...]]:
    """ResNet-50's convolutions and a transformer encoder, with their many small layers: 101.6 million weights."""
    found: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    width = 64
    for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            found[f"{name}.conv1"] = (inner, width, 1, 1)
            found[f"{name}.conv2"] = (inner, inner, 3, 3)
            found[f"{name}.conv3"] = (4 * inner, inner, 1, 1)
            if block == 0:
                found[f"{name}.short"] = (4 * inner, width, 1, 1)
            width = 4 * inner
    for block in range(11):
        name = f"encoder.{block}"
        found[f"{name}.attn.in_proj"] = (3 * 768, 768)
        found[f"{name}.attn.out_proj"] = (768, 768)
        found[f"{name}.fc1"] = (3072, 768)
        found[f"{name}.fc2"] = (768, 3072)
    return found | {"head": (10, 768), "gate": (16, 16)}


def drawn(rule: str, seed: int, name: str, shape: tuple[int, ...], density: float) -> torch.Tensor:
    size = math.prod(shape)
    if rule == "exact":
        draw = Drawn(rule, seed, name, size, count=round(density * size))
    else:
        draw = Drawn(rule, seed, name, size, density=density)
    return torch.from_numpy(draw.mask()).view(shape)


def measure(density: float, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of the whole model, by the wall and by the processor; the first round only warms up."""
    rounds: list[dict[str, list[float]]] = []
    for seed in range(repeats + 1):
        total = {way: [0.0, 0.0] for way in WAYS}
        for name, shape in shapes().items():
            probabilities, memory = torch.full(shape, density), torch.empty(shape)
            ways = {
                "exact": partial(drawn, "exact", seed, name, shape, density),
                "torch.bernoulli(p)": partial(torch.bernoulli, probabilities),
                "bernoulli": partial(drawn, "bernoulli", seed, name, shape, density),
                "bernoulli_(p)": partial(memory.bernoulli_, density),
            }
            for way in WAYS:
                wall, cpu = time.perf_counter(), time.process_time()
                mask = ways[way]()
                total[way][0] += time.perf_counter() - wall
                total[way][1] += time.process_time() - cpu
                check(way, name, mask, density)
        rounds.append(total)
    return {
        clock: {way: statistics.median(total[way][i] for total in rounds[1:]) for way in WAYS}
        for i, clock in enumerate(("wall", "cpu"))
    }


def check(way: str, name: str, mask: torch.Tensor, density: float) -> None:
    size, active = mask.numel(), int(mask.count_nonzero())
    slack = 0.5 if way == "exact" else 6 * math.sqrt(size * density * (1 - density)) + 1
    if abs(active - density * size) > slack:
        raise AssertionError(f"{way} drew {active} of {size} positions of {name} at density {density}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--bar", type=float, default=2.0, help="most time over torch.bernoulli(p)")
    parser.add_argument("--log", type=Path, default=LOG)
    options = parser.parse_args()
    total = sum(map(math.prod, shapes().values()))
    print(f"{len(shapes())} layers, {total:,} weights, {torch.get_num_threads()} threads")
    print(
        f"{'density':>8}"
        + "".join(f"{way:>20}" for way in WAYS)
        + "   exact/torch, bernoulli/torch (wall; cpu)"
    )
    rows = []
    for density in options.densities:
        spent = measure(density, options.repeats)
        ratios = {
            clock: {
                f"{rule}/{other}": times[rule] / times[other] for rule in WAYS[::2] for other in WAYS[1::2]
            }
            for clock, times in spent.items()
        }
        rows.append({"density": density, "seconds": spent, "ratios": ratios})
        print(f"{density:>8}" + "".join(f"{spent['wall'][way]:>18.3f} s" for way in WAYS), end="   ")
        print("; ".join(", ".join(f"{ratios[c][f'{r}/{WAYS[1]}']:.2f}" for r in WAYS[::2]) for c in ratios))
    worst = max(row["ratios"]["wall"][f"{rule}/{WAYS[1]}"] for row in rows for rule in WAYS[::2])
    print(f"worst ratio to torch.bernoulli(p), by the wall: {worst:.2f}; bar {options.bar}")
    options.log.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    log = {"weights": total, "repeats": options.repeats, "machine": machine, "rows": rows, "worst": worst}
    options.log.write_text(json.dumps(log, indent=1) + "\n")
    return int(worst > options.bar)


if __name__ == "__main__":
    sys.exit(main())
