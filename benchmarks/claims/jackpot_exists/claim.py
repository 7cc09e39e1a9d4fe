"""Do jackpots exist in pre-trained nets, how much is batch norm, how much is search, and is it the pre-training?

Every figure is of the last step, on the test part, with batch norm measured anew unless it says "as it is".
"""

from __future__ import annotations

from typing import Any

import common
import jackpot_common as jackpots

import startsparse as ss

TITLE = "Pre-trained nets hold sparse sub-networks that need no training and are found by a short search"
SOURCE = "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract"

SEEDS = (0, 1, 2, 3, 4)
DATA = "fashion-mnist"  # jackpot_cifar is the other one
SEARCH = ss.JackpotReleased  # the rule behind the published figures; jackpot_restriction compares the others


def runs() -> list[dict[str, Any]]:
    """Both widths, seeds outermost."""
    return [{"width": width, "seed": seed} for seed in SEEDS for width in (jackpots.WIDE, jackpots.NARROW)]


def run(width: int, seed: int) -> dict[str, Any]:
    """Case -> figures of one pre-trained net."""
    wide = width == jackpots.WIDE

    def net():
        return jackpots.pretrained(DATA, width, seed)

    cases = {"dense": jackpots.judged(net(), DATA)}
    for density in (0.1, 0.2) if wide else (0.1,):
        at = f"{100 - 100 * density:g} %"
        cases[f"magnitude, {at}"] = jackpots.one_shot(net(), SEARCH(density), DATA)
        cases[f"jackpot, {at}"] = jackpots.finished(
            jackpots.search(net(), SEARCH(density), DATA, seed=seed), DATA
        )
    if not wide:
        return cases
    cases["random mask, 90 %"] = jackpots.one_shot(net(), SEARCH(0.1, init="random", seed=seed), DATA)
    frozen = jackpots.search(net(), SEARCH(0.1, batch_norm="freeze"), DATA, seed=seed)
    cases["jackpot, batch norm frozen, 90 %"] = jackpots.finished(frozen, DATA)
    return cases | jackpots.untrained(net(), SEARCH, 0.1, DATA, width, seed)


def judge(records: list[dict[str, Any]]) -> str:
    """A table for each width, then the thresholds."""
    wide, narrow = (
        common.one_by_one([r for r in records if r["params"]["width"] == width])
        for width in (jackpots.WIDE, jackpots.NARROW)
    )
    parts = []
    for width, cases in ((jackpots.WIDE, wide), (jackpots.NARROW, narrow)):
        if cases:
            parts += [
                f"## Width {width}, against magnitude pruning",
                *jackpots.tables(cases, "magnitude, 90 %"),
            ]
    if not wide:
        return "CANNOT TELL: no run of the wider net"
    lines = jackpots.existence(wide, narrow)
    lines.append(_trend(wide, narrow))
    found = common.difference(wide, "case", "raw", "jackpot, 90 %", "jackpot, batch norm frozen, 90 %")
    says = "statistics that follow the search beat frozen ones by 1 point or more, batch norm as it is"
    lines.append(jackpots.verdict(says, common.at_least(found, 0.01), common.points(found)))
    lines += [jackpots.margin(wide, f"{weights}, 90 %") for weights in jackpots.UNTRAINED]
    return "\n\n".join([*parts, "## Thresholds", "\n".join(lines)])


def _trend(wide: list, narrow: list) -> str:
    """Whether the wider net loses less; a trend over widths stands behind "equals dense at 90 %"."""
    losses = {}
    for width, cases in (("wide", wide), ("narrow", narrow)):
        found = common.values(cases, "case", "accuracy")
        dense, jackpot = found.get("dense", {}), found.get("jackpot, 90 %", {})
        losses[width] = {seed: dense[seed] - jackpot[seed] for seed in dense if seed in jackpot}
    both = sorted(losses["wide"].keys() & losses["narrow"].keys())
    wins = sum(losses["narrow"][seed] > losses["wide"][seed] for seed in both)
    word = "CANNOT TELL" if len(both) < 5 else "PASS" if wins >= 4 else "FAIL"
    return jackpots.verdict("the wider net loses less at 90 %", word, f"in {wins} of {len(both)} seeds")
