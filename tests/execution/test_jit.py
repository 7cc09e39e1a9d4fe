"""Sparse layers under torch.jit: traced by their operators; what cannot work says so."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import startsparse as ss

from .twins import batch, convolutional, perceptron, seeded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the older ONNX export

NETS = {
    "perceptron": (perceptron, (16, 12)),
    "convolutional": (convolutional, (16, 4, 9, 9)),
    "one operation": (
        lambda: nn.Sequential(
            *(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        ),
        (16, 4, 9, 9),
    ),
}


def sparse(build):
    model = seeded(build)
    kept = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.3), execution="sparse")
    return model.eval(), kept


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_a_trace_is_the_model(net, gradients):
    build, shape = NETS[net]
    model, _kept = sparse(build)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, batch(0, *shape))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    _ = file.seek(0)
    again = torch.jit.load(file)
    for size in (3, 20):
        x = batch(size, size, *shape[1:])
        torch.testing.assert_close(traced(x), model(x))
        torch.testing.assert_close(again(x), model(x))


def test_a_trace_can_be_trained():
    model, _kept = sparse(perceptron)
    x = batch(0, 16, 12)
    torch.jit.trace(model, x)(x).square().mean().backward()
    traced = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(traced[name], parameter.grad)


@pytest.mark.parametrize("net", NETS)
def test_scripts_and_onnx_say_what_to_do(net):
    build, shape = NETS[net]
    model, kept = sparse(build)
    with pytest.raises(
        RuntimeError, match=r"script cannot read a sparse layer .*live=.*use torch\.jit\.trace.*detach"
    ):
        torch.jit.script(model)
    with pytest.raises(RuntimeError, match=r"ONNX has no sparse layers: .*densify_execution"):
        torch.onnx.export(model, (batch(0, *shape),), io.BytesIO(), dynamo=False)
    x = batch(0, *shape)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(kept.detach())(x), expected, rtol=1e-4, atol=1e-5)
