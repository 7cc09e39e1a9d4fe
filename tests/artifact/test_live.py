"""All ways to hold live positions, against a plain mask."""

import numpy as np
import pytest

from startsparse import draw
from startsparse.artifact import live

MASKS = {
    "empty": np.zeros(0, bool),
    "none": np.zeros(700, bool),
    "all": np.ones(701, bool),
    "few": np.arange(1000) % 97 == 5,
    "many": np.arange(999) % 7 != 5,
    "far": np.arange(5000) > 4998,
}


def ways(mask: np.ndarray) -> list[live.Live]:
    where, size = np.flatnonzero(mask), len(mask)
    found = [live.Bits(np.packbits(mask), size), live.Positions(lambda: where, len(where), size)]
    return [*found, found[1].held(), live.of_mask(mask), *([live.All(size)] if mask.all() else [])]


def check(found: live.Live, mask: np.ndarray) -> None:
    assert (found.size, found.count) == (len(mask), mask.sum())
    assert found.all_positions().dtype == np.int64
    assert found.all_positions().tolist() == np.flatnonzero(mask).tolist()
    starts = range(0, len(mask), live.PART)
    parts = [mask[start : start + live.PART] for start in starts]
    assert [part.tolist() for part in found.bits()] == [np.packbits(part).tolist() for part in parts]
    expected = [(np.flatnonzero(part) + start).tolist() for start, part in zip(starts, parts, strict=True)]
    assert [part.tolist() for part in found.positions()] == expected


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("part", [64, 1 << 20])
def test_every_way_gives_the_same_parts(name, part, monkeypatch):
    monkeypatch.setattr(live, "PART", part)
    mask = MASKS[name]
    for found in ways(mask):
        check(found, mask)
        assert live.same(found, live.of_mask(mask))
    assert isinstance(live.of_mask(mask), live.All) == bool(mask.all())


@pytest.mark.parametrize("part", [64, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 900, 4097])
def test_draws(size, part, monkeypatch):
    monkeypatch.setattr(live, "PART", part)
    for count in {0, size // 100, size // 2, size}:
        check(live.exactly(count, 3, "w", size), draw.exact(size, count, 3, "w"))
    for density in (0.0, 0.03, 1.0):
        check(live.Coins(density, 3, "w", size), draw.bernoulli(size, density, 3, "w"))


def test_other_positions_are_not_the_same():
    few, mask = live.of_mask(MASKS["few"]), MASKS["few"].copy()
    mask[5], mask[6] = False, True
    assert not live.same(few, live.of_mask(mask))
    assert not live.same(few, live.of_mask(np.append(MASKS["few"], False)))


def test_positions_are_looked_up_when_they_are_needed():
    looks = []

    def find() -> np.ndarray:
        looks.append(1)
        return np.array([3, 70])

    found = live.Positions(find, 2, 100)
    assert not looks
    held = found.held()
    assert len(looks) == 1
    assert held.all_positions().tolist() == np.concatenate(list(held.positions())).tolist() == [3, 70]
    assert len(looks) == 1


def test_a_size_that_no_bit_mask_could_hold_costs_parts_alone():
    size = (1 << 28) + 3
    found = live.Positions(lambda: np.array([5, size - 1]), 2, size)
    most = max(len(bits) for bits in found.bits())
    assert most == live.PART // 8
