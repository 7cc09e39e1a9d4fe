"""The data sets by name, and the one function that finds them."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from startsparse.training.data import bundled, hub, idx, images, parquet, table, text
from startsparse.training.data.entry import Entry
from startsparse.training.data.errors import MissingData
from startsparse.training.data.options import Options
from startsparse.training.data.splits import Dataset, Split, hold_out
from startsparse.training.names import find

DEFAULT_ROOT = "../shared/data"


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
    "cifar100": Entry(
        "50,000 + 10,000 colour images of 100 classes, 32x32",
        (3, 32, 32), 50_000, parquet.reader(classes=100), (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), 100, ("uoft-cs/cifar100", "img"),
    ),
    "tiny-imagenet": images.known(
        "100,000 + 10,000 colour images of 200 classes, 64x64, in folders", 64, 100_000, 200
    ),
    "imagenet": images.known(
        "1,281,167 + 50,000 photographs of 1,000 classes, in folders, cut to 224x224 or `size`", 224, 1_281_167, 1000
    ),
    "tinyshakespeare": text.known(
        "1,115,394 characters of plays, 65 distinct", "input.txt", 1_115_394, 65
    ),
    "digits": Entry(
        "1,437 + 360 handwritten digits, 8x8; comes with scikit-learn",
        (1, 8, 8), 1_437, bundled.read_digits, (0.2874,), (0.3534,), has_home=False,
    ),
    "digits-graph": Entry(
        "400 + 1,397 nodes of a graph of nearest neighbours over these digits; comes with scikit-learn",
        (9, 9, 64), 400, bundled.read_digits_graph, (0.2874,), (0.3534,), has_home=False,
    ),
    "breast-cancer": Entry(
        "455 + 114 rows of 30 measurements, 2 classes; comes with scikit-learn",
        (30,), 455, bundled.read_breast_cancer, classes=2, has_home=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Data sets that are told by what follows a prefix: a path, or for the hub a repository."""

    summary: str
    describe: Callable[..., Entry]
    options: tuple[str, ...]
    is_path: bool = True


KINDS = {
    "folder:": Kind("PATH/train/CLASS/*.png and PATH/test/CLASS/*.png", images.describe, ("size",)),
    "text:": Kind("a text file, read character by character", text.describe, ("context",)),
    "table:": Kind("a .csv, .npy or .npz file of numbers with a class in each row", table.describe, ("label",)),
    "hub:": Kind("OWNER/NAME, images of the Hugging Face hub", hub.describe, ("size", "label"), is_path=False),
}  # fmt: skip


def names() -> list[str]:
    """The data sets ``load`` knows, besides those with a prefix (``KINDS``).

    Example:
        >>> names()[:5]
        ['breast-cancer', 'cifar10', 'cifar100', 'digits', 'digits-graph']
    """
    return sorted(TABLE)


def describe(name: str, root: str | Path | None = None, options: Options | None = None) -> Entry:
    """What is known of a data set: its shape, classes and number of examples. Files a prefix points at are looked into.

    Raises:
        ValueError: an unknown name, an option the data set does not have, or a file that is damaged.
        FileNotFoundError: what a prefix points at is not there.
    """
    options = options or Options()
    prefix, kind = _kind(name)
    if kind is None:
        entry = find("data set", name, TABLE)
        fit, has = entry.fit or (lambda _: entry, ())
        options.refuse_others(name, has)
        return fit(options)
    options.refuse_others(name, kind.options)
    rest = name.removeprefix(prefix)
    if not rest:
        raise ValueError(f"data set {name!r}: {prefix} is followed by {kind.summary}")
    if not kind.is_path:
        return kind.describe(rest, options)
    path = _place(name, root)
    return _described(prefix, path, images.stamp(path), options)


@functools.lru_cache(maxsize=32)
def _described(prefix: str, path: Path, stamp: tuple[int, ...], options: Options) -> Entry:
    return KINDS[prefix].describe(path, options)


