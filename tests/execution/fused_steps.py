"""A training step of a net for small images: fused against layer by layer, from the same state."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss

X = torch.randn(18, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(18) % 5


def plainly(call, *args):
    """The call with fused blocks off."""
    was = ss.fused_blocks(False)
    try:
        return call(*args)
    finally:
        _ = ss.fused_blocks(was)


def step(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    """Fresh gradients, and the outputs."""
    model.zero_grad()
    torch.manual_seed(4)
    out = model(x)
    F.cross_entropy(out, Y[: len(x)]).backward()
    return out.detach()


def assert_same_step(model: nn.Module, x: torch.Tensor = X) -> None:
    """Outputs, gradients and buffers of a step agree with those of a copy that runs layer by layer."""
    twin = copy.deepcopy(model)
    torch.testing.assert_close(step(model, x), plainly(step, twin, x), rtol=0, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
