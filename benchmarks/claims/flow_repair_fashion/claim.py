"""Repair of dead units before training: MLP 784-256-256-10 on Fashion-MNIST."""

from __future__ import annotations

import common
import flow_repair.claim as digits

TITLE = "On Fashion-MNIST repair of dead units costs no accuracy, and is worth more than as many weights at random"
SOURCE = digits.SOURCE
SEEDS = range(5)


def runs() -> list[dict]:
    """Every policy, and with as many weights as repair leaves, with each seed."""
    return [{"what": what, "seed": seed} for what in ("training", "as many") for seed in SEEDS]


def run(what: str, seed: int) -> dict:
    """Ten epochs of 10,000 training examples."""
    return digits.accuracies(what, common.load("fashion-mnist", train=10_000), seed, epochs=10, batch=128)


def judge(records: list[dict]) -> str:
    """As on the digits."""
    return "\n\n".join(digits.judge_training(common.one_by_one(records)))
