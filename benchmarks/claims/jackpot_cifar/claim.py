"""Do the findings on Fashion-MNIST hold on CIFAR-10? One narrow net a seed, every experiment on the same nets.

Existence, pre-training, likeness to criteria, length of the search by its start, restricted swaps, and what many swaps
do at once: shorter than the claims on Fashion-MNIST, with the same thresholds. Every figure is of the last step, on the
test part, with batch norm measured anew unless it says "as it is".
"""

from __future__ import annotations

from typing import Any

import common
import jackpot_common as jackpots
import jackpot_swaps as swap_curves

import startsparse as ss

TITLE = "On CIFAR-10, too: jackpots exist, resemble the magnitude mask, and are found sooner from it"
SOURCE = "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract"

SEEDS = (0, 1, 2, 3, 4)
DATA, WIDTH = "cifar10", jackpots.NARROW
SHORT, LONG = 3, 9
CRITERIA = ("magnitude", "taylor", "snip", "grasp")
QUARTIC = {
    "quartic, 90 %": {},
    "quartic, curvature order, 90 %": {"order": "curvature", "samples": jackpots.BATCH},
}


def runs() -> list[dict[str, Any]]:
    """What is needed most first, seeds outermost within it."""
    order = (("exists", "swaps"), ("start",), ("untrained",), ("restriction",))
    return [{"part": part, "seed": seed} for parts in order for seed in SEEDS for part in parts]


def run(part: str, seed: int) -> dict[str, Any]:
    """Case -> figures of one pre-trained net."""

    def net():
        return jackpots.pretrained(DATA, WIDTH, seed)

    def searched(method: Any, epochs: int = jackpots.SEARCH_EPOCHS) -> dict[str, Any]:
        return jackpots.finished(jackpots.search(net(), method, DATA, epochs=epochs, seed=seed), DATA)

    if part == "swaps":
        return {"swaps": swap_curves.measure(net(), DATA, 0.1, seed)}
    if part == "untrained":
        return jackpots.untrained(net(), ss.JackpotReleased, 0.1, DATA, WIDTH, seed)
    if part == "restriction":
        return {name: searched(ss.Jackpot(0.1, **options)) for name, options in QUARTIC.items()}
    if part == "start":
        neutral = ss.JackpotReleased(0.1, init="random", seed=1000 + seed)
        model = net()
        found = jackpots.search(model, neutral, DATA, seed=seed)
        jackpot = {n: mask.clone() for n, mask in found.masks.items()}
        return {
            "from a random mask, 90 %": jackpots.finished(found, DATA) | _likeness(jackpot, net(), seed),
            f"from a random mask, {LONG} epochs": searched(neutral, LONG),
            f"from magnitude, {SHORT} epochs": searched(ss.JackpotReleased(0.1), SHORT),
        }
    cases = {"dense": jackpots.judged(net(), DATA)}
    for density in (0.1, 0.2):
        at = f"{100 - 100 * density:g} %"
        cases[f"magnitude, {at}"] = jackpots.one_shot(net(), ss.JackpotReleased(density), DATA)
        cases[f"jackpot, {at}"] = searched(ss.JackpotReleased(density))
    random_mask = ss.JackpotReleased(0.1, init="random", seed=seed)
    return cases | {"random mask, 90 %": jackpots.one_shot(net(), random_mask, DATA)}


def _likeness(jackpot: Any, model: Any, seed: int) -> dict[str, float]:
    """Overlap above chance with each criterion's mask, and with another random one."""
    figures = {}
    for criterion in CRITERIA:
        found = ss.overlap(jackpot, jackpots.first_masks(model, criterion, 0.1, DATA))
        figures[f"like {criterion}"] = found.normalized
        if criterion == "magnitude":
            figures["deviations"] = found.deviations
    other = jackpots.first_masks(model, "random", 0.1, DATA, seed=77 + seed)
    return figures | {"like random": ss.overlap(jackpot, other).normalized}


