"""Random masks train, degrade with sparsity, and gain by width: MLP 64-W-W-10 on scikit-learn's digits."""

from __future__ import annotations

import common
import numpy as np
from scipy.stats import page_trend_test

import startsparse as ss

TITLE = "Random sparse nets train: close to dense at 30 % and 10 % density, worse as density falls, better when wider"
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse, sections 2 and 3"
SEEDS = range(10)
WIDTHS = (32, 256)
DENSITIES = (0.3, 0.1, 0.03, 0.01)
RATIOS = ("uniform", "erk", "balanced", "pyramidal")


def runs() -> list[dict]:
    """One run a seed and width; it trains every case in turn."""
    return [{"width": width, "seed": seed} for width in WIDTHS for seed in SEEDS]


def run(width: int, seed: int) -> dict:
    """The dense net and every ratio at every density, on a split of the digits."""
    return every_case(common.digits(seed), width, seed, epochs=30, batch=32)


def every_case(data: common.Data, width: int, seed: int, **length) -> dict:
    """The same initial weights and the same batches for every case."""
    return {
        name: train(method, data, (width, width), seed, **length) for name, method in methods(seed).items()
    }


def methods(seed: int) -> dict[str, ss.Static | None]:
    """Dense, and every ratio at every density, by name."""
    return {"dense": None} | {
        f"{ratio}@{density:g}": ss.Static(density=density, distribution=ratio, seed=seed)
        for ratio in RATIOS
        for density in DENSITIES
    }


def train(method, data: common.Data, widths: tuple[int, ...], seed: int, **length) -> dict:
    """SGD with a cosine."""
    model = common.make_model("mlp", data, seed, widths=widths)
    plain = {"momentum": 0.9, "weight_decay": 0.0}
    result = common.train(model, data, method, lr=0.1, options=plain, seed=seed, **length)
    return {key: result[key] for key in ("test_accuracy", "density", "live_weights", "flops")}


def judge(records: list[dict], gains_at: tuple[float, ...] = (0.1,)) -> str:
    """The cases of each width."""
    return judge_cases(common.one_by_one(records), WIDTHS, gains_at)


def judge_cases(cases: list[dict], widths: tuple[int, int], gains_at: tuple[float, ...]) -> str:
    """Tables against dense; equivalence of the wide net, Page's trend test, and the gain by width at some densities."""
    narrow, broad = widths
    parts = []
    for width in widths:
        at = [r for r in cases if r["params"]["width"] == width]
        parts.append(f"## Width {width}\n\n{common.paired_table(at, 'case', 'test_accuracy', 'dense')}")
    wide = [r for r in cases if r["params"]["width"] == broad]
    parts.append("## Thresholds")
    for density, margin, ratios in (
        (0.3, 0.015, ("uniform", "erk", "balanced")),
        (0.1, 0.025, ("erk", "balanced")),
    ):
        for ratio in ratios:
            found = common.difference(wide, "case", "test_accuracy", f"{ratio}@{density:g}", "dense", 0.9)
            parts.append(
                f"- {ratio} at density {density:g} within {100 * margin:g} pp of dense (two one-sided tests): "
                f"{common.within(found, margin)}, {common.points(found)}"
            )
    for ratio in RATIOS:
        parts.append(_trend(wide, ratio))
    for density in gains_at:
        for ratio in ("uniform", "erk", "balanced"):
            of = [r for r in cases if r["params"]["case"] == f"{ratio}@{density:g}"]
            found = common.difference(of, "width", "test_accuracy", str(broad), str(narrow))
            parts.append(
                f"- {ratio} at density {density:g}: W = {broad} beats W = {narrow} by 8 pp or more: "
                f"{common.reaches(found, 0.08)}, {common.points(found)}"
            )
    return "\n\n".join(parts)


def _trend(records: list[dict], ratio: str) -> str:
    rising = [*(f"{ratio}@{density:g}" for density in sorted(DENSITIES)), "dense"]
    found = common.values(records, "case", "test_accuracy")
    table = np.array([[found[case][seed] for case in rising] for seed in sorted(found["dense"])])
    p = float(page_trend_test(table).pvalue)
    verdict = "PASS" if p < 0.01 and len(table) >= 5 else "FAIL" if p >= 0.05 else "CANNOT TELL"
    means = ", ".join(f"{100 * mean:.1f}" for mean in table.mean(0))
    return f"- {ratio}: accuracy rises with density (Page's test): {verdict}, p = {p:.2g}, {means} %"
