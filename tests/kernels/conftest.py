"""Fixtures of the kernels' tests."""

from __future__ import annotations

import pytest
import torch

from startsparse.kernels import library
from startsparse.kernels.fallback import TorchBackend


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["native", "torch"])
def each_backend(request, monkeypatch):
    """Runs the test with the compiled kernels and with the torch fallback."""
    if request.param == "torch":
        monkeypatch.setattr(library, "_backend", TorchBackend())
    elif library.backend().name != "native":
        pytest.skip("no compiler on this machine")
    return request.param
