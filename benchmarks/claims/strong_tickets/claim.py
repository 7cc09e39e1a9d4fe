"""Strong tickets inside random sparse nets: edge-popup over random frozen weights, in a fixed random mask.

A fully connected net of two hidden layers of 256 on Fashion-MNIST; weights are signed constants, batch norm has no
parameters. Nothing is trained but scores; that no weight outside the source is ever active is asserted at every step.
"""

from __future__ import annotations

import math
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss
from startsparse.training import optim, seeds

TITLE = "Random sparse nets hold sub-networks that work without any training, as dense ones do"
SOURCE = (
    "Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, ICML 2023 (strong lottery tickets)"
)

SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
TRAIN, BATCH, EPOCHS, WIDTH = 20_000, 128, 8, 256
ARMS: dict[str, tuple[float | None, float]] = {  # density of the source, and of the ticket
    "dense to 0.2": (None, 0.2),
    "0.5 to 0.2": (0.5, 0.2),
    "dense to 0.1": (None, 0.1),
    "0.3 to 0.1": (0.3, 0.1),
    "0.3 to 0.1, annealed": (0.3, 0.1),
    "0.1 to 0.1, nothing to search": (0.1, 0.1),
}


def runs() -> list[dict[str, Any]]:
    """Seeds outermost."""
    return [{"arm": arm, "seed": seed} for seed in SEEDS for arm in ARMS]


def net(seed: int, density: float) -> nn.Sequential:
    """Signed constants ``sqrt(2 / (fan_in * density))``, batch norm without parameters, no biases."""
    seeds.seed_all(seeds.derive(seed, "model"))
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in ((784, WIDTH), (WIDTH, WIDTH), (WIDTH, 10)):
        linear = nn.Linear(fan_in, fan_out, bias=False)
        with torch.no_grad():
            _ = linear.weight.copy_(linear.weight.sign() * math.sqrt(2 / (fan_in * density)))
        layers += [linear, nn.BatchNorm1d(fan_out, affine=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def run(arm: str, seed: int) -> dict[str, Any]:
    """One search."""
    return search(
        net(seed, ARMS[arm][1]), common.load("fashion-mnist", train=TRAIN), arm, seed, EPOCHS, BATCH
    )


def search(
    model: nn.Module, data: common.Data, arm: str, seed: int, epochs: int, batch: int
) -> dict[str, Any]:
    """Search a ticket; sources and counts are asserted at every step."""
    inside, density = ARMS[arm]
    source = None if inside is None else ss.RandomSource(inside, "balanced", seed=seed)
    per_epoch = len(data.y_train) // batch
    total = epochs * per_epoch
    method = ss.EdgePopup(density, distribution="balanced", seed=seed)
    if arm.endswith("annealed"):
        method = ss.EdgePopupAnnealed(density, distribution="balanced", start_density=inside, seed=seed)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = ss.search(model, method, source=source, total_steps=total)
    optimizer = torch.optim.SGD(found.scores(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), total)
    support = {n: mask.clone() for n, mask in found.source_masks.items()}
    weights = dict(model.named_parameters())
    while found.step < total:
        for inputs, labels in common.batches(data, batch, seed, found.step // per_epoch):
            rate.set(found.step)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            assert found.num_active == found.target_count
            for n, mask in found.masks.items():
                assert not bool((mask & ~support[n]).any())
                assert not bool(weights[n].detach()[~support[n]].any())
    masks = found.finish()
    live, numel = (
        sum(int(count) for count in counts)
        for counts in zip(*((m.sum(), m.numel()) for m in masks.values()), strict=True)
    )
    assert live == round(density * numel)
    assert all(torch.equal(weights[n].detach(), torch.where(mask, before[n], 0)) for n, mask in masks.items())
    raw = common.accuracy(model, data.x_test, data.y_test)
    _ = ss.reestimate_batch_norm(model, list(data.x_train[:7680].split(batch)))
    accuracy = common.accuracy(model, data.x_test, data.y_test)
    return {
        "accuracy": accuracy,
        "raw": raw,
        "live_weights": live,
        "weights": numel,
        "swaps": found.num_swaps,
    }


def judge(records: list[dict[str, Any]]) -> str:
    """Test accuracy with batch norm measured anew, which every arm needs alike."""
    have = {r["params"]["arm"] for r in records}
    if set(ARMS) - have:
        return f"CANNOT TELL: no run of {', '.join(sorted(set(ARMS) - have))}"
    table = common.paired_table(records, "arm", "accuracy", "dense to 0.2")
    lines = []
    for arm, dense in (("0.5 to 0.2", "dense to 0.2"), ("0.3 to 0.1", "dense to 0.1")):
        found = common.difference(records, "arm", "accuracy", arm, dense)
        lines.append(f"- A ticket in a random source ({arm}) is within 5 points of one in a dense net: {common.at_least(found, -0.05)}, {common.points(found)}")  # fmt: skip
        control = "0.1 to 0.1, nothing to search"
        found = common.difference(records, "arm", "accuracy", arm, control)
        lines.append(f"- The search ({arm}) is worth 40 points or more: {common.at_least(found, 0.4)}, {common.points(found)}")  # fmt: skip
    found = common.difference(records, "arm", "accuracy", "0.3 to 0.1, annealed", "0.3 to 0.1")
    lines.append(f"- Annealed against not: {common.points(found)}")
    lines.append(
        "- No weight outside its source was active, and every count exact: PASS, asserted at every step"
    )
    return "\n\n".join(
        ["## Test accuracy, batch norm measured anew", table, "## Thresholds", "\n".join(lines)]
    )
