"""Claim: time and memory to embed a net grow with what is used of the source, not with its positions.

    python benchmarks/embedding.py                  # fully connected targets: four sizes at density 0.3, one at four densities
    python benchmarks/embedding.py --densities 0.05 # the same target in a source of 40 billion positions

Each embedding has a process of its own, on one thread. Memory is what it holds at its highest above its state before;
``verify`` checks the result against the target, edge by edge. Exit status 1 where memory is more than ``--bar`` bytes an
edge that is used, beside 100 MB. (The time grows with the rows that are drawn, those of the units that are used.)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from startsparse import theory

LOG = Path(__file__).parent / "logs" / "embedding.json"
SIZES = ((75, 25), (150, 50), (300, 100), (600, 200))
BESIDE = 100e6


def status(field: str) -> int:
    """A line of the process's memory, in bytes: VmRSS (now) or VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def measure(widths: tuple[int, ...], density: float) -> dict[str, object]:
    """One embedding, checked."""
    torch.set_num_threads(1)
    _ = torch.manual_seed(0)
    sizes = (784, *widths, 10)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    before, begin, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
    found = theory.embed(net, density=density, box=(0.0, 1.0))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    memory = status("VmHWM") - before
    _ = found.verify(net)
    return {
        "widths": list(widths), "density": density, "target_weights": sum(p.numel() for p in net.parameters() if p.dim() > 1),
        "positions": found.certificate.source_positions, "edges": found.certificate.edges,
        "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "bytes": memory,
        "error": found.certificate.error_measured,
    }  # fmt: skip


def main() -> int:
    """Every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.5, 0.2, 0.1])
    parser.add_argument("--bar", type=float, default=80.0, help="bytes an edge")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(*json.loads(given.case))))
        return 0
    cases = [(widths, 0.3) for widths in SIZES] + [((300, 100), density) for density in given.densities]
    rows = []
    print(f"{'target':>16} {'density':>8} {'positions':>12} {'edges':>10} {'seconds':>8} {'MB':>6}")
    for case in cases:
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(case)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        name = "-".join(map(str, (784, *row["widths"], 10)))
        print(
            f"{name:>16} {row['density']:>8g} {row['positions']:>12,} {row['edges']:>10,} {row['seconds']:>8.1f} "
            f"{row['bytes'] / 1e6:>6.0f}", flush=True,
        )  # fmt: skip
    kept = [row["bytes"] - BESIDE <= given.bar * row["edges"] for row in rows]
    _ = LOG.write_text(
        json.dumps({"bar": given.bar, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
    )
    print("memory within the bar" if all(kept) else "MEMORY ABOVE THE BAR")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
