from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.golden_tables import NETS
from torch import nn

from startsparse.distributions import allocate
from startsparse.draw import bernoulli, exact
from startsparse.flow import POLICIES, Repair, dead_units, preserve
from startsparse.layers import Geometry, find

LAYERS = {
    "linear": lambda: nn.Linear(13, 7, bias=False),
    "wide": lambda: nn.Linear(3, 40, bias=False),
    "conv2d": lambda: nn.Conv2d(6, 8, 3, bias=False),
    "conv1d": lambda: nn.Conv1d(6, 9, 4, stride=2, bias=False),
    "conv3d": lambda: nn.Conv3d(3, 5, (1, 2, 3), bias=False),
    "grouped": lambda: nn.Conv2d(12, 8, 3, groups=4, bias=False),
    "depthwise": lambda: nn.Conv2d(10, 10, 3, groups=10, bias=False),
    "multiplied": lambda: nn.Conv2d(5, 15, 3, groups=5, bias=False),
    "pointwise": lambda: nn.Conv2d(20, 10, 1, bias=False),
    "transposed1d": lambda: nn.ConvTranspose1d(6, 9, 3, bias=False),
    "transposed2d": lambda: nn.ConvTranspose2d(5, 8, 3, stride=2, bias=False),
    "transposed3d": lambda: nn.ConvTranspose3d(4, 3, 2, bias=False),
    "transposed grouped": lambda: nn.ConvTranspose2d(12, 8, 3, groups=4, bias=False),
    "transposed depthwise": lambda: nn.ConvTranspose2d(6, 6, 3, groups=6, bias=False),
}
quick = settings(max_examples=60, deadline=None, derandomize=True)


def geometry_of(name):
    layer = find(LAYERS[name]())["weight"]
    return layer.shape, layer.geometry


def dead_by_running(name, mask):
    """Output channels that stay zero and inputs nothing depends on, found by running the layer itself."""
    module = LAYERS[name]().double()
    spatial = module.weight.dim() - 2
    channels = module.in_channels if spatial else module.in_features
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(mask.reshape(tuple(module.weight.shape))))
    x = torch.ones(1, channels, *[7] * spatial, dtype=torch.float64, requires_grad=True)
    y = module(x)
    y.sum().backward()
    outs = y.detach().reshape(1, y.shape[1], -1).sum((0, 2))
    ins = x.grad.reshape(1, channels, -1).sum((0, 2))
    return (outs == 0).numpy(), (ins == 0).numpy()


def drawn(name, density, seed):
    shape, geometry = geometry_of(name)
    size = math.prod(shape)
    return exact(size, round(density * size), seed, name), shape, geometry


def num_dead(mask, shape, geometry):
    return sum(int(part.sum()) for part in dead_units(mask, shape, geometry))


@pytest.mark.parametrize("name", LAYERS)
def test_dead_units_are_those_the_layer_really_has(name):
    seen = 0
    for seed, density in enumerate((0.0, 0.02, 0.05, 0.1, 0.2, 1.0)):
        mask, shape, geometry = drawn(name, density, seed)
        rows, columns = dead_units(mask, shape, geometry)
        expected_rows, expected_columns = dead_by_running(name, mask)
        assert rows.shape[0] == columns.shape[0] == geometry.groups
        assert rows.reshape(-1).tolist() == expected_rows.tolist()
        assert columns.reshape(-1).tolist() == expected_columns.tolist()
        seen += int(0 < expected_rows.sum() < len(expected_rows))
    assert seen >= 1, "no case with some, but not all units dead was seen"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_on_every_layer(name, policy):
    for seed, density in enumerate((0.02, 0.05, 0.1, 0.3)):
        mask, shape, geometry = drawn(name, density, seed)
        before = mask.copy()
        repaired, report = preserve(mask, shape, geometry, seed, name, policy)
        assert np.array_equal(mask, before), "the argument is not written to"
        assert repaired.dtype == bool and repaired.shape == mask.shape
        assert report.dead_before == num_dead(mask, shape, geometry)
        assert report.dead_after == num_dead(repaired, shape, geometry)
        assert report.dead_after == sum(int(d.sum()) for d in dead_by_running(name, repaired))
        assert int(repaired.sum()) == int(mask.sum()) + report.added - report.removed
        if policy == "none":
            assert report == Repair(0, 0, report.dead_before, report.dead_before)
            assert np.array_equal(repaired, mask)
            continue
        assert report.dead_after == 0
        assert report.added <= report.dead_before
        assert report.added >= (report.dead_before + 1) // 2, "one weight revives two units at most"
        if policy == "add":
            assert report.removed == 0
            assert not (mask & ~repaired).any(), "adding takes nothing away"
        else:
            assert report.removed <= report.added


