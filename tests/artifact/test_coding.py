import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from startsparse.artifact import coding

masks = hnp.arrays(bool, st.integers(0, 300), elements=st.integers(0, 12).map(lambda value: value == 0))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(masks, st.integers(0, 8))
def test_rice_is_inverted_for_every_parameter(mask, k):
    gap = coding.gaps(mask)
    k = min(k, max(len(mask), 1).bit_length())
    packed = coding.rice_encode(gap, k)
    assert np.array_equal(coding.rice_decode(packed, len(gap), k, len(mask)), mask)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(masks)
def test_the_parameter_is_the_best_and_its_length_is_true(mask):
    gap = coding.gaps(mask)
    k, length = coding.rice_parameter(gap)
    lengths = [len(coding.rice_encode(gap, other)) for other in range(12)]
    assert length == lengths[k] == min(lengths)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(masks)
def test_bits_are_inverted(mask):
    assert np.array_equal(coding.unpack_bits(coding.pack_bits(mask), len(mask)), mask)


def test_chunks_join(monkeypatch):
    mask = np.arange(5000) * 31 % 17 == 0
    gap, k = coding.gaps(mask), 3
    whole = coding.rice_encode(gap, k)
    monkeypatch.setattr(coding, "_CHUNK", 7)
    assert np.array_equal(coding.rice_encode(gap, k), whole)
    assert np.array_equal(coding.rice_decode(whole, len(gap), k, 5000), mask)


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
        coding.rice_decode(coding.rice_encode(gap, 61), 8, 61, size)


def test_bits_refuse_wrong_lengths_and_filling():
    with pytest.raises(ValueError, match="2 bytes for a mask of 8 bits"):
        coding.unpack_bits(np.zeros(2, np.uint8), 8)
    with pytest.raises(ValueError, match="behind the last"):
        coding.unpack_bits(np.array([1], np.uint8), 7)
