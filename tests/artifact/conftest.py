"""One small content with every encoding and most dtypes, made by arithmetic so that no generator can change it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from startsparse import draw
from startsparse.artifact import SparseFile


def ramp(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Values without a zero among them."""
    size = int(np.prod(shape))
    values = (torch.arange(size) * 37 % 101 - 50.25).to(torch.float64)
    return values.reshape(shape).to(dtype)


def sparse(shape: tuple[int, ...], dtype: torch.dtype, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor that is zero outside a mask, and the mask."""
    live = torch.from_numpy(mask.copy()).reshape(shape)
    return torch.where(live, ramp(shape, dtype), torch.zeros((), dtype=dtype)), live


def every_encoding() -> SparseFile:
    """Masks of all encodings, float32, float64, float16, bfloat16 and integers, a scalar, an empty and a tied tensor."""
    place = np.arange(600)
    masks = {
        "conv.weight": ((10, 6, 10), torch.float32, place % 23 == 5),
        "half.weight": ((20, 30), torch.float16, place * 7 % 12 < 5),
        "drawn.weight": ((30, 200), torch.float32, draw.exact(6000, 300, 7, "drawn.weight")),
        "small.weight": ((40, 100), torch.bfloat16, draw.exact(4000, 3900, 7, "another name")),
        "coin.weight": ((33, 30), torch.float64, draw.bernoulli(990, 0.25, -3, "coin.weight")),
        "full.weight": ((4, 5), torch.float32, np.ones(20, bool)),
        "none.weight": ((4, 50), torch.float32, np.zeros(200, bool)),
    }
    tensors: dict[str, torch.Tensor] = {}
    live: dict[str, torch.Tensor] = {}
    for name, (shape, dtype, mask) in masks.items():
        tensors[name], live[name] = sparse(shape, dtype, mask)
    tensors["conv.bias"] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45])
    tensors["norm.running_mean"] = ramp((3,), torch.bfloat16)
    tensors["norm.num_batches_tracked"] = torch.tensor(12345678901)
    tensors["flags"] = torch.tensor([True, False, True])
    tensors["codes"] = torch.arange(-3, 3, dtype=torch.int8)
    tensors["nothing"] = torch.zeros(0, 4)
    tensors["head.weight"] = tensors["conv.weight"]
    drawn = {
        "drawn.weight": {"rule": "exact", "seed": 7, "name": "drawn.weight", "count": 300},
        "small.weight": {"rule": "exact", "seed": 7, "name": "another name", "count": 3900},
        "coin.weight": {"rule": "bernoulli", "seed": -3, "name": "coin.weight", "density": 0.25},
    }
    about = {"method": {"name": "static"}, "source": {"name": "random"}, "user": {"note": "für alle"}}
    return SparseFile(tensors, live, about, drawn)


@pytest.fixture(scope="session")
def content() -> SparseFile:
    return every_encoding()


@pytest.fixture
def library(monkeypatch):
    """Files name a fixed writer, whatever version runs the tests."""
    monkeypatch.setattr("startsparse.artifact.files.library", lambda: "startsparse 0.1.0")


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: NaN and minus zero compare as what they are."""
    return (
        tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        if tensor.numel()
        else b""
    )


@pytest.fixture(scope="session")
def same():
    """A function that asserts that two mappings of tensors are equal, names, order, shapes, dtypes and bits."""

    def check(found, expected) -> None:
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
            assert bits(found[name]) == bits(tensor), name

    return check
