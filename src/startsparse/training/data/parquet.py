"""Image sets in Parquet shards (columns ``img{bytes,path}`` and ``label``), decoded once and kept in a user cache."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from startsparse.training.data.cache import cache_folder
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.splits import Split
from startsparse.training.files import DamagedFile, load_tree, save_tree
from startsparse.training.names import require

_FORMAT = 1  # of the decoded cache: another number, another file


def read_folder(
    folder: Path, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10
) -> tuple[Split, Split]:
    """(train, test) from the shards of a folder (or its ``plain_text``), through the decoded cache."""
    shards = {part: find_shards(folder, part) for part in ("train", "test")}
    cached = cache_folder() / f"{folder.name}-{_fingerprint(shards)}.decoded"
    if cached.is_file():
        try:
            tree = load_tree(cached)
            return Split(*tree["train"]), Split(*tree["test"])
        except (DamagedFile, KeyError, TypeError) as error:
            warnings.warn(f"decoding {folder.name} again: {error}", stacklevel=2)
    splits = {part: _decode_shards(files, shape, classes) for part, files in shards.items()}
    try:
        save_tree(
            cached, {part: [split.inputs, split.labels.to(torch.uint8)] for part, split in splits.items()}
        )
    except OSError as error:
        warnings.warn(
            f"the decoded cache could not be kept, so decoding is paid each time: {error}", stacklevel=2
        )
    return splits["train"], splits["test"]


def find_shards(folder: Path, part: str) -> list[Path]:
    """The shards of one part in order; an incomplete set is an error that counts them."""
    for home in (folder / "plain_text", folder):
        found = sorted(home.glob(f"{part}-*-of-*.parquet"))
        if not found:
            continue
        match = re.search(r"-of-(\d+)\.parquet$", found[0].name)
        if match and len(found) != int(match[1]):
            raise MissingData(
                f"{home}: {len(found)} of {int(match[1])} {part} shards; fetch the missing ones"
            )
        return found
    raise MissingData(f"{folder} holds no {part}-*.parquet")


def _fingerprint(shards: dict[str, list[Path]]) -> str:
    digest = hashlib.sha256(f"decoded {_FORMAT}".encode())
    for path in (path for files in shards.values() for path in files):
        stat = path.stat()
        digest.update(f"|{path.name}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _decode_shards(files: list[Path], shape: tuple[int, int, int], classes: int) -> Split:
    parts = [_decode_shard(path, shape, classes) for path in files]
    return Split(torch.cat([inputs for inputs, _ in parts]), torch.cat([labels for _, labels in parts]))


def _decode_shard(path: Path, shape: tuple[int, int, int], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    arrow, parquet = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    image = require("PIL.Image", "decoding images")
    try:
        table = parquet.read_table(path)
        column = next(name for name in ("img", "image") if name in table.column_names)
        encoded = [row["bytes"] for row in table[column].to_pylist()]
        labels = torch.tensor(table["label"].to_pylist(), dtype=torch.int64)
    except (arrow.ArrowException, OSError, KeyError, StopIteration, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no image column"
        raise DamagedData(f"{path} is damaged or of another schema ({reason}); fetch it again") from error
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DamagedData(
            f"{path}: labels from {int(labels.min())} to {int(labels.max())}, expected 0-{classes - 1}"
        )
    inputs = np.empty((len(encoded), *shape), np.uint8)

    def decode(row: int) -> None:
        inputs[row] = _decode_image(image, encoded[row], shape, f"{path}, row {row}")

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(encoded)), chunksize=256):
            pass
    return torch.from_numpy(inputs), labels


def _decode_image(image: Any, data: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
    try:
        with image.open(io.BytesIO(data)) as picture:
            pixels = np.asarray(picture.convert("RGB" if shape[0] == 3 else "L"))
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        raise DamagedData(f"{where}: not an image ({error}); fetch the file again") from error
    pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    if pixels.shape != shape:
        raise DamagedData(f"{where}: an image of shape {pixels.shape}, expected {shape}")
    return pixels
