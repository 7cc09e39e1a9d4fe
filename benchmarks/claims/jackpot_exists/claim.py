"""Do jackpots exist in pre-trained nets, how much is batch norm, how much is search, and is it the pre-training?

Every figure is of the last step, on the test part, with batch norm measured anew unless it says "as it is".
"""

from __future__ import annotations

from typing import Any

import common
import jackpot_common as jackpots
import torch

import startsparse as ss

TITLE = "Pre-trained nets hold sparse sub-networks that need no training and are found by a short search"
SOURCE = "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract"

SEEDS = (0, 1, 2, 3, 4)
DATA = ("fashion-mnist", "cifar10")
SEARCH = ss.JackpotReleased  # the rule behind the published figures; jackpot_restriction compares the others


def runs() -> list[dict[str, Any]]:
    """Both data sets and both widths, seeds outermost."""
    return [
        {"data": data, "width": width, "seed": seed}
        for data in DATA
        for seed in SEEDS
        for width in (jackpots.WIDE, jackpots.NARROW)
    ]


def run(data: str, width: int, seed: int) -> dict[str, Any]:
    """Case -> figures of one pre-trained net."""
    wide = width == jackpots.WIDE

    def net():
        return jackpots.pretrained(data, width, seed)

    cases = {"dense": jackpots.judged(net(), data)}
    for density in (0.1, 0.2) if wide else (0.1,):
        at = f"{100 - 100 * density:g} %"
        cases[f"magnitude, {at}"] = jackpots.one_shot(net(), SEARCH(density), data)
        cases[f"jackpot, {at}"] = jackpots.finished(
            jackpots.search(net(), SEARCH(density), data, seed=seed), data
        )
    if not wide:
        return cases
    cases["random mask, 90 %"] = jackpots.one_shot(net(), SEARCH(0.1, init="random", seed=seed), data)
    if data != DATA[0]:
        return cases
    frozen = jackpots.search(net(), SEARCH(0.1, batch_norm="freeze"), data, seed=seed)
    cases["jackpot, batch norm frozen, 90 %"] = jackpots.finished(frozen, data)
    budgets = jackpots.first_masks(net(), "magnitude", 0.1, data)
    shares = {n: float(mask.float().mean()) for n, mask in budgets.items()}
    for weights in ("random weights", "signed constants"):
        model = jackpots.fresh(data, width, seed)
        if weights == "signed constants":
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        _ = parameter.copy_(parameter.sign() * parameter.std())
        method = SEARCH(0.1, distribution=ss.Scaled(shares), init="random", seed=seed)
        cases[f"{weights}, 90 %"] = jackpots.finished(jackpots.search(model, method, data, seed=seed), data)
    return cases


def judge(records: list[dict[str, Any]]) -> str:
    """A table for each net, then the thresholds."""
    parts, lines = [], []
    for data in DATA:
        both = {
            width: common.one_by_one(
                [r for r in records if r["params"]["data"] == data and r["params"]["width"] == width]
            )
            for width in (jackpots.WIDE, jackpots.NARROW)
        }
        for width, cases in both.items():
            if cases:
                parts += [
                    f"## {data}, width {width}, against magnitude pruning with batch norm measured anew",
                    common.paired_table(cases, "case", "accuracy", "magnitude, 90 %"),
                    "The same nets with batch norm as it is:",
                    common.paired_table(cases, "case", "raw", "magnitude, 90 %"),
                ]
        lines += _thresholds(data, both[jackpots.WIDE], both[jackpots.NARROW])
    return "\n\n".join([*parts, "## Thresholds", "\n".join(lines)])


def _thresholds(data: str, wide: list, narrow: list) -> list[str]:
    if not wide:
        return [f"- {data}: CANNOT TELL, no run"]
    lines = []

    def difference(label: str, baseline: str, metric: str = "accuracy") -> Any:
        return common.difference(wide, "case", metric, label, baseline)

    found = difference("jackpot, 90 %", "magnitude, 90 %")
    word = (
        "PASS" if found.mean >= 0.05 and found.low > 0.02 else "FAIL" if found.high < 0.05 else "CANNOT TELL"
    )
    lines.append(jackpots.verdict(f"{data}: at 90 % the search adds 5 points or more to magnitude with batch norm anew", word, common.points(found)))  # fmt: skip
    for at, bar in (("80 %", -0.01), ("90 %", -0.03)):
        found = difference(f"jackpot, {at}", "dense")
        says = f"{data}: a jackpot of {at} is within {-100 * bar:g} points of dense"
        lines.append(jackpots.verdict(says, common.at_least(found, bar), common.points(found)))
    changes = {r["result"].get("weight_change", 0.0) for r in [*wide, *narrow]}
    word = "PASS" if changes == {0.0} else "FAIL"
    lines.append(jackpots.verdict(f"{data}: no weight changed", word, f"largest change {max(changes):g}"))
    dense, jackpot = (
        common.values(narrow, "case", "accuracy").get(k, {}) for k in ("dense", "jackpot, 90 %")
    )
    wider = common.values(wide, "case", "accuracy")
    gaps = [
        (dense[s] - jackpot[s]) - (wider["dense"][s] - wider["jackpot, 90 %"][s])
        for s in dense
        if s in wider["dense"]
    ]
    word = "CANNOT TELL" if len(gaps) < 5 else "PASS" if sum(g > 0 for g in gaps) >= 4 else "FAIL"
    lines.append(jackpots.verdict(f"{data}: the wider net loses less at 90 %", word, f"in {sum(g > 0 for g in gaps)} of {len(gaps)} seeds"))  # fmt: skip
    if data == DATA[0]:
        found = difference("jackpot, 90 %", "jackpot, batch norm frozen, 90 %", "raw")
        says = "statistics that follow the search beat frozen ones by 1 point or more, batch norm as it is"
        lines.append(jackpots.verdict(says, common.at_least(found, 0.01), common.points(found)))
        accuracies = common.values(wide, "case", "accuracy")
        for other in ("random weights, 90 %", "signed constants, 90 %"):
            margins = [accuracies["jackpot, 90 %"][s] - value for s, value in accuracies[other].items()]
            word = "CANNOT TELL" if len(margins) < 5 else "PASS" if min(margins) >= 0.05 else "FAIL"
            text = f"{100 * min(margins):+.1f} to {100 * max(margins):+.1f} points over {len(margins)} seeds"
            lines.append(jackpots.verdict(f"pre-trained weights beat {other.split(',')[0]} by 5 points in every seed", word, text))  # fmt: skip
    return lines
