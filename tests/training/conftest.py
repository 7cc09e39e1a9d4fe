"""What the tests of the training room share."""

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch

from startsparse.training.data import Dataset, Split


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A user cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "startsparse"


@pytest.fixture
def tiny():
    """A data set of random bytes, 64 + 16 + 16 images of 8x8."""
    generator = torch.Generator().manual_seed(0)

    def split(count):
        inputs = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        return Split(inputs, torch.randint(10, (count,), generator=generator))

    return Dataset("tiny", split(64), split(16), split(16), (0.5,), (0.29,), 10)


@pytest.fixture
def write_idx():
    """Write an idx .gz file from header words and a body."""

    def write(path: Path, words: tuple[int, ...], body: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(struct.pack(f">{len(words)}I", *words) + body))
        return path

    return write


@pytest.fixture
def real_data():
    """The folder of a real data set, or a skip that says so."""

    def folder(name: str) -> Path:
        root = Path(os.environ.get("STARTSPARSE_DATA") or "../shared/data")
        if not (root / name).is_dir():
            pytest.skip(f"the real data set {name} is not in {root}: set STARTSPARSE_DATA")
        return root / name

    return folder
