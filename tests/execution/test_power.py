"""Powerpropagation: the reparameterised net step by step, under both executions, and its dead zone."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))


def step(model, optimizer, index):
    optimizer.zero_grad()
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(index))
    (model(x) - 1).square().mean().backward()
    optimizer.step()


class Root(nn.Linear):
    """A linear layer of roots, as the paper writes it: the weight is r |r|^(power - 1)."""

    power = 2.0

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.weight.abs() ** (self.power - 1), self.bias)


# Schwarz et al. 2021, section 2: the same training of roots, by a module that is made of them.
@pytest.mark.parametrize("power", [1.375, 2.0, 3.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_it_is_the_training_of_roots(power, optimizer, execution):
    model, plain = net(), net()
    for layer in (plain[0], plain[2]):
        layer.__class__, layer.power = Root, power
        with torch.no_grad():
            layer.weight.copy_(layer.weight.sign() * layer.weight.abs() ** (1 / power))
    ours, theirs = OPTIMIZERS[optimizer](model.parameters()), OPTIMIZERS[optimizer](plain.parameters())
    sparse = ss.attach(model, ours, ss.Static(1.0), execution=execution, power=power)
    for index in range(30):
        step(model, ours, index)
        step(plain, theirs, index)
    for name in ("0", "2"):
        weight = plain.get_submodule(name).weight.detach()
        found = sparse.dense_state_dict()[f"{name}.weight"]
        torch.testing.assert_close(found, weight * weight.abs() ** (power - 1), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(sparse.dense_state_dict()["0.weight"], net()[0].weight, atol=1e-2)


@pytest.mark.parametrize("method", [ss.RigL, ss.SET, ss.TopKAST, ss.GMP])
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_it_composes_with_methods_and_grown_weights_move(method, execution):
    if method.masked_only and execution == "sparse":
        return
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    value = {"grown_value": "normal"} if method.grown_value == "zero" and method.grows else {}
    end = {} if method is ss.TopKAST else {"update_end": 0.8}
    how = method(0.3, update_interval=4, **value, **end)
    sparse = ss.attach(model, optimizer, how, total_steps=30, execution=execution, power=2.0)
    stuck = None
    for index in range(30):
        before = {name: value.clone() for name, value in sparse.dense_state_dict().items()}
        mask = {name: m.clone() for name, m in sparse.masks.items()}
        step(model, optimizer, index)
        assert mask_rules.num_active(sparse.masks) == sparse.target_count
        for name, now in sparse.masks.items():
            weight = sparse.dense_state_dict()[name]
            assert not bool(weight[~now].any())
            if stuck is not None:
                fresh = stuck[name] & now
                assert not bool(fresh.any()) or bool((weight[fresh] != before[name][fresh]).any())
        stuck = {name: sparse.masks[name] & ~mask[name] for name in mask}
    assert sparse.target_count == 60


def test_gradients_are_given_back_as_they_arrived():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    _ = ss.attach(model, optimizer, ss.Static(0.5), power=2.0)
    (model(torch.ones(2, 12)) - 1).square().mean().backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_a_run_goes_on_bit_for_bit():
    def job():
        model = net()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        method = ss.RigL(0.3, update_interval=3, grown_value="normal")
        return model, optimizer, ss.attach(model, optimizer, method, total_steps=30, power=1.5)

    whole = job()
    for index in range(14):
        step(*whole[:2], index)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    again = job()
    file.seek(0)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for index in range(14, 30):
        step(*whole[:2], index)
        step(*again[:2], index)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True))
    other = net()
    plain = ss.attach(
        other,
        OPTIMIZERS["adamw"](other.parameters()),
        ss.RigL(0.3, update_interval=3, grown_value="normal"),
        total_steps=30,
    )
    with pytest.raises(ValueError, match=r"state is of a run with power=1.5, the sparsifier has 1.0"):
        plain.load_state_dict(whole[2].state_dict())


@pytest.mark.parametrize("power", [0.5, float("nan"), "2", True])
def test_a_power_must_be_a_number_from_one(power):
    model = net()
    with pytest.raises(ValueError, match="power must be a number >= 1"):
        _ = ss.attach(model, OPTIMIZERS["sgd"](model.parameters()), ss.Static(0.5), power=power)


@pytest.mark.parametrize(
    "method",
    [ss.RigL(0.3, update_interval=2), ss.GraNet(0.3, update_interval=2), ss.ACDC(0.3), ss.DeepR(0.3)],
)
def test_growth_in_the_dead_zone_is_refused(method):
    model = net()
    with pytest.raises(ValueError, match=rf"{method.name} grows weights at zero, where powerpropagation"):
        _ = ss.attach(model, OPTIMIZERS["sgd"](model.parameters()), method, total_steps=40, power=2.0)


def test_closures_are_refused():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    _ = ss.attach(model, optimizer, ss.Static(0.5), power=2.0)
    with pytest.raises(RuntimeError, match=r"powerpropagation.*closure"):
        optimizer.step(lambda: (model(torch.ones(1, 12)) - 1).square().mean())
