"""Where it starts is forgotten: layer sizes and accuracy from four different first distributions."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import ggr_common as g

TITLE = "GGR ends with nearly the same layer sizes from any start, and accuracy that depends on the start far less"
SOURCE = "Parger et al. 2022, abstract: less prone to unbalanced weight distribution at initialization"

SETS = {"mnist": 0.005, "fashion-mnist": 0.01}
CASES = {
    "rigl": ("rigl", {}),
    "ggr": ("ggr", {}),
    "ggr, global drop": ("ggr", {"drop_scope": "global"}),
    "ggr, floor half ERK": ("ggr", {"floor": 0.5}),
    "ggr, global drop, floor half ERK": ("ggr", {"drop_scope": "global", "floor": 0.5}),
}
FALL = 5.0  # the distance of the two most distant starts must fall by this factor
SPREAD = 0.5  # of RigL's spread over starts


def runs() -> list[dict[str, Any]]:
    """Every start, method and seed."""
    return [
        {"data": d, "density": density, "begins": b, "method": m, "options": options, "seed": seed}
        for d, density in SETS.items()
        for seed in g.SEEDS
        for b in g.STARTS
        for m, options in CASES.values()
    ]


def run(**params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def left_of_the_start() -> float:
    """What local drops leave of the first distribution: the product of 1 - f over the updates."""
    how = g.ss.GGR(0.5, update_interval=g.INTERVAL, drop_fraction=g.FRACTION)
    due = [step for step in range(g.STEPS) if how.due(step, g.STEPS)]
    return math.prod(1 - how.fraction(step, g.STEPS) for step in due)


def distance(one: dict[str, int], other: dict[str, int]) -> int:
    """L1 distance of layer sizes."""
    return sum(abs(one[name] - other[name]) for name in one)


def judge(records: list[dict[str, Any]]) -> str:
    """Distances of layer sizes and spread of accuracy over the starts."""
    parts = []
    for data, density in SETS.items():
        rows, spreads, falls = [], {}, {}
        for case, (method, options) in CASES.items():
            groups = {
                b: g.where(records, data=data, method=method, options=options, begins=b) for b in g.STARTS
            }
            if not all(groups.values()):
                continue
            means = {b: statistics.fmean(g.metric(group).values()) for b, group in groups.items()}
            spreads[case] = max(means.values()) - min(means.values())
            first, last = [], []
            for a, b in zip(groups["bad"], groups["inv"], strict=True):
                first.append(distance(a["result"]["start_counts"], b["result"]["start_counts"]))
                last.append(distance(a["result"]["end_counts"], b["result"]["end_counts"]))
            falls[case] = (statistics.fmean(first), statistics.fmean(last))
            rows += [
                [
                    case,
                    b,
                    g.mean_sd(g.metric(group)),
                    g.layer_densities(group, "start"),
                    g.layer_densities(group),
                    heads(group),
                ]
                for b, group in groups.items()
            ]
        if "ggr" not in falls or "rigl" not in spreads:
            continue
        before, after = falls["ggr"]
        bound = 1.5 * left_of_the_start()
        head = ["", "start", "test accuracy, % (sd)", "starts", "ends", "last layer's weights, by seed"]
        tests = [
            (
                f"distance bad-inv falls >= {FALL:g}x: {before:.0f} -> {after:.0f}, {before / max(after, 1):.1f}x: "
                f"**{word(before >= FALL * after)}**"
            ),
            f"what is left of it <= {bound:.3f} (1.5 prod(1 - f)): {after / before:.3f}: **{word(after <= bound * before)}**",
            (
                f"spread over starts <= {SPREAD:g} of RigL's: {100 * spreads['ggr']:.1f} against {100 * spreads['rigl']:.1f} "
                f"points: **{word(spreads['ggr'] <= SPREAD * spreads['rigl'])}**"
            ),
        ]
        tests += [
            f"({case}: {falls[case][0]:.0f} -> {falls[case][1]:.0f}, spread {100 * spreads[case]:.1f} points; no threshold)"
            for case in falls
            if case not in ("rigl", "ggr")
        ]
        largest = [
            distance(x, y)
            for x, y in itertools.combinations(
                [
                    g.where(records, data=data, method="ggr", options={}, begins=b)[0]["result"][
                        "start_counts"
                    ]
                    for b in g.STARTS
                ],
                2,
            )
        ]
        tests.append(f"(starts of seed 0 differ by {min(largest)} to {max(largest)} weights)")
        parts.append(
            f"**{data} at {100 * (1 - density):g} %**\n\n{g.table(head, rows)}\n\n"
            + "\n".join(f"- {t}" for t in tests)
        )
    return "\n\n".join(parts)


def heads(group: list[dict[str, Any]]) -> str:
    """Live weights of the last layer of each seed, and the accuracy that went with them."""
    cells = []
    for record in group:
        counts = record["result"]["end_counts"]
        cells.append(f"{counts[list(counts)[-1]]}: {100 * record['result']['test_accuracy']:.1f}")
    return "; ".join(cells)


def word(holds: bool) -> str:
    """Of a threshold on means over the seeds."""
    return "PASS" if holds else "FAIL"
