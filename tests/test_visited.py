"""Sets of positions, against Python's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from startsparse import visited
from startsparse.execution.sparse_view import mark
from startsparse.visited import Visited


@given(st.integers(1, 3000), st.data())
def test_counts_what_a_set_counts(size, data):
    seen, known, marked = Visited(size), set(), False
    for _ in range(data.draw(st.integers(1, 6))):
        some = data.draw(st.sets(st.integers(0, size - 1), max_size=60))
        seen.add(torch.tensor(sorted(some), dtype=torch.int64))
        known |= some
        state = seen.state()
        assert len(seen) == len(known)
        assert not (marked and state.dtype != torch.uint8)
        marked = state.dtype == torch.uint8
        seen = Visited(size, state)
        assert len(seen) == len(known) and torch.equal(seen.state(), state)


@pytest.mark.parametrize("size", [2000, 2_000_000])
def test_chunks_make_no_difference(size, monkeypatch):
    monkeypatch.setattr(visited, "CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    seen, known = Visited(size), torch.zeros(size, dtype=torch.bool)
    for _ in range(5):
        some = torch.randperm(size, generator=generator)[:301].sort().values
        seen.add(some)
        known[some] = True
        assert len(seen) == int(known.sum())


def test_few_positions_of_many_are_not_stored_as_bits():
    seen = Visited(2**33)
    seen.add(torch.tensor([0, 2**32, 2**33 - 1]))
    seen.add(torch.tensor([2**32, 2**32 + 1]))
    assert seen.state().tolist() == [0, 2**32, 2**32 + 1, 2**33 - 1] and len(seen) == 4


def test_many_positions_are_bits():
    seen = Visited(1000)
    seen.add(torch.arange(0, 1000, 34))
    assert seen.state().dtype == torch.int64
    seen.add(torch.arange(0, 1000, 2))
    assert seen.state().dtype == torch.uint8 and len(seen.state()) == 125
    assert len(seen) == len(set(range(0, 1000, 34)) | set(range(0, 1000, 2)))


def test_another_way_to_set_bits_makes_no_difference():
    generator = torch.Generator().manual_seed(0)
    seen, others = Visited(5000), Visited(5000)
    for _ in range(6):
        some = torch.randperm(5000, generator=generator)[:700].sort().values
        seen.add(some)
        others.add(some, mark)
        assert torch.equal(seen.state(), others.state())
    assert seen.state().dtype == torch.uint8
