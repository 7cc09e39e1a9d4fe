"""What the claims on small transformers share: one short run of the training room's own loop, and its judge."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import common

import startsparse as ss
from startsparse.training import data, loop, models, optim, seeds

METHODS = ("static", "set", "rigl")
DENSITIES = (0.2, 0.1)


def runs(seeds_: range) -> list[dict[str, Any]]:
    """Dense, dense but narrower to the weight count of each density, and each method at each density."""
    names = ["dense", *(f"narrow {density:g}" for density in DENSITIES)]
    names += [f"{method} {density:g}" for density in DENSITIES for method in METHODS]
    return [{"net": name, "seed": seed} for name in names for seed in seeds_]


@functools.lru_cache(maxsize=1)
def load(name: str, options: data.Options, validation: float) -> data.Dataset:
    """The data, split the same way for all runs."""
    return data.load(name, validation=validation, seed=0, options=options)


def run(
    dataset: data.Dataset,
    model: dict[str, Any],
    net: str,
    seed: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    update_interval: int,
    augment: str | None = None,
) -> dict[str, Any]:
    """Train one net with AdamW, a warm-up and a cosine; figures of the validation part, and of the test part once.

    ``weights`` are all live weights but vectors, embeddings included, which are the same kind of thing in a net that
    is dense and narrow and in one that is wide and sparse.
    """
    seeds.seed_all(seeds.derive(seed, "model"))
    made = models.make(**model, input_shape=dataset.input_shape, classes=dataset.classes)
    optimizer = optim.make("adamw", made.parameters(), lr=lr, weight_decay=0.01)
    rate = optim.LearningRate(optimizer, optim.schedule("cosine", warmup=0.1), steps)
    transform = None if augment is None else data.AUGMENTS[augment]
    batches = data.Batches(dataset.train, batch, seed, transform)
    job = loop.Job(made, optimizer, rate, dataset, batches, loop.Settings(steps, clip_norm=1.0))
    kind, _, density = net.partition(" ")
    sparse, share = None, 1.0
    if kind in METHODS:
        options = {} if kind == "static" else {"update_interval": update_interval}
        method = ss.methods.make(kind, density=float(density), seed=seed, **options)
        share = _flops_share(made, method, dataset, steps)
        seeds.seed_all(seeds.derive(seed, "train"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*left dense")  # embeddings: they are counted
            sparse = ss.attach(made, optimizer, method, total_steps=steps)
    for _ in loop.steps(job):
        pass
    parts = {"validation": dataset.validation, "test": dataset.test}
    found = {name: loop.evaluate(made, dataset, split) for name, split in parts.items()}
    masks = {} if sparse is None else sparse.masks
    result = {
        f"{part}_{figure}": value for part, figures in found.items() for figure, value in figures.items()
    }
    return result | {
        "steps": job.position.step,
        "samples": job.position.step * batch,
        "weights": sum(
            int(masks[name].sum()) if name in masks else parameter.numel()
            for name, parameter in made.named_parameters()
            if parameter.dim() > 1
        ),
        "flops_share": share,
    }


def _flops_share(made: Any, method: Any, dataset: data.Dataset, steps: int) -> float:
    """Counted training FLOPs of the sparse layers over those of the same net dense."""
    example = dataset.normalise(dataset.train.inputs[:2])
    counted = ss.plan(made, method, total_steps=steps, example_input=example).flops
    assert counted is not None
    return counted.training / counted.dense_training


def judge(records: list[dict[str, Any]], metric: str, within: float, unit: str) -> str:
    """Tables of the test and validation figures, then the thresholds.

    Args:
        records: as the runner gives them.
        metric: ``"loss"`` or ``"accuracy"``.
        within: RigL at 80 % sparsity may be worse than dense by this much, in ``unit``.
        unit: ``"nats"`` of a loss, ``"points"`` (hundredths) of an accuracy.
    """
    have: dict[str, set[int]] = {}
    for record in records:
        have.setdefault(record["params"]["net"], set()).add(record["params"]["seed"])
    whole = [r for r in records if have[r["params"]["net"]] == have.get("dense")]
    there = {r["params"]["net"] for r in whole}
    if "dense" not in there:
        return "No dense run is there to compare with: CANNOT TELL."
    parts = [
        f"## {part.capitalize()} {metric} against dense\n\n"
        + common.paired_table(whole, "net", f"{part}_{metric}", "dense")
        for part in ("test", "validation")
    ]
    parts.append("## What they cost\n\n" + _budgets(whole))
    sign, scale = (-1, 1) if metric == "loss" else (1, 100)
    lines = []

    def verdict(says: str, label: str, baseline: str, bar: float) -> None:
        if not {label, baseline} <= there:
            lines.append(f"- {says}: CANNOT TELL, runs are missing")
            return
        found = common.difference(whole, "net", f"test_{metric}", label, baseline)
        mean, low, high = (scale * value for value in (found.mean, found.low, found.high))
        worst, best = sorted((sign * low, sign * high))  # of what is gained
        interval = f"{mean:+.3f} {unit} (95 % interval {low:+.3f} to {high:+.3f}, {found.seeds} seeds)"
        if found.seeds < common.stats.FEWEST:
            word = "CANNOT TELL"
        else:
            word = "PASS" if worst > bar else "FAIL" if best < bar else "CANNOT TELL"
        lines.append(f"- {says}: {word}, difference {interval}")

    for density in DENSITIES:
        at = f"{100 * (1 - density):g} %"
        verdict(f"RigL at {at} sparsity beats a dense net of its weight count", f"rigl {density:g}", f"narrow {density:g}", 0)  # fmt: skip
        verdict(f"RigL beats a static random mask at {at}", f"rigl {density:g}", f"static {density:g}", 0)
        verdict(f"RigL beats SET at {at}", f"rigl {density:g}", f"set {density:g}", 0)
    verdict(f"RigL at 80 % is within {within:g} {unit} of dense", "rigl 0.2", "dense", -within)
    return "\n\n".join([*parts, "## Thresholds", "\n".join(lines)])


def _budgets(records: list[dict[str, Any]]) -> str:
    rows = []
    for net in dict.fromkeys(r["params"]["net"] for r in records):
        found = [r["result"] for r in records if r["params"]["net"] == net]
        weights = {result["weights"] for result in found}
        share = sum(result["flops_share"] for result in found) / len(found)
        rows.append([net, ", ".join(f"{n:,}" for n in sorted(weights)), f"{100 * share:.1f} %"])
    head = ["", "weights, embeddings included", "training FLOPs, of the same net dense (counted)"]
    steps, samples = records[0]["result"]["steps"], records[0]["result"]["samples"]
    return f"Every run {steps:,} steps on the same {samples:,} samples a seed.\n\n{common.comparison.markdown(head, rows)}"
