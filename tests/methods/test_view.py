from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse.draw import Permutation
from startsparse.methods.view import DenseView

quick = settings(max_examples=60, deadline=None, derandomize=True)
NONE = torch.empty(0, dtype=torch.int64)


def view_of(source=True, gradient=True):
    """Eight positions: 1, 4, 6 live; 0 and 7 are outside of the source."""
    return DenseView(
        "fc.weight",
        torch.tensor([[0.0, 1.0, 0.0, 0.0], [-4.0, 0.0, 0.5, 0.0]]),
        torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0]]) > 0,
        torch.tensor([0, 1, 1, 1, 1, 1, 1, 0]) > 0 if source else None,
        torch.tensor([[9.0, 0.1, -3.0, 2.0], [8.0, -2.0, 7.0, 9.0]]) if gradient else None,
    )


def test_what_lives():
    view = view_of()
    assert (view.shape, view.capacity, view.num_active, view.frozen) == ((2, 4), 6, 3, False)
    assert view.active_positions().tolist() == [1, 4, 6]
    assert view.active_weights().tolist() == [1.0, -4.0, 0.5]
    assert view.active_gradients().tolist() == pytest.approx([0.1, 8.0, 7.0])
    assert view_of(gradient=False).active_gradients().tolist() == [0.0, 0.0, 0.0]
    assert view_of(source=False).capacity == 8


def test_what_can_grow():
    view = view_of()
    assert view.num_growable(NONE) == 3
    assert view.num_growable(torch.tensor([1, 6])) == 5
    assert view_of(source=False).num_growable(NONE) == 5


@pytest.mark.parametrize(
    ("count", "returning", "expected"),
    [
        (0, [], []),
        (1, [], [2]),
        (2, [], [2, 3]),  # 3 and 5 tie: the lower index
        (3, [], [2, 3, 5]),
        (1, [6], [6]),
        (2, [6, 1], [2, 6]),
        (5, [6, 1], [1, 2, 3, 5, 6]),
    ],
)
def test_growing_by_gradient_by_hand(count, returning, expected):
    returning = torch.tensor(returning, dtype=torch.int64)
    assert view_of().grow_by_gradient(count, returning).tolist() == expected


def test_growing_by_gradient_without_a_source_or_a_gradient():
    assert view_of(source=False).grow_by_gradient(3, NONE).tolist() == [0, 2, 7]
    assert view_of(gradient=False).grow_by_gradient(2, NONE).tolist() == [2, 3]


def test_more_than_can_grow_is_refused():
    with pytest.raises(ValueError, match=r"cannot take 4 of 3 positions \(fc.weight\)"):
        view_of().grow_by_gradient(4, NONE)


def test_a_nan_where_nothing_can_grow_does_not_matter_elsewhere_it_is_named():
    view = view_of()
    view.gradient[0, 1] = view.gradient[0, 0] = torch.nan
    assert view.grow_by_gradient(1, NONE).tolist() == [2]
    view.gradient[1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"fc\.weight: 1 of 8 scores are NaN"):
        view.grow_by_gradient(1, NONE)


@quick
@given(
    st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 20), st.integers(0, 5), st.data()
)
def test_growing_at_random(size, share, active, seed, step, data):
    rng = np.random.default_rng(seed)
    source = torch.from_numpy(rng.random(size) < share)
    mask = source & torch.from_numpy(rng.random(size) < active)
    view = DenseView("w", torch.zeros(size), mask, source)
    returning = view.active_positions()[::3]
    growable = (source & ~mask).index_fill(0, returning, True)
    assert view.num_growable(returning) == int(growable.sum())
    count = data.draw(st.integers(0, int(growable.sum())))
    grown = view.grow_at_random(count, returning, seed, step)
    assert grown.dtype == torch.int64
    assert len(grown) == count
    assert bool(growable[grown].all())
    assert grown.tolist() == sorted(set(grown.tolist()))
    order = Permutation(size, f"grow:{step}", seed, "w").positions(0, size)
    assert grown.tolist() == sorted([p for p in order if growable[p]][:count])


def test_growing_at_random_is_uniform_and_differs_by_seed_step_and_name():
    counts = torch.zeros(40)
    seen = set()
    for seed in range(20):
        for step in range(20):
            view = DenseView("w", torch.zeros(40), torch.arange(40) % 4 == 0)
            grown = view.grow_at_random(10, NONE, seed, step)
            counts[grown] += 1
            seen.add(tuple(grown.tolist()))
    assert len(seen) == 400
    assert counts[::4].sum() == 0
    free = counts[torch.arange(40) % 4 > 0]
    expected = 400 * 10 / 30
    assert abs(free - expected).max() < 4.5 * (expected * 2 / 3) ** 0.5
    other = DenseView("v", torch.zeros(40), torch.arange(40) % 4 == 0).grow_at_random(10, NONE, 0, 0)
    mine = DenseView("w", torch.zeros(40), torch.arange(40) % 4 == 0).grow_at_random(10, NONE, 0, 0)
    assert other.tolist() != mine.tolist()


def test_memory_layout_does_not_matter():
    weight = torch.arange(72.0).view(4, 2, 3, 3)
    mask, gradient = weight % 3 == 0, weight.cos()
    source = (weight % 2 == 0).reshape(-1)
    plain = DenseView("w", weight, mask, source, gradient)
    last = [t.to(memory_format=torch.channels_last) for t in (weight, mask, gradient)]
    other = DenseView("w", last[0], last[1], source, last[2])
    assert torch.equal(plain.active_positions(), other.active_positions())
    assert torch.equal(plain.active_weights(), other.active_weights())
    assert torch.equal(plain.active_gradients(), other.active_gradients())
    assert torch.equal(plain.grow_by_gradient(5, NONE), other.grow_by_gradient(5, NONE))
    assert torch.equal(plain.grow_at_random(5, NONE, 0, 0), other.grow_at_random(5, NONE, 0, 0))


def test_asking_changes_nothing():
    view = view_of()
    before = [t.clone() for t in (view.weight, view.mask, view.source, view.gradient)]
    _ = view.grow_by_gradient(2, torch.tensor([1]))
    _ = view.grow_at_random(2, torch.tensor([1]), 0, 0)
    view.active_weights().zero_()
    for tensor, kept in zip((view.weight, view.mask, view.source, view.gradient), before, strict=True):
        assert torch.equal(tensor, kept)
