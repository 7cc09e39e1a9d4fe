import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from startsparse.artifact import coding, live
from startsparse.artifact.live import of_mask

masks = hnp.arrays(bool, st.integers(0, 300), elements=st.integers(0, 12).map(lambda value: value == 0))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(masks, st.integers(0, 8))
def test_rice_is_inverted_for_every_parameter(mask, k):
    k = min(k, max(len(mask), 1).bit_length())
    count = int(mask.sum())
    packed = coding.rice_encode(coding.gaps(of_mask(mask)), count, k)
    assert coding.rice_decode(packed, count, k, len(mask)).tolist() == mask.nonzero()[0].tolist()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(masks)
def test_the_parameter_is_the_best_and_its_length_is_true(mask):
    count, gap = int(mask.sum()), list(coding.gaps(of_mask(mask)))
    k, length = coding.rice_parameter(gap)
    lengths = [len(coding.rice_encode(gap, count, other)) for other in range(12)]
    assert length == lengths[k] == min(lengths)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(masks)
def test_bits_are_inverted(mask):
    packed = coding.pack_bits(of_mask(mask))
    assert packed.tolist() == np.packbits(mask).tolist()
    assert coding.unpack_bits(packed, len(mask)).all_positions().tolist() == mask.nonzero()[0].tolist()


@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_parts_join(monkeypatch, k):
    mask = np.arange(5000) * 31 % 17 == 0
    mask[1000:3000] = False
    where, count = np.flatnonzero(mask), int(mask.sum())
    (gap,) = coding.gaps(of_mask(mask))
    whole = coding.rice_encode([gap], count, k)
    monkeypatch.setattr(coding, "_CHUNK", 8)
    monkeypatch.setattr(live, "PART", 64)
    parts = list(coding.gaps(of_mask(mask)))
    assert len(parts) > 40 and np.array_equal(np.concatenate(parts), gap)
    assert coding.rice_parameter(parts) == coding.rice_parameter([gap])
    assert np.array_equal(coding.rice_encode(parts, count, k), whole)
    assert np.array_equal(coding.rice_decode(whole, count, k, 5000), where)


@pytest.mark.parametrize(
    ("packed", "count", "k", "size", "reason"),
    [
        ([0b01000000], 1, 0, 1, "beyond the end"),
        ([0b11000000], 1, 0, 9, "2 gaps where 1"),
        ([0b10000000], 2, 0, 9, "1 gaps where 2"),
        ([0b10000000, 0], 1, 0, 9, "bytes behind"),
        ([], 1, 0, 9, "too few"),
        ([0b11111000], 1, 4, 9, "beyond the end"),
        ([0b10000000], 1, 60, 9, "parameter 60"),
        ([0b10000000], -1, 0, 9, "-1 gaps"),
        ([0b11000000], 2, 0, 1, "2 gaps"),
    ],
)
def test_what_no_encoder_writes_is_refused(packed, count, k, size, reason):
    with pytest.raises(ValueError, match=reason):
        coding.rice_decode(np.array(packed, np.uint8), count, k, size)


def test_a_sum_beyond_64_bits_is_refused():
    size = 2**61
    gap = np.full(8, size - 1)
    with pytest.raises(ValueError, match="beyond the end"):
        coding.rice_decode(coding.rice_encode([gap], 8, 61), 8, 61, size)


def test_bits_refuse_wrong_lengths_and_filling():
    with pytest.raises(ValueError, match="2 bytes for a mask of 8 bits"):
        coding.unpack_bits(np.zeros(2, np.uint8), 8)
    with pytest.raises(ValueError, match="behind the last"):
        coding.unpack_bits(np.array([1], np.uint8), 7)
