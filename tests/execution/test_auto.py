"""``execution="auto"``: timed once, remembered, and said aloud in plan and report."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution import auto
from startsparse.execution.modules import SparseLinear
from startsparse.kernels import library
from startsparse.layers import find

from ..contract.settings import given
from .twins import OPTIMIZERS, batch, convolutional, example_of, loss_of, method, perceptron


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    _ = library.backend()  # compiled into the usual cache, not anew into this one
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path))
    return tmp_path


def attached(model: nn.Module, how=None, **more) -> ss.Sparsifier:
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    how = how or ss.Static(0.1)
    more = (given(how, example_of(model)) if how.needs else {}) | more
    return ss.attach(model, optimizer, how, total_steps=20, execution="auto", **more)


def executions(sparse) -> list[str]:
    return [choice.execution for choice in sparse.execution.values()]


def test_without_an_example_density_decides():
    most = auto.BREAK_EVEN
    density = (192 * (most + 0.05) + 256 * most + 160 * most / 2) / 608
    sparse = attached(perceptron(), ss.Static(density, {"0": most + 0.05, "3": most - 0.01, "*": "erk"}))
    assert executions(sparse) == ["masked", "sparse", "sparse"]
    reason = f"no example_input to time with, so sparse up to density {most:g}"
    assert {choice.reason for choice in sparse.execution.values()} == {reason}
    text = str(sparse.report())
    assert f"0.weight runs masked: {reason}" in text and f"3.weight runs sparse: {reason}" in text


def test_with_an_example_layers_are_timed_and_the_faster_way_is_taken(own_cache, monkeypatch):
    times = {(16, 12): (2.0, 1.0), (16, 16): (1.0, 2.0), (10, 16): (3.0, 1.5)}
    seen = []

    def measured(layer, count, shape):
        seen.append((layer.shape, count, shape))
        return times[layer.shape]

    monkeypatch.setattr(auto, "_measure", measured)
    model = perceptron()
    sparse = attached(model, example_input=batch(0, 32, 12))
    assert executions(sparse) == ["sparse", "masked", "sparse"]
    assert isinstance(model[0], SparseLinear) and type(model[3]) is nn.Linear
    assert [shape for _, _, shape in seen] == [(32, 12), (32, 16), (32, 16)]
    assert [count for _, count, _ in seen] == [int(mask.sum()) for mask in sparse.masks.values()]
    assert sparse.execution["0.weight"].reason == "measured 2e+03 ms masked, 1e+03 ms sparse"
    assert "3.weight runs masked: measured 1e+03 ms masked, 2e+03 ms sparse" in str(sparse.report())
    _ = attached(perceptron(), example_input=batch(0, 32, 12))
    assert len(seen) == 3, "remembered"
    _ = attached(perceptron(), example_input=batch(0, 64, 12))
    assert len(seen) == 6, "of another batch"
    assert len(list((own_cache / "timings").glob("*.json"))) == 6
    assert not list((own_cache / "timings").glob("*.tmp"))


def test_a_plan_shows_what_attach_will_do(monkeypatch):
    times = {(16, 12): (2.0, 1.0), (16, 16): (1.0, 2.0), (10, 16): (3.0, 1.5)}
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: times[layer.shape])
    model = perceptron()
    plan = ss.plan(model, ss.Static(0.1), example_input=batch(0, 32, 12), execution="auto")
    assert [row.execution for row in plan.layers] == ["sparse", "masked", "sparse"]
    assert plan.reasons["0.weight"] == "sparse: measured 2e+03 ms masked, 1e+03 ms sparse"
    assert "3.weight runs masked: measured" in str(plan)
    sparse = attached(model, example_input=batch(0, 32, 12))
    assert {row.name: row.execution for row in plan.layers} == {
        n: c.execution for n, c in sparse.execution.items()
    }
    assert {n: f"{c.execution}: {c.reason}" for n, c in sparse.execution.items()} == plan.reasons
    assert [row.execution for row in sparse.report().layers] == ["sparse", "masked", "sparse"]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '["a", "b"]', "[null, 1]", "7", '{"masked": 1}', "[1, 2, 3]"]
)
def test_a_damaged_entry_is_measured_again(own_cache, monkeypatch, text):
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: (2.0, 1.0))
    layer = find(perceptron())["0.weight"]
    assert auto.measure(layer, 40, (8, 12)) == (2.0, 1.0)
    (entry,) = (own_cache / "timings").glob("*.json")
    entry.write_text(text)
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: (4.0, 3.0))
    assert auto.measure(layer, 40, (8, 12)) == (4.0, 3.0)
    assert json.loads(entry.read_text()) == [4.0, 3.0]


def test_times_of_other_kernels_are_not_taken(own_cache, monkeypatch):
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: (2.0, 1.0))
    layer = find(perceptron())["0.weight"]
    _ = auto.measure(layer, 40, (8, 12))
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: (4.0, 3.0))
    assert auto.measure(layer, 40, (8, 12)) == (2.0, 1.0)
    was = auto.has_node()
    monkeypatch.setattr(auto, "has_node", lambda: not was)
    assert auto.measure(layer, 40, (8, 12)) == (4.0, 3.0)
    monkeypatch.setattr(auto, "source_key", lambda: "another")
    assert len(list((own_cache / "timings").glob("*.json"))) == 2
    _ = auto.measure(layer, 40, (8, 12))
    assert len(list((own_cache / "timings").glob("*.json"))) == 3


@pytest.mark.parametrize("text", ["[NaN, 1]", "[-1, 2]", "[0, 0]"])
def test_an_entry_of_no_times_is_measured_again(own_cache, monkeypatch, text):
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: (2.0, 1.0))
    layer = find(perceptron())["0.weight"]
    _ = auto.measure(layer, 40, (8, 12))
    next((own_cache / "timings").glob("*.json")).write_text(text)
    assert auto.measure(layer, 40, (8, 12)) == (2.0, 1.0)


def test_a_cache_that_cannot_be_written_is_no_error(own_cache, monkeypatch):
    (own_cache / "timings").write_text("a file where the folder should be")
    monkeypatch.setattr(auto, "_measure", lambda layer, count, shape: (2.0, 1.0))
    assert auto.measure(find(perceptron())["0.weight"], 40, (8, 12)) == (2.0, 1.0)


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_real_times_are_positive_and_the_layer_is_left_alone(build):
    model = build()
    shape = (6, 12) if build is perceptron else (2, 4, 9, 9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer = find(model)["0.weight"]
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    masked, sparse = auto.measure(layer, 20, shape)
    assert masked > 0 and sparse > 0
    assert calls == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[0]) in (nn.Linear, nn.Conv2d) and model[0].weight.grad is None


def test_the_global_generator_is_left_alone():
    """Or the first run on a machine would not be the second one."""
    layer = find(perceptron())["0.weight"]
    before = torch.get_rng_state()
    _ = auto.measure(layer, 20, (6, 12))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("name", ss.methods.names("attach"))
def test_every_method_trains(name, example):
    _ = torch.manual_seed(0)  # an unlucky draw leaves SNIP an empty layer, which warns
    model = convolutional()
    given = {"example_input": batch(0, 2, 4, 9, 9)} if example else {}
    sparse = attached(model, method(name, 0.3), **given)
    optimizer = sparse._optimizers[0]
    for step in range(8):
        optimizer.zero_grad()
        loss_of(model(batch(step, 2, 4, 9, 9))).backward()
        optimizer.step()
        assert sum(int(mask.sum()) for mask in sparse.masks.values()) == sparse.target_count
    assert set(sparse.dense_state_dict()) == set(convolutional().state_dict())


class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(12, 10), nn.Linear(12, 10)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_the_example_does_not_reach_stays_masked():
    sparse = attached(Partly(), example_input=batch(0, 2, 12))
    assert sparse.execution["unused.weight"] == ss.execution.choice.Choice("masked", "never called")
    assert sparse.execution["used.weight"].reason.startswith("measured")


def test_what_cannot_run_sparse_is_not_timed_and_not_warned_of():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(32, 10))
    sparse = attached(model, example_input=batch(0, 2, 3, 10))
    assert sparse.execution["0.weight"].execution == "masked"
    assert "Conv1d.weight" in sparse.execution["0.weight"].reason
    assert "0.weight runs masked: only nn.Linear" in str(sparse.report())


def test_the_example_is_not_trained_on():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 2, 3)).train()
    before = {name: value.clone() for name, value in model[1].state_dict().items()}
    _ = attached(model, example_input=batch(0, 2, 4, 9, 9))
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
    assert model.training and model[2].training


def test_an_example_that_is_not_used_is_said_aloud():
    model = perceptron()
    with pytest.warns(UserWarning, match="example_input= is not used"):
        ss.attach(
            model,
            OPTIMIZERS["sgd"](model.parameters()),
            ss.Static(0.1),
            execution="sparse",
            example_input=batch(0, 2, 12),
        )