def judge(records: list[dict[str, Any]]) -> str:
    """Accuracies, likeness, swap curves, then the thresholds of the parts that are there."""
    cases = [c for c in common.one_by_one(records) if c["params"]["case"] != "swaps"]
    curves = [r["result"]["swaps"] for r in records if r["params"]["part"] == "swaps"]
    have = common.values(cases, "case", "accuracy")
    if "dense" not in have:
        return "CANNOT TELL: no run of the dense net"
    parts, lines = jackpots.tables(cases, "magnitude, 90 %"), jackpots.existence(cases)
    if "signed constants, 90 %" in have:
        lines += [jackpots.margin(cases, f"{weights}, 90 %") for weights in jackpots.UNTRAINED]
    if "from a random mask, 90 %" in have:
        table, more = _starts(cases)
        parts += ["Overlap of a jackpot from a random mask, above chance (0 to 1):", table]
        lines += more
    if "quartic, 90 %" in have:
        lines += _restriction(cases)
    if curves:
        parts += ["K swaps at once, change of the loss, mean over nets:", swap_curves.table(curves)]
        lines += swap_curves.judge(curves)
    return "\n\n".join(["## CIFAR-10", *parts, "## Thresholds", "\n".join(lines)])


def _starts(cases: list[dict[str, Any]]) -> tuple[str, list[str]]:
    neutral = [c["result"] for c in cases if c["params"]["case"] == "from a random mask, 90 %"]
    keys = [f"like {name}" for name in (*CRITERIA, "random")]
    means = [f"{sum(figures[key] for figures in neutral) / len(neutral):.3f}" for key in keys]
    table = common.comparison.markdown([key.removeprefix("like ") for key in keys], [means])
    lines, count = [], len(neutral)
    for other in CRITERIA[1:]:
        wins = sum(figures["like magnitude"] > figures[f"like {other}"] for figures in neutral)
        word = "CANNOT TELL" if count < 5 else "PASS" if wins == count else "FAIL"
        lines.append(jackpots.verdict(f"magnitude's mask is nearer than {other}'s", word, f"in {wins} of {count} nets"))  # fmt: skip
    far = min(figures["deviations"] for figures in neutral)
    word = "CANNOT TELL" if count < 5 else "PASS" if far > 10 else "FAIL"
    lines.append(jackpots.verdict("magnitude's mask shares more than chance by 10 standard deviations", word, f"{far:.0f} at least"))  # fmt: skip
    have = common.values(cases, "case", "accuracy")
    longest, short = (
        have.get(f"from a random mask, {LONG} epochs", {}),
        have.get(f"from magnitude, {SHORT} epochs", {}),
    )
    target = sum(longest.values()) / len(longest)
    early = sum(value >= target - 0.002 for value in short.values())
    word = "CANNOT TELL" if len(short) < 5 else "PASS" if early >= 4 else "FAIL"
    says = f"from magnitude, {SHORT} epochs reach what {LONG} from a random mask reach, less 0.2 points"
    lines.append(jackpots.verdict(says, word, f"in {early} of {len(short)} seeds (target {100 * target:.2f} %)"))  # fmt: skip
    found = common.difference(cases, "case", "accuracy", "jackpot, 90 %", "from a random mask, 90 %")
    lines.append(f"- From magnitude against from a random mask, 5 epochs each: {common.points(found)}")
    return table, lines


def _restriction(cases: list[dict[str, Any]]) -> list[str]:
    found = common.difference(cases, "case", "accuracy", "quartic, 90 %", "jackpot, 90 %")
    says = "the quartic restriction costs at most 0.3 points against plain top-k"
    lines = [jackpots.verdict(says, common.at_least(found, -0.003), common.points(found))]
    found = common.difference(cases, "case", "accuracy", "quartic, curvature order, 90 %", "quartic, 90 %")
    says = "curvature order is no worse than widest gap first, both quartic"
    return [*lines, jackpots.verdict(says, common.at_least(found, 0.0), common.points(found))]
