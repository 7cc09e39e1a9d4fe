"""Deep-R by hand: what crosses zero goes, and grows anywhere in the net alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Bellec et al. 2018, algorithm 1: theta = sign * w below zero makes a connection dormant, and as many others are made
# active. The sources leave room for exactly what must grow beside what was dropped, so the drawn order alone decides.
@pytest.mark.parametrize(
    ("signs", "dropped"),
    [
        ([1, -1, 1, -1], []),  # all as they were
        ([1, 1, 1, -1], [1]),  # was positive, is negative
        ([-1, 1, 1, 1], [0, 1, 3]),
        ([1, -1, -1, -1], []),  # an exact zero has crossed nothing
        (None, []),  # nothing is known yet
    ],
)
def test_deepr_by_hand(signs, dropped):
    memory = {} if signs is None else {"signs": torch.tensor(signs, dtype=torch.int8)}
    layer = view([4.0, -3.0, 0.0, -0.1, 0.0, 0.0, 0.0, 0.0], "1 1 1 1 0 0 0 0", memory=memory)
    deepr = ss.DeepR(0.5, seed=3)
    change = deepr.update({"fc.weight": layer}, 1, 4, 100)["fc.weight"]
    stays = [position for position in range(4) if position not in dropped]
    _ = updated(deepr, {"fc.weight": layer}, 1, 4)
    assert set(change.dropped.tolist()) <= set(dropped) and len(change.grown) == len(change.dropped)
    live = sorted(set(range(4)) - set(change.dropped.tolist()) | set(change.grown.tolist()))
    kept = change.memory["signs"].tolist()
    expected = [1, -1, 1, -1] if signs is None else signs
    assert len(kept) == 4 and [kept[live.index(p)] for p in stays] == [expected[p] for p in stays]
    assert set(kept) <= {1, -1}


def test_growth_is_uniform_over_the_whole_net():
    a = view(
        [1.0, 1.0, 0.0, 0.0], "1 1 0 0", name="a", memory={"signs": torch.tensor([-1, -1], dtype=torch.int8)}
    )
    b = view([1.0] + [0.0] * 11, "1" + " 0" * 11, name="b")
    times = {"a": torch.zeros(4), "b": torch.zeros(12)}
    for step in range(600):
        for name, change in ss.DeepR(0.5).update({"a": a, "b": b}, step, 3, 1000).items():
            times[name][change.grown] += 1
            if name == "a":  # a dropped position that comes back at once is no change
                back = torch.ones(2, dtype=torch.bool)
                back[change.dropped] = False
                times[name][:2] += back
    free = torch.cat([times["a"], times["b"][1:]])
    assert int(free.sum()) == 1200 and bool(((free - 80).abs() < 40).all()), free  # 80 expected, sd 8.9


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_run_rewires_at_every_step_and_every_live_weight_keeps_its_sign(execution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sparse = ss.attach(model, optimizer, ss.DeepR(0.1), total_steps=40, execution=execution)
    for _ in range(40):
        (model(torch.randn(8, 20)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert mask_rules.num_active(sparse.masks) == 120
        for name, site in sparse._sites.items():
            weights = sparse.dense_state_dict()[name][sparse.masks[name]]
            assert bool((weights * site.memory["signs"] >= 0).all())
    assert sparse.report().num_moved > 40


def test_bad_hyper_parameters():
    with pytest.raises(ValueError, match="update_interval must be an int >= 1"):
        _ = ss.DeepR(0.1, update_interval=0)
