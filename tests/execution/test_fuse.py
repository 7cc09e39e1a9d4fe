"""``fuse``: modules of one's own run as one operation where tracing is sure of them, and as ever everywhere else."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import startsparse as ss
from startsparse.benchmarking.by_hand import Block
from startsparse.execution.noted import noting
from startsparse.execution.traces import trace_of
from startsparse.training import models

from .by_hand import BasicBlock, Gated, Mixed, Mlp, ResNet, Shared
from .fused_steps import X, assert_same_step, plainly, step
from .twins import method

pytestmark = pytest.mark.usefixtures("native", "of_few_items_too")

NETS = {
    "in place, 1x1 on the way around": lambda: ResNet(BasicBlock),
    "functions, zeros on the way around": lambda: ResNet(Block, 2),
    "linear": Mlp,
}


def attached(model: nn.Module, how=None) -> tuple[ss.Sparsifier, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return ss.attach(model, optimizer, how or ss.Static(0.3), total_steps=50, execution="sparse"), optimizer


def fused(make=ResNet, how=None):
    torch.manual_seed(0)
    model = make()
    sparse, optimizer = attached(model, how)
    return model, ss.fuse(model, X), sparse, optimizer


def together(model: nn.Module, x: torch.Tensor = X) -> int:
    """How many layers and norms run as parts of operations."""
    with noting() as notes:
        _ = model(x)
    return sum(map(len, notes.together))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["static", "rigl"])
def test_every_step_is_that_of_the_layers(net, name):
    more = {"update_interval": 3} if name == "rigl" else {}
    model, fusion, sparse, optimizer = fused(NETS[net], method(name, 0.3, **more))
    expected = sum(map(len, fusion.together))
    assert expected == {Mlp: 3, ResNet: 18 if net.startswith("in") else 26}[type(model).__mro__[1]]
    for i in range(8):
        x = X + i / 10
        assert_same_step(model, x)
        optimizer.step()
    assert name == "static" or sparse.report().num_moved
    assert together(model) == expected and not fusion.aside
    model.eval()
    with torch.no_grad():
        for items in (1, 18):
            torch.testing.assert_close(model(X[:items]), plainly(model, X[:items]), rtol=0, atol=1e-5)
        assert together(model) == expected


@pytest.mark.parametrize(("net", "expected"), [(Mixed, 12), (Shared, 4), (Gated, 6)])
def test_graphs_that_are_no_chains(net, expected):
    model, fusion, _, optimizer = fused(net)
    assert together(model) == expected
    for i in range(3):
        assert_same_step(model, X + i / 10)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(X), plainly(model, X), rtol=0, atol=1e-5)
    assert not fusion.aside


def test_the_report_names_every_sparse_layer():
    _, fusion, *_ = fused()
    assert fusion.traced == ("",) and fusion.refused == {}
    assert ("layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2", "layer2.0.bn2") in fusion.together
    assert list(fusion.alone) == ["fc"]
    assert "one operation  conv1, bn1\n" in str(fusion) and "by itself      fc: no linear layer" in str(
        fusion
    )


def test_the_model_is_what_it_was():
    torch.manual_seed(0)
    model = ResNet()
    sparse, _ = attached(model)
    before = str(model), list(model.state_dict()), inspect.signature(model.forward), list(model.__dict__)
    fusion = ss.fuse(model, X)
    assert isinstance(model, ResNet) and type(model).__name__ == "ResNet"
    assert (
        str(model),
        list(model.state_dict()),
        inspect.signature(model.forward),
        list(model.__dict__),
    ) == before
    y = model(X)
    other = copy.deepcopy(model)
    other.fc.bias.data += 1
    assert together(other) == together(model) == 18 and not torch.equal(other(X), y)
    shallow = copy.copy(model)
    shallow._modules = {**model._modules, "fc": nn.Flatten()}
    assert shallow(X).shape == (18, 16) and model(X).shape == (18, 5)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is ResNet and together(again) == 0
    torch.testing.assert_close(again(X), y, rtol=0, atol=1e-5)
    assert together(fusion.detach()) == 0 and type(model) is ResNet
    assert ss.fuse(model, X).traced == ("",) and together(model) == 18
    _ = ss.fuse(model, X)  # anew
    sparse.detach()
    assert type(model) is ResNet and together(model) == 0


def test_stopped_and_loaded_goes_on_as_if_never_stopped():
    def run(model, optimizer, steps):
        for i in steps:
            step(model, X + i / 10)
            optimizer.step()

    how = {"how": ss.RigL(0.3, update_interval=2)}
    model, _, sparse, optimizer = fused(**how)
    run(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparse.state_dict()))
    run(model, optimizer, range(3, 7))
    other, fusion, again, optimizer = fused(**how)
    for one, state in zip((other, optimizer, again), saved, strict=True):
        one.load_state_dict(state)
    run(other, optimizer, range(3, 7))
    assert not fusion.aside
    for key, value in sparse.dense_state_dict().items():
        assert torch.equal(again.dense_state_dict()[key], value), key


def on_block(model):
    model.layer1[0].register_forward_hook(lambda *_: None)


def on_way(model):
    model.layer2[0].downsample.register_forward_pre_hook(lambda *_: None)


def replaced(model):
    model.layer1[0].forward = model.layer1[0].forward


def another_child(model):
    model.layer1[0].relu = nn.GELU()


def one_more(model):
    model.layer1.append(nn.Identity())


def a_way_around(model):
    model.layer1[0].downsample = nn.Identity()


def none(model):
    model.layer2[0].downsample = None
    model.layer2[0].forward = lambda x: F.avg_pool2d(torch.cat((x, x), 1), 2)


ASIDE = {
    on_block: "somebody looks at layer1.0",
    on_way: "somebody looks at layer2.0.downsample",
    replaced: "the forward of layer1.0 was replaced",
    another_child: "layer1.0.relu is not the module that was traced",
    one_more: "layer1 is not the module that was traced",
    a_way_around: "layer1.0 is not the module that was traced",
    none: "layer2.0.downsample is not the module that was traced",
}


@pytest.mark.parametrize("change", ASIDE)
def test_its_own_forward_runs_where_it_is_not_what_was_traced(change):
    model, fusion, *_ = fused()
    change(model)
    assert_same_step(model)
    assert fusion.aside[ASIDE[change]] and trace_of(model).used == 0
    assert "own forward    " in str(fusion)


def test_hooks_of_layers_are_called():
    model, fusion, *_ = fused()
    seen = []
    model.layer1[0].bn1.register_forward_hook(lambda *_: seen.append("norm"))
    model.layer2[0].relu.register_forward_hook(lambda *_: seen.append("relu"))
    model.layer3[0].conv1.register_full_backward_hook(lambda *_: seen.append("conv"))
    model.register_forward_hook(lambda *_: seen.append("model"))
    assert_same_step(model)
    assert seen.count("norm") == 2 and seen.count("relu") == 4 and seen.count("conv") == 2  # of both runs
    assert not fusion.aside
    assert (
        together(model) == 2 + 2 + 4 + 4 + 2
    )  # conv2 with its norm, on its own, where something else is looked at


class Config:
    def __init__(self):
        self.scale = 1.0


class Attributes(nn.Module):
    """Whose forward reads numbers, words, lists, functions, a configuration and its own mode."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2 = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
        )
        self.fc = nn.Linear(4, 5)
        self.shift, self.name, self.sizes, self.act, self.config = 0.5, "plus", [1, 2], F.relu, Config()
        self.epoch = 0

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        x = x + self.shift if self.name == "plus" else x - self.shift
        x = x.mean((2, 3)) * self.sizes[1] * self.config.scale * self.factor
        if self.training:
            x = x * 2
        return self.fc(x) + getattr(self, "bonus", 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "shift", 0.25),
        lambda m: setattr(m, "shift", True),
        lambda m: setattr(m, "name", "minus"),
        lambda m: m.sizes.append(3) or m.sizes.reverse(),
        lambda m: setattr(m, "act", torch.tanh),
        lambda m: setattr(m.config, "scale", 2.0),
        lambda m: setattr(m, "factor", 2.0),
        lambda m: setattr(m, "bonus", 1),
    ],
)
def test_attributes_that_forward_reads(change):
    model, fusion, *_ = fused(Attributes)
    assert fusion.traced == ("",)
    model.epoch, model.best = 7, 0.9  # nobody reads these
    assert_same_step(model)
    assert together(model) == 4 and not fusion.aside
    change(model)
    assert_same_step(model)
    assert any(why.endswith("has changed") for why in fusion.aside)


