"""Convolutions, batch norms and ReLUs in anybody's ``nn.Sequential``: as one operation, and as ever where one looks."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.noted import noting
from startsparse.kernels import has_node

from .fused_steps import X, assert_same_step, plainly
from .twins import method

pytestmark = pytest.mark.usefixtures("native")


def conv(before: int, after: int, kernel: int = 3, **more) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, **more)


def vgg(norm=nn.BatchNorm2d) -> nn.Sequential:
    """Containers in a container, pooling between them, ReLU in place, convolutions with and without bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(conv(3, 4, bias=False), norm(4), nn.ReLU(inplace=True)),
        nn.Sequential(conv(4, 6), norm(6), nn.ReLU(), nn.MaxPool2d(2)),
        conv(6, 6, groups=2),
        nn.Identity(),
        norm(6),
        nn.ReLU(),
        conv(6, 8, 1, stride=2),
        norm(8),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def attached(model: nn.Module, how=None) -> tuple[ss.Sparsifier, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return ss.attach(model, optimizer, how or ss.Static(0.4), total_steps=30, execution="sparse"), optimizer


def groups(model: nn.Module, x: torch.Tensor = X) -> list[int]:
    """How many modules ran as one operation, in order."""
    with noting() as notes:
        _ = model(x)
    return [len(modules) for modules in notes.together]


@pytest.mark.parametrize("name", ["static", "rigl"])
def test_every_step_is_that_of_the_layers(name):
    model = vgg()
    more = {"update_interval": 2} if name == "rigl" else {}
    sparse, optimizer = attached(model, method(name, 0.4, **more))
    assert groups(model) == [4, 4]  # the first two containers, and what follows the pooling
    for i in range(5):
        assert_same_step(model, X + i / 10)
        optimizer.step()
    assert name == "static" or sparse.report().num_moved
    model.eval()
    with torch.no_grad():
        for items in (1, 11, 12, 18):
            torch.testing.assert_close(model(X[:items]), plainly(model, X[:items]), rtol=0, atol=1e-5)
            assert groups(model, X[:items]) == ([] if items < 12 else [4, 4])


def test_the_model_is_what_it_was():
    model = vgg()
    before = list(model.state_dict()), [name for name, _ in model.named_modules()]
    sparse, _ = attached(model)
    assert isinstance(model, nn.Sequential) and str(model).startswith("Sequential(\n  (0): Sequential(")
    assert [name for name, _ in model.named_modules()] == before[1]
    assert {k.replace("positions", "weight") for k in model.state_dict()} == set(before[0])
    torch.save(model, stream := io.BytesIO())
    again = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    assert torch.equal(again.eval()(X), model.eval()(X)) and groups(again.train()) == [4, 4]
    sparse.detach()
    assert {type(m) for m in model.modules() if isinstance(m, nn.Sequential)} == {nn.Sequential}
    assert groups(model) == []


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ((nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.0).eval()), [4]),
        ((nn.BatchNorm2d(4), nn.Identity()), [2, 2]),
        ((nn.BatchNorm2d(4), nn.GELU()), []),
        ((nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.5)), []),
        ((nn.ReLU(),), []),
        ((nn.GroupNorm(2, 4), nn.ReLU()), []),
        ((nn.BatchNorm2d(4).eval(), nn.ReLU()), []),
        ((nn.BatchNorm2d(4, momentum=None), nn.ReLU()), [4]),
        ((nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()), [4]),
        ((nn.BatchNorm2d(4, affine=False), nn.ReLU()), [4]),
        ((nn.BatchNorm2d(4).requires_grad_(False), nn.ReLU()), [4]),
        ((nn.BatchNorm2d(4), nn.Sequential(nn.Identity(), nn.ReLU())), [4]),
    ],
)
def test_what_may_stand_between(between, expected):
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(3, 4),
        *copy.deepcopy(between),
        conv(4, 5),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    _ = attached(model)
    torch.manual_seed(2)
    assert groups(model) == expected
    model.eval() if 0.5 in [getattr(m, "p", 0) for m in model] else assert_same_step(model)


def hook(model):
    model[1][1].register_forward_hook(lambda *_: None)


def inner(model):
    model[0].register_forward_pre_hook(lambda *_: None)


def backward(model):
    model[5].register_full_backward_hook(lambda *_: None)


def replaced(model):
    model[2].forward = model[2].forward


def another(model):
    model[4] = nn.InstanceNorm2d(6)


@pytest.mark.parametrize(
    ("look", "expected"),
    [(hook, [4]), (inner, [4]), (backward, [4]), (replaced, [4]), (another, [4])],
)
def test_who_looks_between_sees_it(look, expected):
    model = vgg()
    _ = attached(model)
    look(model)
    assert groups(model) == expected
    assert_same_step(model)


def test_nobody_is_left_out_otherwise():
    model = vgg()
    _ = attached(model)
    assert plainly(groups, model) == groups(model, X[:9]) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert groups(model) == []
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        assert groups(model) == [] and seen.count(nn.BatchNorm2d) == 4
    finally:
        handle.remove()
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(torch.compile(twin, backend="eager", fullgraph=True)(X), plainly(model, X))
    params = {name: p.detach() for name, p in model.named_parameters()}
    assert torch.func.functional_call(model, params, (X,)).shape == (18, 5)


def test_a_container_of_ones_own():
    class Unit(nn.Sequential):
        def __init__(self, before, after):
            super().__init__(conv(before, after), nn.BatchNorm2d(after), nn.ReLU())

    class Halved(Unit):
        def forward(self, x):
            return super().forward(x) / 2

    torch.manual_seed(0)
    model = nn.Sequential(Unit(3, 4), Unit(4, 4), Halved(4, 4), nn.Flatten(), nn.Linear(256, 5))
    _ = attached(model)
    assert groups(model) == [4] and type(model[0]) is Unit
    assert_same_step(model)


@pytest.mark.parametrize("training", [True, False])
def test_linear_layers_of_few_items_are_called_by_themselves_where_calls_are_compiled(training):
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 5))
    _ = attached(model)
    most = 32 if training else 256
    with torch.set_grad_enabled(training):
        for items in (1, most, 2 * most):
            x = torch.randn(items, 12)
            expected = [] if items <= most and has_node() else [2]
            assert groups(model, x) == expected
            torch.testing.assert_close(model(x), plainly(model, x))
