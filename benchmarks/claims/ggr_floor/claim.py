"""Whether a floor under layer sizes cures GGR's weakness at 99.5 %: a last layer that is given no growth."""

from __future__ import annotations

import statistics
from typing import Any

import ggr_common as g

TITLE = "At 99.5 % from ERK a floor at half of ERK's layer sizes makes GGR better"
SOURCE = "ours: the paper's floor is not known"

FLOORS = (1, "units", 0.25, 0.5, 0.75)
WINDOWS = (1, 20)


def runs() -> list[dict[str, Any]]:
    """MNIST at 99.5 %, from ERK and from uniform."""
    return [
        {
            "data": "mnist",
            "density": 0.005,
            "begins": b,
            "method": "ggr",
            "options": {"floor": floor, "gradient_window": window},
            "seed": seed,
        }
        for seed in g.SEEDS
        for b in ("erk", "uniform")
        for floor in FLOORS
        for window in WINDOWS
        if window == 1 or b == "erk"
    ]


def run(**params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def judge(records: list[dict[str, Any]]) -> str:
    """Floor against window, with the last layer's weights."""
    rows, tests = [], []
    for begins, window in (("erk", 1), ("erk", 20), ("uniform", 1)):
        cells = {
            floor: g.where(records, begins=begins, options={"floor": floor, "gradient_window": window})
            for floor in FLOORS
        }
        if not all(cells.values()):
            continue
        for floor, group in cells.items():
            last = [list(record["result"]["end_counts"].values())[-1] for record in group]
            rows.append(
                [
                    f"{begins}, window {window}",
                    str(floor),
                    g.mean_sd(g.metric(group)),
                    "baseline" if floor == 1 else g.points(g.against(group, cells[1])),
                    ", ".join(map(str, last)),
                ]
            )
        best = max(cells, key=lambda f: statistics.fmean(g.metric(cells[f], "validation_accuracy").values()))
        tests.append(f"- {begins}, window {window}: the best floor by validation is {best}")
        if begins == "erk" and window == 1:
            found = g.against(cells[0.5], cells[1])
            verdict = "PASS" if found.low > 0 else "FAIL" if found.high < 0 else "CANNOT TELL"
            tests.append(f"- floor 0.5 above floor 1 from ERK: {g.points(found)}: **{verdict}**")
    head = [
        "",
        "floor",
        "test accuracy, % (sd)",
        "minus floor 1, points (95 %)",
        "last layer's weights, by seed",
    ]
    return "\n\n".join([g.table(head, rows), "\n".join(tests)])
