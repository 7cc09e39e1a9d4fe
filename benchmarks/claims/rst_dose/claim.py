"""What is left outside the ticket, by the strength of the pull."""

from __future__ import annotations

import itertools
import math
from typing import Any

import common
from rst_common import SEEDS, Bench, arm_records, gate_of, mean

TITLE = "The stronger the pull, the less is left outside the ticket: in inverse proportion, and the less masking costs"
SOURCE = (
    "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 3; quasi-static solution of the penalty"
)
BOUNDS = (0.0, 0.01, 0.1, 1.0)
RAMPS = ("square", "cube")


def runs() -> list[dict]:
    """A seed each."""
    return [{"task": "curves", "seed": seed} for seed in SEEDS]


def run(seed: int, **where: Any) -> dict:
    """Each bound with a linear ramp, and the other ramps."""
    bench = Bench(seed, 0.98, **where)
    arms = {f"bound {bound:g}": bench.rst(bound=bound) for bound in BOUNDS}
    return arms | {ramp: bench.rst(ramp=ramp, bound=1.0) for ramp in RAMPS}


def judge(records: list[dict]) -> str:
    """Slope of the residual from 0.01 to 1, order of the drops."""
    some = arm_records(records)
    lines = ["| arm | residual | before masking | after | final |", "| --- | --- | --- | --- | --- |"]
    arms = [f"bound {bound:g}" for bound in BOUNDS] + list(RAMPS)
    for arm in arms:
        before, after, final = (100 * mean(some, arm, key) for key in ("before", "after", "accuracy"))
        lines.append(
            f"| {arm} | {mean(some, arm, 'residual'):.4f} | {before:.2f} % | {after:.2f} % | {final:.2f} % |"
        )
    left = [mean(some, arm, "residual") for arm in arms[: len(BOUNDS)]]
    slope = math.log(left[3] / left[1]) / math.log(BOUNDS[3] / BOUNDS[1])
    drops = [mean(some, arm, "before") - mean(some, arm, "after") for arm in arms[: len(BOUNDS)]]
    enough = len(records) >= 5
    falls = all(a > b for a, b in itertools.pairwise(left)) and -1.4 <= slope <= -0.6
    cheaper = drops[3] < drops[2] < drops[1]

    def word(true: bool) -> str:
        return ("PASS" if true else "FAIL") if enough else "CANNOT TELL"

    costs = ", ".join(f"{100 * drop:.2f} pp" for drop in drops[:0:-1])
    parts = ["\n".join(lines)]
    parts.append(
        f"What is left falls with the bound, slope on logarithmic scales {slope:.2f} (bar -1.4 to -0.6): {word(falls)}"
    )
    parts.append(f"Masking costs less at 1 than at 0.1 than at 0.01: {costs}: {word(cheaper)}")
    parts.append(gate_of("curves", 0.98)[1])
    parts.append("Final accuracies, paired:\n\n" + common.paired_table(some, "arm", "accuracy", "bound 1"))
    return "\n\n".join(parts)
