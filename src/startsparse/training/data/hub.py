"""The download by Hugging Face ``datasets``, for whoever has it installed and a network."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from startsparse.names import nearest
from startsparse.training.data.cache import keep_decoded
from startsparse.training.data.entry import IMAGENET_MEAN, IMAGENET_STD, Entry
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.options import Options
from startsparse.training.data.pictures import square
from startsparse.training.data.splits import Split

IMAGE_COLUMNS = ("image", "img", "images", "picture")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class")
TEST_PARTS = ("test", "validation", "valid", "val")


def fetch(
    repository: str, column: str | None = None, label: str | None = None, size: int | None = None
) -> tuple[Split, Split]:
    """(train, test) of a hub repository of images, decoded once into the user cache.

    Args:
        repository: such as ``"uoft-cs/cifar10"``.
        column: the column that holds the images; None finds it by its name and makes colour images of all.
        label: the column of the class; None finds it by its name.
        size: side of the square that images are resized to; None wants them all alike.

    Raises:
        MissingData: ``datasets`` is not installed, or the download failed.
        ValueError: the columns are not there, or the images are of mixed sizes.
    """
    asked = "-".join(str(part) for part in (column, label, size) if part is not None) or "whole"
    return keep_decoded(
        repository.replace("/", "-"), asked, lambda: _download(repository, column, label, size)
    )


@functools.lru_cache(maxsize=32)
def describe(repository: str, options: Options) -> Entry:
    """What is known of a hub repository of images: it is downloaded to be told."""
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(f"hub:{repository}: hub: is followed by a repository, owner/name")
    train, _ = fetch(repository, label=options.label, size=options.size)

    def read(_: Path) -> tuple[Split, Split]:
        return fetch(repository, label=options.label, size=options.size)

    shape, classes = tuple(train.inputs.shape[1:]), int(train.labels.max()) + 1
    return Entry(
        f"the hub repository {repository}",
        shape,
        len(train),
        read,
        IMAGENET_MEAN,
        IMAGENET_STD,
        classes,
        has_home=False,
    )


def _download(
    repository: str, column: str | None, label: str | None, size: int | None
) -> tuple[Split, Split]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingData("the package `datasets` is not installed, so nothing can be downloaded") from error
    try:
        parts = datasets.load_dataset(repository)
    except Exception as error:  # whatever the network, the hub or its client has to say
        raise MissingData(
            f"the download of {repository} failed: {_first_line(error)}; it needs a network once, and is kept then"
        ) from error
    test = next((name for name in TEST_PARTS if name in parts), None)
    if "train" not in parts or test is None:
        raise DamagedData(f"{repository} has the parts {', '.join(parts)}: train and test were expected")
    train, test = (
        _decode(f"{repository}, {name}", parts[name], column, label, size) for name in ("train", test)
    )
    return train, test


def _decode(where: str, rows: Any, column: str | None, label: str | None, size: int | None) -> Split:
    names = list(getattr(rows, "column_names", rows))
    chosen = _column(where, "image", column, IMAGE_COLUMNS, names)
    images: list[np.ndarray] = []
    for number, picture in enumerate(rows[chosen]):
        pixels = _pixels(picture, size, in_colour=column is None)
        if images and pixels.shape != images[0].shape:
            raise DamagedData(
                f"{where}, row {number}: an image of {pixels.shape}, the first is of {images[0].shape}: images of "
                f"mixed sizes need data.size, the side they are resized to"
            )
        images.append(pixels)
    labels = torch.tensor(list(rows[_column(where, "label", label, LABEL_COLUMNS, names)]))
    return Split(torch.from_numpy(np.stack(images)), labels)


def _pixels(picture: Any, size: int | None, in_colour: bool) -> np.ndarray:
    """uint8 (C, H, W)."""
    if size is not None:
        return square(picture.convert("RGB"), size)
    pixels = np.asarray(picture.convert("RGB") if in_colour and hasattr(picture, "convert") else picture)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def _column(where: str, what: str, asked: str | None, usual: Sequence[str], names: list[str]) -> str:
    found = next((name for name in ((asked,) if asked else usual) if name in names), None)
    if found is None:
        raise DamagedData(
            f"{where}: no {what} column {asked or ' or '.join(usual)}; {nearest(asked or '', names)}"
        )
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
