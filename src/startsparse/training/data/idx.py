"""The idx format of MNIST and its kin, read from ``.gz``: every header word is checked before it is believed.

Format: big-endian 32-bit words (magic, count, then for images rows and columns), then one unsigned byte per value.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.splits import Split

IMAGES, LABELS = 0x803, 0x801
_MOST = 1_000_000  # no data set of this kind has more examples: a larger count is a damaged header


def read_folder(folder: Path, side: int = 28, classes: int = 10) -> tuple[Split, Split]:
    """(train, test) from the four files of a folder, by their published names."""
    splits = []
    for part in ("train", "t10k"):
        images = read_images(folder / f"{part}-images-idx3-ubyte.gz", side)
        path = folder / f"{part}-labels-idx1-ubyte.gz"
        labels = read_labels(path, classes)
        if len(images) != len(labels):
            raise DamagedData(f"{path}: {len(labels)} labels for {len(images)} images")
        splits.append(Split(images, labels))
    return splits[0], splits[1]


def read_images(path: Path, side: int = 28) -> Tensor:
    """uint8 (N, 1, side, side)."""
    values, (count, rows, columns) = _read(path, IMAGES, words=3)
    if (rows, columns) != (side, side):
        raise DamagedData(f"{path}: images of {rows}x{columns}, expected {side}x{side}")
    return values.view(count, 1, rows, columns)


def read_labels(path: Path, classes: int = 10) -> Tensor:
    """int64 (N,), each below ``classes``."""
    values, _ = _read(path, LABELS, words=1)
    if len(values) and int(values.max()) >= classes:
        raise DamagedData(f"{path}: a label of {int(values.max())}, expected 0 to {classes - 1}")
    return values.long()


def _read(path: Path, magic: int, words: int) -> tuple[Tensor, tuple[int, ...]]:
    if not path.is_file():
        raise MissingData(f"{path} does not exist")
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 * (words + 1))
            if len(header) < 4 * (words + 1):
                raise DamagedData(f"{path}: only {len(header)} bytes, the header alone has {4 * (words + 1)}")
            found, *sizes = struct.unpack(f">{words + 1}I", header)
            if found != magic:
                raise DamagedData(
                    f"{path}: magic number {found:#x}, expected {magic:#x}: not the file it should be"
                )
            if sizes[0] > _MOST or any(size > 4096 for size in sizes[1:]):
                raise DamagedData(f"{path}: the header claims sizes {tuple(sizes)}: the file is damaged")
            expected = 1
            for size in sizes:
                expected *= size
            body = bytearray(file.read(expected + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedData(f"{path} is damaged or truncated ({error}); fetch it again") from error
    if len(body) != expected:
        more = "more than" if len(body) > expected else f"{len(body)} of"
        raise DamagedData(f"{path}: {more} the {expected} bytes its header promises; fetch it again")
    return torch.frombuffer(body, dtype=torch.uint8), tuple(sizes)
