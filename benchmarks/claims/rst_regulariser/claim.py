"""Does the pull help, or the dense training before masking?"""

from __future__ import annotations

from typing import Any

import common
from rst_common import RATE, SEEDS, Bench, arm_records

TITLE = (
    "The growing pull of RST improves the final accuracy beyond dense pre-training and the same random mask"
)
SOURCE = "Bai et al., Dual Lottery Ticket Hypothesis, ICLR 2022, section 3 (information extrusion)"
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {
    "98 %": (0.98, {}),
    "90 %": (0.9, {}),
    "98 %, transformed at a hundredth of the rate": (0.98, {"slower": 100, "bound": 20.0}),
    "98 %, fine-tuned at a fifth of the rate": (0.98, {"peak": RATE / 5, "slower": 1}),
}


def runs() -> list[dict]:
    """A seed and a setting each; the pull and the control within."""
    return [{"seed": seed, "setting": setting} for setting in SETTINGS for seed in SEEDS]


def run(seed: int, setting: str, **changes: Any) -> dict:
    """The pull and, with everything else alike, no pull."""
    sparsity, how = SETTINGS[setting]
    bench = Bench(seed, sparsity, **changes)
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
    for setting, difference in zip(found, common.stats.holm_all(list(found.values())), strict=True):
        positive = difference.low > 0 and difference.p <= 0.05
        word = (
            "PASS"
            if positive and difference.seeds >= 5
            else "FAIL"
            if difference.high <= 0
            else "CANNOT TELL"
        )
        parts.append(
            f"The pull improves the final accuracy, {setting}: {common.points(difference)}, p {difference.p:.3f}: {word}"
        )
    parts.append("Only for settings that pass may it be said that the pull improves the final accuracy.")
    return "\n\n".join(parts)
