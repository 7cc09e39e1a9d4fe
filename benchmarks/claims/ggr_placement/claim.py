"""How much of the growth the gradient should place, and over how many steps it should be summed."""

from __future__ import annotations

import statistics
from typing import Any

import ggr_common as g
from common import at_least

TITLE = "Placing half of the growth at random costs GGR nothing, and protects it from a starved first layer"
SOURCE = "Parger et al. 2022 (insertion combines gradients and chance; the share is not known): our defaults"

SHARES = (0.0, 0.5, 1.0)
WINDOWS = (1, 5, 20)
DENSITY = 0.01


def runs() -> list[dict[str, Any]]:
    """Fashion-MNIST at 99 % from ERK and from a starved first layer."""
    return [
        {
            "data": "fashion-mnist",
            "density": DENSITY,
            "begins": b,
            "method": "ggr",
            "options": {"rho": rho, "gradient_window": window},
            "seed": seed,
        }
        for seed in g.SEEDS
        for b in ("erk", "inv")
        for rho in SHARES
        for window in WINDOWS
    ]


def run(**params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def judge(records: list[dict[str, Any]]) -> str:
    """Share against window, for both starts."""
    parts, tests = [], []
    for begins in ("erk", "inv"):
        cells = {
            (rho, w): g.where(records, begins=begins, options={"rho": rho, "gradient_window": w})
            for rho in SHARES
            for w in WINDOWS
        }
        rows = [[f"rho {rho:g}", *(g.mean_sd(g.metric(cells[rho, w])) for w in WINDOWS)] for rho in SHARES]
        parts.append(
            f"**Fashion-MNIST at 99 % from {begins}**, test accuracy, % (sd)\n\n"
            + g.table(["", *(f"window {w}" for w in WINDOWS)], rows)
        )
        if not all(cells.values()):
            continue
        half = g.against(cells[0.5, 1], cells[1.0, 1])
        tests.append(
            f"- {begins}: rho 0.5 no more than a point below rho 1: {g.points(half)}: **{at_least(half, -0.01)}**"
        )
        chosen = max(
            cells, key=lambda c: statistics.fmean(g.metric(cells[c], "validation_accuracy").values())
        )
        tests.append(
            f"- {begins}: the best by validation is rho {chosen[0]:g}, window {chosen[1]}: it beats rho 0.5, window 1 by "
            f"{g.points(g.against(cells[chosen], cells[0.5, 1]))} (no threshold)"
        )
        longer = g.against(cells[0.5, 20], cells[0.5, 1])
        tests.append(f"- {begins}: window 20 against 1 at rho 0.5: {g.points(longer)} (no threshold)")
    return "\n\n".join([*parts, "\n".join(tests)])
