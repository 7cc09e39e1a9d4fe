"""Does it help to restrict how many swaps a search makes at once, and which go first?

Two parts. Searches: the same pre-trained nets and data orders under several restrictions. Swaps: on a magnitude mask,
the loss after K swaps at once, predicted to first order and measured, for several ways to choose the K.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import common
import jackpot_common as jackpots
import jackpot_swaps as swap_curves
import torch

import startsparse as ss

TITLE = "Fewer swaps at a time make a jackpot search steadier and faster, because many swaps at once disturb each other"
SOURCE = (
    "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract (short restriction)"
)

NETS, ORDERS = (0, 1), (0, 1, 2, 3, 4)
CURVES = (0, 1, 2, 3, 4)
DATA, DENSITY, WIDTH = "fashion-mnist", 0.1, jackpots.NARROW
NO_SEARCH = "magnitude, no search"
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "quartic": {"restriction": "quartic"},
    "cosine": {"restriction": "cosine"},
    "single": {"restriction": "single"},
    "quartic, random order": {"restriction": "quartic", "order": "random"},
    "quartic, curvature order": {"restriction": "quartic", "order": "curvature", "samples": jackpots.BATCH},
}


def runs() -> list[dict[str, Any]]:
    """The swap curves first, which are cheap; a seed of a search is a net and a data order."""
    curves = [{"part": "swaps", "arm": "", "net": net, "seed": net} for net in CURVES]
    searches = [
        {"part": "search", "arm": arm, "net": net, "seed": 10 * net + order}
        for order in ORDERS
        for net in NETS
        for arm in (*ARMS, NO_SEARCH)
    ]
    return curves + searches


def run(part: str, arm: str, net: int, seed: int) -> dict[str, Any]:
    """One search, or the curves of one net."""
    model = jackpots.pretrained(DATA, WIDTH, net)
    if arm == NO_SEARCH:
        return jackpots.one_shot(model, ss.JackpotReleased(DENSITY), DATA)
    if part == "swaps":
        return swap_curves.measure(model, DATA, DENSITY, net)
    return _search(model, arm, seed)


def _search(model: torch.nn.Module, arm: str, seed: int) -> dict[str, Any]:
    losses: list[float] = []
    flips: dict[str, torch.Tensor] = {}
    last: dict[str, torch.Tensor] = {}

    def watch(search: ss.Search, loss: float) -> None:
        losses.append(loss)
        for name, mask in search.masks.items():
            if name in last:
                flips[name] = flips.get(name, torch.zeros(mask.shape, dtype=torch.int32)) + (
                    mask ^ last[name]
                )
            last[name] = mask.clone()

    method = ss.JackpotReleased(DENSITY, seed=seed, **ARMS[arm])
    found = jackpots.search(model, method, DATA, seed=seed, each_step=watch)
    tail = losses[-len(losses) * 3 // 10 :]
    back = sum(int((f - 1).clamp_min(0).sum()) for f in flips.values())
    smooth = [statistics.fmean(losses[max(0, i - 49) : i + 1]) for i in range(len(losses))]
    return jackpots.finished(found, DATA) | {
        "reversals": back / sum(f.numel() for f in flips.values()),
        "oscillation": statistics.stdev(tail),
        "last_loss": statistics.fmean(tail),
        "smooth": [round(value, 5) for value in smooth[::5]],
    }


def judge(records: list[dict[str, Any]]) -> str:
    """Searches and thresholds, then the curves and theirs."""
    searches = [r for r in records if r["params"]["part"] == "search"]
    curves = [r for r in records if r["params"]["part"] == "swaps"]
    parts, lines = [], []
    if searches:
        parts.append("## Searches, against plain top-k; a seed is a net and a data order")
        for metric in ("accuracy", "raw"):
            what = "batch norm measured anew" if metric == "accuracy" else "batch norm as it is"
            parts += [f"Test accuracy, {what}:", common.paired_table(searches, "arm", metric, "none")]
        real = [r for r in searches if r["params"]["arm"] != NO_SEARCH]
        parts.append(_steadiness(real))
        lines += _search_lines(real)
    if curves:
        parts += [
            "## K swaps at once, change of the loss, mean over nets",
            swap_curves.table([r["result"] for r in curves]),
        ]
        lines += swap_curves.judge([r["result"] for r in curves])
    return "\n\n".join([*parts, "## Thresholds", "\n".join(lines or ["- CANNOT TELL, no run"])])


def _steps_to(record: dict[str, Any], bar: float) -> float:
    """Steps until the mean loss of the last fifty is below a bar; the whole length where it never is."""
    smooth = record["result"]["smooth"]
    return 5.0 * next((i for i, value in enumerate(smooth) if value < bar and i >= 10), len(smooth))


def _bar(searches: list[dict[str, Any]]) -> float:
    """A loss that plain top-k reaches well before its end."""
    return 1.1 * statistics.fmean(r["result"]["last_loss"] for r in searches if r["params"]["arm"] == "none")


def _steadiness(searches: list[dict[str, Any]]) -> str:
    bar, rows = _bar(searches), []
    for arm in ARMS:
        found = [r for r in searches if r["params"]["arm"] == arm]
        if found:
            keys = ("reversals", "oscillation", "last_loss")
            rows.append([arm, *(f"{statistics.fmean(r['result'][k] for r in found):.4f}" for k in keys), f"{statistics.fmean(_steps_to(r, bar) for r in found):.0f}"])  # fmt: skip
    head = ["restriction", "reversals a weight", "deviation of the loss, last 30 %", "mean loss, last 30 %", f"steps to loss {bar:.3f}"]  # fmt: skip
    return common.comparison.markdown(head, rows)


def _search_lines(searches: list[dict[str, Any]]) -> list[str]:
    bar = _bar(searches)
    derived = [
        r
        | {
            "result": r["result"]
            | {"logs": math.log(_steps_to(r, bar)), "logr": math.log(r["result"]["reversals"] + 1e-9)}
        }
        for r in searches
    ]

    def change(metric: str) -> tuple[Any, str]:
        found = common.difference(derived, "arm", metric, "quartic", "none")
        low, mean, high = (100 * (math.exp(v) - 1) for v in (found.low, found.mean, found.high))
        return found, f"{mean:+.1f} % (95 % interval {low:+.1f} to {high:+.1f}, {found.seeds} pairs)"

    lines = []
    found, text = change("logr")
    word = (
        "CANNOT TELL"
        if found.seeds < 5
        else "PASS"
        if found.mean <= math.log(0.75) and found.high < 0
        else "FAIL"
    )
    lines.append(jackpots.verdict("the quartic restriction lowers reversals by 25 % or more", word, text))
    found = common.difference(derived, "arm", "accuracy", "quartic", "none")
    lines.append(
        jackpots.verdict("it costs at most 0.3 points", common.at_least(found, -0.003), common.points(found))
    )
    found, text = change("logs")
    word = (
        "CANNOT TELL"
        if found.seeds < 5
        else "PASS"
        if found.mean <= math.log(0.8) and found.high < 0
        else "FAIL"
    )
    lines.append(jackpots.verdict("it reaches the training loss in 20 % fewer steps", word, text))
    for other in ("random", "curvature"):
        found = common.difference(derived, "arm", "accuracy", f"quartic, {other} order", "quartic")
        word = common.at_least(found, 0.0) if other == "curvature" else "reported"
        lines.append(
            jackpots.verdict(
                f"{other} order against widest gap first, both quartic", word, common.points(found)
            )
        )
    return lines
