"""Claim: what a topology update costs. A RigL or GGR update step over a plain step, and its peak extra memory.

    python benchmarks/update_step.py                   # ResNet-20 and ResNet-50; writes benchmarks/logs/update_step.json
    python benchmarks/update_step.py --net resnet20 --cycles 10

A net is trained with the method attached, masked, updating every few steps. In each cycle one update step, one step that
only keeps its dense gradient (as the earlier steps of a gradient window do) and plain steps follow each other, so that
whatever else the machine does falls on all of them; the figures are medians over the cycles of ratios within a cycle.
Spread over 100 steps a window of w steps costs (update - plain) + (w - 1) (keep - plain). Memory is the process's peak
resident size during ``optimizer.step()`` of an update step, in a process of its own, over that of a plain step; beside it
stands the bar: 1.2 times the dense gradient of the largest layer, and the candidates.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import startsparse as ss
from startsparse.training.models import make

LOG = Path(__file__).parent / "logs" / "update_step.json"
DENSITY, FRACTION, SPREAD, BAR = 0.05, 0.3, 100, 0.03
WINDOWS = (1, 20)
CYCLE = 4  # an update, a plain step, another one, and one that keeps its gradient for the next update


@dataclass(frozen=True)
class Net:
    """A net and its batch."""

    model: str
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    cycles: int


NETS = {
    "resnet20": Net("resnet20", (3, 32, 32), 10, 128, 30),
    "resnet50": Net("resnet50", (3, 224, 224), 1000, 8, 6),
}
METHODS = {
    "rigl": lambda window, **given: (
        ss.GGR(**given, rho=1.0, count_by="dropped", floor=0, gradient_window=window)
        if window > 1
        else ss.RigL(**given)
    ),
    "ggr": lambda window, **given: ss.GGR(**given, gradient_window=window),
}


class Trained:
    """A net with a method attached that updates every ``CYCLE`` steps."""

    def __init__(self, net: Net, method: str, window: int):
        torch.manual_seed(0)
        self.model = make(net.model, input_shape=net.input_shape, classes=net.classes)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        how = METHODS[method](
            window,
            density=DENSITY,
            drop_fraction=FRACTION,
            drop_schedule="constant",
            update_interval=CYCLE,
            update_end=10**6,
        )
        self.sparse = ss.attach(self.model, self.optimizer, how)
        self.x = torch.randn(net.batch, *net.input_shape)
        self.y = torch.randint(net.classes, (net.batch,))

    def backward(self) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()

    def step(self) -> tuple[float, bool]:
        """One step; its seconds, and whether the process was pre-empted."""
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = time.perf_counter()
        self.backward()
        self.optimizer.step()
        taken = time.perf_counter() - start
        return taken, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > switches


def timed(net: Net, method: str, cycles: int) -> dict:
    """Ratios of update and of keeping steps to plain ones, and what they cost spread over 100 steps."""
    trained = Trained(net, method, window=2)
    for _ in range(CYCLE + 1):  # the next step is step 1 of a cycle
        _ = trained.step()
    seconds: list[list[float]] = []
    disturbed = 0
    for _ in range(cycles):
        steps = [trained.step() for _ in range(CYCLE)]  # steps 1, 2, 3 and 4 of the cycle: 3 keeps, 4 updates
        disturbed += sum(pre_empted for _, pre_empted in steps)
        seconds.append([taken for taken, _ in steps])
    plain = [statistics.fmean(cycle[:2]) for cycle in seconds]
    update = statistics.median(cycle[3] / p for cycle, p in zip(seconds, plain, strict=True))
    keep = statistics.median(cycle[2] / p for cycle, p in zip(seconds, plain, strict=True))
    spread = {w: (update - 1 + (w - 1) * (keep - 1)) / SPREAD for w in WINDOWS}
    return {
        "method": method,
        "plain step ms": 1e3 * statistics.median(plain),
        "update over plain": update,
        "keeping over plain": keep,
        **{f"window {w}, share of {SPREAD} steps": share for w, share in spread.items()},
        "holds": {str(w): share <= BAR for w, share in spread.items()},
        "cycles": cycles,
        "pre-empted steps": disturbed,
    }


def peak() -> int:
    """Peak resident bytes since it was last cleared."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measured_memory(net: Net, method: str) -> dict:
    """Peak extra bytes of an update's ``optimizer.step()``, window 1; run in a process of its own."""
    trained = Trained(net, method, window=1)
    peaks: dict[bool, list[int]] = {True: [], False: []}
    for index in range(3 * CYCLE + 1):
        trained.backward()
        Path("/proc/self/clear_refs").write_text("5")
        trained.optimizer.step()
        if index >= CYCLE:
            peaks[index % CYCLE == 0].append(peak())
    shapes = {name: mask.numel() for name, mask in trained.sparse.masks.items()}
    moved = int(FRACTION * trained.sparse.target_count)
    candidates = 3 * moved * (4 + 8 + 8)  # twice R and a layer's R: score, position, number of the layer
    return {
        "method": method,
        "extra MB": (statistics.median(peaks[True]) - statistics.median(peaks[False])) / 1e6,
        "bar MB": (1.2 * 4 * max(shapes.values()) + candidates) / 1e6,
        "one accumulator a layer MB": 4 * sum(shapes.values()) / 1e6,
        "weights": sum(shapes.values()),
        "weights that move": moved,
    }


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=[*NETS], help="this one alone; nothing is written then")
    parser.add_argument("--cycles", type=int, help="of each method")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", nargs=2, metavar=("NET", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        name, method = options.memory_of
        print(json.dumps(measured_memory(NETS[name], method)))
        return 0
    log = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    missed = False
    for name in [options.net] if options.net else NETS:
        net = NETS[name]
        log[name] = {"batch": net.batch, "density": DENSITY, "time": [], "memory": []}
        for method in METHODS:
            row = timed(net, method, options.cycles or net.cycles)
            missed |= not all(row["holds"].values())
            log[name]["time"].append(row)
            print(name, json.dumps(row), flush=True)
        for method in METHODS:
            command = [
                sys.executable,
                __file__,
                "--threads",
                str(options.threads),
                "--memory-of",
                name,
                method,
            ]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            row["holds"] = not math.isnan(row["extra MB"]) and row["extra MB"] <= row["bar MB"]
            missed |= not row["holds"]
            log[name]["memory"].append(row)
            print(name, json.dumps(row), flush=True)
    if not options.net:
        LOG.write_text(json.dumps(log, indent=1) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
