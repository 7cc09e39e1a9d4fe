"""Repair of dead units: masks of an MLP and of ResNet-18, and training of the MLP on scikit-learn's digits."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import common
import torch
from torch import nn

import startsparse as ss
from startsparse.distributions import allocate
from startsparse.flow import dead_units
from startsparse.layers import find
from startsparse.training import models

TITLE = "Repair leaves no unit without an input and an output weight, keeps the budget where a layer can, and costs no accuracy"
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse (flow preservation)"
SEEDS = range(10)
DENSITIES = (0.01, 0.005, 0.001)
RATIOS = ("uniform", "erk", "balanced", "pyramidal")
TRAINED = ("uniform", "pyramidal")
FLOWS = ("none", "add", "keep_budget")
KEPT = ("test_accuracy", "density", "dead", "live", "wanted", "layers_off")
MATCHED = (0.01, 0.005)  # densities at which as many weights without repair are trained, too


def runs() -> list[dict]:
    """Masks of both nets with two seeds; training of the MLP with ten, and with as many weights as repair leaves."""
    masks = [{"what": "masks", "net": net, "seed": seed} for net in ("mlp", "resnet18") for seed in (0, 1)]
    training = [
        {"what": what, "net": "mlp", "seed": seed} for what in ("training", "as many") for seed in SEEDS
    ]
    return masks + training


def run(what: str, net: str, seed: int) -> dict:
    """Counts of dead units and weights, or accuracies on a split of the digits, for every density, ratio and policy."""
    if what == "masks":
        options = {"widths": (256, 256), "input_shape": (1, 8, 8)} if net == "mlp" else {}
        return every_policy(RATIOS, seed, lambda method: look(method, models.make(net, **options)))
    return accuracies(what, common.digits(seed), seed, epochs=30, batch=32)


def accuracies(what: str, data: common.Data, seed: int, **length) -> dict:
    """With every policy, or without repair of as many weights as repair leaves."""
    fit = functools.partial(train, data=data, seed=seed, **length)
    if what == "training":
        return every_policy(TRAINED, seed, fit)
    return matched(TRAINED, seed, lambda: make_model(data, seed), fit)


def matched(
    ratios: tuple[str, ...], seed: int, model: Callable[[], nn.Module], fit: Callable[..., dict]
) -> dict:
    """Without repair of as many weights as repair leaves."""
    return {
        f"{ratio}@{density:g} as many": as_many(ratio, density, model(), seed, fit)
        for density in MATCHED
        for ratio in ratios
    }


def every_policy(
    ratios: tuple[str, ...],
    seed: int,
    do: Callable[[ss.methods.Method], dict],
    densities: tuple[float, ...] = DENSITIES,
) -> dict:
    """What ``do`` finds for every density, ratio and policy; budgets that cannot be kept are counted there."""
    with warnings.catch_warnings(action="ignore"):
        return {
            f"{ratio}@{density:g} {flow}": do(
                ss.Static(density=density, distribution=ratio, seed=seed, flow=flow)
            )
            for density in densities
            for ratio in ratios
            for flow in FLOWS
        }


def look(method: ss.methods.Method, model: nn.Module) -> dict:
    """What the method's mask is before any step."""
    sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method)
    return counts(model, sparse)


def as_many(ratio: str, density: float, model: nn.Module, seed: int, fit: Callable[..., dict]) -> dict:
    """The ratio without repair, at the number of weights that ``flow="add"`` makes of the density."""
    repaired = look(ss.Static(density=density, distribution=ratio, seed=seed, flow="add"), model)
    count = repaired["live"] / repaired["wanted"] * density
    return fit(ss.Static(density=count, distribution=ratio, seed=seed))


def make_model(data: common.Data, seed: int) -> nn.Module:
    """The net that is trained."""
    return common.make_model("mlp", data, seed, widths=(256, 256))


def counts(model, sparse) -> dict:
    """Live weights and what the density asks for, dead units, and layers that are off a budget they could keep."""
    layers, dead, live, off = find(model), 0, 0, 0
    shapes = {name: layer.shape for name, layer in layers.items()}
    wanted = allocate(sparse.method.distribution, shapes, sparse.method.density)
    for name, mask in sparse.masks.items():
        sides = dead_units(mask.reshape(-1).numpy(), shapes[name], layers[name].geometry)
        count, units = int(mask.sum()), sum(side.size for side in sides)
        dead += sum(int(side.sum()) for side in sides)
        live += count
        off += count != wanted[name] and wanted[name] >= units
    return {"dead": dead, "live": live, "wanted": sum(wanted.values()), "layers_off": off}


