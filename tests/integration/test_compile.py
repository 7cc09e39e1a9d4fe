"""torch.compile and torch.export see a plain module, whatever happens to the masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss

from .invariants import check, moved, net, rigl, train


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("when", ["attach, compile", "compile, attach", "compile, run, attach"])
@pytest.mark.parametrize(
    "method", [rigl(), ss.SNIP(0.25), ss.GMP(0.25, "uniform", update_interval=2, update_end=8)]
)
def test_masks_change_and_nothing_is_compiled_again(when, method):
    model, twin = net(), net()
    if when == "attach, compile":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparse = ss.attach(model, optimizer, method, total_steps=100)
        fast = compiled(model)
    else:
        fast = compiled(model)
        if when == "compile, run, attach":
            fast(torch.randn(8, 6)).square().mean().backward()
            fast.zero_grad()
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.1, momentum=0.9)
        sparse = ss.attach(fast, optimizer, method, total_steps=100)
    assert list(sparse.masks) == ["0.weight", "2.weight"]
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    eager = ss.attach(twin, other, method, total_steps=100)
    seen = []
    for step in range(9):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        train(sparse, optimizer, lambda x=x: fast(x).square().mean(), 1)
        train(eager, other, lambda x=x: twin(x).square().mean(), 1)
        seen.append(graphs())
    assert seen[0] >= 1 and set(seen) == {seen[0]}, "compiled again"
    assert seen[0] == 1
    assert moved(sparse) > 0
    assert all(torch.equal(m, eager.masks[n]) for n, m in sparse.masks.items())
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_compiled_optimizer_step():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        step()
        check(sparse)
    assert sparse.step == 6 and moved(sparse) > 0


class Wrapped(nn.Module):
    """A module of our own: those of torch.nn are not compiled by themselves."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x) * 2


def test_module_compile_in_place():
    model = Wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    model.compile(fullgraph=True, backend="aot_eager")
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 6)
    assert moved(sparse) > 0 and graphs() == 1


def test_export_is_that_of_the_plain_module():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 4)
    model.eval()
    x = torch.randn(3, 6)
    batch = {"input": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(model, (x,), dynamic_shapes=batch)
    plain = torch.export.export(net().eval(), (x,), dynamic_shapes=batch)
    assert [n.target for n in exported.graph.nodes] == [n.target for n in plain.graph.nodes]
    torch.testing.assert_close(exported.module()(torch.ones(5, 6)), model(torch.ones(5, 6)))
    for name, mask in sparse.masks.items():
        assert not bool(exported.state_dict[name][~mask].any())
