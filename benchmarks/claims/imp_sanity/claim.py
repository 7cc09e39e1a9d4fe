"""Is what iterative pruning finds a lottery ticket? LeNet-300-100 on MNIST, with the controls of the literature."""

from __future__ import annotations

import warnings
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss

TITLE = "Tickets of LeNet-300-100 on MNIST match the dense net down to a few per cent, and the mask alone does not explain it"
SOURCE = "Frankle and Carbin, The Lottery Ticket Hypothesis, ICLR 2019, sections 2 and figure 4"
SEEDS = tuple(range(1000, 1008))
FRACTION, LEVELS, STEPS, BATCH, RATE = 0.2, 17, 1200, 64, 0.1
BRANCHED = (5, 10, 14, 17)  # levels at which the controls are trained: 33, 11, 4.4 and 2.3 %
CONTROLS = ("reinit", "shuffle", "random")


def runs() -> list[dict]:
    """A seed each."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int, steps: int = STEPS, levels: int = LEVELS) -> dict:
    """Test accuracy of every level and, at some, of its controls."""
    data = common.load("mnist", train=10_000)
    model = common.make_model("lenet-300-100", data, seed)
    found: dict[str, Any] = {}
    method = ss.IMP((1 - FRACTION) ** levels, prune_fraction=FRACTION)
    with warnings.catch_warnings(action="ignore"):
        for level in ss.lottery(model, method):
            controls = [level.branch(kind, seed) for kind in CONTROLS if level.index in BRANCHED]
            name = f"level {level.index:02d}"
            found[name] = {"accuracy": train(level.model, data, seed, steps), "density": level.density}
            for kind, control in zip(CONTROLS, controls, strict=False):
                found[f"{name} {kind}"] = {"accuracy": train(control.model, data, seed, steps)}
                _ = control.close()
    return found


def train(model: nn.Module, data: common.Data, seed: int, steps: int) -> float:
    """Plain SGD at a constant rate, the same batches each time; returns the test accuracy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    done, epoch = 0, 0
    _ = model.train()
    while done < steps:
        for x, y in common.batches(data, BATCH, seed, epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            _ = optimizer.step()
            done += 1
            if done == steps:
                break
        epoch += 1
    return common.accuracy(model, data.x_test, data.y_test)


def judge(records: list[dict]) -> str:
    """The lowest density whose mean reaches the dense net's, and the order of the controls below."""
    some = common.one_by_one(records, key="arm")
    lines = ["| level | density | accuracy | minus dense |", "| --- | --- | --- | --- |"]
    matching = 1.0
    for index in range(LEVELS + 1):
        arm = f"level {index:02d}"
        figures = [r["result"] for r in some if r["params"]["arm"] == arm]
        density = figures[0]["density"]
        accuracy = sum(f["accuracy"] for f in figures) / len(figures)
        gap = common.difference(some, "arm", "accuracy", arm, "level 00") if index else None
        lines.append(
            f"| {index} | {100 * density:.2f} % | {100 * accuracy:.2f} % | {common.points(gap) if gap else ''} |"
        )
        matching = density if gap is not None and gap.mean >= 0 else matching
    parts = ["\n".join(lines)]
    enough = len(records) >= 5
    word = "CANNOT TELL" if not enough else "PASS" if matching < 0.25 else "FAIL"
    parts.append(
        f"Lowest density whose mean accuracy reaches the dense net's: {100 * matching:.2f} % (bar: below 25 %): {word}"
    )
    for index in BRANCHED:
        arm = f"level {index:02d}"
        for kind in CONTROLS:
            gap = common.difference(some, "arm", "accuracy", arm, f"{arm} {kind}")
            if index == BRANCHED[-1] or kind != "reinit":
                parts.append(f"{arm} - {kind}, above zero: {common.points(gap)}: {common.at_least(gap, 0.0)}")
            else:
                parts.append(f"{arm} - {kind}, reported without a bar: {common.points(gap)}")
    return "\n\n".join(parts)
