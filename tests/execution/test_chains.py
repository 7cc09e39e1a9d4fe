"""Sequences of sparse linear layers: run as one where nobody looks between them, and as ever where somebody does."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import startsparse as ss

from .twins import method

pytestmark = pytest.mark.usefixtures("native", "of_few_items_too")


def net(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Linear(12, 40), *(between or (nn.ReLU(),))]
    return nn.Sequential(
        nn.Flatten(), *first, nn.Linear(40, 30), nn.Dropout(), nn.ReLU(), nn.Linear(30, 5)
    ).eval()


def attached(model: nn.Sequential, how=None) -> tuple[ss.Sparsifier, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return ss.attach(model, optimizer, how or ss.Static(0.3), total_steps=20, execution="sparse"), optimizer


def joined(y: Tensor) -> int:
    """How many layers were run as one by the operation that made this."""
    inputs = [function for function, _ in y.grad_fn.next_functions]  # a layer's: x, values, bias and pattern
    return (len(inputs) - 1) // 2 if len(inputs) > 4 else 1


X = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(1))


def watched(model: nn.Sequential) -> nn.Sequential:
    """The same model with a hook on each layer, which has them called one by one."""
    for module in model:
        module.register_forward_hook(lambda *_: None)
    return model


def trained(model: nn.Sequential, how, steps: int = 12) -> tuple[dict[str, Tensor], ss.Sparsifier]:
    sparse, optimizer = attached(model, how)
    for step in range(steps):
        model(X + step / 10).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return sparse.dense_state_dict(), sparse


@pytest.mark.parametrize("name", ["set", "rigl", "gmp"])
def test_a_run_is_that_of_the_layers_one_by_one(name):
    how = method(name, 0.3, update_interval=3)
    (one, sparse), (other, _) = trained(net(), how), trained(watched(net()), how)
    assert joined(sparse.model(X)) == 3
    assert sparse.report().num_moved
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-6, msg=key)


def test_the_model_is_what_it_was():
    model = net()
    before = str(model[2]), list(model.state_dict()), [name for name, _ in model.named_modules()]
    sparse, _ = attached(model)
    assert isinstance(model, nn.Sequential) and str(model).startswith("Sequential(")
    assert [name for name, _ in model.named_modules()] == before[2]
    assert {k.replace("positions", "weight") for k in model.state_dict()} == set(before[1])
    y = model(X)
    assert joined(y) == 3
    assert torch.equal(copy.deepcopy(model)(X), y)
    torch.save(model, stream := io.BytesIO())
    again = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    assert torch.equal(again(X), y) and joined(again(X)) == 3
    assert torch.equal(model[3:](model[:3](X)), y)
    sparse.detach()
    assert type(model) is nn.Sequential and joined(model(X)) == 1


def test_a_model_turned_without_a_method_too():
    model = net()
    for module in model:
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(torch.rand_like(module.weight) < 0.1)
    expected = model(X)
    ss.sparsify_execution(model)
    assert joined(model(X)) == 3
    torch.testing.assert_close(model(X), expected)
    ss.densify_execution(model)
    assert type(model) is nn.Sequential


@pytest.mark.parametrize(
    ("between", "layers"),
    [
        ([nn.ReLU(inplace=True), nn.Identity()], 3),
        ([nn.Identity()], 3),
        ([nn.Tanh()], 2),
        ([nn.LayerNorm(40), nn.ReLU()], 2),
        ([nn.ReLU(), nn.Dropout(0.5), nn.AlphaDropout(0.5)], 3),
    ],
)
def test_what_may_stand_between(between, layers):
    model = net(*between)
    _ = attached(model)
    y = model(X)
    assert joined(y) == layers
    assert torch.equal(watched(model)(X), y)


def test_dropout_stands_between_in_training():
    model = net()
    _ = attached(model)
    torch.manual_seed(3)
    y = model.train()(X)
    torch.manual_seed(3)
    assert torch.equal(watched(model)(X), y) and joined(y) == 1
    assert model[5].training


def on_forward(model, seen):
    model[3].register_forward_hook(lambda module, args, out: seen.append(out))


def on_input(model, seen):
    model[4].register_forward_pre_hook(lambda module, args: seen.append(args))


def on_backward(model, seen):
    model[3].register_full_backward_hook(lambda module, *grads: seen.append(grads))


def on_all(model, seen):
    return nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args))


def replaced(model, seen):
    forward = model[3].forward
    model[3].forward = lambda x: (seen.append(x), forward(x))[1]


@pytest.mark.parametrize("look", [on_forward, on_input, on_backward, on_all, replaced])
def test_who_looks_between_sees_it(look: Callable):
    model, seen = net(), []
    _ = attached(model)
    y = model(X)
    handle = look(model, seen)
    try:
        z = model(X)
        z.sum().backward()
    finally:
        _ = handle and handle.remove()
    assert torch.equal(y, z) and seen and joined(y) == 3 > joined(z)


def test_frozen_layers():
    model = net()
    _ = attached(model)
    model[3].requires_grad_(False)
    model(X).sum().backward()
    assert model[3].weight.grad is model[3].bias.grad is None
    found = model[1].weight.grad.clone(), model[6].weight.grad.clone()
    model.zero_grad()
    watched(model)(X).sum().backward()
    assert torch.equal(found[0], model[1].weight.grad) and torch.equal(found[1], model[6].weight.grad)


def test_a_layer_used_twice():
    torch.manual_seed(0)
    layer = nn.Linear(12, 12)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)
    _ = attached(model, ss.RigL(0.3, update_interval=1))
    y = model(X)
    y.sum().backward()
    found = layer.weight.grad.clone()
    model.zero_grad()
    watched(model)(X).sum().backward()
    torch.testing.assert_close(layer.weight.grad, found)


def test_compiled_exported_and_checkpointed():
    model = net()
    _ = attached(model)
    y = model(X)
    y.sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    exported = torch.export.export(model, (X,)).module()
    for run in (compiled, exported, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        z = run(X)
        torch.testing.assert_close(z, y)
        if run is not exported:
            z.sum().backward()
            for grad, parameter in zip(expected, model.parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, grad)


def test_other_parameters_by_functional_call():
    model = net()
    _ = attached(model)
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, doubled, (X,))
    assert not torch.equal(y, model(X))
    assert torch.equal(torch.func.functional_call(watched(model), doubled, (X,)), y)


def test_a_replaced_child_is_called():
    model = net()
    _ = attached(model)
    model[2] = nn.Sigmoid()
    y = model(X)
    assert joined(y) == 2 and torch.equal(watched(model)(X), y)
