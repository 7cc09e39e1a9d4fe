"""Timing that can be believed on a busy machine.

Contenders run interleaved, in random order. Each sample follows an untimed call of the same contender, so that it finds
the caches as its own steps leave them, as in training; ``cold`` leaves that call out. A sample during which the process
was pre-empted (its count of involuntary context switches moved) is dropped. What is reported is the median of the clean
samples, and ratios of medians of one such run; times of different runs are not compared.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

_FEWEST = 5  # samples of each contender, however little time there is

Row = dict[str, object]


@dataclass(frozen=True)
class Options:
    """What to measure, and how long; None leaves the choice to the suite.

    Attributes:
        seconds: about how long to measure one row.
        cold: leave out the untimed call before each sample.
        quick: few rows, to see that all is well.
        sizes: widths of linear layers, or images' channels of convolutions.
        batches: items of a batch.
        sparsities: shares of weights that are gone.
    """

    seconds: float = 1.0
    cold: bool = False
    quick: bool = False
    sizes: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None
    sparsities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Times:
    """Median seconds of one call of each contender, and the share of samples that were dropped."""

    seconds: dict[str, float]
    dropped: float

    def against(self, *dense: str) -> Row:
        """A row: milliseconds of the fastest of the dense ones, and how many times faster each other one is."""
        best = min(self.seconds[name] for name in dense)
        others = {name: best / taken for name, taken in self.seconds.items() if name not in dense}
        return {"dense ms": 1e3 * best, **others, "dropped": self.dropped}


def measure(contenders: Mapping[str, Callable[[], object]], options: Options) -> Times:
    """Time contenders against each other.

    Args:
        contenders: name -> what to time.
        options: how long, and whether caches are to be warm.

    Example:
        >>> times = measure({"one": lambda: sum(range(10)), "two": lambda: sum(range(1000))}, Options(seconds=0.01))
        >>> times.seconds["one"] < times.seconds["two"]
        True
    """
    for call in contenders.values():
        for _ in range(3):
            call()
    clean: dict[str, list[float]] = {name: [] for name in contenders}
    dropped: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or min(len(clean[n]) + len(dropped[n]) for n in order) < _FEWEST:
        shuffle(order)
        for name in order:
            if not options.cold:
                contenders[name]()
            before = _preemptions()
            start = time.perf_counter()
            contenders[name]()
            taken = time.perf_counter() - start
            (clean if before == _preemptions() else dropped)[name].append(taken)
    lost, kept = (sum(map(len, samples.values())) for samples in (dropped, clean))
    return Times({n: statistics.median(clean[n] or dropped[n]) for n in contenders}, lost / (lost + kept))


def step(
    inputs: list[torch.Tensor], call: Callable[[], torch.Tensor], dy: torch.Tensor
) -> Callable[[], None]:
    """One training step of a layer: forward and all gradients, set to None first."""

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        call().backward(dy)

    return run


def _preemptions() -> int:
    """How often this process had to give way so far; 0 where the system does not count."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
