"""Claims: a search step costs at most 1.10 of a plain training step; switching masks of 25 million weights 50 ms.

    python benchmarks/search/cost.py             # both; writes benchmarks/logs/search.json; exit 1 above a bar
    python benchmarks/search/cost.py --rounds 20

Steps: twins of one net, one trained plainly, one under a jackpot search (the default, with its restriction in the middle
of its run), make steps in turn on the same batch, in one process on one thread. The figure is the median over the rounds
of the ratio within a round; on a machine that pre-empts most rounds the CPU time of the steps is used, and said.
Switching: two jackpots of a ResNet-50's 25.5 million weights, turned to and fro, beside a plain copy of its weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import startsparse as ss
from startsparse.training.models import make

LOG = Path(__file__).parents[1] / "logs" / "search.json"
STEP_BAR, SWITCH_BAR_MS = 1.10, 50.0
DENSITY, BATCH, ENOUGH = 0.1, 128, 10
SELF_CHOSEN = ("jackpot-nm", "maskllm", "supermask", "piggyback", "continuous-sparsification")


def timed(action: Callable[[], None]) -> tuple[float, float, bool]:
    """Seconds on the clock and on the CPU, and whether nothing pre-empted the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    wall, cpu = time.perf_counter(), time.thread_time()
    action()
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    return wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before


def clocks(rounds: list[dict[str, tuple[float, float, bool]]]) -> tuple[str, list[dict[str, float]]]:
    """Wall times of the rounds nothing disturbed, if there are enough, else CPU times of all."""
    clean = [r for r in rounds if all(sample[2] for sample in r.values())]
    if len(clean) >= ENOUGH:
        return "wall", [{kind: sample[0] for kind, sample in r.items()} for r in clean]
    return "cpu", [{kind: sample[1] for kind, sample in r.items()} for r in rounds]


def stepper(model: nn.Module, parameters: Any, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A training step, of weights or of scores."""
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def steps(name: str, rounds: int, method: Any = None, swaps: bool = True, **options: Any) -> dict[str, Any]:
    """The race of a plain step and a search step; ``swaps``: the search must change its mask meanwhile."""

    torch.manual_seed(0)
    plain, searched = (make(name, **options) for _ in range(2))
    x, y = torch.randn(BATCH, *options["input_shape"]), torch.randint(10, (BATCH,))
    method = method or ss.Jackpot(DENSITY, distribution="erk")
    search = ss.search(searched, method, total_steps=2 * (rounds + 2))
    race = {
        "plain": stepper(plain, plain.parameters(), x, y),
        "search": stepper(searched, search.scores(), x, y),
    }
    samples = []
    for index in range(rounds + 2):
        order = list(race)[:: 1 if index % 2 else -1]
        found = {kind: timed(race[kind]) for kind in order}
        samples += [found] if index >= 2 else []
    assert search.num_swaps > 0 or not swaps
    clock, kept = clocks(samples)
    ratios = [r["search"] / r["plain"] for r in kept]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "net": name,
        "method": method.name,
        "clock": clock,
        "rounds": len(kept),
        "plain_ms": 1e3 * statistics.median(r["plain"] for r in kept),
        "ratio": statistics.median(ratios),
        "spread": quartiles[2] - quartiles[0],
        "extra_ns_a_weight": 1e9
        * statistics.median(r["search"] - r["plain"] for r in kept)
        / sum(mask.numel() for mask in search.masks.values()),
        "bar": STEP_BAR,
    }


def presets(rounds: int) -> list[dict[str, Any]]:
    """Every preset in a fully connected net, where a step is cheap and masks are not."""
    found = []
    for name in ss.methods.names("search"):
        needed = {"density": DENSITY} if name not in SELF_CHOSEN else {}
        method = ss.methods.make(name, **needed)
        found.append(steps("lenet-300-100", rounds, method, swaps=False, input_shape=(1, 28, 28)))
    return found


def switching(density: float, rounds: int) -> dict[str, Any]:
    """Turning a ResNet-50 from one mask to another."""
    torch.manual_seed(0)
    model = make("resnet50", input_shape=(3, 224, 224), classes=1000)
    backbone = ss.Backbone(model)
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("a", "b"):
        masks[name] = {n: torch.rand(w.shape) < density for n, w in backbone.weights.items()}
        backbone.add(name, masks[name])
    dense = [weight.clone() for weight in backbone.weights.values()]
    room = [torch.empty_like(weight) for weight in dense]
    backbone.switch("a")

    def copy() -> None:
        for target, source in zip(room, dense, strict=True):
            _ = target.copy_(source)

    samples = []
    for index in range(rounds):
        name = "ab"[index % 2 == 0]
        samples.append({"switch": timed(lambda name=name: backbone.switch(name)), "copy": timed(copy)})
        state = model.state_dict()
        assert index > 1 or all(
            torch.equal(state[n], torch.where(mask, backbone.weights[n], 0))
            for n, mask in masks[name].items()
        )
    clock, kept = clocks(samples)
    return {
        "weights": sum(weight.numel() for weight in dense),
        "density": density,
        "clock": clock,
        "rounds": len(kept),
        "switch_ms": 1e3 * statistics.median(r["switch"] for r in kept),
        "copy_ms": 1e3 * statistics.median(r["copy"] for r in kept),
        "bar_ms": SWITCH_BAR_MS,
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _ = parser.add_argument("--rounds", type=int, default=30, help="of each race (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    races = [
        steps("resnet20", options.rounds, input_shape=(3, 32, 32)),
        steps("lenet-300-100", 10 * options.rounds, input_shape=(1, 28, 28)),
    ]
    others = presets(options.rounds)
    switches = [switching(density, options.rounds) for density in (0.1, 0.2)]
    print(f"torch {torch.__version__}, one thread, batch {BATCH}, density {DENSITY:g}, SGD with momentum\n")
    for r in races:
        print(
            f"{r['net']:14} plain step {r['plain_ms']:7.2f} ms, search step {r['ratio']:.3f} of it (IQR "
            f"{r['spread']:.3f}, {r['rounds']} rounds, {r['clock']} time), bar {r['bar']:.2f}"
        )
    print("\nin lenet-300-100, beside a plain step:")
    for r in others:
        print(f"{r['method']:26} {r['ratio']:6.2f} of it, {r['extra_ns_a_weight']:6.1f} ns more a weight")
    for s in switches:
        print(
            f"switching {s['weights']:,} weights at density {s['density']:g}: {s['switch_ms']:.1f} ms (a copy of them "
            f"{s['copy_ms']:.1f} ms, {s['rounds']} rounds, {s['clock']} time), bar {s['bar_ms']:g} ms"
        )
    machine = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
    }
    LOG.parent.mkdir(exist_ok=True)
    _ = LOG.write_text(
        json.dumps({"machine": machine, "steps": races, "presets": others, "switching": switches}, indent=2)
        + "\n"
    )
    late = any(r["ratio"] > r["bar"] for r in races) or any(s["switch_ms"] > s["bar_ms"] for s in switches)
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
