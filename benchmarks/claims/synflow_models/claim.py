"""SynFlow on every model of the training room at one weight in a thousand, and beside it SNIP, GraSP and magnitude."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import startsparse as ss
from startsparse.training import models, seeds

TITLE = "SynFlow leaves no layer of any model empty at 99.9 % sparsity, and its counts are exact"
SOURCE = "Tanaka et al. 2020, section 6: synaptic flow is conserved from layer to layer, so that none is cut"

DENSITY = 0.001
SHAPES = {"gpt": (32,), "lenet-300-100": (1, 28, 28), "lenet5": (1, 28, 28), "mlp": (784,)}
METHODS = ("synflow", "synflow, 1 round", "snip", "grasp", "magnitude")
SECOND_ORDER = 30e6  # weights up to which GraSP is run here


def runs() -> list[dict[str, Any]]:
    """Every model; one seed tells whether a layer is empty, two more are for the smaller ones."""
    found = [{"model": name, "method": "synflow", "seed": 0} for name in models.names()]
    found += [{"model": name, "method": other, "seed": 0} for name in models.names() for other in METHODS[1:]]
    return found


def run(*, model: str, method: str, seed: int) -> dict[str, Any]:
    """Counts of one net after one method."""
    shape = SHAPES.get(model, (3, 32, 32))
    seeds.seed_all(seed)
    tokens = model == "gpt"
    net = models.make(model, input_shape=shape, classes=64 if tokens else 10)
    total = sum(parameter.numel() for parameter in net.parameters())
    x = torch.randint(64, (32, *shape)) if tokens else torch.randn(32, *shape)
    y = torch.randint(64, (32, *shape)) if tokens else torch.randint(10, (32,))
    if method == "grasp" and total > SECOND_ORDER:
        return {"skipped": f"{total} parameters: a pass of second order takes too long here"}
    made = {
        "synflow": lambda: ss.SynFlow(DENSITY),
        "synflow, 1 round": lambda: ss.SynFlow(DENSITY, rounds=1),
        "snip": lambda: ss.SNIP(DENSITY, batches=1),
        "grasp": lambda: ss.GraSP(DENSITY),
        "magnitude": lambda: ss.Magnitude(DENSITY),
    }[method]()

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(output.flatten(0, -2), target.flatten())

    signals = {"data": (x, y), "loss_fn": loss_fn, "example_input": x[:1]}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    begun = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):  # a layer without a live weight is what is counted here
        sparse = ss.attach(net, optimizer, made, **{name: signals[name] for name in made.needs})
    seconds = time.perf_counter() - begun
    counts = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    weights = sum(mask.numel() for mask in sparse.masks.values())
    return {
        "layers": len(counts),
        "weights": weights,
        "live": sum(counts.values()),
        "scheduled": round(DENSITY * weights),
        "empty": sum(count == 0 for count in counts.values()),
        "fewest": min(counts.values()),
        "seconds": round(seconds, 2),
    }


def judge(records: list[dict[str, Any]]) -> str:
    """Empty layers of each net under each method."""
    by = {(r["params"]["model"], r["params"]["method"]): r["result"] for r in records}
    lines = [
        "| model | layers | weights | "
        + " | ".join(f"empty: {m}" for m in METHODS)
        + " | fewest in a layer | seconds |",
        "| --- | --- | --- | " + "--- | " * len(METHODS) + "--- | --- |",
    ]
    for model in sorted({name for name, _ in by}):
        flow = by.get((model, "synflow"))
        if flow is None:
            continue
        empty = [by.get((model, m), {}).get("empty", "-") for m in METHODS]
        lines.append(
            f"| {model} | {flow['layers']} | {flow['weights']:,} | "
            + " | ".join(map(str, empty))
            + f" | {flow['fewest']} | {flow['seconds']:g} |"
        )
    flows = [result for (_, method), result in by.items() if method == "synflow"]
    done = [result for result in by.values() if "live" in result]
    none_empty = all(result["empty"] == 0 for result in flows)
    exact = all(result["live"] == result["scheduled"] for result in done)
    return "\n".join(lines) + (
        f"\n\nNo layer empty under SynFlow in {len(flows)} models: **{'PASS' if none_empty else 'FAIL'}**\n\n"
        f"Counts as scheduled in {len(done)} runs: **{'PASS' if exact else 'FAIL'}**\n\n"
        "Each layer keeps its best weight by rule where the budget has one for each; how far the flow alone goes shows "
        "in *fewest in a layer*."
    )
