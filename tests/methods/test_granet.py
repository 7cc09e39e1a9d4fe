"""GraNet: prune over all layers, then regenerate in each; from dense and from sparse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Liu et al. 2021, algorithm 1: global magnitude pruning to the cubic target, then in each layer the share r of the
# survivors goes and as many come back where the gradient is largest (also a pruned one, if it is that).
@pytest.mark.parametrize(
    ("target", "fraction", "first", "second"),
    [
        (6, 0.0, "1 1 1 1 0 0", "1 1 0 0 0 0"),  # nothing to prune, nothing to move
        (4, 0.0, "1 1 1 0 0 0", "1 0 0 0 0 0"),  # the smallest of both layers: 0.1 and 0.2
        (3, 0.0, "1 1 0 0 0 0", "1 0 0 0 0 0"),
        (
            4,
            0.5,
            "1 1 0 0 0 1",
            "1 0 0 0 0 0",
        ),  # of three survivors one (0.3) moves to 5; one survivor: none moves
        (6, 0.5, "1 1 0 0 1 1", "1 0 0 0 1 0"),
        (4, 1.0, "0 0 0 1 1 1", "0 0 0 0 1 0"),  # 3 was pruned, and is regenerated: it keeps its value
    ],
)
def test_granet_by_hand(target, fraction, first, second):
    views = {
        "a": view([5.0, -4.0, 0.3, 0.1, 0.0, 0.0], "1 1 1 1 0 0", [0.0, 0.0, 0.0, 3.0, 4.0, 5.0], name="a"),
        "b": view([2.0, 0.2, 0.0, 0.0, 0.0, 0.0], "1 1 0 0 0 0", [0.0, 0.0, 1.0, 1.0, 9.0, 1.0], name="b"),
    }
    granet = ss.GraNet(0.3, regrow_fraction=fraction, regrow_schedule="constant", update_interval=1)
    assert updated(granet, views, 1, target) == {"a": first, "b": second}


@pytest.mark.parametrize(("start", "first"), [(0.5, 600), (1.0, 1200), (0.05, 120)])
def test_from_dense_and_from_sparse_along_the_cubic(start, first):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    granet = ss.GraNet(0.1, start_density=start, update_interval=2, update_begin=2)
    sparse = ss.attach(model, optimizer, granet, total_steps=20)
    assert mask_rules.num_active(sparse.masks) == first
    for step in range(20):
        model(torch.randn(4, 20)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        progress = min(max(step // 2 * 2 - 2, 0) / 6, 1)  # prunings at 2, 4, 6, 8
        expected = round(1200 * (0.1 + (first / 1200 - 0.1) * (1 - progress) ** 3))
        assert mask_rules.num_active(sparse.masks) == expected
    assert sparse.report().num_updates == 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start_density": 1.5}, r"start_density must be in \[0, 1\], got 1.5"),
        ({"regrow_fraction": -1}, "regrow_fraction must be"),
        ({"update_interval": 0}, "update_interval must be"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.GraNet(0.1, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"update_interval": 100}, "would never be reached"),
        (
            {"update_interval": 2, "prune_end": 0.9, "update_end": 0.5},
            "prune_end=0.9 lies after update_end=0.5",
        ),
    ],
)
def test_schedules_that_cannot_end_are_refused(given, message):
    model = nn.Linear(20, 30)
    with pytest.raises(ValueError, match=message):
        _ = ss.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), ss.GraNet(0.1, **given), total_steps=20
        )


def test_layers_that_never_change_are_refused():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"granet prunes during training, but 0.weight never changes"):
        _ = ss.attach(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            ss.GraNet(0.1, update_interval=2),
            total_steps=20,
        )
