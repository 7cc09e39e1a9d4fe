"""One seed, many independent streams: each purpose of a run draws from a stream of its own."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any

import numpy as np
import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose of a run: another purpose, an unrelated stream.

    Example:
        >>> derive(0, "model") == derive(0, "model"), derive(0, "model") == derive(0, "order", 1)
        (True, False)
    """
    text = "|".join(str(part) for part in ("startsparse", seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def parse_seeds(given: object) -> list[int]:
    """Seeds as a list of integers, or as text: single ones and ranges that hold both ends.

    Raises:
        ValueError: it is neither, is empty, or names a seed twice.

    Example:
        >>> parse_seeds([3, 1]), parse_seeds("0..4"), parse_seeds("0,2,5..6"), parse_seeds(7)
        ([3, 1], [0, 1, 2, 3, 4], [0, 2, 5, 6], [7])
    """
    if isinstance(given, str):
        parts = [re.fullmatch(r"\s*(\d+)(?:\s*\.\.\s*(\d+))?\s*", part) for part in given.split(",")]
        seeds: list[Any] = [
            s for part in parts if part for s in range(int(part[1]), int(part[2] or part[1]) + 1)
        ]
        valid = all(parts)
    else:
        seeds: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        valid = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not valid or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"a list of different integers or text such as 0..4 was expected, got {given!r}")
    return seeds


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of every global generator, as plain data and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), [int(key) for key in np.asarray(keys)], position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put every global generator back to what ``capture`` returned.

    Example:
        >>> seed_all(3)
        >>> state = capture()
        >>> before = torch.rand(2), random.random(), np.random.rand()
        >>> restore(state)
        >>> bool((before[0] == torch.rand(2)).all()), before[1] == random.random(), before[2] == np.random.rand()
        (True, True, True)
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