def train(method: ss.methods.Method, data: common.Data, seed: int, **length) -> dict:
    """SGD with a cosine."""
    plain = {"momentum": 0.9, "weight_decay": 0.0}
    result = common.train(
        make_model(data, seed), data, method, lr=0.1, options=plain, seed=seed, finish=counts, **length
    )
    return {key: result[key] for key in KEPT}


def judge(records: list[dict]) -> str:
    """Counts of the masks, then accuracies with and without repair."""
    cases = common.one_by_one(records)
    masks = [r for r in cases if r["params"]["what"] == "masks"]
    parts = ["## Masks", masks_table(masks, "mlp", "resnet18"), *judge_masks(masks)]
    return "\n\n".join([*parts, "## Training", *judge_training(cases)])


def judge_masks(masks: list[dict]) -> list[str]:
    """No dead unit after repair, and the budget where it can be kept."""
    dead = sum(r["result"]["dead"] for r in masks if r["params"]["case"].endswith(FLOWS[1:]))
    kept = [r["result"] for r in masks if r["params"]["case"].endswith("keep_budget")]
    off = sum(result["layers_off"] for result in kept)
    same = sum(result["live"] == result["wanted"] for result in kept)
    says = "keep_budget leaves the number of weights as it was in every layer that has at least as many as it has units"
    return [
        f"- no dead unit after any repair: {'FAIL' if dead else 'PASS'}, {dead} left",
        f"- {says}: {'FAIL' if off else 'PASS'}, {off} layers off; in all layers in {same} of {len(kept)} masks",
    ]


def judge_training(cases: list[dict], ratios: tuple[str, ...] = TRAINED) -> list[str]:
    """A table a density and ratio, and whether repair costs accuracy."""
    parts = []
    trained = [r for r in cases if r["params"]["what"] in ("training", "as many")]
    for density in DENSITIES:
        for ratio in ratios:
            at = [r for r in trained if r["params"]["case"].startswith(f"{ratio}@{density:g} ")]
            if not at:
                continue
            name = f"{ratio}@{density:g}"
            parts.append(common.paired_table(at, "case", "test_accuracy", f"{name} none"))
            for flow in ("add", "keep_budget"):
                found = common.difference(at, "case", "test_accuracy", f"{name} {flow}", f"{name} none")
                budget = [r["result"] for r in at if r["params"]["case"].endswith(flow)]
                share = sum(b["live"] / b["wanted"] for b in budget) / len(budget)
                verdict = {"better": "PASS", "worse": "FAIL"}.get(found.judge(), "CANNOT TELL")
                parts.append(
                    f"- {name}, {flow} at least as accurate as none: {verdict}, {common.points(found)}, "
                    f"at {share:.2f} times the budget"
                )
            if any(r["params"]["case"].endswith("as many") for r in at):
                found = common.difference(at, "case", "test_accuracy", f"{name} add", f"{name} as many")
                parts.append(
                    f"- {name}, add against as many weights without repair: {found.judge()}, {common.points(found)}"
                )
    return parts


def masks_table(records: list[dict], *nets: str) -> str:
    """Dead units, and weights beyond the budget, of each net's masks."""
    rows = []
    for net in nets:
        for density in DENSITIES:
            for ratio in RATIOS:
                row = [net, f"{density:g}", ratio]
                for flow in FLOWS:
                    case = f"{ratio}@{density:g} {flow}"
                    of = [
                        r["result"]
                        for r in records
                        if r["params"]["net"] == net and r["params"]["case"] == case
                    ]
                    if of:
                        extra = sum(r["live"] / r["wanted"] - 1 for r in of) / len(of)
                        row += [f"{sum(r['dead'] for r in of) / len(of):.1f}", f"{100 * extra:+.2f} %"]
                rows.append(row)
    headers = ["net", "density", "ratio"] + [
        f"{flow}: {what}" for flow in FLOWS for what in ("dead units", "weights")
    ]
    return common.comparison.markdown(headers, [row for row in rows if len(row) == len(headers)])
