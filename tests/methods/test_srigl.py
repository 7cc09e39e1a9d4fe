"""SRigL: constant fan-in by hand, ablation of units, sources that leave some units little room."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules
from startsparse.methods.srigl import spread

from .family import after, view

WEIGHTS = [
    5.0,
    4.0,
    0.0,
    0.0,
    3.0,
    0.2,
    0.0,
    0.0,
    0.1,
    0.3,
    0.0,
    0.0,
]  # three units of four inputs, two live each
GRADIENT = [0.0, 0.0, 1.0, 9.0, 0.0, 0.0, 8.0, 1.0, 0.0, 0.0, 2.0, 1.0]
MASK = "1 1 0 0 1 1 0 0 1 1 0 0"


# Lasby et al. 2024, section 3. Half of six weights go: 0.1, 0.2, 0.3. Salient: 5, 4, 3 and the gradients 9, 8, 2, so
# three, two and one in the three units.
@pytest.mark.parametrize(
    ("threshold", "last", "expected"),
    [
        (
            0.0,
            False,
            "1 1 0 0 1 0 1 0 0 0 1 1",
        ),
        (0.5, False, "1 1 0 0 1 0 1 0 0 0 1 1"),  # one salient weight is half of two: it stays
        (0.6, False, "1 1 0 1 1 0 1 1 0 0 0 0"),  # now it goes, and the other two have three inputs each
        (0.6, True, "1 1 0 0 1 0 1 0 0 0 1 1"),  # never in the last layer
        (1.0, False, "1 1 0 1 1 0 1 1 0 0 0 0"),
    ],
)
def test_srigl_by_hand(threshold, last, expected):
    layer = view(WEIGHTS, MASK, GRADIENT, rows=3)
    views = (
        {"fc.weight": layer} if last else {"fc.weight": layer, "head": view([1.0], "1", [0.0], name="head")}
    )
    srigl = ss.SRigL(0.5, ablation_threshold=threshold, drop_fraction=0.5, drop_schedule="constant")
    change = srigl.update(views, 1, 6, 100)["fc.weight"]
    assert after(layer.mask, change) == expected


def test_srigl_by_hand_least_number_of_units():
    layer = view(WEIGHTS, MASK, GRADIENT, rows=3)
    views = {"fc.weight": layer, "head": view([1.0], "1", [0.0], name="head")}
    options = {"ablation_threshold": 1.0, "drop_fraction": 0.5, "drop_schedule": "constant"}
    three = ss.SRigL(0.5, min_units=3, **options).update(views, 1, 6, 100)["fc.weight"]
    assert after(layer.mask, three) == "1 1 0 0 1 0 1 0 0 0 1 1"
    # without the second unit's room, six weights need the third unit again
    narrow = view(WEIGHTS, MASK, GRADIENT, rows=3, source="1 1 0 1 1 1 0 0 1 1 1 0")
    change = ss.SRigL(0.5, **options).update(views | {"fc.weight": narrow}, 1, 6, 100)["fc.weight"]
    assert after(narrow.mask, change).count("1") == 6


def test_weights_are_spread_as_evenly_as_their_room_allows():
    assert spread(8, torch.tensor([9, 9, 9])).tolist() == [3, 3, 2]
    assert spread(8, torch.tensor([1, 9, 0])).tolist() == [1, 7, 0]
    assert spread(0, torch.tensor([0, 0])).tolist() == [0, 0]


def fan_ins(mask):
    return mask.reshape(mask.shape[0], -1).sum(1)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("source", [None, ss.RandomSource(0.5, seed=2)])
def test_fan_ins_differ_by_one_at_most_and_ablated_units_stay_away(execution, source):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = ss.SRigL(0.2, ablation_threshold=0.8, update_interval=2, drop_fraction=0.5)
    sparse = ss.attach(model, optimizer, method, source=source, total_steps=30, execution=execution)
    gone = torch.zeros(12, dtype=torch.bool)
    for _ in range(30):
        fan = fan_ins(sparse.masks["0.weight"])
        assert not bool(fan[gone].any())
        gone = fan == 0
        assert source is not None or int(fan[~gone].max() - fan[~gone].min()) <= 1
        head = fan_ins(sparse.masks["3.weight"])
        assert int(head.max() - head.min()) <= 1
        assert mask_rules.num_active(sparse.masks) == sparse.target_count == round(0.2 * (216 + 1920))
        assert mask_rules.is_subset(sparse.masks, sparse.source_masks)
        (model(torch.randn(8, 2, 6, 6)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert bool(gone.any())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draw": "bernoulli"}, "draw must be 'exact', got 'bernoulli'"),
        ({"flow": "add"}, "flow must be 'none'"),
        ({"ablation_threshold": 3}, r"ablation_threshold must be in \[0, 1\], got 3"),
        ({"min_units": 0}, "min_units must be an int >= 1"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.SRigL(0.1, **given)


def test_transposed_convolutions_are_refused_by_name():
    model = nn.Sequential(nn.ConvTranspose2d(2, 4, 3))
    with pytest.raises(ValueError, match=r"srigl: the outputs of 0\.weight are not the rows of its weight"):
        _ = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.SRigL(0.1), total_steps=200)
