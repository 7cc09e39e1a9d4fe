import numpy as np
import pytest

from startsparse import draw
from startsparse.artifact import FormatError, positions
from startsparse.artifact.live import of_mask


def encode(mask, claim=None):
    row, packed = positions.encode(of_mask(mask), "w", claim)
    count, length, _ = positions.parse(row, len(mask), "w")
    assert (count, length) == (mask.sum(), len(packed))
    live = positions.decode(row, packed, len(mask), "w")
    assert live.all_positions().tolist() == np.flatnonzero(mask).tolist()
    return row


def test_the_shortest_encoding_is_chosen():
    place = np.arange(2000)
    assert encode(place >= 0) == ["all", 2000]
    assert encode(place % 2 == 0)[0] == "bits"
    assert encode(place % 40 == 0)[0] == "rice"
    assert encode(place < 0) == ["rice", 0, 0, 0]
    assert encode(np.zeros(0, bool)) == ["all", 0]


def test_a_draw_costs_a_seed():
    mask = draw.exact(2000, 100, 3, "w")
    claim = {"rule": "exact", "seed": 3, "name": "w", "count": 100}
    assert encode(mask, claim) == ["exact", 100, 3]
    other = draw.exact(2000, 100, 3, "v")
    assert encode(other, claim | {"name": "v"}) == ["exact", 100, 3, "v"]
    coin = draw.bernoulli(2000, 0.1, 3, "w")
    assert encode(coin, {"rule": "bernoulli", "seed": 3, "name": "w", "density": 0.1}) == [
        "bernoulli", int(coin.sum()), 3, 0.1,
    ]  # fmt: skip


def test_a_claim_that_does_not_draw_the_mask_is_not_used():
    mask = draw.exact(2000, 100, 3, "w")
    claim = {"rule": "exact", "seed": 3, "name": "w", "count": 100}
    for wrong in ({"seed": 4}, {"name": "v"}, {"count": 99}, {"rule": "latin"}):
        assert encode(mask, claim | wrong)[0] == "rice"
    mask[np.flatnonzero(mask)[0]] = False
    assert encode(mask, claim)[0] == "rice"


@pytest.mark.parametrize(
    "row",
    [
        [], ["bits"], ["bits", 1.0], ["bits", -1], ["bits", 11], ["bits", True], ["all", 9], ["zip", 3],
        ["rice", 1, 2], ["rice", 1, 2, -1], ["rice", 1, True, 2], ["exact", 3], ["exact", 3, 0.5], ["exact", 3, 1, 2],
        ["exact", 3, 1, "a", "b"], ["bernoulli", 3, 1, 1.5], ["bernoulli", 3, 1, float("inf")], ["bernoulli", 3, 1],
        [["bits"], 3], "bits",
    ],
)  # fmt: skip
def test_unknown_rows_are_refused(row):
    with pytest.raises(FormatError, match="mask of 'w'"):
        positions.parse(list(row), 10, "w")


def test_counts_that_disagree_are_refused():
    with pytest.raises(FormatError, match="2 live positions where 3"):
        positions.decode(["bits", 3], np.array([0b11000000], np.uint8), 8, "w")
    with pytest.raises(FormatError, match="live positions where 3"):
        positions.decode(["bernoulli", 3, 0, 1.0], np.zeros(0, np.uint8), 8, "w")
