"""What must hold after every optimizer step, whatever the model and the loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import startsparse as ss
from startsparse.names import plain


def net(seed: int = 0) -> nn.Module:
    """A small net of two sparse layers, 6 x 12 + 12 x 4 = 120 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))


def rigl(density: float = 0.25, **options) -> ss.RigL:
    """RigL that updates after steps 2, 4, 6, ... of a short run."""
    return ss.RigL(**({"density": density, "update_interval": 2, "update_end": 1000} | options))


def check(sparse: ss.Sparsifier, model: nn.Module | None = None) -> None:
    """Counts are exact, and inactive weights and their gradients are zero."""
    parameters = {plain(name): p for name, p in (model or sparse.model).named_parameters()}
    assert sum(int(mask.sum()) for mask in sparse.masks.values()) == sparse.target_count
    for name, mask in sparse.masks.items():
        parameter = parameters[name]
        assert parameter.shape == mask.shape
        assert not bool(parameter.detach()[~mask].any()), f"{name}: a dead weight moved"
        if parameter.grad is not None:
            assert not bool(parameter.grad[~mask].any()), f"{name}: a dead weight has a gradient"


def train(
    sparse: ss.Sparsifier,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    steps: int = 6,
    model: nn.Module | None = None,
) -> None:
    """Some steps of the plainest loop, checked."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        check(sparse, model)
        optimizer.step()
        check(sparse, model)


def moved(sparse: ss.Sparsifier) -> int:
    """Weights that moved so far."""
    return sparse.report().num_moved
