from __future__ import annotations

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from startsparse import draw
from startsparse.draw import Drawn, Permutation, bernoulli, exact, exact_part, key, words

SIZES = (1, 2, 5, 63, 4095, 4096, 4097, 10_007, 65_536, 65_537, 200_003)
sizes = st.sampled_from(SIZES)
seeds = st.integers(-(2**70), 2**70)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def digest(mask: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16]


# -- a second implementation, in plain Python integers -----------------------------------------------------------

M64 = 2**64 - 1
M32 = 2**32 - 1


def philox(counter: int, generator_key: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011): four words of a 256-bit counter and a 128-bit key."""
    c = [counter >> (64 * i) & M64 for i in range(4)]
    k = [generator_key & M64, generator_key >> 64]
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & M64, (k[1] + 0xBB67AE8584CAA73B) & M64]
    return c


def plain_word(generator_key: int, i: int) -> int:
    return philox(i // 4 + 1, generator_key)[i % 4]


def plain_key(rule: str, seed: int, name: str) -> int:
    text = f"startsparse.draw.1|{rule}|{seed}|{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def plain_mix(x: int, round_key: int, num_bits: int) -> int:
    x = (x * 0x9E3779B1 + round_key) & M32
    x = ((x ^ x >> 16) * 0x85EBCA6B) & M32
    x = ((x ^ x >> 13) * 0xC2B2AE35) & M32
    return x >> (32 - num_bits)


def plain_position(place: int, size: int, rule: str, seed: int, name: str) -> int:
    """The Feistel rule of orders above 4096 positions."""
    generator_key = plain_key(rule, seed, name)
    num_bits = (size - 1).bit_length()
    high_bits = num_bits // 2
    low_bits = num_bits - high_bits
    keys = [plain_word(generator_key, i // 2) >> (32 * (i % 2)) & M32 for i in range(8)]
    while True:
        high, low = place >> low_bits, place % 2**low_bits
        for i in (6, 4, 2, 0):
            high ^= plain_mix(low, keys[i + 1], high_bits)
            low ^= plain_mix(high, keys[i], low_bits)
        place = (high << low_bits) + low
        if place < size:
            return place


def plain_order(size: int, rule: str, seed: int, name: str) -> list[int]:
    generator_key = plain_key(rule, seed, name)
    if size <= 4096:
        return sorted(range(size), key=lambda i: plain_word(generator_key, i))
    return [plain_position(place, size, rule, seed, name) for place in range(size)]


def test_the_oracle_is_philox():
    """Known answers of the authors' Random123 library."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, 0) == expected
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox(2**256 - 1, 2**128 - 1) == ones


@quick
@given(st.integers(0, 2**128 - 1), st.integers(0, 10**7), st.integers(0, 9))
def test_words_are_philox(generator_key, start, count):
    expected = [plain_word(generator_key, i) for i in range(start, start + count)]
    assert words(generator_key, start, start + count).tolist() == expected


@quick
@given(st.sampled_from(["exact", "bernoulli", "grow:7"]), seeds, st.text(max_size=20))
def test_keys_hash_rule_seed_and_name(rule, seed, name):
    assert key(rule, seed, name) == plain_key(rule, seed, name)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 4096, 4097, 5000])
def test_orders_agree_with_the_oracle(size):
    order = Permutation(size, "exact", 11, "layer1.0.conv1.weight")
    assert order.positions(0, size).tolist() == plain_order(size, "exact", 11, "layer1.0.conv1.weight")


