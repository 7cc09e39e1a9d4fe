"""The data sets by name, and the one function that finds them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from startsparse.training.data import hub, idx, parquet
from startsparse.training.data.errors import MissingData
from startsparse.training.data.splits import Dataset, Split, hold_out
from startsparse.training.names import find, require

DEFAULT_ROOT = "../shared/data"


@dataclass(frozen=True)
class Entry:
    """How one data set is read. ``examples``, ``mean`` and ``std`` (of value / 255) are of its whole training part."""

    summary: str
    shape: tuple[int, int, int]
    examples: int
    read: Callable[[Path], tuple[Split, Split]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int = 10
    hub: tuple[str, str] | None = None  # (repository, image column); None: comes with a package


def read_digits(_: Path) -> tuple[Split, Split]:
    """scikit-learn's 1,797 digits of 8x8; the last 360, by other writers than most of the rest, are the test part."""
    bunch = require("sklearn.datasets", "the data set digits").load_digits()
    inputs = torch.from_numpy(bunch.images).mul(15).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    return Split(inputs[:-360], labels[:-360]), Split(inputs[-360:], labels[-360:])


TABLE = {
    "fashion-mnist": Entry(
        "60,000 + 10,000 grey images of clothes, 28x28",
        (1, 28, 28), 60_000, idx.read_folder, (0.2860,), (0.3530,), hub=("zalando-datasets/fashion_mnist", "image"),
    ),
    "mnist": Entry(
        "60,000 + 10,000 handwritten digits, 28x28",
        (1, 28, 28), 60_000, idx.read_folder, (0.1307,), (0.3081,), hub=("ylecun/mnist", "image"),
    ),
    "cifar10": Entry(
        "50,000 + 10,000 colour images, 32x32",
        (3, 32, 32), 50_000, parquet.read_folder, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), hub=("uoft-cs/cifar10", "img"),
    ),
    "digits": Entry(
        "1,437 + 360 handwritten digits, 8x8; comes with scikit-learn",
        (1, 8, 8), 1_437, read_digits, (0.2874,), (0.3534,),
    ),
}  # fmt: skip


def names() -> list[str]:
    """The data sets ``load`` knows.

    Example:
        >>> names()
        ['cifar10', 'digits', 'fashion-mnist', 'mnist']
    """
    return sorted(TABLE)


def load(
    name: str,
    root: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    fallback: str | None = None,
) -> Dataset:
    """A data set in memory, its validation part held out by seed.

    Looked for in ``root`` (only there, if given), else in the folder the environment variable ``STARTSPARSE_DATA``
    names, else it is downloaded by the package ``datasets`` if that is installed.

    Args:
        name: one of ``names()``.
        root: folder that holds one folder per data set.
        validation: share of the training part, or number of examples, that is held out.
        seed: of the held-out part.
        fallback: name of the data set to take, with a warning, when this one is nowhere to be had.

    Raises:
        ValueError: an unknown name, or a file that is damaged (it is named).
        FileNotFoundError: the data set is nowhere to be had and there is no fallback.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test), data.input_shape
        (1293, 144, 360, (1, 8, 8))
    """
    entry = find("data set", name, TABLE)
    if fallback is not None:
        find("data set", fallback, TABLE)
    try:
        train, test = _locate(name, entry, root)
    except MissingData as error:
        if fallback is None or fallback == name:
            raise
        warnings.warn(f"{error}. FALLING BACK to the data set {fallback!r} instead of {name!r}", stacklevel=2)
        return load(fallback, None, validation, seed)
    rest, held = hold_out(train, validation, seed)
    return Dataset(name, rest, held, _typed(test), entry.mean, entry.std, classes=entry.classes)


def _typed(split: Split) -> Split:
    return Split(split.inputs, split.labels.long())


def _locate(name: str, entry: Entry, root: str | Path | None) -> tuple[Split, Split]:
    if entry.hub is None:
        return entry.read(Path())
    folder = Path(root or os.environ.get("STARTSPARSE_DATA") or DEFAULT_ROOT) / name
    if folder.is_dir():
        train, test = entry.read(folder)
        return _typed(train), _typed(test)
    if root is not None:
        raise MissingData(f"no data set {name} in {root}: {folder} does not exist")
    try:
        train, test = hub.fetch(*entry.hub)
    except MissingData as error:
        raise MissingData(
            f"no data set {name}: {folder} does not exist and {error}. Set STARTSPARSE_DATA to the folder that "
            f"holds {name}/, or `pip install datasets` where there is a network"
        ) from error
    return _typed(train), _typed(test)
