"""A convolutional net on CIFAR-10 at 98 %: three starts."""

from __future__ import annotations

import statistics
from typing import Any

import ggr_common as g
from common import at_least

TITLE = (
    "On a CIFAR-10 CNN at 98 % GGR beats RigL from a starved and from a uniform start, and keeps up from ERK"
)
SOURCE = "Parger et al. 2022, abstract; the net, its size and its length are ours"

DENSITY = 0.02
BARS = {"bad": 0.05, "uniform": 0.03, "erk": -0.02}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rigl": ("rigl", {}),
    "ggr": ("ggr", {}),
    "ggr, floor half ERK": ("ggr", {"floor": 0.5}),
    "set": ("set", {}),
    "rigl, window 20": ("ggr", g.rigl_averaged(20)),
    "ggr, window 20": ("ggr", {"gradient_window": 20}),
}
STEPS = 600


def runs() -> list[dict[str, Any]]:
    """Five convolutions and a linear layer; SET and averaged gradients from ERK only."""
    return [
        {
            "data": "cifar10",
            "density": DENSITY,
            "begins": b,
            "method": method,
            "options": options,
            "steps": STEPS,
            "seed": seed,
        }
        for seed in g.SEEDS
        for b in BARS
        for case, (method, options) in CASES.items()
        if b == "erk" or case in ("rigl", "ggr", "ggr, floor half ERK")
    ]


def run(**params: Any) -> dict[str, Any]:
    """One run."""
    return g.run(**params)


def judge(records: list[dict[str, Any]]) -> str:
    """Accuracy, FLOPs and where the weights went."""
    rows, tests = [], []
    for begins, bar in BARS.items():
        groups = {
            case: g.where(records, begins=begins, method=method, options=options)
            for case, (method, options) in CASES.items()
        }
        groups = {case: group for case, group in groups.items() if group}
        for case, group in groups.items():
            flops = statistics.fmean(g.metric(group, "end_flops").values())
            dead = statistics.fmean(sum(record["result"]["dead_units"].values()) for record in group)
            rows.append(
                [
                    begins,
                    case,
                    g.mean_sd(g.metric(group)),
                    g.layer_densities(group),
                    f"{flops:,.0f}",
                    f"{dead:.0f}",
                ]
            )
        if "ggr" in groups and "rigl" in groups:
            found = g.against(groups["ggr"], groups["rigl"])
            tests.append(
                f"- from {begins}: GGR - RigL >= {100 * bar:+g} points: {g.points(found)}: **{at_least(found, bar)}**"
            )
    shaped = [spearman(record) for record in g.where(records, begins="uniform", method="ggr", options={})]
    if shaped:
        mean = statistics.fmean(shaped)
        tests.append(
            f"- from uniform it ends shaped like ERK: rank correlation of layer densities {mean:.2f} (>= 0.8): "
            f"**{'PASS' if mean >= 0.8 else 'FAIL'}**"
        )
    head = [
        "start",
        "",
        "test accuracy, % (sd)",
        "ends",
        "FLOPs of inference, one sample (counted)",
        "dead units",
    ]
    return "\n\n".join([g.table(head, rows), "\n".join(tests)])


def spearman(record: dict[str, Any]) -> float:
    """Rank correlation of a run's last layer densities with those of ERK."""
    shapes = g.shapes_of("cifar10")
    sizes = {name: g.math.prod(shape) for name, shape in shapes.items()}
    erk = g.ss.distributions.allocate("erk", shapes, DENSITY)
    ends = record["result"]["end_counts"]
    one = sorted(sizes, key=lambda name: ends[name] / sizes[name])
    other = sorted(sizes, key=lambda name: erk[name] / sizes[name])
    gaps = sum((one.index(name) - other.index(name)) ** 2 for name in sizes)
    return 1 - 6 * gaps / (len(sizes) * (len(sizes) ** 2 - 1))
