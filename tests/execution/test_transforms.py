"""What torch.func does to sparse layers: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss

from .twins import batch, convolutional, perceptron, seeded


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_transforms_that_differentiate_are_refused_not_taken_for_zero(build):
    model = seeded(build).eval()
    _kept = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.3), execution="sparse")
    x = batch(0, 2, 4, 9, 9) if build is convolutional else batch(0, 4, 12)
    for transform in (
        lambda: torch.func.jvp(model, (x,), (x,)),
        lambda: torch.func.jacfwd(model)(x),
        lambda: torch.func.jacrev(model)(x),
        lambda: torch.func.grad(lambda given: model(given).sum())(x),
    ):
        with pytest.raises(RuntimeError, match=r"startsparse: torch\.func.*masked"):
            transform()
    assert torch.autograd.functional.jacobian(model, x).abs().sum() > 0


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_right():
    model = nn.Sequential(nn.Linear(12, 10))
    x = batch(0, 4, 12)
    _kept = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.3), execution="sparse")
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
