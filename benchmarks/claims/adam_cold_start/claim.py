"""What Adam does to weights that grow late, and whether a bias correction of their own removes it: LeNet-300-100."""

from __future__ import annotations

import common
import torch
import torch.nn.functional as F

import startsparse as ss

TITLE = "Weights grown under Adam first move by 2.5 learning rates; with grown_state='warmup' by one, at no loss of accuracy"
SOURCE = (
    "Kingma and Ba 2015, Adam, algorithm 1 (bias correction); Evci et al. 2020, RigL (what grows, and when)"
)
POLICIES = ("reset", "warmup", "mean", "keep")
SEEDS = range(6)
LR, STEPS, INTERVAL, WATCHED = 1e-3, 1601, 200, 20
AT = 1000  # the update whose first moves are judged: Adam has counted a thousand steps


def runs() -> list[dict]:
    """Every policy on the same data order, initial weights and first mask."""
    return [{"policy": policy, "seed": seed} for seed in SEEDS for policy in POLICIES]


def run(policy: str, seed: int) -> dict:
    """RigL at 5 % density, 30 % of the weights moved every 200 steps; moves and losses of the 20 steps after each."""
    data = common.load("fashion-mnist", train=20_000)
    model = common.make_model("lenet-300-100", data, seed)
    rigl = ss.RigL(
        0.05,
        drop_schedule="constant",
        update_interval=INTERVAL,
        update_end=STEPS - WATCHED,
        grown_state=policy,
        seed=seed,
    )
    watch = _Watch(data)
    result = common.train(
        model,
        data,
        rigl,
        steps=STEPS,
        batch=64,
        optimizer="adam",
        lr=LR,
        schedule="constant",
        seed=seed,
        each_step=watch,
    )
    kept = {key: result[key] for key in ("test_accuracy", "validation_accuracy", "density", "steps")}
    return kept | watch.figures()


class _Watch:
    """Mean absolute moves of grown weights, in learning rates, and the loss on 512 held-out images, after updates."""

    def __init__(self, data: common.Data):
        self._x, self._y = data.x_validation[:512], data.y_validation[:512]
        self._grown: dict = {}
        self._masks: dict = {}
        self._weights: dict = {}
        self._moves: dict[int, list[float]] = {}
        self._losses: dict[int, list[float]] = {}

    def __call__(self, done: int, model: torch.nn.Module, sparse) -> None:
        update, age = divmod(done - 1, INTERVAL)
        if update and age == 0:
            self._grown = {name: mask & ~self._masks[name] for name, mask in sparse.masks.items()}
            self._moves[done - 1], self._losses[done - 1] = [], [self._loss(model)]
        weights = {n: p.detach().clone() for n, p in model.named_parameters() if n in sparse.masks}
        if update and 0 < age <= WATCHED:
            moves = [
                (weights[n] - self._weights[n])[g & sparse.masks[n]].abs() for n, g in self._grown.items()
            ]
            self._moves[update * INTERVAL].append(float(torch.cat(moves).mean()) / LR)
            self._losses[update * INTERVAL].append(self._loss(model))
        self._weights = weights
        self._masks = {name: mask.clone() for name, mask in sparse.masks.items()}

    @torch.no_grad()
    def _loss(self, model: torch.nn.Module) -> float:
        return float(F.cross_entropy(model(self._x), self._y))

    def figures(self) -> dict:
        """Of the judged update, and means over all of them."""
        spikes = [max(losses) - losses[0] for losses in self._losses.values()]
        return {
            "first_move": self._moves[AT][0],
            "worst_move": max(self._moves[AT]),
            "loss_spike": sum(spikes) / len(spikes),
            "moves": {str(step): moves for step, moves in self._moves.items()},
        }


def judge(records: list[dict]) -> str:
    """Moves, spikes and accuracies by policy."""
    parts = []
    for value, title in (
        ("first_move", f"First move of weights grown at step {AT}, in learning rates"),
        ("worst_move", "Largest mean move of their first 20 steps, in learning rates"),
        ("loss_spike", "Rise of the held-out loss within 20 steps after an update, mean of all updates"),
        ("test_accuracy", "Test accuracy"),
    ):
        rows = ["| policy | mean | lowest | highest |", "| --- | --- | --- | --- |"]
        for policy in POLICIES:
            found = [r["result"][value] for r in records if r["params"]["policy"] == policy]
            rows.append(f"| {policy} | {sum(found) / len(found):.4f} | {min(found):.4f} | {max(found):.4f} |")
        parts.append(f"## {title}\n\n" + "\n".join(rows))
    first = {p: [r["result"]["first_move"] for r in records if r["params"]["policy"] == p] for p in POLICIES}
    cold = all(2.4 <= move <= 2.6 for move in first["reset"])
    parts.append(f"- with a reset every run's first move is 2.5 learning rates, within 0.1: {_word(cold)}")
    warm = all(move <= 1.001 for move in first["warmup"])
    parts.append(f"- with a correction of their own it is at most one: {_word(warm)}")
    found = common.difference(records, "policy", "loss_spike", "reset", "warmup")
    parts.append(
        f"- the loss rises more after an update with a reset: {common.at_least(found, 0)}, "
        f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"
    )
    found = common.difference(records, "policy", "test_accuracy", "warmup", "reset")
    parts.append(
        f"- accuracy not below that with a reset by more than half a point: {common.at_least(found, -0.005)}, "
        f"{common.points(found)}"
    )
    return "\n\n".join(parts)


def _word(held: bool) -> str:
    return "PASS" if held else "FAIL"
