"""Claim: a network of billions of weights under sparse execution is saved and loaded without anything of dense size.

    python benchmarks/file_memory.py                    # one layer of 2.1 billion weights at 99.5 % sparsity
    python benchmarks/file_memory.py --layers 4         # four of them
    python benchmarks/file_memory.py --density 1e-4     # the same weights, hardly any of them live

Saving and loading run in a process each. Memory is what the process holds beyond its state after the import; the
"peak" of a step includes the model and counts up to the highest moment of the step. The loaded network's values and
positions are compared with the saved one's by their hashes. What a step needs beside the model is a matter of the
live weights alone: exit status 1 where it is more than 16 MB and 48 bytes a live weight. (To load keeps the model's
old content until all of the new is in place: a failure halfway is undone.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import startsparse as ss
from startsparse.draw import Drawn
from startsparse.execution.modules import SparseLinear, to_sparse


def status(field: str) -> int:
    """A line of the process's memory, in bytes: VmRSS (now) or VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def network(layers: int, side: int, density: float, seed: int) -> nn.Module:
    """Sparse layers that never were dense: positions are drawn, values are small numbers."""
    model = nn.Sequential()
    for number in range(layers):
        with torch.device("meta"):
            layer = nn.Linear(side, side)
        layer.bias = nn.Parameter(torch.zeros(side))
        count = round(density * side * side)
        drawn = Drawn("exact", seed, f"{number}.weight", side * side, count=count)
        generator = torch.Generator().manual_seed(seed + number)
        values = torch.randn(count, generator=generator)
        to_sparse(layer, (side, side), torch.from_numpy(drawn.positions()), values)
        model.append(layer)
    return model


def digest(model: nn.Module) -> str:
    """A hash over the positions and values of all layers."""
    found = hashlib.sha256()
    for layer in model.children():
        assert isinstance(layer, SparseLinear)
        found.update(layer.live().positions().numpy().data)
        found.update(layer.weight.detach()[layer.live().order()].numpy().data)
    return found.hexdigest()


def step(what: str, path: str, layers: int, side: int, density: float) -> None:
    """One step in this process; prints its figures as JSON."""
    tiny = network(1, 64, 0.1, 0)  # libraries are loaded before the memory counts
    ss.save(tiny, path + ".tiny")
    ss.load(path + ".tiny", tiny)
    base = status("VmRSS")
    model = network(layers, side, density, seed=0 if what == "save" else 1)
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = time.perf_counter()
    if what == "save":
        ss.save(model, path)
    else:
        ss.load(path, model)
    seconds = time.perf_counter() - start
    figures = {"model": held - base, "peak": status("VmHWM") - base, "seconds": seconds}
    print(json.dumps(figures | {"digest": digest(model)}))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--side", type=int, default=46_000, help="inputs and outputs of a layer")
    parser.add_argument("--density", type=float, default=0.005)
    parser.add_argument("--step", choices=("save", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.layers, arguments.side, arguments.density)
    if arguments.step:
        step(arguments.step, arguments.path, *shape)
        return 0
    weights = arguments.layers * arguments.side**2
    live = arguments.layers * round(arguments.density * arguments.side**2)
    print(
        f"{weights:,} weights, {live:,} live; MB: float32 {weights / 250e3:,.0f}, one bit {weights / 8e6:,.0f}"
    )
    print(
        f"{'':6}{'file MB':>9}{'model MB':>10}{'peak MB':>9}{'of the step':>13}{'bytes a live weight':>21}{'s':>7}"
    )
    digests, most = set(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.sparse.safetensors")
        for what in ("save", "load"):
            command = [
                sys.executable,
                __file__,
                "--step",
                what,
                "--path",
                path,
                "--layers",
                str(arguments.layers),
            ]
            command += ["--side", str(arguments.side), "--density", str(arguments.density)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            extra = found["peak"] - found["model"]
            size = os.path.getsize(path)
            print(
                f"{what:6}{size / 1e6:>9.0f}{found['model'] / 1e6:>10.0f}{found['peak'] / 1e6:>9.0f}"
                f"{extra / 1e6:>13.0f}{extra / live:>21.1f}{found['seconds']:>7.1f}"
            )
            digests.add(found["digest"])
            most = max(most, extra)
    assert len(digests) == 1, "the loaded network is another one"
    return int(most > 16e6 + 48 * live)


if __name__ == "__main__":
    sys.exit(main())
