"""AC/DC: the schedule of dense and sparse phases, and what each change does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Peste et al. 2021, algorithm 1: compress to the globally largest weights, decompress to all.
@pytest.mark.parametrize(
    ("step", "masks", "target", "expected"),
    [
        (10, ("1 1 1 1", "1 1 1 1"), 3, ("1 1 0 0", "0 0 0 1")),
        (15, ("1 1 0 0", "0 0 0 1"), 8, ("1 1 1 1", "1 1 1 1")),
        (85, ("1 1 1 1", "1 1 1 1"), 1, ("1 0 0 0", "0 0 0 0")),
    ],
)
def test_acdc_by_hand(step, masks, target, expected):
    views = {
        "a": view([-5.0, 3.0, 0.5, 0.1], masks[0], name="a"),
        "b": view([0.4, -0.2, 0.3, 2.0], masks[1], name="b"),
    }
    assert tuple(updated(ss.ACDC(0.3), views, step, target).values()) == expected


def test_the_phases_of_the_authors_schedule():
    """100 epochs: 10 dense, 5 and 5 in turn, dense from 75 to 85, then sparse."""
    acdc = ss.ACDC(0.1)
    dense = [acdc.target(step, 1000, 1000, 100) == 1000 for step in range(100)]
    expected = [
        step < 10 or (step < 75 and (step - 10) // 5 % 2 == 1) or 75 <= step < 85 for step in range(100)
    ]
    assert dense == expected
    changes = [step for step in range(100) if acdc.due(step, 100)]
    assert changes == [*range(10, 76, 5), 85]
    assert [acdc.phase(step, 100) for step in (0, 10, 11, 16, 86)] == [
        "dense",
        "dense",
        "sparse",
        "dense",
        "fixed",
    ]


def test_the_last_dense_phase_may_begin_in_a_dense_one():
    acdc = ss.ACDC(0.1, update_begin=1, phase_length=2, last_dense=2, update_end=7)
    assert acdc.events(None) == {1: False, 3: True, 5: True, 7: False}
    assert [step for step in range(10) if acdc.due(step, None)] == [1, 3, 7]


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_decompressed_weights_start_from_zero_with_fresh_momentum(execution):
    torch.manual_seed(0)
    model = nn.Linear(20, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    source = ss.RandomSource(0.5, seed=1)
    sparse = ss.attach(
        model,
        optimizer,
        ss.ACDC(0.1, update_begin=2, phase_length=2, last_dense=2, update_end=6),
        source=source,
        total_steps=10,
        execution=execution,
    )
    counts = []
    for step in range(10):
        before = sparse.masks["weight"].clone()
        model(torch.randn(4, 20)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.append(mask_rules.num_active(sparse.masks))
        weight = sparse.dense_state_dict()["weight"]
        if step == 4:
            assert not bool(weight[~before].any())
            momentum = next(iter(optimizer.state.values()))["momentum_buffer"]
            assert int((momentum != 0).sum()) == 20
    assert counts == [100, 100, 20, 20, 100, 100, 20, 20, 20, 20]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"update_begin": 0.9}, "must come no later than it begins"),
        ({"update_end": 1.0}, "would end dense"),
        ({"last_dense": 0.9}, "must come no later"),
    ],
)
def test_schedules_that_cannot_be_are_refused(given, message):
    model = nn.Linear(20, 30)
    with pytest.raises(ValueError, match=message):
        _ = ss.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), ss.ACDC(0.1, **given), total_steps=20
        )
