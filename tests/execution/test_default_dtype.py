"""What torch makes by default must not matter: sparse layers are float32 whatever else is in the process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss

from .twins import batch, convolutional, method, perceptron, seeded


def rectified() -> nn.Module:
    """Layers in a row, as one operation."""
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def trained(build, how, dtype: torch.dtype, execution: str) -> dict[str, torch.Tensor]:
    model = seeded(build)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = batch(0, 4, 4, 9, 9) if build is convolutional else batch(0, 16, 12)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        sparse = ss.attach(model, optimizer, how, total_steps=40, execution=execution)
        for _ in range(12):
            optimizer.zero_grad()
            y = model(x)
            (y - torch.linspace(-1, 1, 10, dtype=y.dtype)).square().mean().backward()
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    return sparse.dense_state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("build", [perceptron, rectified, convolutional])
@pytest.mark.parametrize(
    "how",
    [method("rigl", grown_value="normal"), method("snfs"), method("ggr", gradient_window=2)],
    ids=lambda how: how.name,
)
def test_a_default_dtype_changes_nothing(how, build, execution, dtype):
    wanted = trained(build, how, torch.float32, execution)
    found = trained(build, how, dtype, execution)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
