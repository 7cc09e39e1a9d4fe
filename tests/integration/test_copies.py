"""Copies, averages, files: an attached model is the plain module it was."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import startsparse as ss

from .invariants import check, moved, net, rigl, train


def attached(method=None, optimizer=None):
    model = net()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model.parameters())
    sparse = ss.attach(model, optimizer, method or rigl(), total_steps=100)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    return sparse, model, optimizer


def test_the_model_has_the_keys_and_types_it_had():
    sparse, model, _ = attached()
    plain = net()
    assert list(model.state_dict()) == list(plain.state_dict()) == list(sparse.dense_state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert type(model[0].weight) is nn.Parameter
    assert "forward" not in vars(model[0])
    assert plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain[0].weight, model[0].weight)


def test_deepcopy_is_free():
    sparse, model, optimizer = attached()
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    own = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(torch.randn(8, 6)).square().mean().backward()
    own.step()
    twin.load_state_dict(net().state_dict())
    assert twin[0].weight.count_nonzero() == twin[0].weight.numel(), "a copy is not held to the mask"
    check(sparse)
    own.zero_grad()
    again = ss.attach(twin, own, rigl(), total_steps=100)
    check(again)
    assert again is not sparse
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)


def test_deepcopy_of_model_and_optimizer_together():
    sparse, model, optimizer = attached()
    twin, other = copy.deepcopy((model, optimizer))
    before = sparse.step
    twin(torch.randn(8, 6)).square().mean().backward()
    other.step()
    assert sparse.step == before
    check(sparse)


@pytest.mark.parametrize("kind", ["mean", "ema"])
def test_averages_of_weights(kind):
    sparse, model, optimizer = attached()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5) if kind == "ema" else None
    )
    for _ in range(6):
        train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 1)
        average.update_parameters(model)
    assert moved(sparse) > 0
    mask = sparse.masks["0.weight"]
    assert bool(average.module[0].weight[~mask].any()), "positions of the past are in the average"
    bias = average.module[0].bias.detach().clone()
    sparse.apply_to(average)
    for name, mask in sparse.masks.items():
        assert not bool(dict(average.module.named_parameters())[name][~mask].any())
    assert bool(average.module[0].weight.any()) and torch.equal(average.module[0].bias, bias)


def test_apply_to_another_model_is_refused_by_name():
    sparse, _, _ = attached()
    with pytest.raises(ValueError, match=r"no parameter '0\.weight'"):
        sparse.apply_to(nn.Linear(2, 2))


def test_pickle_of_the_whole_model():
    sparse, model, optimizer = attached()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    twin.load_state_dict(net().state_dict())
    assert twin[0].weight.count_nonzero() == twin[0].weight.numel()
    file = io.BytesIO()
    torch.save(optimizer, file)
    check(sparse)


def test_state_files_are_plain_tensors():
    sparse, model, _ = attached()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "sparse": sparse.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = net(seed=3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    again = ss.attach(other, optimizer, rigl(), total_steps=100)
    again.load_state_dict(state["sparse"])
    assert other.load_state_dict(state["model"], strict=True)
    check(again)
    assert torch.equal(other[0].weight, model[0].weight)


def test_loading_a_dense_state_puts_it_on_the_mask_at_once():
    sparse, model, optimizer = attached()
    dense = net(seed=5).state_dict()
    model.load_state_dict(dense, strict=True)
    check(sparse)
    mask = sparse.masks["0.weight"]
    assert torch.equal(model[0].weight[mask], dense["0.weight"][mask])
    assert bool(dense["0.weight"].all()), "what was loaded is unharmed"
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
)
def test_loading_by_assignment(build):
    sparse, model, optimizer = attached(optimizer=build)
    old = model[0].weight
    state = {name: value.clone() for name, value in net(seed=5).state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model[0].weight is not old
    check(sparse)
    assert any(p is model[0].weight for group in optimizer.param_groups for p in group["params"])
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 4)
    assert not torch.equal(before, model[0].weight)
    assert moved(sparse) > 0
    assert old not in optimizer.state


def test_loading_by_assignment_brings_the_other_parameters_along():
    _, model, optimizer = attached()
    model.load_state_dict({n: v.clone() for n, v in net(seed=5).state_dict().items()}, assign=True)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in model.parameters())


def test_a_layer_that_is_parametrized_later_is_an_error_that_names_it():
    _, model, optimizer = attached()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(RuntimeError, match=r"0\.weight was replaced after attach\(\).*parametrization"):
        optimizer.step()


def test_a_replaced_parameter_is_an_error_that_names_it():
    sparse, model, optimizer = attached()
    model[0].weight = nn.Parameter(torch.randn(12, 6))
    model(torch.randn(8, 6)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"0\.weight was replaced after attach\(\)"):
        optimizer.step()
    assert sparse.step == 3


def test_a_replaced_module_is_not_silently_dense():
    _, model, optimizer = attached()
    model[0] = nn.Linear(6, 12)
    optimizer.add_param_group({"params": model[0].parameters()})
    model(torch.randn(8, 6)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"0\.weight was replaced"):
        optimizer.step()


def test_a_module_that_is_called_something_else_now_is_an_error_that_says_so():
    sparse, model, optimizer = attached()
    model.insert(0, nn.Identity())
    model(torch.randn(8, 6)).square().mean().backward()
    with pytest.raises(
        RuntimeError, match=r"0\.weight is called 1\.weight since modules were inserted.*detach before"
    ):
        optimizer.step()
    del model[0]
    optimizer.step()
    assert sparse.step == 4


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_sparsifier_is_not_copied_but_attached_anew(copied):
    sparse, model, optimizer = attached()
    with pytest.raises(TypeError, match=r"neither copied nor pickled: copy the model .* attach to the copy"):
        copied(sparse)
    twin, state = copy.deepcopy((model, sparse.state_dict()))
    stepper = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    stepper.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again = ss.attach(twin, stepper, sparse.method, total_steps=sparse.total_steps)
    again.load_state_dict(state)
    for one, other, by in ((sparse, model, optimizer), (again, twin, stepper)):
        by.zero_grad()
        train(one, by, lambda other=other: other(torch.ones(8, 6)).square().mean(), 4)
    assert all(torch.equal(mask, again.masks[name]) for name, mask in sparse.masks.items())


def test_detach_leaves_no_hook_behind():
    fresh = net()
    fresh_optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    sparse, model, optimizer = attached()

    def hooks(model, optimizer):
        modules = [
            len(value)
            for module in model.modules()
            for name, value in vars(module).items()
            if "hook" in name and isinstance(value, dict)
        ]
        parameters = [
            len(p._post_accumulate_grad_hooks or {}) + len(p._backward_hooks or {})
            for p in model.parameters()
        ]
        steps = [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)]
        return modules, parameters, steps

    assert hooks(model, optimizer) != hooks(fresh, fresh_optimizer)
    masks = {name: mask.clone() for name, mask in sparse.masks.items()}
    assert sparse.detach() is model
    assert hooks(model, optimizer) == hooks(fresh, fresh_optimizer)
    for name, mask in masks.items():
        assert torch.equal(
            dict(model.named_parameters())[name] != 0, mask & (dict(model.named_parameters())[name] != 0)
        )
    before = sparse.step
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    assert sparse.step == before
    assert bool(model[0].weight[~masks["0.weight"]].any()), "nobody holds the weights on the mask any more"
