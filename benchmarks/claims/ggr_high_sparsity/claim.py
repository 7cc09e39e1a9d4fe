"""From 90 to 99.5 % sparsity, from a uniform and from an ERK start: where moving weights across layers pays."""

from __future__ import annotations

from typing import Any

import ggr_common as g
from common import at_least

TITLE = (
    "GGR beats RigL at 98 % sparsity and more from a uniform start, and is no worse at up to 98 % from ERK"
)
SOURCE = "Parger et al. 2022, abstract: better performing sparse subnetworks at very high sparsity levels"

DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.005)
WINDOW = 20
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {}),
    "set": ("set", {}),
    "rigl": ("rigl", {}),
    "ggr": ("ggr", {}),
    "rigl, window 20": ("ggr", g.rigl_averaged(WINDOW)),
    "ggr, window 20": ("ggr", {"gradient_window": WINDOW}),
    "ggr, floor half ERK": ("ggr", {"floor": 0.5}),
}
MILD = ("set", "rigl", "ggr")  # all that is run at 90 and 95 %
NO_WORSE = -0.01


def runs() -> list[dict[str, Any]]:
    """The full set of methods from 98 % on."""
    return [
        {"data": "mnist", "density": d, "begins": b, "method": method, "options": options, "seed": seed}
        for seed in g.SEEDS
        for b in ("uniform", "erk")
        for d in DENSITIES
        for case, (method, options) in CASES.items()
        if d < 0.05 or case in MILD
    ]


def run(**params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def judge(records: list[dict[str, Any]]) -> str:
    """Tables of accuracy, and the thresholds."""
    parts, tests = [], []
    for begins in ("uniform", "erk"):
        rows = []
        for case, (method, options) in CASES.items():
            groups = {
                d: g.where(records, begins=begins, density=d, method=method, options=options)
                for d in DENSITIES
            }
            rows.append([case, *(g.mean_sd(g.metric(group)) for group in groups.values())])
        parts.append(
            f"**MNIST from {begins}**, test accuracy, % (sd)\n\n"
            + g.table(["", *(f"{100 * (1 - d):g} %" for d in DENSITIES)], rows)
        )
        for d in DENSITIES:
            ours = g.where(records, begins=begins, density=d, method="ggr", options={})
            rigl = g.where(records, begins=begins, density=d, method="rigl", options={})
            others = g.where(records, begins=begins, density=d, method="set", options={})
            if not ours or not rigl or not others:
                continue
            found, beside = g.against(ours, rigl), g.against(ours, others)
            line = (
                f"{begins}, {100 * (1 - d):g} %: GGR - RigL {g.points(found)}; GGR - SET {g.points(beside)}"
            )
            if begins == "uniform" and d <= 0.02:
                verdict = "PASS" if found.low > 0 else "FAIL" if found.high < 0 else "CANNOT TELL"
                line += f"; above RigL: **{verdict}**"
            elif begins == "erk" and d >= 0.02:
                line += f"; no more than a point below RigL: **{at_least(found, NO_WORSE)}**"
            else:
                line += f"; no threshold: RigL {found.judge()}, SET {beside.judge()}"
            tests.append(f"- {line}; ends {g.layer_densities(ours)}")
    return "\n\n".join([*parts, "\n".join(tests)])
