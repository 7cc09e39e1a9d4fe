"""Iterative pruning inside random sources."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss
from startsparse.training import optim, seeds

TITLE = (
    "Iterative magnitude pruning inside a random source ends within 2 points of pruning from dense at 1 % density, 20 points "
    "above a random mask, at a fraction of the training FLOPs"
)
SOURCE = (
    "Gadhikar, Mukherjee, Burkholz, Why Random Pruning Is All We Need to Start Sparse, ICML 2023, section 4"
)
SEEDS = tuple(range(1000, 1008))
WIDTH, EPOCHS, BATCH, FINAL = 256, 20, 64, 0.01
LOST, GAINED, SHARE = -0.02, 0.20, 0.5
STARTS = {"dense": 1.0, "random 0.5": 0.5, "random 0.3": 0.3}


def runs() -> list[dict]:
    """A seed and a data set each."""
    return [{"seed": seed, "data": data} for data in ("digits", "fashion-mnist") for seed in SEEDS]


def run(seed: int, data: str, epochs: int = EPOCHS) -> dict:
    """Every start pruned by halves to 1 %, and the controls at 1 %."""
    held = common.digits(seed) if data == "digits" else common.load("fashion-mnist", train=4000)
    train = functools.partial(train_one, data=held, epochs=epochs, seed=seed)
    arms: dict[str, Any] = {}
    ticket = None
    for start, density in STARTS.items():
        source = None if density == 1.0 else ss.RandomSource(density, "balanced", seed=seed)
        model = net(held, seed)
        method = ss.IMP(FINAL, levels=round(math.log2(density / FINAL)))  # a half goes at each level, about
        found = ss.lottery(model, method, source=source, example_input=held.x_train[:1])
        accuracy = 0.0
        with warnings.catch_warnings(action="ignore"):  # layers that end empty are part of the result
            for level in found:
                accuracy = train(level.model)
                if start == "dense" and level.index == found.num_levels - 1:
                    ticket = level
        trained = {
            "levels": found.num_levels,
            "weights": sum(found.counts),
            "dense_samples": found.budget.dense_samples,
        }
        arms[start] = {"accuracy": accuracy, "flops": found.budget.flops} | trained
    assert ticket is not None
    with warnings.catch_warnings(action="ignore"):
        arms["shuffled"] = {"accuracy": train(ticket.branch("shuffle", seed).model)}
        for rule in ("erk", "balanced"):
            model = net(held, seed)
            arms[f"random mask, {rule}"] = {
                "accuracy": train(model, method=ss.Static(FINAL, rule, seed=seed))
            }
    return arms


def net(data: common.Data, seed: int) -> nn.Module:
    """64-256-256-10 on digits, 784-256-256-10 on Fashion-MNIST."""
    return common.make_model("mlp", data, seed, widths=[WIDTH, WIDTH])


def train_one(
    model: nn.Module, data: common.Data, epochs: int, seed: int, method: ss.methods.Method | None = None
) -> float:
    """SGD with a cosine rate; the lottery sees the optimizer by itself. Returns the test accuracy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    per_epoch = len(data.y_train) // BATCH
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), epochs * per_epoch)
    if method is not None:
        _ = ss.attach(model, optimizer, method)
    seeds.seed_all(seeds.derive(seed, "train"))
    _ = model.train()
    for epoch in range(epochs):
        for index, (x, y) in enumerate(common.batches(data, BATCH, seed, epoch)):
            _ = rate.set(epoch * per_epoch + index)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            _ = optimizer.step()
    return common.accuracy(model, data.x_test, data.y_test)


def judge(records: list[dict]) -> str:
    """Against pruning from dense, against the random mask, and the FLOPs."""
    parts = []
    for data in ("digits", "fashion-mnist"):
        chosen = [r for r in records if r["params"]["data"] == data]
        if not chosen:
            continue
        some = common.one_by_one(chosen, key="arm")
        parts += [f"### {data}", common.paired_table(some, "arm", "accuracy", "dense")]
        for start in list(STARTS)[1:]:
            parts += [lost(some, start), *gained(some, start)]
            pairs = [(r["result"][start], r["result"]["dense"]) for r in chosen]
            share = sum(a["flops"] / b["flops"] for a, b in pairs) / len(pairs)
            agree = all(math.isclose(a["flops"] / b["flops"], a["weights"] / b["weights"]) for a, b in pairs)
            skipped = all(a["dense_samples"] == 0 for a, _ in pairs)
            word = "PASS" if agree and skipped and (share < SHARE or start != "random 0.3") else "FAIL"
            parts.append(
                f"{start}: {share:.3f} of the training FLOPs of pruning from dense, counted; no dense sample, and the sum of "
                f"density * epochs over the levels says the same (random 0.3: below {SHARE:g}): {word}"
            )
    return "\n\n".join(parts)


def lost(cases: list[dict], start: str) -> str:
    """A source against pruning from dense."""
    found = common.difference(cases, "arm", "accuracy", start, "dense")
    return (
        f"{start} within {-100 * LOST:g} pp of dense: {common.points(found)}: {common.at_least(found, LOST)}"
    )


def gained(cases: list[dict], start: str, bar: float = GAINED) -> list[str]:
    """Pruning inside a source against random masks of the final density."""
    found = {
        rule: common.difference(cases, "arm", "accuracy", start, f"random mask, {rule}")
        for rule in ("erk", "balanced")
    }
    return [
        f"{start} at least {100 * bar:g} pp above a random mask ({rule}): {common.points(one)}: "
        f"{common.at_least(one, bar)}"
        for rule, one in found.items()
    ]
