"""SNFS: shares by mean momentum, growth by momentum, exact counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Dettmers and Zettlemoyer 2019, section 4: each layer drops its smallest share, the sum is shared by mean abs(momentum)
# of the weights that lived, and grows where abs(momentum) is largest.
# Layer a: mean momentum of the live ones 2, layer b: 1 (or as given).
@pytest.mark.parametrize(
    ("fraction", "of_a", "of_b", "first", "second"),
    [
        (0.0, 2.0, 1.0, "1 1 1 1 0 0", "1 1 0 0 0 0"),
        (
            0.5,
            2.0,
            1.0,
            "1 1 0 0 1 1",
            "1 0 0 1 0 0",
        ),  # a drops 2, b drops 1; of these 3, a gets 2 and b gets 1
        (0.5, 8.0, 0.1, "1 1 1 1 0 1", "1 0 0 0 0 0"),  # all three to a: 2 and 3 come back, and 5
        (0.5, 0.0, 1.0, "1 1 0 0 0 0", "1 1 1 1 0 0"),  # all to b, of equal momentum the lower index
        (1.0, 1.0, 1.0, "0 0 1 0 1 1", "1 1 0 1 0 0"),
    ],
)
def test_snfs_by_hand(fraction, of_a, of_b, first, second):
    views = {
        "a": view([5.0, -4.0, 0.2, 0.1, 0.0, 0.0], "1 1 1 1 0 0", [of_a] * 4 + [3.0, -4.0], name="a"),
        "b": view([2.0, 0.3, 0.0, 0.0, 0.0, 0.0], "1 1 0 0 0 0", [of_b] * 2 + [1.0, 9.0, 1.0, 1.0], name="b"),
    }
    if fraction == 1.0:  # a's momentum decides within a: 5, 4, then of the tie the lower index
        views["a"].gradient[0, 2] = 2.0
    snfs = ss.SNFS(0.5, drop_fraction=fraction, drop_schedule="constant", drop_end=0.0)
    assert updated(snfs, views, 1, 6) == {"a": first, "b": second}


def test_what_a_nearly_dense_layer_that_wants_more_gives_up():
    """Below 20 % sparsity it drops no larger a share than its sparsity."""
    weights = [float(i) for i in range(1, 11)]
    views = {
        "a": view([*weights[:9], 0.0], "1 1 1 1 1 1 1 1 1 0", [5.0] * 10, name="a"),
        "b": view(weights, "1 1 1 1 0 0 0 0 0 0", [1.0] * 10, name="b"),
    }
    snfs = ss.SNFS(0.5, drop_fraction=0.5, drop_schedule="constant", drop_end=0.0, exclude_dropped=True)
    changes = snfs.update(views, 1, 13, 100)
    assert {name: len(change.dropped) for name, change in changes.items()} == {"a": 0, "b": 2}
    assert {name: len(change.grown) for name, change in changes.items()} == {"a": 1, "b": 1}


def test_the_momentum_is_a_moving_average_of_the_dense_gradient():
    model = nn.Linear(6, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = ss.SNFS(0.5, update_interval=3, momentum=0.5, drop_fraction=0.4, drop_schedule="constant")
    sparse = ss.attach(model, optimizer, method, total_steps=10)
    generator, average, seen = torch.Generator().manual_seed(0), torch.zeros(6), None
    for step in range(4):
        x = torch.randn(6, generator=generator)
        model(x[None]).sum().backward()
        average = 0.5 * average + x
        before = sparse.masks["weight"].clone().reshape(-1)
        optimizer.step()
        optimizer.zero_grad()
        seen = before if step == 3 else seen
    grown = (sparse.masks["weight"].reshape(-1) & ~seen).nonzero().squeeze(1)
    assert len(grown) <= 1
    live = seen.nonzero().squeeze(1)
    dropped = live[model.weight.detach().reshape(-1)[live].abs().argmin()] if len(grown) else None
    free = average.abs().masked_fill(seen, -1)
    assert dropped is None or grown.item() == int(free.argmax())


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_weights_move_across_layers_and_the_count_stays(execution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = ss.attach(model, optimizer, ss.SNFS(0.1, update_interval=5), total_steps=40, execution=execution)
    first = mask_rules.counts(sparse.masks)
    for _ in range(40):
        (model(torch.randn(8, 20)) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert mask_rules.num_active(sparse.masks) == 120
    assert mask_rules.counts(sparse.masks) != first
    assert not sparse._sites["0.weight"].memory, "nothing is kept after the last update"


@pytest.mark.parametrize(
    ("given", "message"),
    [({"momentum": 1.0}, "momentum must be in"), ({"drop_end": -0.1}, "drop_end must be in")],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.SNFS(0.1, **given)
