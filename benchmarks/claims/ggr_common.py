"""What the claims about GGR share: nets, starts, methods by label, and what is noted of where weights ended up.

All moving methods of one claim update at the same steps and take the dense gradient equally often (``gradient_steps`` in
every record), except where a window is what is compared. "ggr" is the bare rule, whose only floor is one weight a layer,
whatever the default of the package; "ggr-half" holds half of ERK in every layer. Runs of one seed share initial weights, order of the examples
and, where they begin alike, the first mask.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import common
import torch
from common import stats

import startsparse as ss
from startsparse.layers import find

SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH, INTERVAL, FRACTION = 800, 64, 50, 0.3
NETS = {
    "mnist": ("mlp", {"widths": [300, 100], "batch_norm": True}),
    "fashion-mnist": ("mlp", {"widths": [300, 100], "batch_norm": True}),
    "cifar10": ("small-cnn", {"widths": [16, 32, 32, 64, 64]}),
}
STARTS = ("uniform", "erk", "bad", "inv")

METHODS: dict[str, Callable[..., ss.methods.Method]] = {
    "static": lambda moving, **given: ss.Static(**given),
    "set": lambda moving, **given: ss.SET(**given, **moving),
    "rigl": lambda moving, **given: ss.RigL(**given, **moving),
    "ggr": lambda moving, **given: ss.GGR(**given, **({"floor": 1} | moving)),
    "ggr-half": lambda moving, **given: ss.GGR(**given, **({"floor": 0.5} | moving)),
}


def start(kind: str, shapes: Mapping[str, tuple[int, ...]], density: float) -> Any:
    """A layer-wise distribution: "uniform", "erk", "bad" (every layer but the largest gets a quarter of uniform) or
    "inv" (the largest gets a quarter of uniform, the others share the rest)."""
    if kind in ("uniform", "erk"):
        return kind
    largest = max(shapes, key=lambda name: math.prod(shapes[name]))
    starved = [name for name in shapes if (name == largest) == (kind == "inv")]
    return dict.fromkeys(starved, density / 4) | {"*": "uniform"}


def rigl_averaged(window: int) -> dict[str, Any]:
    """The options with which ``GGR`` is RigL on the summed gradients of a window."""
    return {"rho": 1.0, "count_by": "dropped", "floor": 0, "gradient_window": window}


def run(
    *,
    data: str,
    density: float,
    begins: str,
    method: str,
    seed: int,
    lr: float = 0.1,
    batch: int = BATCH,
    steps: int = STEPS,
    update_interval: int = INTERVAL,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One run: what ``common.train`` gives, and live weights of every layer, first and last."""
    examples = common.load(data)
    name, shape = NETS[data]
    model = common.make_model(name, examples, seed, **shape)
    shapes = {name: layer.shape for name, layer in find(model).items()}
    moving = {"update_interval": update_interval, "drop_fraction": FRACTION} | dict(options or {})
    how = METHODS[method](moving, density=density, seed=seed, distribution=start(begins, shapes, density))

    def finish(model: Any, sparse: Any) -> dict[str, Any]:
        moved = sparse.dynamics(examples.x_train[:1])
        return {
            "start_counts": {row.name: row.num_start for row in moved.layers},
            "end_counts": {row.name: row.num_active for row in moved.layers},
            "growth_shares": {n: statistics.fmean(s) for n, s in moved.growth_shares.items() if s},
            "dead_units": {row.name: row.dead_units for row in moved.layers},
            "explored_share": moved.exploration,
            "end_flops": moved.flops,
            "gradient_steps": how.dense_gradient_steps(steps),
        }

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(got no growth|no live weight left)")
        return common.train(
            model,
            examples,
            how,
            steps=steps,
            batch=batch,
            lr=lr,
            options={"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            seed=seed,
            finish=finish,
        )


# -- judging -------------------------------------------------------------------------------------------------------


def where(records: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    """The records with these parameters."""
    return [r for r in records if all(r["params"].get(key) == value for key, value in params.items())]


def metric(records: list[dict[str, Any]], name: str = "test_accuracy") -> dict[int, float]:
    """Seed -> figure."""
    return {record["params"]["seed"]: record["result"][name] for record in records}


def against(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str = "test_accuracy"
) -> stats.Difference:
    """Ours minus theirs, paired by seed, over the seeds both have."""
    one, other = metric(ours, name), metric(theirs, name)
    common_seeds = sorted(one.keys() & other.keys())
    return stats.paired([one[seed] - other[seed] for seed in common_seeds])


def points(found: stats.Difference) -> str:
    """A difference in percentage points, with its interval."""
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def mean_sd(figures: Mapping[int, float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    values = list(figures.values())
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ({100 * spread:.1f})" if values else "-"


def layer_densities(records: list[dict[str, Any]], when: str = "end") -> str:
    """Mean layer densities in layer order, of MLP or CNN records of one net."""
    if not records:
        return "-"
    examples = records[0]["params"]["data"]
    sizes = {name: math.prod(shape) for name, shape in shapes_of(examples).items()}
    counts = [record["result"][f"{when}_counts"] for record in records]
    return ", ".join(f"{statistics.fmean(c[n] for c in counts) / size:.3g}" for n, size in sizes.items())


def shapes_of(data: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the sparse layers of a data set's net."""
    name, options = NETS[data]
    shape = (3, 32, 32) if data == "cifar10" else (1, 28, 28)
    with torch.random.fork_rng():
        return {
            n: layer.shape
            for n, layer in find(common.models.make(name, input_shape=shape, classes=10, **options)).items()
        }


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
