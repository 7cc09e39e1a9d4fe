"""DSR: the globally smallest weights go, and grow where more survived."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Mostafa and Wang 2019, algorithm 1: global magnitude drop, growth in proportion to the surviving weights, at random
# positions that were free before. The sources leave no choice of position.
@pytest.mark.parametrize(
    ("fraction", "floor", "source", "first", "second"),
    [
        (0.0, 1, "1 1 1 1 0 1", "1 1 1 1 0 0", "1 1 0 0 0 0"),
        # 0.1 and 0.2 go, 3 and 1 survive: a gets 1.5 and b 0.5 of two, and of the tie the first takes the whole
        (1 / 3, 1, "1 1 1 1 0 1", "1 1 1 0 0 1", "1 0 0 0 0 1"),
        # 0.1, 0.2, 0.3 and 4 would go, but every layer keeps one; 1 and 1 survive of 6: all free places are taken
        (0.7, 1, "1 1 1 1 1 1", "1 0 0 0 1 1", "1 0 1 1 0 0"),
        (1.0, 0, "1 1 1 1 1 1", None, None),
    ],
)
def test_dsr_by_hand(fraction, floor, source, first, second):
    views = {
        "a": view([5.0, -4.0, 0.3, 0.1, 0.0, 0.0], "1 1 1 1 0 0", name="a", source=source),
        "b": view([2.0, 0.2, 0.0, 0.0, 0.0, 0.0], "1 1 0 0 0 0", name="b", source="1 1 0 0 0 1"),
    }
    if fraction == 0.7:
        views["b"] = view([2.0, 0.2, 0.0, 0.0, 0.0, 0.0], "1 1 0 0 0 0", name="b", source="1 1 1 1 0 0")
    dsr = ss.DSR(0.5, drop_fraction=fraction, floor=floor)
    masks = updated(dsr, views, 1, 6)
    if first is not None:
        assert masks == {"a": first, "b": second}
    else:  # only three places are free, so only the three smallest go, and all of the places are taken
        assert masks == {"a": "1 1 0 0 1 1", "b": "1 0 0 0 0 1"}


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_weights_move_across_layers_and_the_count_stays(execution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dsr = ss.DSR(0.1, drop_fraction=0.3, update_interval=5)
    sparse = ss.attach(model, optimizer, dsr, total_steps=40, execution=execution)
    first = mask_rules.counts(sparse.masks)
    for _ in range(40):
        (model(torch.randn(8, 20)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert mask_rules.num_active(sparse.masks) == 120
    assert mask_rules.counts(sparse.masks) != first


def test_bad_hyper_parameters():
    with pytest.raises(ValueError, match="floor must be an int >= 0, got -1"):
        _ = ss.DSR(0.1, floor=-1)
