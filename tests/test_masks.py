from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse.masks import (
    counts,
    density,
    distance,
    fingerprint,
    fingerprint_positions,
    intersection,
    is_subset,
    num_active,
    pack,
    pack_positions,
    union,
    unpack,
    validate,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.lists(st.integers(0, 7), min_size=0, max_size=4).map(tuple)


def mask_of(shape, seed=0, share=0.5):
    return torch.from_numpy(np.asarray(np.random.default_rng(seed).random(shape) < share))


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


@quick
@given(shapes, st.integers(0, 10))
def test_packing_is_lossless(shape, seed):
    mask = mask_of(shape, seed)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((mask.numel() + 7) // 8,)
    back = unpack(packed, shape)
    assert back.dtype == torch.bool
    assert torch.equal(back, mask)


def test_the_first_position_is_the_highest_bit():
    one_each = [pack(torch.arange(9) == i).tolist() for i in range(9)]
    assert one_each == [[128 >> i, 0] for i in range(8)] + [[0, 128]]


def test_packing_follows_the_logical_order_of_any_layout():
    mask = mask_of((3, 5))
    assert torch.equal(pack(mask.t()), pack(mask.t().contiguous()))
    conv = mask_of((4, 3, 2, 2))
    assert torch.equal(pack(conv.to(memory_format=torch.channels_last)), pack(conv))


@quick
@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 10), st.data())
def test_packing_positions_is_packing_the_mask(size, share, seed, data):
    mask = mask_of((size,), seed, share)
    where = mask.nonzero().squeeze(1)
    assert pack_positions(where, 0, size).tolist() == pack(mask).tolist()
    start = 8 * data.draw(st.integers(0, size // 8))
    stop = data.draw(st.integers(start, size))
    assert pack_positions(where, start, stop).tolist() == pack(mask[start:stop]).tolist()


@pytest.mark.parametrize(("num_bytes", "shape"), [(1, (3, 3)), (3, (3, 3)), (0, (1,)), (1, (0,))])
def test_bytes_that_do_not_fit_the_shape_are_refused(num_bytes, shape):
    with pytest.raises(ValueError, match=f"{num_bytes} bytes cannot hold a mask of shape"):
        unpack(torch.zeros(num_bytes, dtype=torch.uint8), shape)


def test_counts_and_density():
    both = {"a": bools(1, 0, 1), "b": torch.zeros(2, 2, dtype=torch.bool)}
    assert counts(both) == {"a": 2, "b": 0}
    assert num_active(both) == 2
    assert density(both) == 2 / 7
    assert density({}) == 0.0


def test_set_algebra():
    a, b = {"w": bools(1, 1, 0, 0)}, {"w": bools(1, 0, 1, 0)}
    assert union(a, b)["w"].tolist() == [True, True, True, False]
    assert intersection(a, b)["w"].tolist() == [True, False, False, False]
    assert distance(a, b) == 1 - 1 / 3
    assert distance(a, a) == 0.0
    assert distance({"w": bools(1, 0)}, {"w": bools(0, 1)}) == 1.0
    assert distance({"w": bools(0, 0)}, {"w": bools(0, 0)}) == 0.0


def test_subsets():
    inner, outer = {"w": bools(1, 0, 0)}, {"w": bools(1, 1, 0)}
    assert is_subset(inner, outer)
    assert not is_subset(outer, inner)
    assert is_subset(inner, inner)
    assert is_subset({"free": bools(1, 1)} | inner, outer), "a name the other does not hold is free"
    assert not is_subset({"w": bools(1, 0), "v": bools(1, 0)}, {"w": bools(1, 0), "v": bools(0, 1)})


SHAPES = {"a": (2,), "b": (2, 3)}
GOOD = {"a": torch.ones(2, dtype=torch.bool), "b": torch.ones(2, 3, dtype=torch.bool)}


def test_valid_masks_pass():
    validate(GOOD, SHAPES)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": GOOD["a"]}, "no mask for 'b'"),
        (GOOD | {"c": GOOD["a"]}, "unknown parameter 'c': known are a, b"),
        (GOOD | {"a": torch.ones(2)}, r"the mask of 'a' is torch.float32, it must be torch.bool"),
        (GOOD | {"b": torch.ones(2, 3, dtype=torch.uint8)}, "torch.uint8"),
        (
            GOOD | {"b": torch.ones(3, 2, dtype=torch.bool)},
            r"the mask of 'b' has shape \(3, 2\), its weight \(2, 3\)",
        ),
        (GOOD | {"b": torch.ones(6, dtype=torch.bool)}, "has shape"),
    ],
)
def test_invalid_masks_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        validate(bad, SHAPES)


def test_fingerprints_tell_masks_apart():
    w = bools(1, 0, 0, 0)
    variants = [
        {"w": w},
        {"v": w},
        {"w": w.view(2, 2)},
        {"w": bools(0, 1, 0, 0)},
        {"w": bools(1, 0, 0, 0, 0)},
        {"w": w, "v": w},
        {},
    ]
    prints = [fingerprint(variant) for variant in variants]
    assert len(set(prints)) == len(variants)
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in prints)


def test_fingerprints_ignore_order_and_memory_layout():
    a, b = mask_of((4, 3, 2, 2), 1), mask_of((6, 5), 2)
    expected = fingerprint({"a": a, "b": b})
    assert fingerprint({"b": b, "a": a}) == expected
    assert (
        fingerprint({"a": a.to(memory_format=torch.channels_last), "b": b.t().contiguous().t()}) == expected
    )


@pytest.mark.parametrize("part", [8, 64, 1 << 20])
def test_the_fingerprint_does_not_depend_on_the_parts(part, monkeypatch):
    monkeypatch.setattr("startsparse.masks._PART", part)
    some = {
        "b": mask_of((7, 13, 3), 1),
        "a": mask_of((257,), 2, 0.02),
        "none": bools(0, 0),
        "empty": mask_of((0, 3)),
    }
    digest = hashlib.sha256()
    for name in sorted(some):
        digest.update(f"{name}|{tuple(some[name].shape)}|".encode() + pack(some[name]).numpy().tobytes())
    assert fingerprint(some) == digest.hexdigest()
    positions = {name: mask.reshape(-1).nonzero().squeeze(1) for name, mask in some.items()}
    shapes = {name: tuple(mask.shape) for name, mask in some.items()}
    assert fingerprint_positions(positions, shapes) == digest.hexdigest()


def test_a_fingerprint_needs_memory_for_a_part_alone():
    kept = torch.ones(1 << 12, 1 << 12, dtype=torch.bool)
    few = {"w": torch.arange(0, 1 << 24, 1000)}
    fingerprint({"w": kept[:2]})  # what is loaded at the first call does not count
    tracemalloc.start()
    try:
        fingerprint({"w": kept})
        assert tracemalloc.get_traced_memory()[1] < 1 << 22  # a quarter of a byte a weight
        fingerprint_positions({"w": kept.reshape(-1).nonzero().squeeze(1)}, {"w": kept.shape})
        fingerprint_positions(few, {"w": kept.shape})
        assert tracemalloc.get_traced_memory()[1] < 1 << 24  # a byte a weight
    finally:
        tracemalloc.stop()


def test_golden_fingerprint():
    """Checkpoints hold these: the rule must never change."""
    golden = {"conv.weight": torch.arange(36).view(2, 2, 3, 3) % 3 == 0, "fc.weight": torch.eye(5) > 0}
    assert fingerprint(golden) == "53b595cf2e04d9d60f9cfabdb7df3a509badcefc68b869f6eb67ac5d4f255004"
