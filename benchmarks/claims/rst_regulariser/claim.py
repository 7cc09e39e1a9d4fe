"""Does the pull help, or the dense training before masking?"""

from __future__ import annotations

import statistics
from typing import Any

import common
from rst_common import SEEDS, TASKS, Bench, arm_records, behind, gate_of, values

TITLE = (
    "The growing pull of RST improves the final accuracy beyond dense pre-training and the same random mask"
)
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 3 (information extrusion)"
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {
    "98 %": (0.98, {}),
    "90 %": (0.9, {}),
    "98 %, transformed at a hundredth of the rate": (0.98, {"slower": 100}),
    "98 %, fine-tuned at a fifth of the rate": (0.98, {"peak": TASKS["curves"].rate / 5, "slower": 4}),
}


def runs() -> list[dict]:
    """A seed and a setting each; the pull and the control within."""
    return [{"task": "curves", "seed": seed, "setting": setting} for setting in SETTINGS for seed in SEEDS]


def run(seed: int, setting: str, **where: Any) -> dict:
    """The pull and, with everything else alike, no pull."""
    sparsity, how = SETTINGS[setting]
    bench = Bench(seed, sparsity, **where)
    return {"pull": bench.rst(**how), "no pull": bench.rst(**how | {"bound": 0.0})}


def judge(records: list[dict]) -> str:
    """A gate for what may be said: helps where the difference is above zero after Holm, otherwise no."""
    parts, found = [], {}
    for setting in SETTINGS:
        some = arm_records(records, setting=setting)
        if not some:
            continue
        found[setting] = common.difference(some, "arm", "accuracy", "pull", "no pull")
        parts += [f"### {setting}", common.paired_table(some, "arm", "accuracy", "no pull")]
        parts.append("Around masking:\n\n" + common.paired_table(some, "arm", "after", "no pull"))
    parts += _masking(arm_records(records, setting="98 %"))
    for setting, difference in zip(found, common.stats.holm_all(list(found.values())), strict=True):
        positive = difference.low > 0 and difference.p <= 0.05
        word = (
            "PASS"
            if positive and difference.seeds >= 5
            else "FAIL"
            if difference.high <= 0
            else "CANNOT TELL"
        )
        passed, told = gate_of("curves", SETTINGS[setting][0])
        parts.append(
            f"The pull improves the final accuracy, {setting}: {common.points(difference)}, p {difference.p:.3f}: "
            f"{behind(passed, word)}"
        )
        parts.append(told)
    parts.append("Only for settings that pass may it be said that the pull improves the final accuracy.")
    return "\n\n".join(parts)


def _masking(some: list[dict]) -> list[str]:
    """What masking costs with the pull and without, at 98 %."""
    if not some:
        return []
    told = []
    drops = {
        arm: [b - a for b, a in zip(values(some, arm, "before"), values(some, arm, "after"), strict=True)]
        for arm in ("pull", "no pull")
    }
    enough = len(drops["pull"]) >= 5

    def word(true: bool) -> str:
        return ("PASS" if true else "FAIL") if enough else "CANNOT TELL"

    most, middle = max(values(some, "pull", "residual")), statistics.median(drops["pull"])
    told.append(
        f"With the pull, weights outside the ticket end at no more than {most:.4f} of those inside in any seed (bar "
        f"0.01), and masking costs {100 * middle:.2f} pp at the median (bar 1.5; most {100 * max(drops['pull']):.2f}): "
        f"{word(most <= 0.01 and middle <= 0.015)}"
    )
    least = min(drops["no pull"])
    told.append(
        f"Without it, masking costs {100 * least:.1f} pp or more in every seed (bar 40): {word(least >= 0.4)}"
    )
    return told
