"""Which pruning criterion does a jackpot resemble, if its search began at a random mask?

All masks have the same count in every layer, so that no layer's budget is compared; the searches know nothing of the
weights' magnitudes at first. The control is a random mask of another seed.
"""

from __future__ import annotations

from typing import Any

import common
import jackpot_common as jackpots

import startsparse as ss

TITLE = "Of the masks of known criteria, magnitude's is the most similar to a jackpot's"
SOURCE = "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract"

SEEDS = (0, 1, 2, 3, 4)
DATA, DENSITY = "fashion-mnist", 0.1
CRITERIA = ("magnitude", "taylor", "snip", "grasp")
OTHERS = ("another search", "random", "its own first mask")


def runs() -> list[dict[str, Any]]:
    """One a pre-trained net."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int) -> dict[str, Any]:
    """What the jackpot is compared with -> overlap, chance and what is above it."""

    def net():
        return jackpots.pretrained(DATA, jackpots.WIDE, seed)

    def searched(number: int) -> tuple[dict, dict]:
        method = ss.JackpotReleased(DENSITY, init="random", seed=1000 * (seed + 1) + number)
        model = net()
        first = jackpots.first_masks(model, "random", DENSITY, DATA, seed=method.seed)
        found = jackpots.search(model, method, DATA, seed=100 * (number + 1) + seed)
        return first, found.finish()

    (first, jackpot), (_, second) = searched(0), searched(1)
    others = {init: jackpots.first_masks(net(), init, DENSITY, DATA) for init in CRITERIA}
    others |= {
        "another search": second,
        "random": jackpots.first_masks(net(), "random", DENSITY, DATA, seed=77 + seed),
        "its own first mask": first,
    }
    result = {}
    for name, masks in others.items():
        assert {n: int(m.sum()) for n, m in masks.items()} == {n: int(m.sum()) for n, m in jackpot.items()}
        found = ss.overlap(jackpot, masks)
        result[name] = {
            "overlap": found.overlap,
            "above_chance": found.normalized,
            "chance": found.chance,
            "deviations": found.deviations,
            "jaccard": found.jaccard,
        }
    return result


def judge(records: list[dict[str, Any]]) -> str:
    """The table, then the order."""
    cases = common.one_by_one(records)
    if not cases:
        return "No run is there: CANNOT TELL."
    above = common.values(cases, "case", "above_chance")
    rows = []
    for name in (*CRITERIA, *OTHERS):
        found = [r["result"] for r in cases if r["params"]["case"] == name]
        rows.append([name, *(f"{sum(f[k] for f in found) / len(found):.3f}" for k in ("overlap", "chance", "above_chance", "jaccard"))])  # fmt: skip
    head = ["a jackpot against", "overlap", "chance", "above chance (0 to 1)", "Jaccard"]
    lines, count = [], len(above["magnitude"])
    for other in CRITERIA[1:]:
        wins = sum(above["magnitude"][s] > above[other][s] for s in above["magnitude"])
        gap = common.difference(cases, "case", "above_chance", "magnitude", other)
        word = "CANNOT TELL" if count < 5 else "PASS" if wins == count or gap.low > 0 else "FAIL"
        text = (
            f"in {wins} of {count} nets, by {gap.mean:+.3f} (95 % interval {gap.low:+.3f} to {gap.high:+.3f})"
        )
        lines.append(jackpots.verdict(f"magnitude's mask is nearer than {other}'s", word, text))
    far = common.values(cases, "case", "deviations")["magnitude"].values()
    word = "CANNOT TELL" if count < 5 else "PASS" if min(far) > 10 else "FAIL"
    lines.append(jackpots.verdict("magnitude's mask shares more than chance by 10 standard deviations", word, f"{min(far):.0f} at least"))  # fmt: skip
    return "\n\n".join(
        [
            "## Overlap, mean over nets",
            common.comparison.markdown(head, rows),
            "## Thresholds",
            "\n".join(lines),
        ]
    )
