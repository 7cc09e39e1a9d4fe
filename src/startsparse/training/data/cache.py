"""Where derived data are kept: a folder of the user, never beside the data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from startsparse.training.data.splits import Split
from startsparse.training.files import DamagedFile, load_tree, save_tree


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/startsparse``, or ``~/.cache/startsparse``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "startsparse"


def keep_decoded(
    name: str, fingerprint: str, decode: Callable[[], tuple[Split, Split]]
) -> tuple[Split, Split]:
    """(train, test) as ``decode`` makes them, or as they were kept by an earlier call with the same fingerprint."""
    cached = cache_folder() / f"{name}-{fingerprint}.decoded"
    if cached.is_file():
        try:
            tree = load_tree(cached)
            return Split(*tree["train"]), Split(*tree["test"])
        except (DamagedFile, KeyError, TypeError) as error:
            warnings.warn(f"decoding {name} again: {error}", stacklevel=3)
    splits = dict(zip(("train", "test"), decode(), strict=True))
    compact = {part: [split.inputs, _compact(split.labels)] for part, split in splits.items()}
    try:
        save_tree(cached, compact)
    except OSError as error:
        warnings.warn(
            f"the decoded cache could not be kept, so decoding is paid each time: {error}", stacklevel=3
        )
    return splits["train"], splits["test"]


def _compact(labels: torch.Tensor) -> torch.Tensor:
    return labels.to(torch.uint8) if not len(labels) or int(labels.max()) < 256 else labels
