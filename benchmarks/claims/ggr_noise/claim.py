"""Noise of the gradient and exploration: windows, batches and update intervals at 99.5 % from ERK."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import ggr_common as g
from common import at_least

TITLE = "Averaging gradients lifts RigL by 5 points at 99.5 %, and updating more often explores more"
SOURCE = "Liu et al. 2021, In-Time Over-Parameterization, section 3 (exploration rate); ours (windows)"

BAR = 0.05
WINDOWS = (1, 5, 20)
INTERVALS = (25, 50, 100, 200)
CASES = {"rigl": g.rigl_averaged, "ggr": lambda window: {"gradient_window": window}}


def runs() -> list[dict[str, Any]]:
    """MNIST at 99.5 % from ERK; RigL and GGR take as many dense gradients as each other in every cell."""
    cells = [(w, g.INTERVAL, g.BATCH) for w in WINDOWS]
    cells += [(1, interval, g.BATCH) for interval in INTERVALS if interval != g.INTERVAL]
    cells += [(1, g.INTERVAL, 512)]
    return [
        {
            "data": "mnist",
            "density": 0.005,
            "begins": "erk",
            "method": "ggr",
            "options": options(window) | {"exclude_dropped": False},
            "case": case,
            "update_interval": interval,
            "batch": batch,
            "seed": seed,
        }
        for seed in g.SEEDS
        for case, options in CASES.items()
        for window, interval, batch in cells
    ]


def run(case: str, **params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def judge(records: list[dict[str, Any]]) -> str:
    """Accuracy and exploration rate in every cell."""
    rows, tests = [], []
    for case, options in CASES.items():
        explored = {}
        for window, interval, batch in [
            *((w, g.INTERVAL, g.BATCH) for w in WINDOWS),
            *((1, i, g.BATCH) for i in INTERVALS if i != g.INTERVAL),
            (1, g.INTERVAL, 512),
        ]:
            group = cell(records, case, options, window, interval, batch)
            if not group:
                continue
            rate = statistics.fmean(g.metric(group, "explored_share").values())
            if window == 1 and batch == g.BATCH:
                explored[interval] = rate
            rows.append(
                [
                    case,
                    str(window),
                    str(interval),
                    str(batch),
                    g.mean_sd(g.metric(group)),
                    f"{100 * rate:.2f}",
                    g.layer_densities(group),
                    str(group[0]["result"]["gradient_steps"]),
                ]
            )
        rates = [explored[i] for i in sorted(explored)]
        if len(rates) == len(INTERVALS):
            falls = all(a > b for a, b in itertools.pairwise(rates))
            tests.append(
                f"- {case}: exploration rate rises as the interval shrinks: **{'PASS' if falls else 'FAIL'}**"
            )
        one, long = (cell(records, case, options, w, g.INTERVAL, g.BATCH) for w in (1, 20))
        if one and long:
            found = g.against(long, one)
            test = f"{case}: window 20 against 1: {g.points(found)}"
            bar = f"; >= +5 points: **{at_least(found, BAR)}**" if case == "rigl" else " (no threshold)"
            tests.append(f"- {test}{bar}")
    head = [
        "",
        "window",
        "interval",
        "batch",
        "test accuracy, % (sd)",
        "explored, %",
        "ends",
        "dense gradients",
    ]
    return "\n\n".join([g.table(head, rows), "\n".join(tests)])


def cell(records: list[dict[str, Any]], case: str, options: Any, window: int, interval: int, batch: int):
    """The records of one cell."""
    wanted = options(window) | {"exclude_dropped": False}
    return g.where(records, case=case, options=wanted, update_interval=interval, batch=batch)
