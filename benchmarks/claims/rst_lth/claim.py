"""RST beside the lottery tickets it is measured against."""

from __future__ import annotations

from typing import Any

import common
from rst_common import SEEDS, Bench, arm_records, behind, gate_of

TITLE = (
    "RST on a random ticket does not fall more than a point behind a one-shot lottery ticket at 98 % sparsity"
)
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 4 (RST against LTH)"
MARGIN, CYCLES = -0.01, -0.005


def runs() -> list[dict]:
    """A seed and a sparsity each; the arms of five cycles and levels at 98 % alone."""
    return [
        {"task": "curves", "seed": seed, "sparsity": sparsity} for sparsity in (0.98, 0.9) for seed in SEEDS
    ]


def run(**where: Any) -> dict:
    """Accuracy of each arm; T is one training, of which RST takes 2.15, LTH 2, and LTH in five levels 6."""
    bench = Bench(**where)
    arms = {"rst": bench.rst(), "lth": bench.lottery()}
    if bench.sparsity == 0.98:
        arms |= {"rst-5": bench.rst(cycles=5), "lth-5": bench.lottery(levels=5)}
    return arms


def judge(records: list[dict]) -> str:
    """Non-inferiority at 98 %; what was found at 90 % is reported."""
    parts = []
    for sparsity in (0.98, 0.9):
        some = arm_records(records, sparsity=sparsity)
        if not some:
            continue
        passed, told = gate_of("curves", sparsity)
        parts += [f"### {100 * sparsity:g} % of the inner weights pruned", told]
        parts += [common.paired_table(some, "arm", "accuracy", "lth")]
        difference = common.difference(some, "arm", "accuracy", "rst", "lth")
        if sparsity == 0.98:
            parts.append(
                f"RST - LTH, interval above {100 * MARGIN:g} pp: {common.points(difference)}: "
                f"{behind(passed, common.at_least(difference, MARGIN))}"
            )
            cycles = common.difference(some, "arm", "accuracy", "rst-5", "rst")
            parts.append(
                f"RST in 5 cycles - RST, interval above {100 * CYCLES:g} pp: {common.points(cycles)}: "
                f"{behind(passed, common.at_least(cycles, CYCLES))}"
            )
            five = common.difference(some, "arm", "accuracy", "rst-5", "lth-5")
            parts.append(f"RST in 5 cycles - LTH in 5 levels, reported without a bar: {common.points(five)}")
        else:
            parts.append(f"RST - LTH, reported without a bar: {common.points(difference)}")
    return "\n\n".join(parts)
