from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse import selection
from startsparse.kernels import library
from startsparse.selection import top_k, top_k_across

quick = settings(max_examples=150, deadline=None, derandomize=True)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8]


def naive(scores, count, prefer=None):
    """Sort everything by (score descending, preferred first, layer, index) and take the first."""
    entries = [
        (-value, not (prefer[name].reshape(-1)[i] if prefer else True), layer, i, name)
        for layer, (name, score) in enumerate(scores.items())
        for i, value in enumerate(score.reshape(-1).tolist())
    ]
    taken = {name: [False] * score.numel() for name, score in scores.items()}
    for *_, i, name in sorted(entries)[:count]:
        taken[name][i] = True
    return {name: torch.tensor(taken[name], dtype=torch.bool).view(scores[name].shape) for name in scores}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@quick
@given(st.data())
def test_selection_equals_a_naive_sort(data):
    layers = data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    scores = {}
    for layer in range(layers):
        shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
        # few distinct values: ties within and across layers everywhere
        scores[f"l{layer}"] = torch.from_numpy(rng.integers(0, 4, shape)).to(dtype)
        if dtype.is_floating_point:
            scores[f"l{layer}"].masked_fill_(torch.from_numpy(rng.random(shape) < 0.2), -math.inf)
    prefer = {n: torch.from_numpy(rng.random(tuple(s.shape)) < 0.5) for n, s in scores.items()}
    available = sum(
        int((score != -math.inf).sum()) if score.is_floating_point() else score.numel()
        for score in scores.values()
    )
    count = data.draw(st.integers(0, available))
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            patch.setattr(selection, "_JOINED", -1)  # as layers that are too large to be joined
        found = top_k_across(scores, count)
        preferring = top_k_across(scores, count, prefer=prefer)
    assert same(found, naive(scores, count))
    assert same(preferring, naive(scores, count, prefer))
    assert sum(int(mask.sum()) for mask in found.values()) == count
    assert all(not bool((mask & (scores[n] == -math.inf)).any()) for n, mask in found.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 19, 49, 50, 51, 99, 100])
def test_equal_scores_still_give_the_exact_count(dtype, count):
    found = top_k(torch.full((10, 10), 3, dtype=dtype), count)
    assert torch.equal(found.reshape(-1), torch.arange(100) < count)


@pytest.mark.parametrize("count", range(0, 101, 7))
def test_one_distinct_value_among_ties(count):
    """The threshold falls before, on and behind the only score that differs."""
    scores = torch.zeros(100)
    scores[60], scores[70] = 1.0, -1.0
    assert same({"w": top_k(scores, count)}, naive({"w": scores}, count))


def test_large_random_scores_in_every_dtype():
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        scores = {n: (torch.randn(3000, generator=generator) * 50).abs().to(dtype) for n in "abc"}
        for count in (1, 44, 1499, 1500, 4500, 8999):
            assert same(top_k_across(scores, count), naive(scores, count)), (dtype, count)


@pytest.fixture(scope="module")
def kernels():
    if library.backend().name != "native":
        pytest.skip("no compiler on this machine")