@pytest.mark.parametrize(
    ("name", "density"),
    [("linear", 0.3), ("conv2d", 0.06), ("grouped", 0.15), ("transposed grouped", 0.15), ("conv1d", 0.1)],
)
def test_keep_budget_keeps_the_count_where_there_is_enough(name, density):
    repaired_any = 0
    for seed in range(10):
        mask, shape, geometry = drawn(name, density, seed)
        repaired, report = preserve(mask, shape, geometry, seed, name, "keep_budget")
        assert int(repaired.sum()) == int(mask.sum())
        assert (report.added, report.dead_after) == (report.removed, 0)
        repaired_any += report.added > 0
    assert repaired_any


@pytest.mark.parametrize("policy", ["add", "keep_budget"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_repair_is_a_pure_function_and_done_once(name, policy):
    mask, shape, geometry = drawn(name, 0.08, 5)
    first, report = preserve(mask, shape, geometry, 5, name, policy)
    again, same_report = preserve(mask, shape, geometry, 5, name, policy)
    assert np.array_equal(first, again) and report == same_report
    twice, nothing = preserve(first, shape, geometry, 5, name, policy)
    assert np.array_equal(twice, first)
    assert nothing == Repair(0, 0, 0, 0)


def test_another_seed_repairs_elsewhere():
    empty = np.zeros(400, bool)
    masks = [preserve(empty, (20, 20), Geometry(), seed, "w")[0] for seed in range(6)]
    assert len({mask.tobytes() for mask in masks}) == 6


@quick
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    st.booleans(),
    st.floats(0, 0.6),
    st.floats(0, 1),
    st.sampled_from(["add", "keep_budget"]),
    st.integers(0, 50),
)
def test_inside_a_source(groups_out_in_taps, transposed, density, share, policy, seed):
    """A repair never leaves the source, and revives exactly the units that the source lets live."""
    groups, out, inputs, taps = groups_out_in_taps
    shape = (groups * inputs, out, taps) if transposed else (groups * out, inputs, taps)
    geometry = Geometry(transposed, groups)
    rng = np.random.default_rng(seed)
    source = rng.random(math.prod(shape)) < share
    mask = source & (rng.random(source.size) < density)
    repaired, report = preserve(mask, shape, geometry, seed, "w", policy, source)
    assert not (repaired & ~source).any()
    hopeless = num_dead(source, shape, geometry)
    assert report.dead_after == num_dead(repaired, shape, geometry) == hopeless
    assert report.dead_before == num_dead(mask, shape, geometry)
    assert int(repaired.sum()) - int(mask.sum()) == report.added - report.removed >= 0
    again, second = preserve(repaired, shape, geometry, seed, "w", policy, source)
    assert np.array_equal(again, repaired)
    assert (second.added, second.removed) == (0, 0)


def test_keep_budget_removes_the_last_of_the_order_and_only_what_was_drawn():
    """By hand: rows 1 and 2 of a 3 x 3 mask are dead, row 0 has three; two of its weights can go."""
    mask = np.array([True, True, True] + [False] * 6)
    repaired, report = preserve(mask, (3, 3), Geometry(), 0, "w", "keep_budget")
    assert (report.added, report.removed, report.dead_before, report.dead_after) == (2, 2, 2, 0)
    assert repaired.reshape(3, 3).sum(1).tolist() == [1, 1, 1]
    assert repaired.reshape(3, 3).sum(0).tolist() == [1, 1, 1]


def test_a_layer_with_fewer_weights_than_units_grows():
    repaired, report = preserve(np.zeros(50, bool), (5, 10), Geometry(), 0, "w", "keep_budget")
    assert (report.removed, report.dead_before, report.dead_after) == (0, 15, 0)
    assert 10 <= report.added == repaired.sum() < 15


@pytest.mark.parametrize(
    ("rule", "density", "percent"),
    [
        ("uniform", 0.01, 0.6),
        ("erk", 0.01, 0.0),
        ("balanced", 0.01, 0.0),
        ("pyramidal", 0.01, 1.0),
        ("uniform", 0.005, 1.9),
        ("pyramidal", 0.005, 5.7),
        ("erk", 0.001, 8.9),
        ("balanced", 0.001, 17.8),
    ],
)
def test_the_size_of_the_problem_on_resnet18(rule, density, percent):
    """Dead units in percent of the budget, as measured elsewhere; a repair adds no more weights than that."""
    shapes = NETS["resnet18"]
    dead = added = 0
    for name, count in allocate(rule, shapes, density).items():
        size = math.prod(shapes[name])
        mask = bernoulli(size, count / size, 0, name)
        report = preserve(mask, shapes[name], Geometry(), 0, name, "add")[1]
        assert report.dead_after == 0
        dead, added = dead + report.dead_before, added + report.added
    budget = density * sum(map(math.prod, shapes.values()))
    assert 100 * dead / budget == pytest.approx(percent, rel=0.04, abs=0.06)
    assert 0.7 * dead <= added <= dead
