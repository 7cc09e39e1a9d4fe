"""Every scheme from dense and inside fixed random masks: accuracy against training FLOPs.

Each scheme ends at the same number of weights. A scheme of one training takes ``STEPS`` steps; iterative pruning takes
as many at every level, and has fewer levels where its source is thinner already; a jackpot takes as many to train what
it searches, and half as many to search it. FLOPs are of the sparse layers over everything a scheme trains and searches,
counted; gradients that growth looks at are counted over whole layers, inside sources too. Two controls know nothing of a
scheme: the random mask of the final density trained from the start, for ``STEPS`` steps and for as many as the longest
scheme takes. Sources are drawn anew by each seed; everything of one seed shares initial weights and the order of examples.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import paths_figure
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
RULES = ("balanced", "erk", "uniform", "pyramidal")
INSIDE = (0.5, 0.3, 0.2, 0.1)
SOURCES = ("dense", *(f"{rule} {density:g}" for rule in RULES for density in INSIDE))
STR_APART = ("erk 0.3", "erk 0.1", "uniform 0.3", "uniform 0.1")  # there STR has runs of its own
MOVING = {"update_interval": 25, "drop_fraction": 0.3}

ATTACHED: dict[str, Callable[..., ss.methods.Method]] = {
    "GMP": lambda seed: ss.GMP(DENSITY, update_interval=25, update_end=0.75),
    "GraNet": lambda seed: ss.methods.make("granet", density=DENSITY, update_interval=25, seed=seed),
    "RigL": lambda seed: ss.RigL(DENSITY, "balanced", seed, **MOVING),
    "GGR": lambda seed: ss.GGR(DENSITY, "balanced", seed, **MOVING),
    "STR": lambda seed: ss.methods.make("str", density=DENSITY, seed=seed),
    # a bound of 1 can pull the net apart at this learning rate; on validation examples of seed 900, 0.2 did best
    "RST": lambda seed: ss.RST(DENSITY, "balanced", seed=seed, bound=0.2),
}
LEVELS = {"IMP": "weights", "learning-rate rewinding": "lr"}
SCHEMES = (*LEVELS, *ATTACHED, "edge-popup", "jackpot")
LONGEST = 1 + round(math.log2(1 / DENSITY))  # trainings of iterative pruning from dense
CONTROLS = {
    "random mask": ("balanced", 1),
    "random mask, erk": ("erk", 1),
    f"random mask, {LONGEST} times as long": ("balanced", LONGEST),
}
BASE = "random mask"


def runs() -> list[dict[str, Any]]:
    """All schemes in one source a run."""
    whole = [{"source": source, "seed": seed} for seed in SEEDS for source in ("none", *SOURCES)]
    return whole + [{"source": source, "seed": seed, "only": "STR"} for seed in SEEDS for source in STR_APART]


@functools.cache
def data() -> common.Data:
    """20,000 training examples of Fashion-MNIST."""
    return common.load("fashion-mnist", train=20_000)


def run(*, source: str, seed: int, only: str | None = None) -> dict[str, Any]:
    """Every scheme in one source, or one of them, or the controls."""
    torch.set_num_threads(1)
    if source == "none":
        return {name: _control(seed, *how) for name, how in CONTROLS.items()}
    where = None
    if source != "dense":
        rule, density = source.split()
        where = ss.RandomSource(float(density), rule, seed=100 + seed)
    apart = [] if source not in STR_APART else ["STR"]
    schemes = [only] if only else [scheme for scheme in SCHEMES if scheme not in apart]
    return {scheme: one(scheme, where, seed) for scheme in schemes}


def one(scheme: str, where: ss.RandomSource | None, seed: int) -> dict[str, Any]:
    """One scheme in one source."""
    model = common.make_model("lenet-300-100", data(), seed)
    if scheme in ATTACHED:
        return _attached(model, ATTACHED[scheme](300 + seed), where, seed, STEPS)
    return (_levels if scheme in LEVELS else _searched)(model, scheme, where, seed)


def _control(seed: int, distribution: str, times: int) -> dict[str, Any]:
    model = common.make_model("lenet-300-100", data(), seed)
    return _attached(model, ss.Static(DENSITY, distribution, seed=200 + seed), None, seed, times * STEPS)


def _attached(model: Any, method: Any, where: Any, seed: int, steps: int) -> dict[str, Any]:
    result = common.train(
        model, data(), method, where, steps=steps, batch=BATCH, lr=RATE, seed=seed, finish=_inside
    )
    return _figures(model, result["flops"], result["live_weights"])


def _inside(model: Any, sparse: Any) -> dict[str, Any]:
    for name, mask in sparse.masks.items():
        assert bool((~mask | sparse.source_masks[name]).all()), f"{name} lives outside its source"
    return {}


def _levels(model: Any, scheme: str, where: Any, seed: int) -> dict[str, Any]:
    start = 1.0 if where is None else where.density
    method = ss.IMP(DENSITY, levels=max(1, round(math.log2(start / DENSITY))), rewind=LEVELS[scheme])
    lottery = ss.lottery(model, method, source=where, example_input=data().x_train[:1])
    for level in lottery:
        _train(level.model, level.model.parameters(), STEPS, seed + 1000 * level.index)
    live = sum(int(mask.sum()) for mask in lottery.ticket.masks.values())
    return _figures(model, lottery.budget.flops, live)


def _searched(model: Any, scheme: str, where: Any, seed: int) -> dict[str, Any]:
    """Forward and input gradients with the active weights, weight gradients of all of the source."""
    layers = find(model)
    uses, _ = uses_per_sample(model, layers, data().x_train[:1])
    dense = inference_flops({name: math.prod(layer.shape) for name, layer in layers.items()}, uses)
    start = 1.0 if where is None else where.density
    flops, steps = 0.0, STEPS
    if scheme == "jackpot":
        method = ss.Static(start, "uniform" if where is None else where.distribution)
        optimizer = optim.make("sgd", model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
        sparse = ss.attach(model, optimizer, method, source=where, total_steps=STEPS)
        _train(model, model.parameters(), STEPS, seed, optimizer)
        flops, steps = 3 * start * dense * STEPS * BATCH, STEPS // 2
        sparse.detach()
        search = ss.search(model, ss.Jackpot(DENSITY, classifier="include"), source=where, total_steps=steps)
    else:
        _signed_constant(model)
        method = ss.EdgePopup(DENSITY, "balanced", seed=300 + seed)
        search = ss.search(model, method, source=where, total_steps=steps)
    _train(model, search.scores(), steps, seed)
    for name, mask in search.masks.items():
        assert bool((~mask | search.source_masks[name]).all()), f"{name} is active outside its source"
    live = search.num_active
    _ = search.finish()
    return _figures(model, flops + (2 * DENSITY + start) * dense * steps * BATCH, live)


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


def _figures(model: Any, flops: float, live: int) -> dict[str, Any]:
    return {
        "test_accuracy": common.accuracy(model, data().x_test, data().y_test),
        "flops": flops,
        "live_weights": live,
    }


Group = dict[int, dict[str, Any]]  # seed -> figures


def judge(records: list[dict[str, Any]]) -> str:
    """Each scheme inside a source minus the same from dense, and minus the random mask trained from the start."""
    groups: dict[tuple[str, str], Group] = {}
    for record in common.one_by_one(records, key="scheme"):
        p = record["params"]
        groups.setdefault((p["scheme"], p["source"]), {})[p["seed"]] = record["result"]
    counts = sorted({figures["live_weights"] for group in groups.values() for figures in group.values()})
    controls = ["| control | test accuracy | training FLOPs |", "| --- | --- | --- |"]
    for name in CONTROLS:
        if group := groups.get((name, "none")):
            controls.append(
                f"| {name} | {100 * mean(group, 'test_accuracy'):.2f} % | {mean(group, 'flops'):.3g} |"
            )
    title = f"Fashion-MNIST, LeNet-300-100, {100 * (1 - DENSITY):g} % sparse at the end: from dense and inside random sources"
    means = {key: (mean(group, "flops"), 100 * mean(group, "test_accuracy")) for key, group in groups.items()}
    stars = dict(zip(CONTROLS, ("random mask", None, "random mask, longer"), strict=True))
    paths_figure.draw(means, SCHEMES, stars, title, Path(__file__).with_name("figure"))
    note = (
        f"Live weights at the end, over all runs: {counts}. *within* asks whether the interval of the difference lies "
        f"above -{100 * MARGIN:g} points, *above* whether it lies above zero against the random mask of equal steps. "
        f"Pyramidal sources leave the classifier {_classifier()} of its 1,000 weights at densities "
        f"{', '.join(f'{density:g}' for density in INSIDE)}: such ratios are for deep nets."
    )
    picture = "![accuracy against training FLOPs](figure.svg)"
    return "\n\n".join([picture, "\n".join(_table(groups)), "\n".join(controls), note])


def _classifier() -> str:
    """Weights of the last layer inside pyramidal sources."""
    shapes = {"0": (300, 784), "1": (100, 300), "2": (10, 100)}
    return ", ".join(f"{allocate('pyramidal', shapes, density)['2']:,}" for density in INSIDE)


def _table(groups: dict[tuple[str, str], Group]) -> list[str]:
    heads = (
        "scheme",
        "source",
        "test accuracy",
        "training FLOPs",
        "of its dense",
        "minus the same from dense",
        "within",
    )
    heads += ("minus random mask", "above")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    base = groups.get((BASE, "none"), {})
    for scheme in SCHEMES:
        dense = groups.get((scheme, "dense"), {})
        for source in SOURCES:
            if not (group := groups.get((scheme, source))):
                continue
            share, cells, gain = "", ["", ""], ["", ""]
            if source != "dense" and dense:
                found = difference(group, dense)
                share = f"{mean(group, 'flops') / mean(dense, 'flops'):.2f}"
                cells = [points(found), at_least(found, -MARGIN)]
            if base:
                found = difference(group, base)
                gain = [points(found), at_least(found, 0.0)]
            own = [f"{100 * mean(group, 'test_accuracy'):.2f} %", f"{mean(group, 'flops'):.3g}", share]
            lines.append(f"| {' | '.join([scheme, source, *own, *cells, *gain])} |")
    return lines


def mean(group: Group, key: str) -> float:
    """Of a figure, over seeds."""
    return statistics.fmean(figures[key] for figures in group.values())


def difference(group: Group, base: Group) -> Any:
    """Test accuracy minus that of another group, paired by seed."""
    records = [
        {"params": {"side": side, "seed": seed}, "result": results[seed]}
        for side, results in (("inside", group), ("base", base))
        for seed in sorted(group.keys() & base.keys())
    ]
    return common.difference(records, "side", "test_accuracy", "inside", "base")
