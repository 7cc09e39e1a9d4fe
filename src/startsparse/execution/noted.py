"""What ran as one operation, and what did not and why, for whoever asks (``fuse`` does, once)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Notes:
    """Modules of each operation in order, and why layers ran by themselves."""

    together: list[tuple[nn.Module, ...]] = field(default_factory=list)
    alone: dict[nn.Module, str] = field(default_factory=dict)


_open: list[Notes] = []


@contextmanager
def noting() -> Iterator[Notes]:
    """Collect what is noted inside."""
    _open.append(Notes())
    try:
        yield _open[-1]
    finally:
        _ = _open.pop()


def together(modules: Iterable[nn.Module]) -> None:
    """Note what ran as one operation."""
    for notes in _open:
        notes.together.append(tuple(modules))


def alone(module: nn.Module, why: str) -> None:
    """Note why a layer ran by itself."""
    for notes in _open:
        notes.alone[module] = why
