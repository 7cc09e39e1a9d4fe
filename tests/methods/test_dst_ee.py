"""DST-EE by hand: the bonus, and the count of updates at which a position was live."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import startsparse as ss

from .family import after, updated, view

WEIGHTS = [4.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0]
GRADIENT = [0.0, 0.0, 0.3, 0.0, 2.0, 1.9, 1.0, 0.9]
MASK = "1 1 1 1 0 0 0 0"


# Huang et al. 2023, section 3: abs(g) + c ln(t) / (N + eps). At t = e^2 (step 7) the bonus is about 2 c / (N + 1).
@pytest.mark.parametrize(
    ("c", "seen", "times", "expected"),
    [
        (0.0, [], [], "1 1 0 0 1 1 0 0"),  # RigL
        (1.0, [], [], "1 1 0 0 1 1 0 0"),  # the same bonus for all that never lived
        (1.0, [4, 5], [9, 9], "1 1 0 0 0 0 1 1"),  # 2.2 and 2.1 against 2.9 and 2.8
        (1.0, [4, 5], [9, 1], "1 1 0 0 0 1 1 0"),  # 1.9 + 1 = 2.9 against 2.9 (position 6) and 2.8 (7)
        (0.1, [4, 5], [9, 9], "1 1 0 0 1 1 0 0"),  # too small a bonus
    ],
)
def test_dst_ee_by_hand(c, seen, times, expected):
    memory = {"seen": torch.tensor(seen, dtype=torch.int64), "times": torch.tensor(times, dtype=torch.int32)}
    layer = view(WEIGHTS, MASK, GRADIENT, memory=memory if seen else {})
    dst_ee = ss.DSTEE(0.5, exploration=c * 2 / math.log(7), drop_fraction=0.5, drop_schedule="constant")
    assert updated(dst_ee, {"fc.weight": layer}, 7, 4) == {"fc.weight": expected}


def test_what_is_remembered():
    layer = view(
        WEIGHTS,
        MASK,
        GRADIENT,
        memory={"seen": torch.tensor([0, 5]), "times": torch.tensor([3, 2], dtype=torch.int32)},
    )
    change = ss.DSTEE(0.5).update({"fc.weight": layer}, 1, 4, 100)["fc.weight"]
    assert change.memory["seen"].tolist() == [0, 1, 2, 3, 5]
    assert change.memory["times"].tolist() == [4, 1, 1, 1, 2]


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_counts_over_a_run_and_more_of_the_net_is_tried_than_by_rigl(execution):
    tried = {}
    for c in (0.0, 10.0):
        torch.manual_seed(0)
        model = nn.Linear(40, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = ss.DSTEE(0.1, exploration=c, update_interval=2, drop_schedule="constant", update_end=1.0)
        sparse = ss.attach(model, optimizer, method, total_steps=40, execution=execution)
        lived = torch.zeros(10, 40, dtype=torch.int32)
        for step in range(40):
            (model(torch.randn(4, 40)) - 1).square().mean().backward()
            lived += sparse.masks["weight"] if step and step % 2 == 0 else 0
            optimizer.step()
            optimizer.zero_grad()
        memory = sparse._sites["weight"].memory
        assert torch.equal(lived.reshape(-1).nonzero().squeeze(1), memory["seen"])
        assert torch.equal(lived.reshape(-1)[memory["seen"]], memory["times"])
        tried[c] = len(memory["seen"])
    assert tried[10.0] > 1.2 * tried[0.0]


def test_without_a_bonus_it_is_rigl():
    layer = view(WEIGHTS, MASK, GRADIENT)
    ours = ss.DSTEE(0.5, exploration=0.0).update({"w": layer}, 5, 4, 100)["w"]
    theirs = ss.RigL(0.5).update({"w": layer}, 5, 4, 100)["w"]
    assert after(layer.mask, ours) == after(layer.mask, theirs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exploration": -1}, "exploration must be a number >= 0"),
        ({"smoothing": 0}, "smoothing must be a number"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.DSTEE(0.1, **given)
