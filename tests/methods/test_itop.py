"""ITOP: the regime, what it grows by, and the share of all weights that was ever live."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.tables import percent

from .family import updated, view

WEIGHTS = [4.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0]
GRADIENT = [0.0, 0.0, 9.0, 1.0, -5.0, 2.0, 7.0, -0.5]
MASK = "1 1 1 1 0 0 0 0"


# Liu et al. 2021: the updates of RigL (or SET), so the same table; what was live before or is now has been explored.
@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.25, "1 1 1 0 0 0 1 0"),
        (0.5, "1 1 1 0 0 0 1 0"),  # 2 comes back at once
        (0.75, "1 0 1 0 1 0 1 0"),
    ],
)
def test_itop_by_hand(fraction, expected):
    itop = ss.ITOP(0.5, drop_fraction=fraction, drop_schedule="constant")
    assert updated(itop, {"fc.weight": view(WEIGHTS, MASK, GRADIENT)}, 1, 4) == {"fc.weight": expected}


def test_random_growth_is_that_of_set():
    layer = view(WEIGHTS, MASK)
    options = {"drop_fraction": 0.5, "drop_schedule": "constant", "seed": 3}
    itop, reference = ss.ITOP(0.5, growth="random", **options), ss.SET(0.5, **options)
    assert updated(itop, {"fc.weight": layer}, 5, 4) == updated(reference, {"fc.weight": layer}, 5, 4)
    assert not itop.wants_gradient(0, 4000) and ss.ITOP(0.5, update_interval=5).wants_gradient(5, 10)


def test_the_share_falls_to_its_end_over_the_whole_run():
    itop = ss.ITOP(0.5)
    cosine = [0.25 * (1 + math.cos(math.pi * t / 100)) for t in (0, 50, 100)]
    expected = [0.005 + 0.99 * value for value in cosine]
    assert [itop.fraction(t, 100) for t in (0, 50, 100)] == pytest.approx(expected)
    assert ss.ITOP(0.5, drop_fraction=0.0).fraction(50, 100) == 0
    assert ss.ITOP(0.5, update_interval=50).due(950, 1000)


def test_the_explored_share_is_reported_and_only_grows():
    model = nn.Linear(40, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, ss.ITOP(0.1, update_interval=2, growth="random"), total_steps=20)
    ever, shares = sparse.masks["weight"].clone(), []
    for _ in range(20):
        model(torch.randn(4, 40)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ever |= sparse.masks["weight"]
        shares.append(sparse.report().figures["explored"])
        assert shares[-1] == pytest.approx(int(ever.sum()) / 400)
    assert shares[0] == pytest.approx(0.1) and shares[-1] > 0.2 and shares == sorted(shares)
    assert f"explored {percent(shares[-1])}" in str(sparse.report())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"growth": "grad"}, "unknown growth 'grad': did you mean 'gradient'"),
        ({"drop_end": 2}, r"drop_end must be in \[0, 1\], got 2"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.ITOP(0.1, **given)
