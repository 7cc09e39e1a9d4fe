"""RST beside the random ticket it transforms."""

from __future__ import annotations

import statistics
from typing import Any

import common
from rst_common import SEEDS, Bench, arm_records, behind, gate, values

TITLE = "A random ticket is trained to higher accuracy after RST than from scratch, also with equal samples"
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, sections 3 and 4"
SPARSITIES = (0.98, 0.9)
BAR = 0.003  # the interval must lie above this


def runs() -> list[dict]:
    """A seed and a sparsity each; all arms within."""
    return [
        {"task": "curves", "seed": seed, "sparsity": sparsity} for sparsity in SPARSITIES for seed in SEEDS
    ]


def run(**where: Any) -> dict:
    """Accuracy of each arm, and what masking cost."""
    bench = Bench(**where)
    return {
        "scratch": bench.scratch(),
        "scratch-ef": bench.scratch(2.15),
        "scratch-largest": bench.scratch(ticket="magnitude"),
        "rst": bench.rst(),
    }


def judge(records: list[dict]) -> str:
    """Differences to scratch and to scratch with equal samples, Holm over all."""
    parts = []
    found, passed = {}, {}
    for sparsity in SPARSITIES:
        some = arm_records(records, sparsity=sparsity)
        if not some:
            continue
        for other in ("scratch", "scratch-ef"):
            found[sparsity, other] = common.difference(some, "arm", "accuracy", "rst", other)
        passed[sparsity], told = gate(some)
        parts += [f"### {100 * sparsity:g} % of the inner weights pruned", told]
        parts.append(common.paired_table(some, "arm", "accuracy", "scratch"))
        ratios = values(some, "rst", "residual")
        drops = [
            b - a for b, a in zip(values(some, "rst", "before"), values(some, "rst", "after"), strict=True)
        ]
        lossless = max(ratios) <= 0.01 and statistics.median(drops) <= 0.015
        parts.append(
            f"Masking after RST: weights outside the ticket are at most {max(ratios):.4f} of those inside (bar 0.01), "
            f"the median drop is {100 * statistics.median(drops):.2f} pp (bar 1.5): {'PASS' if lossless else 'FAIL'}"
        )
    adjusted = dict(zip(found, common.stats.holm_all(list(found.values())), strict=True))
    for (sparsity, other), difference in adjusted.items():
        word = common.at_least(difference, BAR)
        if word == "PASS" and difference.p > 0.05:
            word = "CANNOT TELL"
        parts.append(
            f"RST - {other} at {100 * sparsity:g} %, interval above {100 * BAR:g} pp and p <= .05 after Holm: "
            f"{common.points(difference)}, p {difference.p:.3f}: {behind(passed[sparsity], word)}"
        )
    return "\n\n".join(parts)
