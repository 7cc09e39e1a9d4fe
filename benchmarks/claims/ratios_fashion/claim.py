"""Layer-wise densities of a static random mask: LeNet-300-100 on Fashion-MNIST."""

from __future__ import annotations

import common

import startsparse as ss

TITLE = "On Fashion-MNIST random masks with ERK or balanced layer densities beat uniform ones"
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse, section 3 (layer-wise sparsity ratios)"
SEEDS = range(5)
DENSITIES = (0.05, 0.01)
RATIOS = ("uniform", "erk", "balanced", "pyramidal")


def runs() -> list[dict]:
    """Every ratio at both densities."""
    return [
        {"ratio": ratio, "density": density, "seed": seed}
        for density in DENSITIES
        for ratio in RATIOS
        for seed in SEEDS
    ]


def run(ratio: str, density: float, seed: int) -> dict:
    """Five epochs of SGD with momentum."""
    data = common.load("fashion-mnist")
    model = common.make_model("lenet-300-100", data, seed)
    method = ss.Static(density=density, distribution=ratio, seed=seed)
    return common.train(model, data, method, epochs=5, batch=128, lr=0.1, seed=seed)


def judge(records: list[dict]) -> str:
    """A table a density, against uniform."""
    parts = []
    for density in DENSITIES:
        at = [r for r in records if r["params"]["density"] == density]
        parts.append(
            f"## Density {density:g}\n\n{common.paired_table(at, 'ratio', 'test_accuracy', 'uniform')}"
        )
        for ratio in ("erk", "balanced"):
            found = common.difference(at, "ratio", "test_accuracy", ratio, "uniform")
            parts.append(
                f"- {ratio} > uniform at density {density:g}: {common.reaches(found, 0)}, {common.points(found)}"
            )
    return "\n\n".join(parts)
