"""Static random masks: a hand-made table of the draw, every distribution, both draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.distributions import allocate
from startsparse.draw import Drawn

from .tables import layer, written


def attach(model, method, **options):
    return ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, **options)


def named(count: int) -> nn.Module:
    """A layer ``fc1`` of this many weights, as in the example of ``startsparse.draw``."""
    model = nn.Module()
    model.fc1 = nn.Linear(count, 1, bias=False)
    return model


# The order of the six positions of fc1.weight under seed 0 is 1 3 4 5 0 2 (the example in startsparse/draw.py): an
# exact draw takes them from the front, inside a source those of them that lie in it.
@pytest.mark.parametrize(
    ("count", "source", "expected"),
    [
        (1, None, "0 1 0 0 0 0"),
        (2, None, "0 1 0 1 0 0"),
        (3, None, "0 1 0 1 1 0"),
        (5, None, "1 1 0 1 1 1"),
        (6, None, "1 1 1 1 1 1"),
        (1, "1 0 1 1 0 1", "0 0 0 1 0 0"),
        (2, "1 0 1 1 0 1", "0 0 0 1 0 1"),
        (3, "1 0 1 1 0 1", "1 0 0 1 0 1"),
        (4, "1 0 1 1 0 1", "1 0 1 1 0 1"),
    ],
)
def test_static_by_hand(count, source, expected):
    inside = None
    if source is not None:
        inside = ss.MaskSource({"fc1.weight": torch.tensor([[word == "1" for word in source.split()]])})
    sparse = attach(named(6), ss.Static(density=count / 6), source=inside)
    assert written(sparse.masks["fc1.weight"]) == expected


def test_a_source_too_small_is_refused_by_name():
    inside = ss.MaskSource({"fc1.weight": torch.tensor([[True, False, True, False, True, False]])})
    with pytest.raises(ValueError, match=r"hold only 3; limited by the source: fc1\.weight"):
        attach(named(6), ss.Static(density=2 / 3), source=inside)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 10)
    )


@pytest.mark.parametrize("distribution", [*ss.distributions.names(), {"0": 1.0}, {"4": 0.25, "*": "uniform"}])
@pytest.mark.parametrize("density", [0.45, 0.6])
def test_every_distribution_is_met_layer_by_layer(distribution, density):
    sparse = attach(net(), ss.Static(density, distribution))
    shapes = {name: tuple(mask.shape) for name, mask in sparse.masks.items()}
    wanted = allocate(distribution, shapes, density)
    assert {name: int(mask.sum()) for name, mask in sparse.masks.items()} == wanted
    assert sparse.target_count == sum(wanted.values()) == round(density * (216 + 288 + 80))
    assert set(sparse.drawn) == set(shapes)


def test_a_bernoulli_draw_has_the_count_it_drew():
    counts = set()
    for seed in range(8):
        sparse = attach(net(), ss.Static(0.3, "uniform", seed=seed, draw="bernoulli"))
        count = sum(int(mask.sum()) for mask in sparse.masks.values())
        assert count == sparse.target_count
        mask = sparse.masks["0.weight"]
        drawn = Drawn("bernoulli", seed, "0.weight", 216, density=65 / 216)
        assert torch.equal(mask.view(-1), torch.from_numpy(drawn.mask()))
        counts.add(count)
    assert len(counts) > 3
    assert all(abs(count - 175) < 45 for count in counts)  # sd 11


def test_masks_of_a_larger_density_keep_those_of_a_smaller_one():
    small = attach(net(), ss.Static(0.1, "uniform", seed=3)).masks
    large = attach(net(), ss.Static(0.4, "uniform", seed=3)).masks
    assert all(not bool((small[name] & ~large[name]).any()) for name in small)


@pytest.mark.parametrize("flow", ["add", "keep_budget"])
@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_flow_repair_is_counted_and_reported(flow, draw):
    sparse = attach(net(), ss.Static(0.2, "uniform", draw=draw, flow=flow))
    plain = attach(net(), ss.Static(0.2, "uniform", draw=draw))
    live = sum(int(mask.sum()) for mask in sparse.masks.values())
    assert live == sparse.target_count
    added = sum(repair.added for repair in sparse.report().repairs.values())
    removed = sum(repair.removed for repair in sparse.report().repairs.values())
    assert added > 0
    assert live == plain.target_count + added - removed
    if flow == "keep_budget":
        assert added == removed
    assert "2.weight" not in sparse.drawn and "flow repair of 2.weight" in str(sparse.report())


def test_a_budget_that_a_repair_cannot_keep_is_said_aloud():
    model = nn.Linear(8, 10)
    with pytest.warns(UserWarning, match="keep_budget"):
        sparse = attach(model, ss.Static(0.08, flow="keep_budget"))
    assert sparse.target_count > round(0.08 * 80)


def test_weights_keep_their_initial_values_where_they_live():
    model = layer([1.0, 2.0, 3.0, 4.0])
    sparse = attach(model, ss.Static(0.5))
    mask = sparse.masks["fc.weight"]
    assert torch.equal(model.fc.weight, torch.tensor([[1.0, 2.0, 3.0, 4.0]]) * mask)
