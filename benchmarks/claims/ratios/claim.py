"""Layer-wise densities at high sparsity: MLP 64-256-256-10, and a deep one, on scikit-learn's digits."""

from __future__ import annotations

import common

import startsparse as ss

TITLE = (
    "At high sparsity the layer-wise densities of a random mask decide: ERK and balanced far above uniform"
)
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse, section 3 (layer-wise sparsity ratios)"
SEEDS = range(10)
BARS = {0.03: 0.05, 0.01: 0.20}
RATIOS = ("uniform", "erk", "balanced", "pyramidal")
DEEP = (100,) * 8
DEEP_DENSITIES = (0.1, 0.05)


def runs() -> list[dict]:
    """One run a seed and net; it trains every ratio in turn."""
    return [{"net": net, "seed": seed} for net in ("256-256", "8 x 100") for seed in SEEDS]


def run(net: str, seed: int) -> dict:
    """Every ratio at every density. The deep net has batch norm, and dead units repaired on budget."""
    deep = net != "256-256"
    return {
        f"{ratio}@{density:g}": train(
            ss.Static(density=density, distribution=ratio, seed=seed, flow="keep_budget" if deep else "none"),
            DEEP if deep else (256, 256),
            deep,
            seed,
        )
        for density in (DEEP_DENSITIES if deep else BARS)
        for ratio in RATIOS
    }


def train(method, widths: tuple[int, ...], batch_norm: bool, seed: int) -> dict:
    """30 epochs of SGD with a cosine."""
    data = common.digits(seed)
    model = common.make_model("mlp", data, seed, widths=widths, batch_norm=batch_norm)
    plain = {"momentum": 0.9, "weight_decay": 0.0}
    result = common.train(model, data, method, epochs=30, batch=32, lr=0.1, options=plain, seed=seed)
    return {key: result[key] for key in ("test_accuracy", "density", "live_weights", "flops")}


def judge(records: list[dict]) -> str:
    """A table a net and density, against uniform."""
    cases = common.one_by_one(records)
    parts = []
    for net, densities in (("256-256", tuple(BARS)), ("8 x 100", DEEP_DENSITIES)):
        for density in densities:
            at = [
                r
                for r in cases
                if r["params"]["net"] == net and r["params"]["case"].endswith(f"@{density:g}")
            ]
            table = common.paired_table(at, "case", "test_accuracy", f"uniform@{density:g}")
            parts.append(f"## Net {net}, density {density:g}\n\n{table}")
            parts += above_uniform(at, density) if net == "256-256" else []
    parts.append("The deep net has no threshold: pyramidal densities are only expected to be of use there.")
    return "\n\n".join(parts)


def above_uniform(
    cases: list[dict], density: float, scale: float = 1.0, ratios: tuple[str, ...] = ("erk", "balanced")
) -> list[str]:
    """Whether other ratios are a share of the density's bar above uniform, or more."""
    parts, bar = [], scale * BARS[density]
    for ratio in ratios:
        found = common.difference(
            cases, "case", "test_accuracy", f"{ratio}@{density:g}", f"uniform@{density:g}"
        )
        parts.append(
            f"- {ratio} {f'at least {100 * bar:g} pp ' if bar else ''}above uniform at density {density:g}: "
            f"{common.reaches(found, bar)}, {common.points(found)}"
        )
    return parts
