"""A small vision transformer on CIFAR-10, sparse from the first step to the last."""

from __future__ import annotations

import transformers_common as shared

from startsparse.training.data import Options

TITLE = (
    "A small ViT at 80 and 90 % sparsity on CIFAR-10: RigL beats dense nets of its weight count and static masks, and at "
    "80 % loses at most 2 points to the dense net of its width"
)
SOURCE = "Evci et al. 2020, Rigging the Lottery, section 4, its ordering, on a net that is not convolutional"
SEEDS = range(5)
NARROW = {"narrow 0.2": 28, "narrow 0.1": 20}  # widths whose weights, positions included, match


def runs() -> list[dict]:
    """Nine nets, five seeds."""
    return shared.runs(SEEDS)


def run(net: str, seed: int) -> dict:
    """800 steps of 32 images in patches of 8x8: half an epoch, so this is about how fast they learn."""
    dataset = shared.load("cifar10", Options(), 5000)
    model = {"name": "vit-tiny", "patch": 8, "width": NARROW.get(net, 64), "depth": 3, "heads": 4}
    return shared.run(
        dataset, model, net, seed, steps=800, batch=32, lr=1e-3, update_interval=20, augment="flip"
    )


def judge(records: list[dict]) -> str:
    """Accuracies as shares of the test part."""
    return shared.judge(records, "accuracy", within=2, unit="points")
