"""Fixtures of the kernels' tests."""

from __future__ import annotations

import pytest
import torch

from startsparse.kernels import library, node
from startsparse.kernels.fallback import TorchBackend


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["native", "torch"])
def each_backend(request, monkeypatch):
    """Runs the test with the compiled kernels and with the torch fallback."""
    yield from _backend(request.param, monkeypatch)


@pytest.fixture(params=["node", "native", "torch"])
def each_way(request, monkeypatch):
    """The same, and the compiled kernels called by the node in C++ as well."""
    yield from _backend(request.param, monkeypatch)


def _backend(name, monkeypatch):
    if name == "torch":
        monkeypatch.setattr(library, "_backend", TorchBackend())
    elif library.backend().name != "native":
        pytest.skip("no compiler on this machine")
    monkeypatch.setenv("STARTSPARSE_NODE", "auto" if name == "node" else "python")
    node.forget()
    if node.has_node() != (name == "node"):
        pytest.skip("the autograd node is not compiled: `startsparse build` does that, or says why it cannot")
    yield name
    node.forget()
