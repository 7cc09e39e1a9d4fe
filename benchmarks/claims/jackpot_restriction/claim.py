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
import torch
import torch.nn.functional as F

import startsparse as ss

TITLE = "Fewer swaps at a time make a jackpot search steadier and faster, because many swaps at once disturb each other"
SOURCE = (
    "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract (short restriction)"
)

NETS, ORDERS = (0, 1), (0, 1, 2, 3, 4)
CURVES = (0, 1, 2, 3, 4)
DATA, DENSITY, WIDTH = "fashion-mnist", 0.1, jackpots.NARROW
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "quartic": {"restriction": "quartic"},
    "cosine": {"restriction": "cosine"},
    "single": {"restriction": "single"},
    "quartic, random order": {"restriction": "quartic", "order": "random"},
    "quartic, curvature order": {"restriction": "quartic", "order": "curvature", "samples": jackpots.BATCH},
}
COUNTS = (1, 4, 16, 64, 256, 1024)
CHOICES = ("random", "gap", "curvature")


def runs() -> list[dict[str, Any]]:
    """The swap curves first, which are cheap; a seed of a search is a net and a data order."""
    curves = [{"part": "swaps", "arm": "", "net": net, "seed": net} for net in CURVES]
    searches = [
        {"part": "search", "arm": arm, "net": net, "seed": 10 * net + order}
        for order in ORDERS
        for net in NETS
        for arm in ARMS
    ]
    return curves + searches


def run(part: str, arm: str, net: int, seed: int) -> dict[str, Any]:
    """One search, or the curves of one net."""
    model = jackpots.pretrained(DATA, WIDTH, net)
    return _curves(model, net) if part == "swaps" else _search(model, arm, seed)


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


def _curves(model: torch.nn.Module, seed: int) -> dict[str, Any]:
    """Loss changes by choice and count; batch norm by the statistics of each batch."""
    data = jackpots.load(DATA)
    search = ss.search(model, ss.JackpotReleased(DENSITY), total_steps=1)
    _ = model.train()
    weights, masks = search.weights, {n: m.clone() for n, m in search.masks.items()}
    names, parameters = list(masks), dict(model.named_parameters())
    batch = (data.x_train[:1024], data.y_train[:1024])
    other = (data.x_train[1024:2048], data.y_train[1024:2048])

    def loss(which: tuple) -> torch.Tensor:
        return F.cross_entropy(model(which[0]), which[1])

    def signals(which: tuple) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(loss(which), [parameters[n] for n in names])
        return {n: g * weights[n] for n, g in zip(names, found, strict=True)}

    mean = signals(batch)
    parts = [signals((x, y)) for x, y in zip(batch[0].split(16), batch[1].split(16), strict=True)]
    fisher = {n: 16 * torch.stack([p[n] for p in parts]).var(0) for n in names}
    pairs = []  # (layer, comes, goes, predicted change, with curvature): best with best while it helps
    for index, name in enumerate(names):
        mask, first, second = (t[name].flatten() for t in (masks, mean, fisher))
        out, kept = (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)
        comes = out[first[out].argsort()]  # the most negative first: adding it lowers the loss most
        goes = kept[first[kept].argsort(descending=True)]
        count = min(len(comes), len(goes))
        comes, goes = comes[:count], goes[:count]
        gain = first[comes] - first[goes]
        helps = gain < 0
        curved = gain + (second[comes] + second[goes]) / 2
        pairs += [
            (index, *row)
            for row in torch.stack([comes[helps], goes[helps], gain[helps], curved[helps]], 1).tolist()
        ]
    generator = torch.Generator().manual_seed(seed)
    orders = {
        "random": torch.randperm(len(pairs), generator=generator).tolist(),
        "gap": sorted(range(len(pairs)), key=lambda i: pairs[i][3]),
        "curvature": sorted(range(len(pairs)), key=lambda i: pairs[i][4]),
    }
    with torch.no_grad():
        start, start_other = loss(batch).item(), loss(other).item()
        rows = []
        for choice, order in orders.items():
            for count in [k for k in COUNTS if k < len(pairs)] + [len(pairs)]:
                chosen = [pairs[i] for i in order[:count]]
                for index, name in enumerate(names):
                    mask = masks[name].flatten().clone()
                    here = [p for p in chosen if p[0] == index]
                    mask[torch.tensor([int(p[1]) for p in here], dtype=torch.long)] = True
                    mask[torch.tensor([int(p[2]) for p in here], dtype=torch.long)] = False
                    _ = parameters[name].copy_(torch.where(mask.view_as(weights[name]), weights[name], 0))
                predicted = sum(p[3] for p in chosen)
                rows.append(
                    [choice, count, predicted, loss(batch).item() - start, loss(other).item() - start_other]
                )
    _ = search.restore()
    return {"start": start, "pairs": len(pairs), "rows": rows}


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
        parts.append(_steadiness(searches))
        lines += _search_lines(searches)
    if curves:
        parts += ["## K swaps at once, change of the loss, mean over nets", _curve_table(curves)]
        lines += _curve_lines(curves)
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


def _curve_table(curves: list[dict[str, Any]]) -> str:
    rows = []
    for choice in CHOICES:
        for count in (*COUNTS, "all"):
            found = [_row(c, choice, count) for c in curves]
            found = [f for f in found if f is not None]
            if found:
                rows.append(
                    [
                        choice,
                        str(count),
                        *(f"{statistics.fmean(f[i] for f in found):+.4f}" for i in (2, 3, 4)),
                    ]
                )
    head = ["chosen by", "swaps", "predicted", "on the same images", "on others"]
    return common.comparison.markdown(head, rows)


def _row(curve: dict[str, Any], choice: str, count: Any) -> list | None:
    rows = [row for row in curve["result"]["rows"] if row[0] == choice]
    return rows[-1] if count == "all" else next((row for row in rows[:-1] if row[1] == count), None)


def _curve_lines(curves: list[dict[str, Any]]) -> list[str]:
    worse = sum(_row(c, "gap", "all")[3] > 0 > _row(c, "gap", "all")[2] for c in curves)
    some = sum(any(row[3] < 0 for row in c["result"]["rows"] if row[0] == "random" and row[1] < c["result"]["pairs"] / 8) for c in curves)  # fmt: skip
    enough = len(curves) >= 5
    word = "CANNOT TELL" if not enough else "PASS" if worse == some == len(curves) else "FAIL"
    text = (
        f"all at once raise it in {worse}, some few chosen at random lower it in {some} of {len(curves)} nets"
    )
    lines = [jackpots.verdict("swaps that lower the loss one by one raise it all at once", word, text)]
    better = sum(
        min(row[3] for row in c["result"]["rows"] if row[0] == "curvature")
        < min(row[3] for row in c["result"]["rows"] if row[0] == "gap")
        for c in curves
    )
    word = "CANNOT TELL" if not enough else "PASS" if better == len(curves) else "FAIL"
    lines.append(jackpots.verdict("chosen by predicted loss with curvature, the best count lowers the loss more than by gap", word, f"in {better} of {len(curves)} nets"))  # fmt: skip
    return lines
