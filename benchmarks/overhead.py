"""Claim: what attaching costs. A training step with RigL attached over the same step without, masked execution.

    python benchmarks/overhead.py             # both nets; writes benchmarks/logs/overhead.json; exit 1 above a bar
    python benchmarks/overhead.py --net mlp --steps 500
    python benchmarks/overhead.py --profile   # and where the time of the attached step goes

Three twins train side by side on the same batches in one process on one thread: plain, with RigL attached, and with
``torch.nn.utils.prune`` (random masks of the same counts). Every round makes one step of each, in turning order, so
that whatever else the machine does falls on all three; the figure is the median over the rounds of the ratio within a
round. Rounds in which the process was pre-empted are dropped; on a machine too busy to leave enough of them, the CPU
time of the steps is used instead, and the table says so. Steps at which RigL moves weights are timed apart and spread
over its default interval.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import startsparse as ss
from startsparse.training.models import make

LOG = Path(__file__).parent / "logs" / "overhead.json"
DENSITY = 0.1
INTERVAL = 100  # RigL's default, over which an update is spread
ENOUGH = 20  # rounds without pre-emption that a median of wall times needs


@dataclass(frozen=True)
class Net:
    """A net, the shape of its batch and the ratio that is allowed."""

    model: str
    input_shape: tuple[int, ...]
    bar: float
    rounds: int
    update_every: int


NETS = {
    "mlp": Net("lenet-300-100", (1, 28, 28), 1.15, 1000, 20),
    "resnet20": Net("resnet20", (3, 32, 32), 1.05, 60, 6),
}


class Twin:
    """One of the nets in the race."""

    def __init__(self, net: Net, kind: str):
        torch.manual_seed(0)
        self.kind = kind
        self.model = make(net.model, input_shape=net.input_shape)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.sparse = None
        rigl = ss.RigL(DENSITY, update_interval=net.update_every, update_end=10**9)
        if kind == "attached":
            self.sparse = ss.attach(self.model, self.optimizer, rigl)
        if kind == "prune":
            masks = ss.attach(self.model, self.optimizer, ss.Static(DENSITY))
            drawn = {name: mask.clone() for name, mask in masks.masks.items()}
            modules = dict(masks.detach().named_modules())
            for name, mask in drawn.items():
                _ = prune.custom_from_mask(modules[name.removesuffix(".weight")], "weight", mask)
            # the parameters are new ones
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
            )

    @property
    def updates_next(self) -> bool:
        """Whether the topology changes at the next step."""
        return self.sparse is not None and self.sparse.method.due(self.sparse.step, None)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()


@dataclass
class Sample:
    """One step: seconds on the clock and on the CPU, and whether the process was pre-empted."""

    wall: float
    cpu: float
    clean: bool


def timed(action: Callable[[], None]) -> Sample:
    """Run and time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    wall, cpu = time.perf_counter(), time.thread_time()
    action()
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    return Sample(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before)


@dataclass
class Result:
    """The figures of one net; ``attached`` and ``prune`` are ratios to the plain step."""

    net: str
    clock: str
    rounds: int
    clean_rounds: int
    plain_ms: float
    attached: float
    attached_spread: float
    attached_with_updates: float
    update_ms: float
    prune: float
    bar: float


def race(name: str, net: Net, rounds: int) -> Result:
    """Let the twins run."""
    twins = [Twin(net, kind) for kind in ("plain", "attached", "prune")]
    torch.manual_seed(1)
    x, y = torch.randn(128, *net.input_shape), torch.randint(10, (128,))
    ordinary: list[dict[str, Sample]] = []
    updates: list[Sample] = []
    for index in range(rounds + 3):
        shift = index % 3
        moves = twins[1].updates_next
        samples = {twin.kind: timed(lambda t=twin: t.step(x, y)) for twin in twins[shift:] + twins[:shift]}
        if index < 3:
            continue
        if moves:
            updates.append(samples["attached"])
        else:
            ordinary.append(samples)
    clean = [s for s in ordinary if all(sample.clean for sample in s.values())]
    clock = "wall" if len(clean) >= ENOUGH else "cpu"
    kept = clean if clock == "wall" else ordinary
    times = {kind: [getattr(s[kind], clock) for s in kept] for kind in ("plain", "attached", "prune")}
    ratios = [a / p for a, p in zip(times["attached"], times["plain"], strict=True)]
    plain, attached = statistics.median(times["plain"]), statistics.median(ratios)
    moving = [getattr(s, clock) for s in updates if s.clean or clock == "cpu"] or [s.cpu for s in updates]
    extra = statistics.median(moving) - attached * plain
    quartiles = statistics.quantiles(ratios, n=4)
    return Result(
        name,
        clock,
        rounds,
        len(clean),
        1e3 * plain,
        attached,
        quartiles[2] - quartiles[0],
        attached + extra / plain / INTERVAL,
        1e3 * extra,
        statistics.median(p / q for p, q in zip(times["prune"], times["plain"], strict=True)),
        net.bar,
    )


def show(results: list[Result]) -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, one thread, batch 128, density {DENSITY:g}, SGD with momentum\n")
    print(
        f"{'net':10} {'plain':>9} {'attached':>9} {'(IQR)':>7} {'updates':>8} {'prune':>7} {'bar':>5}  rounds"
    )
    for r in results:
        print(
            f"{r.net:10} {r.plain_ms:6.2f} ms {r.attached:8.3f}x {r.attached_spread:7.3f} "
            f"{r.attached_with_updates:7.3f}x {r.prune:6.3f}x {r.bar:5.2f}  {r.clean_rounds} of {r.rounds} clean, "
            f"{r.clock} time"
        )
    print(f"\nupdates: the attached step with its share of an update every {INTERVAL} steps")


def profile(net: Net, steps: int) -> None:
    """Print where the attached step spends its time."""
    twin = Twin(net, "attached")
    x, y = torch.randn(128, *net.input_shape), torch.randint(10, (128,))
    profiler = cProfile.Profile()
    for _ in range(steps):
        profiler.runcall(twin.step, x, y)
    _ = pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _ = parser.add_argument("--net", choices=sorted(NETS), help="only this one")
    _ = parser.add_argument("--steps", type=int, help="rounds to run")
    _ = parser.add_argument("--profile", action="store_true", help="show where the time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [options.net] if options.net else list(NETS)
    results = [race(name, NETS[name], options.steps or NETS[name].rounds) for name in chosen]
    show(results)
    if options.profile:
        for name in chosen:
            profile(NETS[name], 200 if name == "mlp" else 10)
    LOG.parent.mkdir(exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
    }
    log = {
        "machine": machine,
        "density": DENSITY,
        "interval": INTERVAL,
        "results": [asdict(r) for r in results],
    }
    LOG.write_text(json.dumps(log, indent=2) + "\n")
    return int(any(result.attached_with_updates > result.bar for result in results))


if __name__ == "__main__":
    sys.exit(main())
