"""Every scheme from dense and inside fixed random masks: accuracy against training FLOPs.

Each scheme ends at the same number of weights. A run of one stage takes ``STEPS`` steps; iterative pruning as many at
every level, and a jackpot as many to train its source and half as many to search it. FLOPs are of the sparse layers over
everything a scheme trains and searches, counted. Sources are drawn anew by each seed; runs of one seed share the
initial weights and the order of the examples.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from common import at_least, points
from torch.nn.functional import cross_entropy

import startsparse as ss
from startsparse.costs import inference_flops, uses_per_sample
from startsparse.distributions import allocate
from startsparse.layers import find
from startsparse.training import optim, seeds

TITLE = (
    "Schemes that start dense reach the same accuracy inside a fixed random mask, for fewer training FLOPs"
)
SOURCE = (
    "Gadhikar et al. 2023, abstract: dense-to-sparse training can be turned sparse-to-sparse in random masks"
)

DENSITY, STEPS, BATCH, RATE = 0.03, 500, 128, 0.1
MARGIN = 0.02  # of accuracy: a scheme inside a source is as good as from dense
SEEDS = (0, 1, 2, 3, 4)
SOURCES = ("dense", "balanced 0.5", "balanced 0.2", "erk 0.5", "erk 0.2")
MOVING = {"update_interval": 25, "drop_fraction": 0.3}

ATTACHED: dict[str, Callable[..., ss.methods.Method]] = {
    "gmp": lambda seed: ss.GMP(DENSITY, update_interval=25, update_end=0.75),
    "granet": lambda seed: ss.methods.make("granet", density=DENSITY, update_interval=25, seed=seed),
    "str": lambda seed: ss.methods.make("str", density=DENSITY, seed=seed),
    "acdc": lambda seed: ss.methods.make("acdc", density=DENSITY, seed=seed),
    "snip": lambda seed: ss.SNIP(DENSITY, batches=1),
    "synflow": lambda seed: ss.SynFlow(DENSITY),
    "rst": lambda seed: ss.RST(DENSITY, seed=seed, interval=1),
    "rigl": lambda seed: ss.RigL(DENSITY, "balanced", seed, **MOVING),
    "set": lambda seed: ss.SET(DENSITY, "balanced", seed, **MOVING),
    "ggr": lambda seed: ss.GGR(DENSITY, "balanced", seed, **MOVING),
}
LEVELS = {"imp": "weights", "learning-rate rewinding": "lr"}
SEARCHED = ("edge-popup", "jackpot")
SCHEMES = (
    "imp",
    "learning-rate rewinding",
    "gmp",
    "granet",
    "rigl",
    "ggr",
    "rst",
    *SEARCHED,
    "str",
    "acdc",
    "snip",
)


def runs() -> list[dict[str, Any]]:
    """Schemes in every source, and the random mask of the final density itself; seeds outermost."""
    return [
        {"scheme": scheme, "source": source, "seed": seed}
        for some in (SOURCES[:3], SOURCES[3:])
        for seed in SEEDS
        for scheme, source in [
            *((scheme, source) for scheme in SCHEMES for source in some),
            *(
                (f"random mask, {rule}", "none")
                for rule in ("balanced", "erk")
                if some is not SOURCES[3:] and "dense" in some
            ),
        ]
    ]


@functools.cache
def data() -> common.Data:
    """20,000 training examples of Fashion-MNIST."""
    return common.load("fashion-mnist", train=20_000)


def source_of(source: str, seed: int) -> Any:
    """None, or a random mask drawn by the seed."""
    if source in ("dense", "none"):
        return None
    rule, density = source.split()
    return ss.RandomSource(float(density), rule, seed=100 + seed)


def run(*, scheme: str, source: str, seed: int) -> dict[str, Any]:
    """One scheme in one source."""
    torch.set_num_threads(1)
    model = common.make_model("lenet-300-100", data(), seed)
    where = source_of(source, seed)
    if scheme.startswith("random mask"):
        return _plain(model, ss.Static(DENSITY, scheme.split(", ")[1], seed=200 + seed), None, seed)
    if scheme in ATTACHED:
        return _plain(model, ATTACHED[scheme](300 + seed), where, seed)
    return (_levels if scheme in LEVELS else _searched)(model, scheme, where, seed)


def _plain(model: Any, method: Any, where: Any, seed: int) -> dict[str, Any]:
    result = common.train(
        model, data(), method, where, steps=STEPS, batch=BATCH, lr=RATE, seed=seed, finish=_inside(where)
    )
    return _figures(model, result["flops"], result["dense_flops"], result["live_weights"])


def _inside(where: Any) -> Callable:
    def check(model: Any, sparse: Any) -> dict[str, Any]:
        inside = all(bool((~mask | sparse.source_masks[name]).all()) for name, mask in sparse.masks.items())
        assert inside, "a weight lives outside its source"
        return {}

    return check


def _levels(model: Any, scheme: str, where: Any, seed: int) -> dict[str, Any]:
    start = 1.0 if where is None else where.density
    levels = max(1, round(math.log2(start / DENSITY)))
    method = ss.IMP(DENSITY, levels=levels, rewind=LEVELS[scheme])
    lottery = ss.lottery(model, method, source=where, example_input=data().x_train[:1])
    for level in lottery:
        _train(level.model, level.model.parameters(), STEPS, seed + 1000 * level.index)
    live = sum(int(mask.sum()) for mask in lottery.ticket.masks.values())
    return _figures(model, lottery.budget.flops, lottery.budget.dense_flops, live)


def _searched(model: Any, scheme: str, where: Any, seed: int) -> dict[str, Any]:
    """Forward and input gradients with the active weights, weight gradients of all of the source."""
    layers = find(model)
    uses, _ = uses_per_sample(model, layers, data().x_train[:1])
    dense = inference_flops({name: math.prod(layer.shape) for name, layer in layers.items()}, uses)
    start = 1.0 if where is None else where.density
    flops, steps = 0.0, STEPS
    if scheme == "jackpot":
        method = ss.Static(start, "uniform") if where is None else ss.Static(start, where.distribution)
        optimizer = optim.make("sgd", model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        sparse = ss.attach(model, optimizer, method, source=where, total_steps=STEPS)
        _train(model, model.parameters(), STEPS, seed, optimizer)
        flops = 3 * start * dense * STEPS * BATCH
        sparse.detach()
        steps = STEPS // 2
        search = ss.search(model, ss.Jackpot(DENSITY, classifier="include"), source=where, total_steps=steps)
    else:
        _signed_constant(model)
        method = ss.EdgePopup(DENSITY, "balanced", seed=300 + seed)
        search = ss.search(model, method, source=where, total_steps=steps)
    _train(model, search.scores(), steps, seed)
    for name, mask in search.masks.items():
        assert bool((~mask | search.source_masks[name]).all()), f"{name} is active outside its source"
    live = search.num_active
    search.finish()
    flops += (2 * DENSITY + start) * dense * steps * BATCH
    return _figures(model, flops, 3 * dense * (steps + (STEPS if scheme == "jackpot" else 0)) * BATCH, live)


@torch.no_grad()
def _signed_constant(model: Any) -> None:
    """Weights of one size in each layer, scaled for the weights that will be active; biases zero."""
    layers = find(model)
    active = allocate("balanced", {name: layer.shape for name, layer in layers.items()}, DENSITY)
    for name, parameter in model.named_parameters():
        if name in layers:
            parameter.copy_(parameter.sign() * math.sqrt(2 * len(parameter) / active[name]))
        else:
            parameter.zero_()


def _train(model: Any, parameters: Any, steps: int, seed: int, optimizer: Any = None) -> None:
    parameters = list(parameters)
    optimizer = optimizer or optim.make("sgd", parameters, lr=RATE, momentum=0.9, weight_decay=5e-4)
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), steps)
    seeds.seed_all(seeds.derive(seed, "train"))
    model.train()
    done = epoch = 0
    while done < steps:
        for inputs, labels in common.batches(data(), BATCH, seed, epoch):
            if done == steps:
                break
            rate.set(done)
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            done += 1
        epoch += 1


def _figures(model: Any, flops: float, same_dense: float, live: int) -> dict[str, Any]:
    d = data()
    return {
        "test_accuracy": common.accuracy(model, d.x_test, d.y_test),
        "validation_accuracy": common.accuracy(model, d.x_validation, d.y_validation),
        "flops": flops,
        "dense_flops": same_dense,
        "live_weights": live,
    }


def judge(records: list[dict[str, Any]]) -> str:
    """Each scheme inside a source minus the same from dense; all of them above the random mask itself?"""
    by: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for record in records:
        p = record["params"]
        by.setdefault((p["scheme"], p["source"]), {})[p["seed"]] = record["result"]
    lines = [
        "| scheme | source | test accuracy | minus the same from dense | training FLOPs of its dense | verdict |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for scheme in (*SCHEMES, "random mask, balanced", "random mask, erk"):
        for source in ("none", *SOURCES):
            group = by.get((scheme, source))
            if not group:
                continue
            mean = statistics.fmean(r["test_accuracy"] for r in group.values())
            dense = by.get((scheme, "dense"), {})
            flops = "" if not dense else f"{_mean(group, 'flops') / _mean(dense, 'flops'):.2f}"
            cells = ["", ""]
            if source not in ("none", "dense") and dense:
                found = _difference(group, dense)
                cells = [points(found), f"within {100 * MARGIN:g} points: {at_least(found, -MARGIN)}"]
            lines.append(f"| {scheme} | {source} | {100 * mean:.2f} % | {cells[0]} | {flops} | {cells[1]} |")
    counts = {result["live_weights"] for group in by.values() for result in group.values()}
    _figure(by)
    return "\n".join(lines) + (
        f"\n\nLive weights at the end, over all runs: {sorted(counts)}.\n\n"
        "![accuracy against training FLOPs](figure.svg)"
    )


def _mean(group: dict[int, dict[str, Any]], key: str) -> float:
    return statistics.fmean(result[key] for result in group.values())


def _difference(group: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> Any:
    records = [
        {"params": {"side": side, "seed": seed}, "result": result}
        for side, results in (("inside", group), ("dense", base))
        for seed, result in results.items()
        if seed in group and seed in base
    ]
    return common.difference(records, "side", "test_accuracy", "inside", "dense")


def _figure(by: dict[tuple[str, str], dict[int, dict[str, Any]]]) -> None:
    """Mean test accuracy against training FLOPs, one line a scheme from dense to its thinnest source."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "startsparse"
    figure, axes = plt.subplots(figsize=(8, 5.5))
    marks = {
        "dense": "o",
        "balanced 0.5": "s",
        "balanced 0.2": "D",
        "erk 0.5": "^",
        "erk 0.2": "v",
        "none": "*",
    }
    for scheme in dict.fromkeys(scheme for scheme, _ in by):
        color = None
        for rule in ("balanced", "erk"):
            points_ = [s for s in ("none", "dense", f"{rule} 0.5", f"{rule} 0.2") if (scheme, s) in by]
            if len(points_) < 2 and not scheme.startswith("random"):
                continue
            x = [_mean(by[scheme, s], "flops") for s in points_]
            y = [100 * _mean(by[scheme, s], "test_accuracy") for s in points_]
            (line,) = axes.plot(
                x, y, "-" if rule == "balanced" else ":", color=color, lw=1, label=None if color else scheme
            )
            color = line.get_color()
            for s, at, height in zip(points_, x, y, strict=True):
                axes.plot(at, height, marks[s], color=color, ms=9 if s == "none" else 5)
            if scheme.startswith("random"):
                break
    for source, mark in marks.items():
        axes.plot([], [], mark, color="gray", label="direct" if source == "none" else f"in {source}")
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs of the sparse layers (counted)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"Fashion-MNIST, LeNet-300-100, {100 * (1 - DENSITY):g} % sparse at the end")
    axes.legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("figure.svg"), metadata={"Date": None})
    plt.close(figure)
