"""Patterns: value order, topology changes, and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse.kernels import Pattern, fallback, library

pytestmark = pytest.mark.usefixtures("each_backend")


def test_values_are_ordered_by_column_then_row():
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    pattern = Pattern.from_mask(mask)
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert pattern.take_from(weight).tolist() == [1, 4, 5, 3]
    assert pattern.positions().tolist() == [0, 2, 3, 4]
    assert pattern.value_positions().tolist() == [0, 3, 4, 2]
    assert pattern.order().tolist() == [0, 3, 1, 2]
    assert torch.equal(pattern.dense(pattern.take_from(weight)), weight * mask)


def test_with_groups_values_are_ordered_by_group_first():
    pattern = Pattern.from_mask(torch.ones(4, 1, 1, 2, dtype=torch.bool), groups=2)
    assert pattern.value_positions().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@given(rows=st.integers(1, 30), cols=st.integers(1, 200), seed=st.integers(0, 99), density=st.floats(0, 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_order_and_positions_agree(rows, cols, seed, density):
    mask = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < density
    pattern = Pattern.from_mask(mask)
    weight = torch.arange(1.0, rows * cols + 1).view(rows, cols)
    values = pattern.take_from(weight)
    assert torch.equal(pattern.positions(), mask.flatten().nonzero().flatten())
    assert torch.equal(values[pattern.order()], weight[mask])
    by_column = values - 1
    assert torch.equal(by_column, by_column[torch.argsort(by_column % cols * rows + by_column // cols)])
    again = Pattern.of(pattern.blob)
    assert (again.rows, again.cols, again.nnz) == (rows, cols, pattern.nnz)


@given(seed=st.integers(0, 999), kept=st.floats(0, 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_topology_change_moves_what_belongs_to_the_weights(seed, kept):
    generator = torch.Generator().manual_seed(seed)
    shape = (12, 17)
    before, after = (torch.rand(shape, generator=generator) < p for p in (kept, 0.5))
    old = Pattern.from_mask(before)
    new, source = old.changed(
        (before & ~after).flatten().nonzero().flatten(), (after & ~before).flatten().nonzero().flatten()
    )
    assert torch.equal(new.positions(), after.flatten().nonzero().flatten())
    assert torch.equal(source, old.source(new))
    weight = torch.randn(shape)
    states = [old.take_from(weight), old.take_from(weight).to(torch.float64), old.take_from(weight).half()]
    for moved, state in zip(old.move(new, states), states, strict=True):
        assert moved.dtype == state.dtype
        assert torch.equal(new.dense(moved), weight.to(state.dtype) * (before & after))


def test_a_weight_dropped_and_grown_in_one_event_starts_at_zero():
    old = Pattern.build(torch.tensor([1, 3, 5]), 2, 4)
    new, source = old.changed(drop=torch.tensor([3, 5]), grow=torch.tensor([3, 4]))
    assert new.positions().tolist() == [1, 3, 4]
    assert new.value_positions().tolist() == [4, 1, 3] and source.tolist() == [-1, 0, -1]
    values = torch.zeros(8).index_fill_(0, torch.tensor([1, 3, 5]), 1.0).view(2, 4)
    (moved,) = old.move(new, [old.take_from(values)], reset=torch.tensor([3]))
    assert new.dense(moved).flatten().tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 200, 40_001])
def test_scores_above_a_bar(size):
    gradient = torch.randn(size)
    gradient[3:6] = torch.tensor([float("nan"), -torch.inf, torch.inf])[: max(size - 3, 0)]
    live, returning = torch.arange(0, size, 5) + 100, torch.arange(0, size, 15) + 100
    for bar in (-torch.inf, 0.5, torch.inf):
        free = [i for i in range(size) if (i % 5 or i % 15 == 0) and gradient[i].abs() > bar]
        for team in (1, 2, 3):
            positions, scores = library.backend().above(gradient.clone(), 100, live, returning, bar, team)
            assert (positions - 100).tolist() == free
            assert torch.equal(scores, gradient[free].abs())


@pytest.mark.parametrize("share", [1.0, 0.3, 0.01, 0.0])
def test_positions_that_others_have(share):
    a = (torch.rand(50_000) < 0.6).nonzero().flatten()
    b = (torch.rand(50_000) < share).nonzero().flatten()
    among = torch.isin(b, a)
    for threads in (1, 2, 3):
        at = library.backend().find(a, b, threads)
        assert torch.equal(at >= 0, among)
        assert torch.equal(a[at[among]], b[among])
        only = library.backend().part(a, b, threads)
        assert torch.equal(only[0], a[~torch.isin(a, b)])
        assert torch.equal(only[1], b[~among])


def test_items_that_a_mask_takes_or_leaves_out():
    for size, dtype in ((0, torch.int64), (5, torch.float32), (50_000, torch.int64), (50_000, torch.float32)):
        items, mask = torch.arange(size).to(dtype), torch.rand(size) < 0.3
        for threads in (1, 2, 3):
            assert torch.equal(library.backend().pick(items, mask, True, threads), items[mask])
            assert torch.equal(library.backend().pick(items, mask, False, threads), items[~mask])


@pytest.mark.parametrize("end", ["whole", "low", "high"])
@pytest.mark.parametrize(("rows", "groups"), [(400, 1), (400, 4), (70_000, 1)])
def test_many_positions_are_changed_by_all_threads(end, rows, groups):
    """What a thread begins with lies anywhere: growth and drops before the first, behind the last, or all over."""
    backend, cols, size = library.backend(), 200_000 // rows, 200_000 // rows * rows
    high, low = {"whole": (size, 0), "low": (90_000, 0), "high": (size, 110_000)}[end]
    order = torch.randperm(size)
    live = order[:60_000].sort().values
    drop = live[(live >= low) & (live < high)][::3].contiguous()
    grow = torch.cat([order[60_000:][::5], drop[::4]]).sort().values  # some of those that drop, too
    grow = grow[(grow >= low) & (grow < high)].contiguous()
    expected = torch.zeros(size, dtype=torch.bool)
    expected[live] = True
    expected[drop] = False
    expected[grow] = True
    old, new = (Pattern.build(p, rows, cols, groups) for p in (live, expected.nonzero().squeeze(1)))
    block = int(new.blob[48:56].view(torch.int64))
    shape = rows, cols, groups, new.nnz, block
    wanted = old.source(new)
    wanted[new.places(grow)] = -1
    for threads in (1, 2, 3):
        blob, source = backend.change(old.blob, shape, drop, grow, threads)
        for name, array in vars(fallback.take_apart(new.blob)).items():
            assert torch.equal(
                torch.as_tensor(getattr(fallback.take_apart(blob), name)), torch.as_tensor(array)
            ), name
        assert torch.equal(source, wanted)
    fresh = grow[~torch.isin(grow, live)]
    for wrong in ((fresh[-1:], grow[:0]), (drop[:0], live[-1:]), (fresh[:1], grow[:0]), (drop, live[1:2])):
        with pytest.raises(ValueError, match="a position to"):
            old.changed(*wrong)
    positions, places = backend.row_major(old.blob, old.nnz, 2)
    assert torch.equal(positions, live)
    assert torch.equal(old.value_positions()[places.long()], live)


def test_marks():
    backend, bits = library.backend(), torch.zeros(3, dtype=torch.uint8)
    backend.mark(bits, torch.tensor([0, 7, 8, 18]), 2)
    assert bits.tolist() == [129, 128, 32]
    found = backend.marked(bits, torch.tensor([18, 17, 0, 8, 1, 7]), 2)
    assert found.tolist() == [True, False, True, True, False, True]
    many = torch.randperm(80_000)
    for threads in (1, 2, 3):
        bits = torch.zeros(10_000, dtype=torch.uint8)
        backend.mark(bits, many[:60_000].sort().values, threads)
        assert backend.marked(bits, many, 2).tolist() == [True] * 60_000 + [False] * 20_000


def test_where_values_lie():
    mask = torch.rand(20, 30) < 0.3
    pattern = Pattern.from_mask(mask)
    weight = torch.randn(20, 30)
    values = pattern.take_from(weight)
    asked = torch.arange(0, 600, 7)
    live = asked[mask.flatten()[asked]]
    assert torch.equal(values[pattern.places(asked)], weight.flatten()[live])
    assert torch.equal(pattern.in_rows(values), weight[mask])
    assert pattern.places(asked[:0]).tolist() == []
    nothing = Pattern.build(asked[:0], 20, 30)
    assert nothing.places(asked).tolist() == []


@pytest.mark.parametrize(
    ("drop", "grow", "words"),
    [([2], [], "not live"), ([], [3], "live already"), ([9], [], "not live"), ([3, 1], [], "ascending"),
     ([], [8], "outside"), ([], [4, 4], "ascending")],
)  # fmt: skip
def test_impossible_events_are_refused(drop, grow, words):
    old = Pattern.build(torch.tensor([1, 3, 5]), 2, 4)
    with pytest.raises(ValueError, match=words):
        old.changed(torch.tensor(drop, dtype=torch.int64), torch.tensor(grow, dtype=torch.int64))


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (torch.tensor([1, 1]), "ascending"),
        (torch.tensor([2, 1]), "ascending"),
        (torch.tensor([7, 8]), "outside"),
        (torch.tensor([-1, 1]), "outside"),
        (torch.tensor([0.0]), "int64"),
        (torch.tensor([[0]]), "1-d"),
        (torch.empty(1, dtype=torch.int64, device="meta"), "CPU"),
    ],
)
def test_positions_that_are_none_are_refused(positions, words):
    with pytest.raises(ValueError, match=words):
        Pattern.build(positions, 2, 4)


def test_shapes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="3 rows"):
        Pattern.build(torch.tensor([0]), 3, 4, groups=2)
    with pytest.raises(ValueError, match="bool"):
        Pattern.from_mask(torch.ones(2, 2))
    pattern = Pattern.build(torch.tensor([0]), 2, 2)
    with pytest.raises(ValueError, match="another shape"):
        pattern.move(Pattern.build(torch.tensor([0]), 2, 3), [torch.zeros(1)])
    with pytest.raises(ValueError, match=r"\[1\]"):
        pattern.move(pattern, [torch.zeros(2)])
    with pytest.raises(ValueError, match="cut short"):
        Pattern.of(pattern.blob[:-1])


def test_int32_positions_and_both_backends_make_the_same_pattern():
    for rows, cols, groups in ((40, 300, 1), (6, 9, 3), (70_000, 2, 1), (9, 20_000, 3)):
        positions = (torch.rand(rows * cols) < 0.2).nonzero().flatten()
        built = [
            Pattern.build(positions.to(dtype), rows, cols, groups).blob
            for dtype in (torch.int64, torch.int32)
        ]
        block = int(built[0][48:56].view(torch.int64))
        for team in (1, 2, 5):
            built.append(library.backend().build(positions, rows, cols, groups, block, team))
        built.append(fallback.TorchBackend().build(positions, rows, cols, groups, block, 1))
        parts = [vars(fallback.take_apart(blob)) for blob in built]
        for name, first in parts[0].items():
            for other in parts[1:]:
                assert torch.equal(torch.as_tensor(first), torch.as_tensor(other[name])), name
    assert library.backend().name in ("native", "torch")
