"""What is known of a data set before its examples are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from startsparse.training.data.options import Options
from startsparse.training.data.splits import Split

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The usual constants of ImageNet, taken for every set of colour images that has none of its own."""


@dataclass(frozen=True)
class Entry:
    """How one data set is read.

    Attributes:
        summary: one line.
        shape: of one input.
        examples: of the whole training part, validation included.
        read: folder (or file) -> (train, test).
        mean: per channel, of value / 255; empty for text, and for tables, whose moments are taken from what they
            are trained on.
        std: likewise.
        classes: number of classes, or of distinct characters.
        hub: (repository, image column) to download it from; None: there is no such.
        is_text: next-token prediction rather than classification.
        fit: what the entry becomes under options (size, context), and which ones it has; None: it has none.
        has_home: it lies in a folder of its name inside the data folder; otherwise a package or its name says where.
    """

    summary: str
    shape: tuple[int, ...]
    examples: int
    read: Callable[[Path], tuple[Split, Split]]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: int = 10
    hub: tuple[str, str] | None = None
    is_text: bool = False
    fit: tuple[Callable[[Options], Entry], tuple[str, ...]] | None = None
    has_home: bool = True
