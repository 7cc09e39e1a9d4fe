"""MEST: elastic mutation by hand, and the soft bound that comes down to the final count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view

WEIGHTS = [4.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0]
GRADIENT = [0.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0]
MASK = "1 1 1 1 0 0 0 0"


# Yuan et al. 2021, section 3: drop the least important by abs(w) + lambda abs(g), grow at random. Where as many
# positions are free as must grow, nothing is left to chance.
@pytest.mark.parametrize(
    ("fraction", "weight", "source", "expected"),
    [
        (0.0, 0.0, None, "1 1 1 1 0 0 0 0"),
        (0.25, 0.0, "1 1 1 1 0 0 1 0", "1 1 1 0 0 0 1 0"),
        (0.25, 1.0, "1 1 1 1 0 0 1 0", "1 1 0 1 0 0 1 0"),  # 0.1 + 1 beats 0.2: position 2 goes
        (0.5, 0.0, "1 1 1 1 0 1 0 1", "1 1 0 0 0 1 0 1"),
        (1.0, 0.0, None, "0 0 0 0 1 1 1 1"),
    ],
)
def test_mest_by_hand(fraction, weight, source, expected):
    more = {} if source is None else {"source": source}
    layer = view(WEIGHTS, MASK, GRADIENT, **more)
    mest = ss.MEST(
        0.5, drop_fraction=fraction, drop_schedule="constant", gradient_weight=weight, exclude_dropped=True
    )
    assert updated(mest, {"fc.weight": layer}, 1, 4) == {"fc.weight": expected}


# EM&S: six live weights where four may stay. An update prunes to four (less the mutation) and grows the surplus.
@pytest.mark.parametrize(
    ("fraction", "target", "source", "expected"),
    [
        (0.0, 5, "1 1 1 1 1 1 1 0", "1 1 1 1 0 0 1 0"),  # 4 and 5 go, one comes: 6
        (0.0, 4, None, "1 1 1 1 0 0 0 0"),  # the last update: no surplus
        (0.25, 4, "1 1 1 1 1 1 1 0", "1 1 1 0 0 0 1 0"),
        (0.25, 5, "1 1 1 1 1 1 1 1", "1 1 1 0 0 0 1 1"),
    ],
)
def test_mest_by_hand_soft_bound(fraction, target, source, expected):
    more = {} if source is None else {"source": source}
    layer = view([8.0, 7.0, 6.0, 5.0, 0.4, 0.3, 0.0, 0.0], "1 1 1 1 1 1 0 0", **more)
    mest = ss.MEST(
        0.5,
        soft_bound=0.5,
        drop_fraction=fraction,
        drop_schedule="constant",
        exclude_dropped=True,
        update_interval=1,
        update_end=50,
    )
    assert updated(mest, {"fc.weight": layer}, 1, target) == {"fc.weight": expected}


@pytest.mark.parametrize("source", [None, ss.RandomSource(0.12, seed=2)])
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_the_surplus_comes_down_in_steps_and_ends_exactly(source, execution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mest = ss.MEST(0.1, soft_bound=0.5, update_interval=2, update_end=1.0)
    sparse = ss.attach(model, optimizer, mest, source=source, total_steps=20, execution=execution)
    counts = []
    for _ in range(20):
        model(torch.randn(4, 20)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.append(mask_rules.num_active(sparse.masks))
        assert counts[-1] == sparse.target_count
        assert mask_rules.is_subset(sparse.masks, sparse.source_masks)
    most = 180 if source is None else 144
    assert counts[0] == most and counts[-1] == 120
    assert sorted(set(counts), reverse=True) == ([180, 150, 120] if source is None else [144, 120])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"soft_bound": -0.1}, "soft_bound must be a number >= 0, got -0.1"),
        ({"gradient_weight": float("nan")}, "gradient_weight must be"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.MEST(0.1, **given)


def test_a_soft_bound_that_cannot_come_down_is_refused():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="never update"), pytest.raises(ValueError, match="never come down"):
        _ = ss.attach(model, optimizer, ss.MEST(0.1, soft_bound=0.5), total_steps=20)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"mest with a soft_bound.*0.weight never changes"):
        _ = ss.attach(model, optimizer, ss.MEST(0.1, soft_bound=0.5, update_interval=2), total_steps=20)
