"""The suites by name, and what they were run on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import torch

from ..kernels import backend, has_node
from . import conv, inference, linear, memory, steps, updates
from .timing import Options, Row

SUITES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "linear": linear.rows,
    "conv": conv.square,
    "pointwise": conv.pointwise,
    "steps": steps.rows,
    "updates": updates.rows,
    "inference": inference.rows,
    "memory": memory.rows,
}

SUMMARIES = {
    "linear": "a training step of a linear layer, times faster than dense",
    "conv": "a training step of a 3x3 convolution, times faster than the better dense layout",
    "pointwise": "the same for 1x1 convolutions of ResNet-50 shapes",
    "steps": "training steps of whole nets with their optimizer, times faster than dense",
    "updates": "topology updates, and what they cost spread over 100 steps",
    "inference": "latency of whole nets, milliseconds",
    "memory": "peak memory of training above the import of torch",
}


def run(name: str, options: Options) -> Iterator[Row]:
    """The rows of a suite, each as soon as it is measured."""
    return SUITES[name](options)


def environment() -> Row:
    """What the figures belong to."""
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "kernels": backend().name,
        "node": "compiled" if has_node() else "python",
    }
