"""Sparse execution under torch.compile and torch.export: whole graphs, and topology changes in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import startsparse as ss

from .twins import OPTIMIZERS, Run, batch, convolutional, loss_of, method, perceptron, seeded

NETS = {"perceptron": (perceptron, (8, 12)), "convolutional": (convolutional, (4, 4, 9, 9))}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("net", "name"), [("perceptron", "rigl"), ("perceptron", "gmp"), ("convolutional", "rigl")]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_run_is_the_eager_run(net, name, when):
    """Forward, backward and update steps, whose dense gradient is asked for from within the compiled graph."""
    build, shape = NETS[net]
    how = method(name, 0.3, update_interval=3 if name == "gmp" else 1)
    eager = Run(seeded(build), how, OPTIMIZERS["sgd"], steps=14)
    if when == "before":
        compiled = Run(torch.compile(seeded(build), fullgraph=True, backend="aot_eager"), how, steps=14)
        model = compiled.model
    else:
        compiled = Run(seeded(build), how, steps=14)
        model = torch.compile(compiled.model, fullgraph=True, backend="aot_eager")
    assert {choice.execution for choice in compiled.sparse.execution.values()} == {"sparse"}
    for step in range(12):
        x = batch(step, *shape)
        expected = eager.step(x)
        compiled.optimizer.zero_grad()
        out = model(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        loss_of(out).backward()
        compiled.optimizer.step()
        for mask, other in zip(eager.sparse.masks.values(), compiled.sparse.masks.values(), strict=True):
            assert torch.equal(mask, other), step
    assert compiled.sparse.report().num_moved == eager.sparse.report().num_moved > 0


SIZES_MAY_CHANGE = {"force_parameter_static_shapes": False, "force_nn_module_property_static_shapes": False}


def test_sizes_that_change_at_every_step():
    """With the two settings of the how-to, one graph serves all sizes of the values."""
    counted = CompileCounter()
    run = Run(seeded(perceptron), method("gmp", 0.3, update_interval=1), steps=30)
    with torch._dynamo.config.patch(SIZES_MAY_CHANGE):
        model = torch.compile(run.model, fullgraph=True, backend=counted)
        for step in range(20):
            loss_of(model(batch(step, 8, 12))).backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
    assert run.sparse.report().num_updates >= 18
    assert counted.frame_count <= 3


def test_graphs_are_not_compiled_anew_at_every_update():
    counted = CompileCounter()
    run = Run(perceptron(), method("rigl", update_interval=1), steps=40)
    model = torch.compile(run.model, backend=counted)
    for step in range(30):
        loss_of(model(batch(step, 8, 12))).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
    assert run.sparse.report().num_updates >= 28
    assert counted.frame_count == 1


@pytest.mark.parametrize("net", NETS)
def test_export(net):
    build, shape = NETS[net]
    run = Run(seeded(build), method("rigl", 0.3), steps=20)
    for step in range(7):
        run.step(batch(step, *shape))
    model = copy.deepcopy(run.model).eval()
    x = batch(50, *shape)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    wanted = {"perceptron": {"linear"}, "convolutional": {"linear", "conv2d"}}[net]
    assert {f"startsparse.sparse_{kind}.default" for kind in wanted} <= targets
    weights = {name: value.shape for name, value in exported.state_dict.items() if name.endswith("weight")}
    assert all(len(weights[name]) == 1 for name in run.sparse.masks), "values alone are exported"


def test_export_with_a_batch_of_any_size():
    run = Run(seeded(perceptron), method("static", 0.3))
    exported = torch.export.export(
        run.model.eval(), (batch(0, 8, 12),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    for size in (2, 17):
        x = batch(1, size, 12)
        torch.testing.assert_close(exported.module()(x), run.model(x))


def test_the_plain_model_is_exported_after_detach():
    run = Run(seeded(perceptron), method("static", 0.3))
    model = run.sparse.detach().eval()
    exported = torch.export.export(model, (batch(0, 8, 12),))
    assert not [node for node in exported.graph.nodes if "startsparse" in str(node.target)]
    assert isinstance(run.sparse, ss.Sparsifier)
