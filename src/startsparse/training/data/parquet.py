"""Image sets in Parquet shards (columns ``img{bytes,path}`` and ``label``), decoded once and kept in a user cache."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from startsparse.training.data.cache import keep_decoded
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.splits import Split
from startsparse.training.names import require

_FORMAT = 1  # of the decoded cache: another number, another file


def read_folder(
    folder: Path, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10
) -> tuple[Split, Split]:
    """(train, test) from the shards of a folder (or its ``plain_text``), through the decoded cache."""
    shards = {part: find_shards(folder, part) for part in ("train", "test")}

    def decode() -> tuple[Split, Split]:
        train, test = (_decode_shards(files, shape, classes) for files in shards.values())
        return train, test

    return keep_decoded(folder.name, _fingerprint(shards), decode)


def reader(classes: int) -> Callable[[Path], tuple[Split, Split]]:
    """``read_folder`` for colour images of 32x32 of so many classes."""
    return lambda folder: read_folder(folder, classes=classes)


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
        classed = next(name for name in ("label", "fine_label") if name in table.column_names)
        labels = torch.tensor(table[classed].to_pylist(), dtype=torch.int64)
    except (arrow.ArrowException, OSError, KeyError, StopIteration, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no image or label column"
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
