"""Optimizer state follows the weights when they move, appear and go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution import optimizers as rules

from .twins import OPTIMIZERS, Run, batch, loss_of, method, perceptron, seeded


def fresh_value(name: str, key: str, lr: float) -> float:
    return {("rprop", "step_size"): lr, ("adagrad", "sum"): 0.1}.get((name, key), 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_what_moves_begins_afresh_and_what_stays_keeps_its_state(name, execution):
    run = Run(perceptron(), method("set"), OPTIMIZERS[name], execution=execution, steps=100)
    for step in range(5):
        run.step(batch(step, 8, 12))
    weight, mask = run.model[0].weight, run.sparse.masks["0.weight"].clone()

    def dense(value):
        if execution == "masked" or value.dim() == 0:
            return value.clone()
        return run.model[0].live().dense(value, (16, 12))

    run.optimizer.zero_grad()
    loss_of(run.model(batch(5, 8, 12))).backward()
    hooks = list(run.optimizer._optimizer_step_post_hooks.items())
    run.optimizer._optimizer_step_post_hooks.clear()
    run.optimizer.step()  # the optimizer alone
    seen = {key: dense(value) for key, value in run.optimizer.state[weight].items() if torch.is_tensor(value)}
    for _, hook in hooks:
        hook(run.optimizer, (), {})
    now = run.sparse.masks["0.weight"]
    grown, kept = now & ~mask, now & mask
    assert bool(grown.any()) and bool(kept.any())
    for key, value in run.optimizer.state[weight].items():
        if not torch.is_tensor(value) or value.dim() == 0:
            continue
        after = dense(value)
        assert torch.equal(after[kept], seen[key][kept]), key
        expected = fresh_value(name, key, run.optimizer.param_groups[0]["lr"])
        assert torch.allclose(after[grown], torch.tensor(expected)), key


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_rprop_begins_afresh_at_the_rate_of_its_own_group(execution):
    def build(parameters):
        first, *rest = parameters
        return torch.optim.Rprop([{"params": rest, "lr": 0.5}, {"params": [first], "lr": 0.001}])

    run = Run(perceptron(), method("set"), build, execution=execution)
    for step in range(6):
        before = run.sparse.masks["0.weight"].clone()
        run.step(batch(step, 8, 12))
    grown = run.sparse.masks["0.weight"] & ~before
    steps = run.optimizer.state[run.model[0].weight]["step_size"]
    steps = steps if execution == "masked" else run.model[0].live().dense(steps, (16, 12))
    assert bool(grown.any())
    assert torch.allclose(steps[grown], torch.tensor(0.001))


def test_state_that_was_there_before_attachment_follows():
    plain, model = perceptron(), perceptron()
    model.load_state_dict(plain.state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (plain, model)]
    for step in range(3):
        for net, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(net(batch(step, 8, 12))).backward()
            optimizer.step()
    _ = ss.attach(model, optimizers[1], ss.Static(0.3), execution="sparse")
    for index in (0, 3, 5):
        there, here = optimizers[0].state[plain[index].weight], optimizers[1].state[model[index].weight]
        assert there.keys() == here.keys()
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(here[key], model[index].live().take_from(there[key]))
        assert torch.equal(here["step"], there["step"])
    held = [p for group in optimizers[1].param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))


def test_parameter_groups_keep_their_order_and_their_options():
    model = perceptron()
    optimizer = torch.optim.SGD(
        [
            {"params": [model[5].weight], "lr": 0.5},
            {"params": [model[0].weight, model[0].bias], "weight_decay": 0.1},
        ],
        lr=0.1,
    )
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    _kept = ss.attach(model, optimizer, ss.Static(0.3), layers=["0", "5"], execution="sparse")
    assert [{k: v for k, v in group.items() if k in options[0]} for group in optimizer.param_groups] == [
        {**given, "initial_lr": given["lr"]} if "initial_lr" in given else given for given in options
    ]
    assert optimizer.param_groups[0]["params"] == [model[5].weight]
    assert [
        p is q
        for p, q in zip(optimizer.param_groups[1]["params"], (model[0].weight, model[0].bias), strict=True)
    ]
    loss_of(model(batch(0, 8, 12))).backward()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_lbfgs_forgets_its_directions_when_weights_move():
    model = perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    sparse = ss.attach(model, optimizer, method("set"), total_steps=100)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(batch(0, 8, 12)))
        loss.backward()
        return loss

    lengths = []
    for _ in range(7):
        optimizer.step(closure)
        lengths.append(len(optimizer.state[model[0].weight]))
    assert lengths[4] > 0 and lengths[5] == 0 < lengths[6]
    assert sparse.report().num_updates == 1


def test_a_parameter_is_replaced_in_every_optimizer_that_has_it():
    old, new = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    first, second = (
        torch.optim.SGD([old], lr=0.1, momentum=0.9),
        torch.optim.Adam([old, nn.Parameter(torch.ones(1))]),
    )
    old.grad = torch.ones(2, 3)
    first.step(), second.step()
    rates = []

    def follow(state, fresh):
        rates.append(fresh)
        return state.reshape(-1)[:4]

    rules.replace([first, second], old, new, follow)
    assert rates == [0.0] * 3, "momentum_buffer, exp_avg, exp_avg_sq"
    assert first.param_groups[0]["params"][0] is new and second.param_groups[0]["params"][0] is new
    assert first.state[new]["momentum_buffer"].shape == second.state[new]["exp_avg"].shape == (4,)
    assert second.state[new]["step"].shape == ()
    assert old not in first.state and old not in second.state


def test_adagrad_begins_anew_with_the_state_that_it_was_made_with():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adagrad([weight], lr=0.1, initial_accumulator_value=0.5)
    made = {key: value.clone() for key, value in optimizer.state[weight].items()}
    weight.grad = torch.ones(3)
    optimizer.step()
    rules.begin_anew([optimizer])
    assert {key: value.tolist() for key, value in optimizer.state[weight].items()} == {
        key: value.tolist() for key, value in made.items()
    }
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_optimizer_state_of_another_execution_is_refused_before_anything_is_loaded(name, execution):
    how = method("rigl", 0.3)
    other = {"masked": "sparse", "sparse": "masked"}[execution]
    run, saved = (
        Run(seeded(perceptron), how, OPTIMIZERS[name], execution=e, steps=9) for e in (execution, other)
    )
    for step in range(3):
        _ = run.step(batch(step, 8, 12)), saved.step(batch(step, 8, 12))
    state, before = saved.optimizer.state_dict(), copy.deepcopy(run.optimizer.state_dict()["state"])
    says = (
        r"runs sparse: load it before attach\(\)"
        if execution == "sparse"
        else "saved under execution='sparse'"
    )
    with pytest.raises(ValueError, match=rf"the optimizer's state of 0\.weight is \(.*\), .*{says}"):
        run.optimizer.load_state_dict(state)
    for index, held in run.optimizer.state_dict()["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(before[index][k])) for k, v in held.items()
        )
    _ = run.step(batch(3, 8, 12))
    model = run.sparse.detach()
    if execution == "sparse":  # as it says
        fresh = OPTIMIZERS[name](model.parameters())
        fresh.load_state_dict(state)
        again = ss.attach(model, fresh, how, total_steps=9, execution="sparse")
        loss_of(model(batch(4, 8, 12))).backward()
        fresh.step()
        assert again.step == 1
