"""Many random tickets of one net."""

from __future__ import annotations

import math
from typing import Any

import common
from rst_common import Bench, arm_records, behind, gate_of, mean, values

TITLE = "RST trains ten or more of twelve random tickets of one initialisation to higher accuracy than scratch does"
SOURCE = (
    "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 1 (any random ticket of one lottery pool)"
)
NET = 1000  # the seed of initial weights and data order
TICKETS = tuple(range(2000, 2012))
BAR = 10


def runs() -> list[dict]:
    """A ticket each; its seed is the run's."""
    return [{"task": "curves", "seed": ticket} for ticket in TICKETS]


def run(seed: int, **where: Any) -> dict:
    """The ticket from scratch and after RST, at 98 %."""
    bench = Bench(NET, 0.98, **where)
    return {"scratch": bench.scratch(seed=seed), "rst": bench.rst(seed=seed)}


def judge(records: list[dict]) -> str:
    """How many tickets gain, and whether the worst transformed one is above the mean of the others."""
    some = arm_records(records)
    passed, told = gate_of("curves", 0.98)
    gains = [
        a - b
        for a, b in zip(values(some, "rst", "accuracy"), values(some, "scratch", "accuracy"), strict=True)
    ]
    better = sum(gain > 0 for gain in gains)
    chance = sum(math.comb(len(gains), k) for k in range(better, len(gains) + 1)) / 2 ** len(gains)
    enough = len(gains) == len(TICKETS)

    def word(true: bool) -> str:
        return behind(passed, ("PASS" if true else "FAIL") if enough else "CANNOT TELL")

    worst, usual = min(values(some, "rst", "accuracy")), mean(some, "scratch", "accuracy")
    return "\n\n".join(
        [
            told,
            common.paired_table(some, "arm", "accuracy", "scratch"),
            (
                f"RST above scratch on {better} of {len(gains)} tickets (bar {BAR}; one-sided sign test p {chance:.4f}): "
                f"{word(better >= BAR)}"
            ),
            (
                f"The worst ticket after RST, {100 * worst:.2f} %, is above the mean from scratch, {100 * usual:.2f} %: "
                f"{word(worst > usual)}"
            ),
        ]
    )