@pytest.mark.parametrize("size", [65_536, 65_537, 2**31 - 1, 2**32, 2**32 + 1, 5 * 10**9, 2**45 + 3])
def test_large_orders_agree_with_the_oracle(size):
    order = Permutation(size, "exact", 3, "w")
    places = [0, 1, size // 3, size - 2, size - 1]
    expected = [plain_position(place, size, "exact", 3, "w") for place in places]
    assert [int(order.positions(place, place + 1)[0]) for place in places] == expected
    assert order.ranks(np.array(expected)).tolist() == places


@pytest.mark.parametrize("density", [0.0, 1e-9, 0.05, 0.5, 1 - 2**-33, 1.0])
def test_bernoulli_agrees_with_the_oracle(density):
    generator_key = plain_key("bernoulli", 5, "w")
    halves = [plain_word(generator_key, i // 2) >> (32 * (i % 2)) & M32 for i in range(301)]
    expected = [density == 1.0 or half < int(density * 2**32) for half in halves]
    assert bernoulli(301, density, 5, "w").tolist() == expected


# -- golden hashes: these must never change ----------------------------------------------------------------------

GOLDEN_EXACT = {  # (size, count, seed, name) -> first 16 digits of the sha256 of the packed mask
    (1, 1, 0, "w"): "76be8b528d0075f7",
    (5, 2, 0, "w"): "32ebb1abcc1c601c",
    (1000, 300, 0, "fc1.weight"): "52dc88933ddb7b4f",
    (4095, 205, 7, "fc1.weight"): "29877d1895ca5147",
    (4096, 2048, 0, "fc1.weight"): "47196abdb665d70f",
    (4096, 3000, -1, "conv1.weight"): "a10c74e865862cb4",
    (4097, 205, 0, "fc1.weight"): "34b854400fa33e5e",
    (4097, 4000, 3, "fc1.weight"): "9dc0cc4b09113d7e",
    (10007, 1001, 1099511627776, "layer1.0.conv1.weight"): "4d84e6afa55fe641",
    (65536, 6554, 0, "w"): "ae758151e4aff39e",
    (65537, 6554, 0, "w"): "d5332f1935a9040a",
    (65537, 6554, 1, "w"): "ccb144910dee2371",
    (235200, 11760, 0, "fc1.weight"): "745d331b0fb7e4da",
    (2359296, 23593, 42, "layer4.1.conv2.weight"): "9884cac15291942f",
    (100003, 60001, -36893488147419103232, "módulo.weight"): "73a5cd27bd08e13b",
}
GOLDEN_BERNOULLI = {  # (size, density, seed, name)
    (1, 0.5, 0, "w"): "6e340b9cffb37a98",
    (5, 0.5, 0, "w"): "5feceb66ffc86f38",
    (1000, 0.3, 0, "fc1.weight"): "bdc2e4a8e784ba9c",
    (4097, 0.05, 7, "fc1.weight"): "94138eee401c7916",
    (10007, 0.3333333333333333, 1099511627776, "layer1.0.conv1.weight"): "9ff3d567d69e6b6f",
    (65537, 0.1, 0, "w"): "d70a1c432a67171a",
    (65537, 0.1, 1, "w"): "6f9665a6a2bd4063",
    (524289, 0.9, -1, "conv1.weight"): "ebaf2f9d5a2a020d",
    (2359296, 0.01, 42, "layer4.1.conv2.weight"): "d79f13d2da7a582c",
    (100003, 0.001, -36893488147419103232, "módulo.weight"): "38278f3b80907e60",
}


@pytest.mark.parametrize(("size", "count", "seed", "name"), GOLDEN_EXACT, ids=str)
def test_golden_exact_masks(size, count, seed, name):
    assert digest(exact(size, count, seed, name)) == GOLDEN_EXACT[size, count, seed, name]


@pytest.mark.parametrize(("size", "density", "seed", "name"), GOLDEN_BERNOULLI, ids=str)
def test_golden_bernoulli_masks(size, density, seed, name):
    assert digest(bernoulli(size, density, seed, name)) == GOLDEN_BERNOULLI[size, density, seed, name]


# -- properties --------------------------------------------------------------------------------------------------


@quick
@given(sizes, seeds, st.data())
def test_exact_counts_and_nesting(size, seed, data):
    few, many = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    less, more = exact(size, few, seed, "w"), exact(size, many, seed, "w")
    assert less.dtype == more.dtype == bool
    assert (less.shape, less.sum(), more.sum()) == ((size,), few, many)
    assert not (less & ~more).any()


@quick
@given(sizes, st.data(), seeds)
def test_a_part_equals_the_whole(size, data, seed):
    start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    count, density = data.draw(st.integers(0, size)), data.draw(st.floats(0, 1))
    whole = exact(size, count, seed, "w")
    assert np.array_equal(exact_part(size, count, seed, "w", start, stop), whole[start:stop])
    whole = bernoulli(size, density, seed, "w")
    assert np.array_equal(bernoulli(size, density, seed, "w", start, stop), whole[start:stop])


@pytest.mark.parametrize("start", [0, 1, 8 * 65_536 - 1, 8 * 65_536, 8 * 65_536 + 1])
def test_parts_meet_at_the_borders_of_the_work_chunks(start):
    size, stop = 600_001, 600_000
    assert np.array_equal(bernoulli(size, 0.3, 0, "w", start, stop), bernoulli(size, 0.3, 0, "w")[start:stop])
    order = Permutation(size, "exact", 0, "w")
    assert np.array_equal(order.positions(start, stop), order.positions(0, size)[start:stop])


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_the_chunk_size_is_not_part_of_the_rule(monkeypatch, chunk):
    size = 5003
    expected = exact(size, 700, 2, "w"), bernoulli(size, 0.2, 2, "w")
    monkeypatch.setattr(draw, "_CHUNK", chunk)
    assert np.array_equal(exact(size, 700, 2, "w"), expected[0])
    assert np.array_equal(bernoulli(size, 0.2, 2, "w"), expected[1])


@quick
@given(sizes, seeds)
def test_ranks_and_positions_are_inverse_permutations(size, seed):
    order = Permutation(size, "exact", seed, "w")
    positions = order.positions(0, size)
    assert np.array_equal(np.sort(positions), np.arange(size))
    assert np.array_equal(order.ranks(positions), np.arange(size))
    assert np.array_equal(order.positions(0, size)[order.ranks(np.arange(size))], np.arange(size))


@quick
@given(sizes, seeds, st.floats(0, 1), st.data())
def test_a_draw_from_a_subset_takes_the_first_of_the_order(size, seed, share, data):
    inside = np.random.default_rng(0).random(size) < share
    count = data.draw(st.integers(0, int(inside.sum())))
    mask = Drawn("exact", seed, "w", size, count=count).mask(inside)
    order = Permutation(size, "exact", seed, "w").positions(0, size)
    expected = [position for position in order if inside[position]][:count]
    assert np.array_equal(np.flatnonzero(mask), np.sort(np.array(expected, dtype=np.int64)))


@quick
@given(sizes, seeds, st.floats(0, 1), st.data())
def test_walking_the_order_finds_the_same_positions(size, seed, share, data):
    inside = np.random.default_rng(1).random(size) < share
    count = data.draw(st.integers(0, int(inside.sum())))
    order = Permutation(size, "grow:3", seed, "w")
    expected = order.first(np.flatnonzero(inside), count)
    found = order.first_where(lambda positions: inside[positions], count)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)


def test_walking_the_order_stops_at_its_end():
    for size in (100, 5000):
        with pytest.raises(ValueError, match="only 10 of 11 positions are allowed"):
            Permutation(size, "exact", 0, "w").first_where(lambda positions: positions < 10, 11)


@quick
@given(sizes, seeds, st.data())
def test_the_positions_of_a_draw_are_those_of_its_mask(size, seed, data):
    for drawn in (
        Drawn("exact", seed, "w", size, count=data.draw(st.integers(0, size))),
        Drawn("bernoulli", seed, "w", size, density=data.draw(st.floats(0, 1))),
    ):
        assert np.array_equal(drawn.positions(), np.flatnonzero(drawn.mask()))


def test_a_bernoulli_draw_from_a_subset_keeps_the_other_positions_as_they_were():
    drawn, inside = Drawn("bernoulli", 4, "w", 9001, density=0.3), np.arange(9001) % 3 > 0
    assert np.array_equal(drawn.mask(inside), drawn.mask() & inside)


def test_a_denser_bernoulli_draw_keeps_the_sparser_one():
    assert not (bernoulli(10_000, 0.1, 0, "w") & ~bernoulli(10_000, 0.11, 0, "w")).any()


def test_drawn_as_plain_data_comes_back():
    for drawn in (
        Drawn("exact", -3, "a.weight", 100, count=0),
        Drawn("bernoulli", 2**66, "b", 7, density=0.25),
    ):
        assert Drawn(**drawn.as_dict()) == drawn
    assert Drawn("exact", 1, "w", 9, count=4).as_dict() == {
        "rule": "exact",
        "seed": 1,
        "name": "w",
        "size": 9,
        "count": 4,
    }


def test_five_billion_positions_need_no_memory():
    size, count = 5 * 10**9, 10**9
    tracemalloc.start()
    try:
        order = Permutation(size, "exact", 0, "embedding.weight")
        first, last = order.positions(0, 1000), order.positions(size - 1000, size)
        part = exact_part(size, count, 0, "embedding.weight", 3 * 10**9, 3 * 10**9 + 10_000)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    found = np.concatenate([first, last])
    assert len(np.unique(found)) == 2000
    assert 0 <= found.min() <= 10**8 and 49 * 10**8 <= found.max() < size
    assert np.array_equal(order.ranks(last), np.arange(size - 1000, size))
    assert abs(part.sum() - 2000) < 4 * np.sqrt(10_000 * 0.2 * 0.8)


# -- statistics ---------------------------------------------------------------------------------------------------


def masks_of(rule: str, size: int, density: float, num: int) -> np.ndarray:
    """Masks of ``num`` seeds, (num, size)."""
    if rule == "exact":
        return np.array([exact(size, round(density * size), seed, "w") for seed in range(num)])
    return np.array([bernoulli(size, density, seed, "w") for seed in range(num)])


@pytest.mark.parametrize("rule", ["exact", "bernoulli"])
@pytest.mark.parametrize(("size", "density"), [(60, 0.3), (5000, 0.1), (5000, 0.6)])
def test_every_position_is_as_likely(rule, size, density):
    num = 300
    masks = masks_of(rule, size, density, num)
    share = round(density * size) / size if rule == "exact" else density
    chi2 = ((masks.sum(0) - num * share) ** 2).sum() / (num * share * (1 - share))
    if rule == "exact":
        chi2, freedom = chi2 * (size - 1) / size, size - 1
    else:
        freedom = size
    tail = stats.chi2.sf(chi2, freedom)
    assert 0.001 < tail < 0.999


@pytest.mark.parametrize("rule", ["exact", "bernoulli"])
@pytest.mark.parametrize("size", [4000, 4608, 20_000])
def test_positions_are_pairwise_independent(rule, size):
    """Products of positions a fixed distance apart, as within a filter tap, a row or a Feistel half."""
    num, density = 200, 0.2
    masks = masks_of(rule, size, density, num).astype(np.float64)
    mean = masks.mean()
    for lag in (1, 2, 3, 8, 9, 16, 64, 128, 256, 576, 1024, 2048):
        pairs = (masks[:, :-lag] - mean) * (masks[:, lag:] - mean)
        sd = mean * (1 - mean) * np.sqrt(num * (size - lag))
        bias = -num * (size - lag) * mean * (1 - mean) / (size - 1) if rule == "exact" else 0.0
        assert abs(pairs.sum() - bias) < 4.5 * sd, lag


@pytest.mark.parametrize("size", [300, 5000])
def test_all_pairs_of_places_occur(size):
    """The first two positions of the order, over seeds: no pair of regions is favoured."""
    num, cells = 2000, 5
    pairs = np.array([Permutation(size, "exact", seed, "w").positions(0, 2) for seed in range(num)])
    counts = np.zeros((cells, cells))
    np.add.at(counts, tuple((pairs * cells // size).T), 1)
    assert 0.001 < stats.chisquare(counts.reshape(-1)).pvalue < 0.999


@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 0.999])
def test_the_realised_density_of_a_bernoulli_draw(density):
    size = 200_000
    counts = np.array([bernoulli(size, density, seed, "w").sum() for seed in range(20)])
    sd = np.sqrt(size * density * (1 - density))
    assert (abs(counts - size * density) < 4 * sd).all()
    assert abs(counts.mean() - size * density) < 4 * sd / np.sqrt(20)
    assert len(set(counts)) > 10


@pytest.mark.parametrize("size", [1000, 20_000])
def test_other_seeds_names_and_rules_give_unrelated_masks(size):
    draws = [
        exact(size, size // 2, seed, name)
        for seed in (0, 1, 2, 256, 2**32, 2**64)
        for name in ("fc1.weight", "fc2.weight", "fc1.weight ")
    ]
    draws += [bernoulli(size, 0.5, seed, "fc1.weight") for seed in (0, 1, 2)]
    for a, b in itertools.combinations(draws, 2):
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(size)


def test_a_seed_and_a_name_do_not_run_together():
    assert key("exact", 1, "1|w") != key("exact", 11, "w")
    assert key("exact", 12, "w") != key("exact", 1, "2w")
