"""Claim: what a topology update costs. A RigL or GGR update step over a plain step, and spread over 100 steps.

    python benchmarks/update_step.py                  # ResNet-20 and ResNet-50; writes benchmarks/logs/update_step.json
    python benchmarks/update_step.py --net resnet20   # a part, put into the log beside the others
    python benchmarks/update_step.py --net resnet50 --method ggr-window

A net is trained with the method attached, masked, on one thread, updating every few steps. In each cycle two plain steps,
with a window one that keeps its dense gradient (as the earlier steps of a window do), and one that updates follow each
other, so that whatever else the machine does falls on all of them; the figures are medians over the cycles of ratios
within a cycle, of the process's CPU time, which a busy machine disturbs less than the wall clock. Spread over 100 steps an update costs (update - plain); a window
of w steps adds (w - 1) (keep - plain). What memory an update needs is in ``ggr_memory.py``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
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
WINDOW = 20  # steps of the window that is counted
CYCLE = {
    "rigl": 3,
    "ggr": 3,
    "ggr-window": 4,
}  # two plain steps, with a window one that keeps, and one that updates


@dataclass(frozen=True)
class Net:
    """A net and its batch."""

    model: str
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    cycles: int


NETS = {
    "resnet20": Net("resnet20", (3, 32, 32), 10, 128, 24),
    "resnet50": Net("resnet50", (3, 224, 224), 1000, 8, 5),
}
METHODS = {
    "rigl": lambda **given: ss.RigL(**given),
    "ggr": lambda **given: ss.GGR(**given),
    "ggr-window": lambda **given: ss.GGR(**given, gradient_window=2),
}


class Trained:
    """A net with a method attached that updates once a cycle."""

    def __init__(self, net: Net, method: str):
        torch.manual_seed(0)
        self.model = make(net.model, input_shape=net.input_shape, classes=net.classes)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        how = METHODS[method](
            density=DENSITY,
            drop_fraction=FRACTION,
            drop_schedule="constant",
            update_interval=CYCLE[method],
            update_end=10**6,
        )
        self.sparse = ss.attach(self.model, self.optimizer, how)
        self.x = torch.randn(net.batch, *net.input_shape)
        self.y = torch.randint(net.classes, (net.batch,))

    def step(self) -> tuple[float, bool]:
        """One step; its CPU seconds, and whether the process was pre-empted."""
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = time.process_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        taken = time.process_time() - start
        return taken, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > switches


def timed(net: Net, method: str, cycles: int) -> dict:
    """Ratios of update and of keeping steps to plain ones, and what they cost spread over 100 steps."""
    trained = Trained(net, method)
    for _ in range(CYCLE[method] + 1):  # the next step is step 1 of a cycle
        _ = trained.step()
    seconds: list[list[float]] = []
    disturbed = 0
    for _ in range(cycles):
        steps = [trained.step() for _ in range(CYCLE[method])]
        disturbed += sum(pre_empted for _, pre_empted in steps)
        seconds.append([taken for taken, _ in steps])
    assert trained.sparse.report().num_updates == cycles + 1
    window = method == "ggr-window"
    plain = [statistics.fmean(cycle[:2]) for cycle in seconds]
    update = statistics.median(cycle[-1] / p for cycle, p in zip(seconds, plain, strict=True))
    row = {"plain step, CPU ms": 1e3 * statistics.median(plain), "update over plain": update}
    cost = update - 1
    if window:
        keep = statistics.median(cycle[2] / p for cycle, p in zip(seconds, plain, strict=True))
        row["keeping over plain"] = keep
        cost += (WINDOW - 1) * (keep - 1)
    named = f"share of {SPREAD} steps" + (f", window {WINDOW}" if window else "")
    return row | {
        named: cost / SPREAD,
        "holds": cost / SPREAD <= BAR,
        "cycles": cycles,
        "pre-empted steps": disturbed,
    }


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=[*NETS])
    parser.add_argument("--method", choices=[*METHODS])
    parser.add_argument("--cycles", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = json.loads(LOG.read_text()) if LOG.exists() else {}
    log |= {"machine": platform.machine(), "torch": torch.__version__, "threads": 1, "density": DENSITY}
    missed = False
    for name in [options.net] if options.net else NETS:
        net = NETS[name]
        rows = log.setdefault(name, {"batch": net.batch})
        for method in [options.method] if options.method else METHODS:
            rows[method] = timed(net, method, options.cycles or net.cycles)
            missed |= not rows[method]["holds"]
            print(name, method, json.dumps(rows[method]), flush=True)
            LOG.write_text(json.dumps(log, indent=1) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
