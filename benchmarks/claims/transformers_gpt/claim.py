"""A small GPT on tiny Shakespeare, sparse from the first step to the last."""

from __future__ import annotations

import transformers_common as shared

from startsparse.training.data import Options

TITLE = (
    "A character-level GPT at 80 and 90 % sparsity on tiny Shakespeare: RigL beats dense nets of its weight count and "
    "static masks, and at 80 % loses at most 0.1 nats to the dense net of its width"
)
SOURCE = "Evci et al. 2020, Rigging the Lottery, section 4.2 (character-level language modelling), on another net and text"
SEEDS = range(5)
NARROW = {
    "narrow 0.2": (30, 3),
    "narrow 0.1": (24, 4),
}  # width and heads: the weights, embeddings included, match


def runs() -> list[dict]:
    """Nine nets, five seeds."""
    return shared.runs(SEEDS)


def run(net: str, seed: int) -> dict:
    """700 steps of 16 windows of 64 characters: most of the text, once."""
    dataset = shared.load("tinyshakespeare", Options(context=64), 0.1)
    width, heads = NARROW.get(net, (64, 4))
    model = {"name": "gpt", "width": width, "depth": 3, "heads": heads}
    return shared.run(dataset, model, net, seed, steps=700, batch=16, lr=5e-3, update_interval=20)


def judge(records: list[dict]) -> str:
    """Losses in nats per character."""
    return shared.judge(records, "loss", within=0.1, unit="nats")
