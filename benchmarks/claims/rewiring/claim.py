"""Rewiring a few weights rescues extreme sparsity: MLP 64-256-256-10 on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable

import common

import startsparse as ss

TITLE = "At 1 % density RigL started from a balanced random mask is far above the mask left alone, and not below SET"
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse, section 3 (rewiring of random masks)"
SEEDS = range(10)
DENSITIES = (0.03, 0.01)
METHODS = ("static", "set", "rigl")
KEPT = ("test_accuracy", "density", "live_weights", "flops", "steps")


def runs() -> list[dict]:
    """One run a seed; it trains every method at every density in turn."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int) -> dict:
    """30 epochs on a split of the digits, an update every half epoch."""
    return every_case(common.digits(seed), seed, DENSITIES, epochs=30, batch=32)


def every_case(data: common.Data, seed: int, densities: tuple[float, ...], **length) -> dict:
    """Every method at every density, SGD with a cosine; the same initial weights and batches for every method."""

    def fit(method, look) -> dict:
        model = common.make_model("mlp", data, seed, widths=(256, 256))
        plain = {"momentum": 0.9, "weight_decay": 0.0}
        result = common.train(model, data, method, lr=0.1, options=plain, seed=seed, each_step=look, **length)
        return {key: result[key] for key in KEPT}

    return counted(fit, seed, densities)


def counted(
    fit: Callable[..., dict], seed: int, densities: tuple[float, ...], update_interval: int = 20
) -> dict:
    """Every method at every density by ``fit(method, each_step)``; live weights are counted after each step."""
    found = {}
    for density in densities:
        for name in METHODS:
            often = {} if name == "static" else {"update_interval": update_interval}
            method = ss.methods.make(name, density=density, distribution="balanced", seed=seed, **often)
            counts: set[int] = set()

            def look(done, model, sparse, counts=counts) -> None:
                counts.add(sum(int(mask.sum()) for mask in sparse.masks.values()))

            found[f"{name}@{density:g}"] = fit(method, look) | {"counts_seen": sorted(counts)}
    return found


def judge(
    records: list[dict], densities: tuple[float, ...] = DENSITIES, bars_at: tuple[float, ...] = (0.01,)
) -> str:
    """A table a density, the differences at some of them, and the budget."""
    cases = common.one_by_one(records)
    parts = []
    for density in densities:
        at = [r for r in cases if r["params"]["case"].endswith(f"@{density:g}")]
        table = common.paired_table(at, "case", "test_accuracy", f"static@{density:g}")
        parts.append(f"## Density {density:g}\n\n{table}")
    for density in bars_at:
        rigl, rest = f"rigl@{density:g}", f"at density {density:g}"
        found = common.difference(cases, "case", "test_accuracy", rigl, f"static@{density:g}")
        parts.append(
            f"- RigL at least 20 pp above static {rest}: {common.reaches(found, 0.2)}, {common.points(found)}"
        )
        found = common.difference(cases, "case", "test_accuracy", rigl, f"set@{density:g}")
        parts.append(f"- RigL not below SET {rest}: {common.at_least(found, 0)}, {common.points(found)}")
    constant = all(record["result"]["counts_seen"] == [record["result"]["live_weights"]] for record in cases)
    parts.append(
        f"- the number of live weights is the same at every step of every run: {'PASS' if constant else 'FAIL'}"
    )
    return "\n\n".join(parts)
