"""Weights locked in instead of removed: what they are worth to a search of few positions.

Two hidden layers of 256 on Fashion-MNIST, frozen weights of one size and random sign, batch norm without parameters, edge-
popup. A share of all positions is searched, half of which become active; of the others, a share is locked in. The number of
scores, and of positions a ticket has to name, is the same along a row: locked weights cost a seed, and the time and memory
of weights that are active. Every arm of a seed has the same weights and the same searched positions.
"""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import common
import torch
import torch.nn.functional as F
from common import at_least, points
from torch import nn

import startsparse as ss
from startsparse.layers import find
from startsparse.training import optim, seeds

TITLE = "A search of few positions finds better tickets where some of the other weights are locked in"
SOURCE = "Otsuka et al., Partially Frozen Random Networks Contain Compact Strong Lottery Tickets, 2024"

SEEDS = (0, 1, 2, 3, 4)
TRAIN, BATCH, EPOCHS, WIDTH = 20_000, 128, 3, 256
SEARCHED = (0.2, 0.02, 0.004)  # of all positions
SHARES = (0.0, 0.01, 0.05, 0.25)  # of the others that are locked in
BAR = 0.01  # what the best share must gain at the fewest searched positions


def runs() -> list[dict[str, Any]]:
    """A run for each seed."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int) -> dict[str, Any]:
    """Every arm of a seed: name -> figures."""
    torch.set_num_threads(1)
    found = {name(s, share): search(seed, s, share) for s in SEARCHED for share in SHARES}
    return found | {"all searched": search(seed, 1.0, 0.0)}


def name(searched: float, share: float) -> str:
    """Of an arm."""
    return f"{searched:g} searched, {share:g} locked in"


def search(seed: int, searched: float, share: float) -> dict[str, Any]:
    """One search: accuracy of the ticket, and what it is made of."""
    data = common.load("fashion-mnist", train=TRAIN)
    seeds.seed_all(seeds.derive(seed, "model"))
    sizes = (784, WIDTH, WIDTH, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out, bias=False)
        layers += [linear, nn.BatchNorm1d(fan_out, affine=False), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    source = ss.LockedSource(searched, "balanced", seed=seed, share=share)
    wanted, locked, free = {}, 0, 0
    for key, support in source.supports(find(model)).items():
        weight = model.get_parameter(key)
        held, mask = support.locked, support.mask()
        assert held is not None and mask is not None
        room = int(mask.sum()) - int(held.sum())
        wanted[key] = int(held.sum()) + room // 2
        locked, free = locked + int(held.sum()), free + room
        with torch.no_grad():
            _ = weight.copy_(weight.sign() * math.sqrt(2 * len(weight) / wanted[key]))
    sizes_of = {key: model.get_parameter(key).numel() for key in wanted}
    method = ss.EdgePopup(
        sum(wanted.values()) / sum(sizes_of.values()),
        distribution={key: count / sizes_of[key] for key, count in wanted.items()},
        seed=seed,
    )
    total = EPOCHS * (TRAIN // BATCH)
    found = ss.search(model, method, source=source, total_steps=total)
    optimizer = torch.optim.SGD(found.scores(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), total)
    while found.step < total:
        for inputs, labels in common.batches(data, BATCH, seed, found.step // (TRAIN // BATCH)):
            rate.set(found.step)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    masks = found.finish()
    _ = ss.reestimate_batch_norm(model, list(data.x_train[:7680].split(BATCH)))
    live = sum(int(mask.sum()) for mask in masks.values())
    assert live == sum(wanted.values())
    return {
        "accuracy": common.accuracy(model, data.x_test, data.y_test),
        "live_weights": live,
        "locked_in": locked,
        "searched": free,
    }


def judge(records: list[dict[str, Any]]) -> str:
    """Each share against none, at as many searched positions."""
    arms = common.one_by_one(records, key="arm")
    lines = ["| searched | locked in | active | test accuracy | minus none locked in |", "| --- " * 5 + "|"]
    gains: dict[float, Any] = {}
    for searched in SEARCHED:
        for share in SHARES:
            mine = [r["result"] for r in arms if r["params"]["arm"] == name(searched, share)]
            gain = (
                common.difference(arms, "arm", "accuracy", name(searched, share), name(searched, 0.0))
                if share
                else None
            )
            if gain is not None and searched == min(SEARCHED):
                gains[share] = gain
            mean = statistics.fmean(r["accuracy"] for r in mine)
            lines.append(
                f"| {mine[0]['searched']:,} | {mine[0]['locked_in']:,} | {mine[0]['live_weights']:,} | {100 * mean:.2f} % | "
                f"{'' if gain is None else points(gain)} |"
            )
    all_of = [r["result"]["accuracy"] for r in arms if r["params"]["arm"] == "all searched"]
    best = max(gains.values(), key=lambda gain: gain.mean)
    lines += ["", f"All positions searched, half of them active: {100 * statistics.fmean(all_of):.2f} %.", ""]
    lines.append(
        f"- At the fewest searched positions, some share gains {100 * BAR:g} point or more over none (the best of "
        f"{len(gains)} is taken): {at_least(best, BAR)}, {points(best)}"
    )
    return "\n".join(lines)
