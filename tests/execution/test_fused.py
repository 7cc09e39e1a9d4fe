"""Fused blocks against the plain way of the same net, and when they step aside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss
from startsparse.execution import fused
from startsparse.training import models
from startsparse.training.models.resnet import CifarResNet

pytestmark = pytest.mark.usefixtures("native")


def net(shortcut="A", method=None, **changes):
    torch.manual_seed(0)
    model = CifarResNet(1, shortcut, 4, 3, 5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for key, value in changes.items():
                setattr(norm, key, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    sparse = ss.attach(model, optimizer, method or ss.Static(0.3), total_steps=50, execution="sparse")
    return model, optimizer, sparse


def batch(items=18, seed=0):
    torch.manual_seed(seed)
    return torch.randn(items, 3, 8, 8), torch.randint(0, 5, (items,))


@pytest.fixture
def used(monkeypatch):
    """Links that were computed as parts of chains."""
    links = []
    real = fused.run_block
    monkeypatch.setattr(
        fused, "run_block", lambda x, n, given, *rest: (links.extend(given), real(x, n, given, *rest))[1]
    )
    return links


def step(model, x, y):
    model.zero_grad()
    out = model(x)
    F.cross_entropy(out, y).backward()
    return out.detach()


def plainly(model, x, y):
    was = fused.fused_blocks(False)
    try:
        return step(model, x, y)
    finally:
        assert fused.fused_blocks(was) is False


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("changes", [{}, {"momentum": None}, {"track_running_stats": False}])
def test_every_step_is_that_of_the_plain_way(shortcut, changes, used):
    model, optimizer, _ = net(shortcut, **changes)
    if "track_running_stats" in changes:
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    for i in range(6):
        x, y = batch(seed=i)
        twin = copy.deepcopy(model)
        found, wanted = step(model, x, y), plainly(twin, x, y)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        optimizer.step()
    assert len(used) == 6 * (7 if shortcut == "A" else 9)
    model.eval(), used.clear()
    for items in (1, 12, 18):  # one goes layer by layer
        with torch.no_grad():
            found = model(batch(items)[0])
            was = fused.fused_blocks(False)
            wanted = model(batch(items)[0])
            fused.fused_blocks(was)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    if "track_running_stats" not in changes:
        assert len(used) == 2 * (7 if shortcut == "A" else 9)


def test_a_method_that_wants_dense_gradients_chooses_the_same(used):
    runs = []
    for on in (True, False):
        was = fused.fused_blocks(on)
        model, optimizer, sparse = net(method=ss.RigL(0.3, update_interval=3))
        for i in range(8):
            step(model, *batch(seed=i))
            optimizer.step()
        fused.fused_blocks(was)
        runs.append(sparse.masks)
    assert used
    same = [bool((runs[0][name] == runs[1][name]).float().mean() > 0.97) for name in runs[0]]
    assert all(same)


def test_the_state_is_that_of_the_layers():
    model, *_ = net()
    torch.manual_seed(0)
    assert set(CifarResNet(1, "A", 4, 3, 5).state_dict()) <= set(model.state_dict())


def test_frozen_parameters_get_no_gradient(used):
    model, *_ = net()
    block = model.stage2[0]
    for parameter in (block.conv1.weight, block.bn1.weight, block.bn2.bias, model.conv1.weight):
        parameter.requires_grad_(False)
    twin = copy.deepcopy(model)
    step(model, *batch()), plainly(twin, *batch())
    assert used
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


ASIDE = {
    "hook": lambda m: m.stage1[0].bn2.register_forward_hook(lambda *_: None),
    "backward hook": lambda m: m.stage1[0].conv1.register_full_backward_hook(lambda *_: None),
    "own forward": lambda m: setattr(m.stage1[0].conv1, "forward", m.stage1[0].conv1.forward),
    "another norm": lambda m: setattr(m.stage1[0], "bn1", nn.InstanceNorm2d(4)),
    "running statistics": lambda m: m.stage1[0].bn1.eval(),
    "hook of the shortcut": lambda m: m.stage1[0].shortcut.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("why", ASIDE)
def test_a_block_steps_aside(why, used):
    model, *_ = net()
    _ = ASIDE[why](model)
    twin = copy.deepcopy(model)
    found = step(model, *batch())
    assert len(used) == 5  # all but the two of that block
    torch.testing.assert_close(found, plainly(twin, *batch()), rtol=0, atol=1e-5)


WHOLE = {
    "few items": lambda m: step(m, *batch(11)),
    "autocast": lambda m: torch.autocast("cpu", torch.bfloat16)(step)(m, *batch()),
    "compiled": lambda m: torch.compile(m, backend="eager")(batch()[0]),
    "turned off": lambda m: plainly(m, *batch()),
}


@pytest.mark.parametrize("why", WHOLE)
def test_all_step_aside(why, used):
    model, *_ = net()
    _ = WHOLE[why](model)
    assert not used


def test_a_global_hook_is_called():
    model, *_ = net()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    try:
        step(model, *batch())
    finally:
        handle.remove()
    assert seen.count("BatchNorm2d") == 7


def test_a_hook_on_a_block_sees_rows(used):
    model, *_ = net()
    shapes = []
    _ = model.stage2[0].register_forward_hook(lambda _, x, y: shapes.extend((x[0].shape, y.shape)))
    step(model, *batch())
    assert shapes == [(18, 4, 8, 8), (18, 8, 4, 4)] and len(used) == 7


def test_masked_nets_go_the_plain_way(used, monkeypatch):
    monkeypatch.setattr(fused, "to_blocked", lambda *_: pytest.fail("packed for nothing"))
    torch.manual_seed(0)
    _ = step(CifarResNet(1, "A", 4, 3, 5), *batch())
    assert not used


def test_sequential_nets(used):
    torch.manual_seed(0)
    model = models.make("vgg16-bn", width=1 / 16, input_shape=(3, 16, 16), classes=5)
    _ = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.05), ss.Static(0.4), execution="sparse")
    x, y = torch.randn(18, 3, 16, 16), torch.randint(0, 5, (18,))
    twin = copy.deepcopy(model)
    torch.testing.assert_close(step(model, x, y), plainly(twin, x, y), rtol=0, atol=1e-4)
    assert len(used) == 13


@pytest.mark.parametrize(("name", "expected"), [("resnet18", 20), ("resnet50", 53)])
def test_nets_of_imagenet(name, expected, used):
    torch.manual_seed(0)
    options = {"width": 1 / 16, "stem": "cifar", "input_shape": (3, 8, 8), "classes": 5}
    model = models.make(name, **options)
    before = [key for key, _ in model.named_parameters()]
    assert sorted(before) == sorted(set(before)) and all(
        key.split(".")[0] in ("conv1", "bn1", "stages", "fc") for key in before
    )
    _ = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.05), ss.Static(0.4), execution="sparse")
    x, y = batch()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(step(model, x, y), plainly(twin, x, y), rtol=0, atol=1e-3)
    assert len(used) == expected
    norm = sum(p.grad.square().sum() for p in twin.parameters()).sqrt()
    off = sum(
        (p.grad - q.grad).square().sum() for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    ).sqrt()
    assert off < 1e-3 * norm
    model.stages[1][0] = nn.Sequential(model.stages[1][0], nn.Tanh())
    _ = model.stages.register_forward_hook(lambda *_: None)
    used.clear()
    assert step(model, x, y).shape == (18, 5) and used


def test_a_block_that_is_not_ours_gets_rows(used):
    model, *_ = net()
    model.stage2[0] = nn.Conv2d(4, 8, 3, 2, padding=1)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(step(model, *batch()), plainly(twin, *batch()), rtol=0, atol=1e-5)
    assert len(used) == 5