def test_modes():
    model, fusion, *_ = fused(Attributes)
    torch.testing.assert_close(model.eval()(X), plainly(model, X))
    torch.testing.assert_close(model.train()(X), plainly(model, X))
    assert trace_of(model).used == 2
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(X), plainly(model, X))
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(torch.compile(twin, backend="eager", fullgraph=True)(X), plainly(model, X))
    exported = torch.export.export(copy.deepcopy(model).eval(), (X,)).module()
    torch.testing.assert_close(exported(X), plainly(model.eval(), X))
    model.train()
    torch.testing.assert_close(model(x=X), model(X))
    with torch.inference_mode():
        torch.testing.assert_close(model(X), plainly(model, X))
    params = {name: 2 * p.detach() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, params, (X,))
    torch.testing.assert_close(y, plainly(torch.func.functional_call, model, params, (X,)))
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        _ = model(X)
    finally:
        handle.remove()
    assert nn.BatchNorm2d in seen and len(fusion.aside) == 3


class Odd(nn.Module):
    """A block with something odd between convolution and norm and the linear layer: the rest is as ever."""

    def __init__(self):
        super().__init__()
        self.inner, self.odd, self.fc = BasicBlock(3, 4), Oddity(), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.odd(self.inner(x)).mean((2, 3)))