def by_numpy(scores, count, prefer=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_ranking", None)
        return top_k(scores, count, prefer=prefer)


KINDS = {
    "all differ": lambda rng, n: rng.standard_normal(n),
    "one value": lambda rng, n: np.full(n, 3.0),
    "few values": lambda rng, n: rng.integers(0, 4, n),
    "zeros of both signs": lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, -0.0),
    "many zeros": lambda rng, n: np.maximum(rng.standard_normal(n), 0.2),
    "rising": lambda rng, n: np.arange(n),
    "a period that the sample meets": lambda rng, n: np.arange(n) % max(n // 1024, 1),
    "infinities": lambda rng, n: rng.choice([-math.inf, math.inf, 1.0, 2.0], n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n) ** 5,
}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(KINDS)),
    size=st.sampled_from([1, 2, 63, 64, 65, 1000, 4095, 4096, 16_383, 16_384, 50_001]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    threads=st.integers(1, 3),
)
def test_the_kernels_take_what_numpy_takes(kernels, kind, size, share, seed, threads):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(KINDS[kind](rng, size).astype(np.float32))
    prefer = torch.from_numpy(rng.random(size) < 0.3)
    count = int(share * int((scores > -math.inf).sum()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_MANY", 1)
        patch.setattr(library, "threads", lambda: threads)
        assert torch.equal(top_k(scores, count), by_numpy(scores, count))
        assert torch.equal(top_k(scores, count, prefer=prefer), by_numpy(scores, count, prefer))


def test_the_kernels_are_asked_about_many_scores_only(kernels, monkeypatch):
    asked = []
    monkeypatch.setattr(selection, "_ranking", lambda scores, count, prefer: asked.append(len(scores)))
    for scores in (torch.ones(20_000), torch.ones(100), torch.ones(20_000, dtype=torch.float64)):
        assert int(top_k(scores, 7).sum()) == 7  # where they cannot say, NumPy does
    assert asked == [20_000]


def test_what_cannot_be_ranked_is_refused_with_kernels(kernels):
    scores = torch.rand(40_000)
    for at in (0, 20_000, 39_999):
        wrong = scores.clone()
        wrong[at] = math.nan
        with pytest.raises(ValueError, match="fc: 1 of 40000 scores are NaN"):
            top_k(wrong, 10, what="fc")
    scores[:30_000] = -math.inf
    assert int(top_k(scores, 10_000).sum()) == 10_000
    with pytest.raises(ValueError, match="cannot take 10001 of 10000 positions"):
        top_k(scores, 10_001)


def test_preferred_positions_win_ties_only():
    scores = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    prefer = torch.tensor([True, False, False, True, True])
    assert top_k(scores, 2, prefer=prefer).tolist() == [False, True, False, True, False]
    assert top_k(scores, 4, prefer=prefer).tolist() == [True, True, True, True, False]


def test_across_layers_the_preferred_win_before_the_earlier_layer():
    scores = {"a": torch.ones(3), "b": torch.ones(3)}
    prefer = {"a": torch.tensor([False, False, True]), "b": torch.tensor([False, True, True])}
    found = top_k_across(scores, 4, prefer=prefer)
    assert found["a"].tolist() == [True, False, True]
    assert found["b"].tolist() == [False, True, True]


def test_infinities():
    scores = torch.tensor([math.inf, -math.inf, 0.0, math.inf, -math.inf])
    assert top_k(scores, 2).tolist() == [True, False, False, True, False]
    assert top_k(scores, 3).tolist() == [True, False, True, True, False]
    with pytest.raises(
        ValueError, match=r"cannot take 4 of 3 positions \(conv1\): lower the density or enlarge the source"
    ):
        top_k(scores, 4, what="conv1")


def test_masks_of_joined_layers_have_memory_of_their_own():
    found = top_k_across({"a": torch.arange(4.0), "b": torch.arange(4.0)}, 5)
    assert found["a"].untyped_storage().data_ptr() != found["b"].untyped_storage().data_ptr()
    assert found["a"].untyped_storage().nbytes() == 4


@pytest.mark.parametrize("joined", [-1, 8])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_nan_is_refused_and_its_layer_named(count, joined, monkeypatch):
    monkeypatch.setattr(selection, "_JOINED", joined)
    scores = {"fc1": torch.zeros(3), "fc2": torch.tensor([1.0, math.nan, math.nan])}
    with pytest.raises(ValueError, match="fc2: 2 of 3 scores are NaN"):
        top_k_across(scores, count)
    with pytest.raises(ValueError, match="conv1: 1 of 1 scores are NaN"):
        top_k(torch.tensor([math.nan]), 0, what="conv1")


@pytest.mark.parametrize("joined", [-1, 8])
@pytest.mark.parametrize("count", [-1, 5])
def test_impossible_counts_are_refused(count, joined, monkeypatch):
    monkeypatch.setattr(selection, "_JOINED", joined)
    with pytest.raises(ValueError, match=r"cannot take -?\d of 4 positions \(a, b\)"):
        top_k_across({"a": torch.zeros(3), "b": torch.zeros(1)}, count)


def test_scores_are_not_written_to_and_shapes_come_back():
    scores = {"a": torch.randn(2, 3, 4), "b": torch.randn(5), "c": torch.empty(0, 3)}
    before = {name: score.clone() for name, score in scores.items()}
    found = top_k_across(scores, 11)
    assert same(before, scores)
    assert {name: mask.shape for name, mask in found.items()} == {n: s.shape for n, s in scores.items()}
    assert all(mask.dtype == torch.bool for mask in found.values())


def test_scores_of_any_memory_layout():
    wide = torch.arange(20.0).remainder(3).view(4, 5)
    conv = torch.arange(120.0).remainder(7).view(5, 4, 3, 2).to(memory_format=torch.channels_last)
    for scores in (wide.t(), conv, wide[:, ::2]):
        expected = naive({"w": scores}, 7)["w"]
        assert torch.equal(top_k(scores, 7), expected)


def test_layers_of_different_precision_rank_together():
    scores = {
        "a": torch.full((10,), 0.1000000001, dtype=torch.float64),
        "b": torch.full((10,), 0.1, dtype=torch.float32),  # 0.10000000149: all of b is above all of a
    }
    assert {n: int(m.sum()) for n, m in top_k_across(scores, 15).items()} == {"a": 5, "b": 10}
