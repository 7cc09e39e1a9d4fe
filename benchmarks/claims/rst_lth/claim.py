"""RST beside the lottery tickets it is measured against."""

from __future__ import annotations

from typing import Any

import common
from rst_common import SEEDS, Bench, arm_records

TITLE = (
    "RST on a random ticket does not fall more than a point behind a one-shot lottery ticket at 98 % sparsity"
)
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 4 (RST against LTH)"
MARGIN, CYCLES = -0.01, -0.005


def runs() -> list[dict]:
    """A seed and a sparsity each; the arm of five cycles at 98 % alone."""
    return [{"seed": seed, "sparsity": sparsity} for sparsity in (0.98, 0.9) for seed in SEEDS]


def run(seed: int, sparsity: float, **changes: Any) -> dict:
    """Accuracy of each arm."""
    bench = Bench(seed, sparsity, **changes)
    arms = {"rst": bench.rst(), "lth": bench.lottery()}
    if sparsity == 0.98:
        arms["rst-5"] = bench.rst(cycles=5)
    return arms


def judge(records: list[dict]) -> str:
    """Non-inferiority at 98 %; what was found at 90 % is reported."""
    parts = []
    for sparsity in (0.98, 0.9):
        some = arm_records(records, sparsity=sparsity)
        if not some:
            continue
        parts += [f"### {100 * sparsity:g} % of the inner weights pruned"]
        parts += [common.paired_table(some, "arm", "accuracy", "lth")]
        difference = common.difference(some, "arm", "accuracy", "rst", "lth")
        if sparsity == 0.98:
            parts.append(
                f"RST - LTH, interval above {100 * MARGIN:g} pp: {common.points(difference)}: "
                f"{common.at_least(difference, MARGIN)}"
            )
            cycles = common.difference(some, "arm", "accuracy", "rst-5", "rst")
            parts.append(
                f"RST in 5 cycles - RST, interval above {100 * CYCLES:g} pp: {common.points(cycles)}: "
                f"{common.at_least(cycles, CYCLES)}"
            )
        else:
            parts.append(f"RST - LTH, reported without a bar: {common.points(difference)}")
    return "\n\n".join(parts)
