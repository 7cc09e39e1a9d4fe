"""CHT by hand and beside a count of paths; CHTs draws in proportion to the scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import startsparse as ss
from startsparse.methods.cht import ch3_l3

from .family import after, view

LINKS = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]]


def paths(live, v, u):
    """The score of a pair by its definition: every path u - a - b - v, links that leave the pair's community."""
    outputs, inputs = live.shape
    found = [
        (a, b)
        for a, b in itertools.product(range(outputs), range(inputs))
        if a != v and b != u and live[a, u] and live[a, b] and live[v, b]
    ]
    community_a, community_b = {a for a, _ in found}, {b for _, b in found}
    total = 0.0
    for a, b in found:
        e_a = sum(1 for i in range(inputs) if live[a, i] and i != u and i not in community_b)
        e_b = sum(1 for o in range(outputs) if live[o, b] and o != v and o not in community_a)
        total += 1 / math.sqrt((1 + e_a) * (1 + e_b))
    return total


def test_scores_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        live = (torch.rand(6, 8, generator=generator) < 0.3).float()
        score = ch3_l3(live)
        for v, u in itertools.product(range(6), range(8)):
            if not live[v, u]:
                assert float(score[v, u]) == pytest.approx(paths(live, v, u), abs=1e-6)


# Zhang et al. 2025: the smallest links go, then those grow that paths of length three join in what is left. Three
# outputs, four inputs, links as in LINKS.
@pytest.mark.parametrize(
    ("fraction", "certain"),
    [
        (0.0, {(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)}),
        (
            0.2,
            {(0, 0), (0, 1), (1, 0), (1, 2)},
        ),  # 2-1 goes; 0-2 and 1-1 are joined by one path each, one of them comes
        (0.4, {(0, 0), (0, 1), (1, 0), (1, 1)}),  # 1-2 and 2-1 go; only 1-1 is joined, and one more is drawn
    ],
)
def test_cht_by_hand(fraction, certain):
    mask = " ".join(str(link) for row in LINKS for link in row)
    layer = view([9.0, 8.0, 0.0, 0.0, 7.0, 0.0, 6.0, 0.0, 0.0, 3.0, 0.0, 0.0], mask, rows=3)
    for seed in range(8):
        cht = ss.CHT(0.5, drop_fraction=fraction, seed=seed)
        change = cht.update({"fc.weight": layer}, 1, 5, 100)["fc.weight"]
        live = {divmod(i, 4) for i, bit in enumerate(after(layer.mask, change).split()) if bit == "1"}
        assert certain <= live and len(live) == 5
        assert fraction != 0.2 or live - certain <= {(0, 2), (1, 1)}


def test_cht_by_hand_relative_importance():
    """abs(w) over the sum of its row and over that of its column: the scores are 1.75, 1.08, 0.97 and 1.2."""
    layer = view([9.0, 1.0, 2.0, 0.0, 0.0, 0.5], "1 1 1 0 0 1", rows=2)
    for removal, gone in (("magnitude", 5), ("relative", 2)):
        cht = ss.CHT(0.5, removal=removal, drop_fraction=0.25, exclude_dropped=True)
        assert cht.update({"w": layer}, 1, 4, 100)["w"].dropped.tolist() == [gone]


def test_chts_draws_in_proportion_to_the_scores():
    # Output 0 has inputs 0 1 2, output 1 has 0 1: 1-2 is joined by two paths. Output 2 has 5: it joins nothing.
    links = [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]
    flat = [link for row in links for link in row]
    mask = " ".join(map(str, flat))
    layer = view([float(link) for link in flat], mask, rows=4)
    score = ch3_l3(torch.tensor(links).float()).masked_fill(torch.tensor(links).bool(), 0)
    share = score / score.sum()
    times = torch.zeros(24)
    for step in range(400):
        cht = ss.CHT(0.5, soft=True, drop_fraction=1 / 7, exclude_dropped=True)
        view_ = view([0.1 if i == 15 else float(link) for i, link in enumerate(flat)], mask, rows=4)
        times[cht.update({"w": view_}, step, 7, 1000)["w"].grown] += 1
    assert int(times.sum()) == 400 and layer.num_active == 7
    assert bool(((times / 400 - share.reshape(-1)).abs() < 0.1).all())


@pytest.mark.parametrize(
    ("given", "message"),
    [({"removal": "magnitud"}, "did you mean 'magnitude'"), ({"soft": 1}, "soft must be True or False")],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.CHT(0.1, **given)
