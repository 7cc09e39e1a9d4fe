"""How short the transformation may be."""

from __future__ import annotations

from typing import Any

import common
from rst_common import SEEDS, Bench, arm_records, behind, gate_of, mean

TITLE = "A transformation of a fifth of the paper's steps ends within half a point of the whole one"
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022 (constants of the authors' code)"
MARGIN = 0.005
ARMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "a fifth of the bound": {"bound": 0.8},
    "half": {"shorter": 0.5},
    "a fifth": {"shorter": 0.2},
    "a tenth": {"shorter": 0.1},
    "a fifth, constant": {"shorter": 0.2, "ramp": "constant"},
}


def runs() -> list[dict]:
    """A seed each."""
    return [{"task": "curves", "seed": seed} for seed in SEEDS]


def run(seed: int, **where: Any) -> dict:
    """Every arm, at 98 %."""
    bench = Bench(seed, 0.98, **where)
    return {arm: bench.rst(**how) for arm, how in ARMS.items()}


def judge(records: list[dict]) -> str:
    """Equivalence (two one-sided tests at 5 %) of each to the whole."""
    some = arm_records(records)
    passed, told = gate_of("curves", 0.98)
    parts = [told, common.paired_table(some, "arm", "accuracy", "whole")]
    for arm in list(ARMS)[1:]:
        difference = common.difference(some, "arm", "accuracy", arm, "whole", confidence=0.9)
        share = mean(some, arm, "transform_steps") / mean(some, "whole", "transform_steps")
        parts.append(
            f"{arm} ({share:.2f} of the transformation's steps) within {100 * MARGIN:g} pp of the whole: "
            f"{common.points(difference)}: {behind(passed, common.within(difference, MARGIN))}"
        )
    return "\n\n".join(parts)