class Oddity(nn.Module):
    odd = staticmethod(lambda self, x: x)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("count", torch.zeros(1))
        self.seen = []

    def forward(self, x):
        x = F.relu(self.norm(self.conv(type(self).odd(self, x))))
        return self.norm2(self.conv2(x))


def sets(self, x):
    self.last = x
    return x


def appends(self, x):
    self.seen.append(1)
    return x


def without_gradients(self, x):
    with torch.no_grad():
        return x + x


def doubles(self, x):
    y = x + 0
    return y.add_(1) + y


ODDITIES = {
    "TraceError": lambda self, x: x if x.sum() > 0 else -x,
    "it draws random numbers": lambda self, x: x * float(torch.rand(())),
    "it sets odd.last": sets,
    "it changes seen": appends,
    "it changes its own tensors": lambda self, x: x + self.count.add_(1),
    "it uses a tensor that is made": lambda self, x: x + torch.ones(4, 1, 1),
    "it changes its own tensors in": lambda self, x: (self.norm.running_mean.zero_(), x)[1],
    "it computes under no_grad": without_gradients,
    "it computes under": lambda self, x: checkpoint(torch.sigmoid, x, use_reentrant=False),
    "changes a value in place": doubles,
    "the gradient of": lambda self, x: x if isinstance(x, torch.Tensor) else x.detach(),
    "output 0 differs": lambda self, x: x if isinstance(x, torch.Tensor) else x + 1,
}


@pytest.mark.parametrize("why", ODDITIES)
def test_what_cannot_be_traced_runs_as_ever(why, monkeypatch):
    monkeypatch.setattr(Oddity, "odd", staticmethod(ODDITIES[why]))
    model, fusion, *_ = fused(Odd)
    assert "inner" in fusion.traced or fusion.traced == ("",)
    assert why.replace("odd.", "") in fusion.refused["odd"].replace("odd.", "")
    assert fusion.alone["odd.conv"] == "odd is not traced"
    torch.manual_seed(5)
    model(X).sum().backward()
    assert together(model) == 6 and (not model.odd.seen or len(model.odd.seen) > 1)


def test_what_there_is_nothing_to_fuse_in():
    with pytest.raises(TypeError, match="must be a torch"):
        _ = ss.fuse(3, X)
    model = ResNet()
    nothing = ss.fuse(model, X)
    assert nothing.traced == () and "no layer is executed sparsely" in str(nothing)
    _ = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.3))
    assert ss.fuse(model, X).traced == () and type(model) is ResNet
    model = ResNet()
    _ = attached(model)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"fuse the one that torch\.compile was given"):
        _ = ss.fuse(compiled, X)
    with pytest.raises(ValueError, match="compared on an example"):
        _ = ss.fuse(model, None)
    model.lock = threading.Lock()
    assert "it cannot be copied" in ss.fuse(model, X).refused[""] and together(model) == 0
    del model.lock
    small = ss.fuse(model, X[:4])
    assert small.traced == ("",) and "a batch too small" in small.alone["conv1"]
    assert together(model) == 18


def test_models_of_the_library():
    model = models.make("resnet18", width=0.125, classes=5)
    _ = attached(model)
    before = together(model)
    fusion = ss.fuse(model, X)
    assert fusion.traced == ("",) and together(model) == before == 40
    assert_same_step(model)


def test_sequences_of_blocks_and_layers_of_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = Mlp(), nn.ModuleList([Mlp(0.5), Mlp()])

        def forward(self, x, y, scale=2.0, *, more=None):
            for one in self.other:
                y = y + one(x).sum()
            return {"a": (self.one(x) + y) * scale, "b": [y, None if more is None else more]}

    torch.manual_seed(0)
    model = Two()
    _ = attached(model)
    fusion = ss.fuse(model, {"x": X, "y": torch.zeros(5)})
    assert (
        fusion.traced == ("one", "other.0", "other.1") and "called with other arguments" in fusion.refused[""]
    )
    fusion = ss.fuse(model, (X, torch.zeros(5)))
    assert fusion.traced == ("",)
    torch.manual_seed(3)
    found = model(X, torch.zeros(5))
    torch.manual_seed(3)
    wanted = plainly(model, X, torch.zeros(5))
    torch.testing.assert_close(found, wanted)
    assert type(found) is dict and type(found["b"]) is list and not fusion.aside
    torch.testing.assert_close(
        model(X, torch.zeros(5), 1.0), plainly(model, X, torch.zeros(5), 1.0), atol=1, rtol=9
    )


def test_a_sequential_of_blocks():
    torch.manual_seed(0)
    model = nn.Sequential(
        BasicBlock(3, 4), BasicBlock(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    _ = attached(model)
    fusion = ss.fuse(model, X)
    assert together(model) == 10 and isinstance(model, nn.Sequential)
    assert_same_step(model)
    assert type(fusion.detach()) is nn.Sequential
