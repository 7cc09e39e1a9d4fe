"""The download by Hugging Face ``datasets``, for whoever has it installed and a network."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from startsparse.training.data.cache import cache_folder
from startsparse.training.data.errors import MissingData
from startsparse.training.data.splits import Split
from startsparse.training.files import DamagedFile, load_tree, save_tree


def fetch(repository: str, column: str) -> tuple[Split, Split]:
    """(train, test) of a hub repository, decoded once into the user cache.

    Args:
        repository: such as ``"uoft-cs/cifar10"``.
        column: the column that holds the images.

    Raises:
        MissingData: ``datasets`` is not installed, or the download failed.
    """
    cached = cache_folder() / f"{repository.replace('/', '-')}.decoded"
    if cached.is_file():
        try:
            tree = load_tree(cached)
            return Split(*tree["train"]), Split(*tree["test"])
        except (DamagedFile, KeyError, TypeError):
            cached.unlink(missing_ok=True)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingData("the package `datasets` is not installed, so nothing can be downloaded") from error
    try:
        parts = datasets.load_dataset(repository)
    except Exception as error:  # whatever the network, the hub or its client has to say
        raise MissingData(f"the download of {repository} failed: {_first_line(error)}") from error
    splits = [_decode(parts[part], column) for part in ("train", "test")]
    save_tree(cached, {name: [s.inputs, s.labels] for name, s in zip(("train", "test"), splits, strict=True)})
    return splits[0], splits[1]


def _decode(rows: Any, column: str) -> Split:
    images = np.stack([np.asarray(picture) for picture in rows[column]])
    images = images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2)
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.tensor(list(rows["label"])))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
