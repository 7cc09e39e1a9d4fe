"""Rewiring a few weights rescues extreme sparsity: MLP 64-256-256-10 on scikit-learn's digits."""

from __future__ import annotations

import common

import startsparse as ss

TITLE = "At 1 % density RigL started from a balanced random mask is far above the mask left alone, and not below SET"
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse, section 3 (rewiring of random masks)"
SEEDS = range(10)
DENSITIES = (0.03, 0.01)
METHODS = ("static", "set", "rigl")


def runs() -> list[dict]:
    """One run a seed; it trains every method at every density in turn."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int) -> dict:
    """30 epochs of SGD with a cosine, an update every half epoch; the count of live weights is looked at each step."""
    found = {}
    for density in DENSITIES:
        for name in METHODS:
            often = {} if name == "static" else {"update_interval": 20}
            method = ss.methods.make(name, density=density, distribution="balanced", seed=seed, **often)
            found[f"{name}@{density:g}"] = train(method, seed)
    return found


def train(method, seed: int) -> dict:
    """The same initial weights and batches for every method."""
    data = common.digits(seed)
    model = common.make_model("mlp", data, seed, widths=(256, 256))
    counts: set[int] = set()

    def look(done, model, sparse) -> None:
        counts.add(sum(int(mask.sum()) for mask in sparse.masks.values()))

    plain = {"momentum": 0.9, "weight_decay": 0.0}
    result = common.train(
        model, data, method, epochs=30, batch=32, lr=0.1, options=plain, seed=seed, each_step=look
    )
    kept = {key: result[key] for key in ("test_accuracy", "density", "live_weights", "flops", "steps")}
    return kept | {"counts_seen": sorted(counts)}


def judge(records: list[dict]) -> str:
    """A table a density, the differences, and the budget."""
    cases = common.one_by_one(records)
    parts = []
    for density in DENSITIES:
        at = [r for r in cases if r["params"]["case"].endswith(f"@{density:g}")]
        table = common.paired_table(at, "case", "test_accuracy", f"static@{density:g}")
        parts.append(f"## Density {density:g}\n\n{table}")
    found = common.difference(cases, "case", "test_accuracy", "rigl@0.01", "static@0.01")
    parts.append(
        f"- RigL at least 20 pp above static at density 0.01: {common.reaches(found, 0.2)}, {common.points(found)}"
    )
    found = common.difference(cases, "case", "test_accuracy", "rigl@0.01", "set@0.01")
    parts.append(f"- RigL not below SET at density 0.01: {common.at_least(found, 0)}, {common.points(found)}")
    constant = all(record["result"]["counts_seen"] == [record["result"]["live_weights"]] for record in cases)
    parts.append(
        f"- the number of live weights is the same at every step of every run: {'PASS' if constant else 'FAIL'}"
    )
    return "\n\n".join(parts)
