"""Restricted swaps: by hand, and their laws over random scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from startsparse.methods import swaps
from startsparse.methods.renewal import Standing, Swap
from startsparse.selection import top_k, top_k_in_rows

KEY = torch.tensor([5.0, 1.0, 2.0, 0.0, 3.0, 4.0, 0.5, 0.2])
MASK = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()


def gap(at, arrives):
    return KEY[at] if arrives else -KEY[at]


def restrict(want, mask, limit, worth, row=None):
    return swaps.limited(Swap.between(mask, want), limit, worth, row=row).after(mask)


@pytest.mark.parametrize(
    ("made", "after"),
    [
        (0, [1, 1, 1, 1, 0, 0, 0, 0]),
        (1, [1, 1, 1, 0, 0, 1, 0, 0]),  # 4.0 comes, 0.0 goes
        (2, [1, 0, 1, 0, 1, 1, 0, 0]),  # then 3.0 comes, 1.0 goes
        (9, [1, 0, 1, 0, 1, 1, 0, 0]),
    ],
)
def test_swaps_by_hand(made, after):
    want = top_k(KEY, 4, prefer=MASK)
    assert want.int().tolist() == [1, 0, 1, 0, 1, 1, 0, 0]
    assert restrict(want, MASK, lambda wanted: made, gap).int().tolist() == after


def test_pairs_within_rows_by_hand():
    """Rows of four, two each: the widest gap of all rows goes first, and every row keeps its two."""
    key = torch.tensor([[3.0, 0.0, 2.0, 1.0], [9.0, 0.0, 1.0, 8.0]])
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    want = top_k_in_rows(key, 2, prefer=mask)
    assert want.int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    flat = key.reshape(-1)

    def worth(at, arrives):
        return flat[at] if arrives else -flat[at]

    one = restrict(want, mask, lambda wanted: 1, worth, row=4)  # gaps: 8 - 0, 3 - 0, 2 - 1
    assert one.int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]
    two = restrict(want, mask, lambda wanted: 2, worth, row=4)
    assert two.int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]


def test_surplus_goes_whatever_the_limit():
    want = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0]).bool()
    after = restrict(want, MASK, lambda wanted: 0, gap)
    assert after.int().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
    st.integers(0, 8),
)
def test_laws(values, random, made):
    """Exact count, no more swaps than allowed, all of them towards the ranking, nothing to do means nothing done."""
    key = torch.tensor(values, dtype=torch.float32)
    count = random.randint(0, len(values))
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[random.sample(range(len(values)), count)] = True
    want = top_k(key, count, prefer=mask)

    def worth(at, arrives):
        return key[at] if arrives else -key[at]

    after = restrict(want, mask, lambda wanted: min(made, wanted), worth)
    assert int(after.sum()) == count
    wanted = int((want & ~mask).sum())
    assert int((after & ~mask).sum()) == min(made, wanted)
    assert not bool((after & ~mask & ~want).any())
    assert not bool((mask & ~after & want).any())
    if made >= wanted:
        assert torch.equal(after, want)
    kept = key[mask & ~want]
    assert not len(kept) or float(kept.max()) < float(key[want & ~mask].min())  # ties never swap
    assert torch.equal(restrict(want, want, lambda wanted: made, worth), want)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_caps(wanted, progress):
    for restriction in (*swaps.SCHEDULES, 0.3):
        assert 1 <= swaps.cap(restriction, wanted, progress) <= wanted
    assert swaps.cap("none", wanted, progress) == swaps.cap(1.0, wanted, progress) == wanted
    assert swaps.cap("quartic", wanted, 0.0) == swaps.cap("cosine", wanted, 0.0) == wanted


@given(st.integers(1, 5), st.integers(1, 6), st.randoms(use_true_random=False), st.booleans())
def test_top_k_in_rows_is_top_k_of_each_row(rows, columns, random, preferred):
    scores = torch.tensor([[float(random.randint(0, 3)) for _ in range(columns)] for _ in range(rows)])
    prefer = torch.tensor([[random.random() < 0.5 for _ in range(columns)] for _ in range(rows)])
    count = random.randint(0, columns)
    mask = top_k_in_rows(scores, count, prefer=prefer if preferred else None)
    expected = [top_k(scores[i], count, prefer=prefer[i] if preferred else None) for i in range(rows)]
    assert torch.equal(mask, torch.stack(expected))


def test_top_k_in_rows_refuses_a_row_without_room():
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, -torch.inf, -torch.inf]])
    with pytest.raises(ValueError, match=r"fc: cannot take 2 of the 1 positions"):
        top_k_in_rows(scores, 2, what="fc")


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_a_standing_wants_what_top_k_takes(values, random):
    """Over several steps of tied scores, some of which are outside a source, with restricted swaps in between."""
    outside = [i for i in range(len(values)) if random.random() < 0.2]
    allowed = [i for i in range(len(values)) if i not in outside]
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[random.sample(allowed, random.randint(0, len(allowed)))] = True
    if not 0 < int(mask.sum()) < len(values):
        return
    standing = Standing(mask)
    for _ in range(4):
        key = torch.tensor([float(random.choice(values)) for _ in values])
        key[outside] = -torch.inf
        swap = standing.wanted(key, "w")
        want = top_k(key, int(mask.sum()), prefer=mask)
        assert torch.equal(swap.after(mask), want)
        expected = Swap.between(mask, want)
        assert torch.equal(swap.arriving, expected.arriving)
        assert torch.equal(swap.leaving, expected.leaving)
        if swap.slots is not None:
            assert standing.active[swap.slots.numpy()].tolist() == swap.leaving.tolist()
        some = swaps.limited(swap, lambda wanted: wanted // 2, lambda at, arrives: -at.float())
        mask = some.after(mask)
        if some.slots is not None:
            standing.move(some, mask)
        else:
            standing = Standing(mask)
        assert sorted(standing.active.tolist()) == mask.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(("place", "value"), [(0, torch.nan), (3, torch.nan), (0, -torch.inf)])
def test_a_standing_refuses_keys_that_cannot_be_ranked(place, value):
    key = torch.tensor([2.0, 1.0, 0.5, 0.2])
    key[place] = value
    mask = torch.tensor([True, True, False, False])
    if value == -torch.inf:
        key[2:] = -torch.inf  # as many as are wanted cannot be had
    with pytest.raises(ValueError, match=r"fc: 1 of 4 scores are NaN|cannot take 2 of 1 positions"):
        Standing(mask).wanted(key, "fc")
