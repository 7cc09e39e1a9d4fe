"""Whether truly sparse execution reaches the accuracy of masked execution in less time: RigL on all of Fashion-MNIST.

Both nets of a run begin with the same weights and masks and see the same batches. They are trained in turns of a few
steps, so that whatever else the machine does falls on both; only the steps themselves are timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import common
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import startsparse as ss
from startsparse.benchmarking.nets import mlp
from startsparse.experiments import stats
from startsparse.training import seeds

TITLE = (
    "A net of 784-1024-1024-10 at 5 % density reaches its masked twin's accuracy in half the time, or less"
)
SOURCE = "Evci et al. 2020, RigL, with a step that costs what its live weights cost"
SEEDS = range(6)
DENSITY, BATCH, EPOCHS, LR = 0.05, 128, 4, 1e-3
TURN, EVERY = 10, 100  # steps of a turn, and from one look at the validation part to the next
NEAR, MARGIN, BAR = 0.003, 0.005, 2.0
EXECUTIONS = ("masked", "sparse")


def runs() -> list[dict]:
    """A pair of nets for each seed."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int, epochs: int = EPOCHS) -> dict:
    """Both executions of one seed: seconds of their steps, by the wall and by the processor, and accuracies on the way."""
    data = common.load("fashion-mnist")
    steps = epochs * (len(data.x_train) // BATCH)
    nets = {execution: _Net(execution, data, seed, steps) for execution in EXECUTIONS}
    batches = _batches(data, seed)
    for done in range(0, steps, TURN):
        turn = [next(batches) for _ in range(min(TURN, steps - done))]
        for execution in EXECUTIONS if done // TURN % 2 else EXECUTIONS[::-1]:
            nets[execution].train(turn)
        if (done + TURN) % EVERY == 0 or done + TURN >= steps:
            for net in nets.values():
                net.look()
    return {execution: net.figures() for execution, net in nets.items()} | {"steps": steps}


def _batches(data: common.Data, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        yield from common.batches(data, BATCH, seed, epoch)


class _Net:
    """One of the two, with its clock."""

    def __init__(self, execution: str, data: common.Data, seed: int, steps: int):
        self._data = data
        seeds.seed_all(seeds.derive(seed, "model"))
        self._model = nn.Sequential(nn.Flatten(), mlp(784, 1024, 1024, data.classes))
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=LR, fused=True)
        self._sparse = ss.attach(
            self._model, self._optimizer, ss.RigL(DENSITY, seed=seed), total_steps=steps, execution=execution
        )
        self._wall = self._processor = 0.0
        self._curve: list[tuple[float, float, float]] = []  # wall, processor, validation accuracy

    def train(self, turn: list[tuple[Tensor, Tensor]]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        for x, y in turn:
            F.cross_entropy(self._model(x), y).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        self._wall += time.perf_counter() - wall
        self._processor += time.process_time() - processor

    def look(self) -> None:
        accuracy = common.accuracy(self._model, self._data.x_validation, self._data.y_validation)
        self._curve.append((self._wall, self._processor, accuracy))

    def figures(self) -> dict:
        return {
            "wall": self._wall,
            "processor": self._processor,
            "curve": self._curve,
            "test_accuracy": common.accuracy(self._model, self._data.x_test, self._data.y_test),
            "density": self._sparse.density,
        }


def judge(records: list[dict]) -> str:
    """Seconds to the masked net's accuracy and of the whole run, and the final accuracies."""
    rows, ratios, clocks, whole, gaps = [], [], [], [], []
    for record in records:
        result = record["result"]
        masked, sparse = (result[execution] for execution in EXECUTIONS)
        goal = masked["curve"][-1][2] - NEAR
        reached = {
            e: next((point for point in result[e]["curve"] if point[2] >= goal), None) for e in EXECUTIONS
        }
        gaps.append(sparse["test_accuracy"] - masked["test_accuracy"])
        whole.append(masked["wall"] / sparse["wall"])
        seconds = [f"{reached[e][0]:.1f}" if reached[e] else "never" for e in EXECUTIONS]
        if reached["sparse"]:
            ratios.append(reached["masked"][0] / reached["sparse"][0])
            clocks.append(reached["masked"][1] / reached["sparse"][1])
        rows.append(
            f"| {record['params']['seed']} | {100 * goal:.2f} | {seconds[0]} | {seconds[1]} | {masked['wall']:.1f} | "
            f"{sparse['wall']:.1f} | {100 * masked['test_accuracy']:.2f} | {100 * sparse['test_accuracy']:.2f} |"
        )
    columns = ("seed", "goal, validation %", "masked there, s", "sparse there, s", "masked run, s", "sparse run, s", "masked test %", "sparse test %")  # fmt: skip
    head = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    near = stats.paired(np.array(gaps), confidence=0.9)
    lines = [
        f"The goal is the masked net's validation accuracy at its end less {100 * NEAR:g} points.",
        "",
        *head,
        *rows,
        "",
        f"- the sparse net reaches the goal in every run: {_word(len(ratios) == len(records))}, {len(ratios)} of {len(records)}",
        f"- in at most 1/{BAR:g} of the masked net's wall time: {_ratio(ratios)}",
        f"- in at most 1/{BAR:g} of its processor time: {_ratio(clocks)}",
        f"- the whole run takes at most 1/{BAR:g} of the wall time: {_ratio(whole)}",
        f"- test accuracies within {100 * MARGIN:g} points of each other: {common.within(near, MARGIN)}, {common.points(near)}",
    ]
    return "\n".join(lines)


def _ratio(ratios: list[float]) -> str:
    """The verdict on logarithms of paired ratios, and their geometric mean with its interval."""
    if not ratios:
        return "CANNOT TELL"
    found = stats.paired(np.log(ratios))
    low, mean, high = (float(np.exp(value)) for value in (found.low, found.mean, found.high))
    verdict = common.at_least(found, float(np.log(BAR)))
    return f"{verdict}, {mean:.2f} times less (95 % interval {low:.2f} to {high:.2f}, {len(ratios)} seeds)"


def _word(held: bool) -> str:
    return "PASS" if held else "FAIL"
