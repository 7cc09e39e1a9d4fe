"""The loss after K swaps at once on a magnitude mask: predicted to first order, and measured, by how the K are chosen."""

from __future__ import annotations

import statistics
from typing import Any

import common
import jackpot_common as jackpots
import torch
import torch.nn.functional as F

import startsparse as ss

COUNTS = (1, 4, 16, 64, 256, 1024)
CHOICES = ("random", "gap", "curvature")
Curves = dict[str, Any]


def measure(model: torch.nn.Module, data_name: str, density: float, seed: int) -> Curves:
    """Loss changes by choice and count of the swaps that lower it one by one; batch norm by each batch's statistics.

    Args:
        model: pre-trained; it is left with its weights.
        data_name: of the data.
        density: of the mask.
        seed: of the random choice.

    Returns:
        ``rows`` of (choice, count, predicted change, change on the same images, on others).
    """
    data = jackpots.load(data_name)
    search = ss.search(model, ss.JackpotReleased(density), total_steps=1)
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


def table(found: list[Curves]) -> str:
    """Means over nets."""
    rows = []
    for choice in CHOICES:
        for count in (*COUNTS, "all"):
            means = [row for row in (_row(c, choice, count) for c in found) if row is not None]
            if means:
                rows.append(
                    [
                        choice,
                        str(count),
                        *(f"{statistics.fmean(row[i] for row in means):+.4f}" for i in (2, 3, 4)),
                    ]
                )
    head = ["chosen by", "swaps", "predicted", "on the same images", "on others"]
    return common.comparison.markdown(head, rows)


def _row(curve: Curves, choice: str, count: Any) -> list | None:
    rows = [row for row in curve["rows"] if row[0] == choice]
    return rows[-1] if count == "all" else next((row for row in rows[:-1] if row[1] == count), None)


def judge(curves: list[Curves]) -> list[str]:
    """Whether swaps disturb each other, and whether curvature tells which."""
    worse = sum(_row(c, "gap", "all")[3] > 0 > _row(c, "gap", "all")[2] for c in curves)
    some = sum(any(row[3] < 0 for row in c["rows"] if row[0] == "random" and row[1] < c["pairs"] / 8) for c in curves)  # fmt: skip
    enough = len(curves) >= 5
    word = "CANNOT TELL" if not enough else "PASS" if worse == some == len(curves) else "FAIL"
    text = (
        f"all at once raise it in {worse}, some few chosen at random lower it in {some} of {len(curves)} nets"
    )
    lines = [jackpots.verdict("swaps that lower the loss one by one raise it all at once", word, text)]
    better = sum(
        min(row[3] for row in c["rows"] if row[0] == "curvature")
        < min(row[3] for row in c["rows"] if row[0] == "gap")
        for c in curves
    )
    word = "CANNOT TELL" if not enough else "PASS" if better == len(curves) else "FAIL"
    lines.append(jackpots.verdict("chosen by predicted loss with curvature, the best count lowers the loss more than by gap", word, f"in {better} of {len(curves)} nets"))  # fmt: skip
    return lines
