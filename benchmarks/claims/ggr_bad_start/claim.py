"""Starved at the start: every layer but the largest begins with a quarter of uniform density."""

from __future__ import annotations

import statistics
from typing import Any

import ggr_common as g
from common import at_least

TITLE = "From a starved start GGR reaches at least 20 points more accuracy than RigL"
SOURCE = "Parger et al. 2022, abstract: less prone to unbalanced weight distribution at initialization"

BAR = 0.20
SETS = {"mnist": 0.005, "fashion-mnist": 0.01}
RATES = (0.03, 0.1, 0.3)


def runs() -> list[dict[str, Any]]:
    """RigL and GGR at three learning rates each; GGR with a floor, SET and static masks beside them at one."""
    cells = [(m, lr) for m in ("rigl", "ggr") for lr in RATES] + [
        ("ggr-half", 0.1),
        ("set", 0.1),
        ("static", 0.1),
    ]
    return [
        {"data": data, "density": density, "begins": "bad", "method": method, "lr": lr, "seed": seed}
        for data, density in SETS.items()
        for seed in g.SEEDS
        for method, lr in cells
    ]


def run(**params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def best_rate(records: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    """The records of the learning rate with the highest mean validation accuracy."""
    groups = [g.where(records, lr=lr, **params) for lr in RATES]
    groups = [group for group in groups if group]
    return max(
        groups,
        key=lambda group: statistics.fmean(g.metric(group, "validation_accuracy").values()),
        default=[],
    )


def judge(records: list[dict[str, Any]]) -> str:
    """Each method at the learning rate its validation accuracy chose."""
    parts = []
    for data, density in SETS.items():
        chosen = {
            m: best_rate(records, data=data, method=m) for m in ("ggr", "rigl", "ggr-half", "set", "static")
        }
        if not chosen["ggr"] or not chosen["rigl"]:
            continue
        rows = [
            [
                method,
                str(group[0]["params"]["lr"]),
                g.mean_sd(g.metric(group)),
                g.points(g.against(group, chosen["rigl"])) if method != "rigl" else "baseline",
                g.layer_densities(group, "start"),
                g.layer_densities(group),
                str(group[0]["result"]["gradient_steps"]),
            ]
            for method, group in chosen.items()
            if group
        ]
        head = [
            "",
            "lr",
            "test accuracy, % (sd)",
            "minus RigL, points (95 %)",
            "starts",
            "ends",
            "dense gradients",
        ]
        found = g.against(chosen["ggr"], chosen["rigl"])
        parts.append(
            f"**{data} at {100 * (1 - density):g} %**\n\n{g.table(head, rows)}\n\n"
            f"GGR - RigL >= +{100 * BAR:g} points on {data}: {g.points(found)}: **{at_least(found, BAR)}**"
        )
    return "\n\n".join(parts)