def load(
    name: str,
    root: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    fallback: str | None = None,
    options: Options | None = None,
) -> Dataset:
    """A data set, its validation part held out by seed (of text: by position).

    Looked for in ``root`` (only there, if given), else in the folder the environment variable ``STARTSPARSE_DATA``
    names, else it is downloaded by the package ``datasets`` if that is installed. The path after ``text:``, ``table:``
    or ``folder:`` is looked for in the same folders, and as it stands.

    Args:
        name: one of ``names()``, or a prefix of ``KINDS`` and what it is followed by.
        root: folder that holds one folder per data set.
        validation: share of the training part, or number of examples, that is held out.
        seed: of the held-out part.
        fallback: name of the data set to take, with a warning, when this one is nowhere to be had.
        options: size of images, context of text, label of tables.

    Raises:
        ValueError: an unknown name, or a file that is damaged (it is named).
        FileNotFoundError: the data set is nowhere to be had and there is no fallback.

    Example:
        >>> data = load("digits")
        >>> len(data.train), len(data.validation), len(data.test), data.input_shape
        (1293, 144, 360, (1, 8, 8))
    """
    if fallback is not None:
        find("data set", fallback, TABLE)
    try:
        entry = describe(name, root, options)
        train, test = _locate(name, entry, root)
    except MissingData as error:
        if fallback is None or fallback == name:
            raise
        warnings.warn(f"{error}. FALLING BACK to the data set {fallback!r} instead of {name!r}", stacklevel=2)
        return load(fallback, None, validation, seed)
    rest, held = hold_out(_typed(train), validation, seed)
    is_table = not entry.mean and not entry.is_text
    mean, std = table.moments(rest) if is_table else (entry.mean, entry.std)
    scale = 1 if is_table else 255
    return Dataset(name, rest, held, _typed(test), mean, std, entry.classes, scale)


def missing(name: str, root: str | Path | None = None, options: Options | None = None) -> str | None:
    """Why a data set could not be read from this machine's disk, or None if it is there; nothing is downloaded.

    Example:
        >>> missing("digits") is None, missing("mnist", root="/nowhere")
        (True, 'no data set mnist in /nowhere: /nowhere/mnist does not exist')
    """
    try:
        entry = describe(name, root, options)
    except MissingData as error:
        return str(error)
    folder = _home(name, root)
    if not entry.has_home or folder.is_dir():
        return None
    if root is not None:
        return f"no data set {name} in {root}: {folder} does not exist"
    from_hub = "; it would be downloaded if `datasets` is installed" if entry.hub else ""
    return f"{folder} does not exist: set STARTSPARSE_DATA to the folder that holds {name}/{from_hub}"


def _kind(name: str) -> tuple[str, Kind | None]:
    return next(((prefix, kind) for prefix, kind in KINDS.items() if name.startswith(prefix)), ("", None))


def _root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("STARTSPARSE_DATA") or DEFAULT_ROOT)


def _home(name: str, root: str | Path | None) -> Path:
    return _root(root) / name


def _place(name: str, root: str | Path | None) -> Path:
    """The file or folder after a prefix: in the data folder, or as it stands."""
    rest = Path(name.partition(":")[2]).expanduser()
    for place in (_root(root) / rest, rest):
        if place.exists():
            return place.resolve()
    raise MissingData(f"no data set {name}: there is no {_root(root) / rest} and no {rest.absolute()}")


def _typed(split: Split) -> Split:
    return split if split.labels.dtype == torch.int64 else Split(split.inputs, split.labels.long())


def _locate(name: str, entry: Entry, root: str | Path | None) -> tuple[Split, Split]:
    if not entry.has_home:
        _, kind = _kind(name)
        return entry.read(_place(name, root) if kind is not None and kind.is_path else Path())
    folder = _home(name, root)
    if folder.is_dir():
        return entry.read(folder)
    if root is not None:
        raise MissingData(f"no data set {name} in {root}: {folder} does not exist")
    if entry.hub is None:
        raise MissingData(
            f"no data set {name}: {folder} does not exist. Set STARTSPARSE_DATA to the folder that holds {name}/"
            f"{'' if entry.is_text else ' with train/CLASS/*.JPEG and val/CLASS/*.JPEG in it'}"
        )
    try:
        return hub.fetch(*entry.hub)
    except MissingData as error:
        raise MissingData(
            f"no data set {name}: {folder} does not exist and {error}. Set STARTSPARSE_DATA to the folder that "
            f"holds {name}/, or `pip install datasets` where there is a network"
        ) from error
