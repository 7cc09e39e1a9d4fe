"""The standalone reader of the documentation against the writer, and both against the rules as they are written."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from startsparse import draw
from startsparse.artifact import save

SOURCE = Path(__file__).parents[2] / "docs" / "formats" / "reader.py"


@pytest.fixture(scope="module")
def reader():
    spec = importlib.util.spec_from_file_location("startsparse_standalone_reader", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raw(tensor: torch.Tensor) -> np.ndarray:
    """What the reader promises for a tensor: numpy's own type, or the bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy().view(np.uint8) if tensor.dtype == torch.bool else tensor.numpy()


def test_it_is_short_and_needs_numpy_and_safetensors_alone():
    lines = SOURCE.read_text().splitlines()
    assert len(lines) < 60
    imports = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imports == {"hashlib", "io", "json", "numpy", "safetensors"}


def test_it_reads_every_encoding(reader, content, tmp_path):
    save(content, tmp_path / "net")
    found = reader.read(tmp_path / "net")
    assert list(found) == list(content)
    for name, tensor in content.items():
        expected = raw(tensor)
        assert found[name].shape == expected.shape, name
        if expected.size:
            assert found[name].dtype == expected.dtype, name
            assert found[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name
    assert found["head.weight"] is found["conv.weight"]


@pytest.mark.parametrize("size", [1, 2, 7, 4096, 4097, 5000, 65537, 100_000])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_it_draws_what_the_library_draws(reader, size, share):
    count = round(share * size)
    found = reader.live(size, "a.weight", None, "exact", count, 11)
    assert np.array_equal(found, np.flatnonzero(draw.exact(size, count, 11, "a.weight")))
    found = reader.live(size, "", None, "bernoulli", None, -5, share, "b")
    assert np.array_equal(found, np.flatnonzero(draw.bernoulli(size, share, -5, "b")))
    assert len(reader.live(size, "", None, "bernoulli", None, 0, 1.0, "b")) == size


def philox(key: int, counter: int) -> list[int]:
    """Philox4x64 with 10 rounds, as its paper has it."""
    mask = 2**64 - 1
    x, k = [counter, 0, 0, 0], [key & mask, key >> 64]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [b >> 64 ^ x[1] ^ k[0], b & mask, a >> 64 ^ x[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return x


def test_words_are_the_generator_the_page_names():
    key = draw.key("exact", 3, "w")
    assert draw.words(key, 0, 9).tolist() == [philox(key, i // 4 + 1)[i % 4] for i in range(9)]


def test_large_orders_are_the_permutation_the_page_spells_out():
    size, seed, name = 5000, 3, "w"
    words = draw.words(draw.key("exact", seed, name), 0, 4).tolist()
    keys = [words[i // 2] >> 32 * (i % 2) & 0xFFFFFFFF for i in range(8)]
    high_bits, low_bits = 6, 7

    def mix(x, key, n):
        x = (x * 0x9E3779B1 + key) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        return x >> 32 - n

    def backward(p):
        high, low = p >> low_bits, p % 2**low_bits
        for i in (6, 4, 2, 0):
            high ^= mix(low, keys[i + 1], high_bits)
            low ^= mix(high, keys[i], low_bits)
        return (high << low_bits) + low

    def walk(p):
        p = backward(p)
        while p >= size:
            p = backward(p)
        return p

    expected = sorted(walk(p) for p in range(200))
    assert np.flatnonzero(draw.exact(size, 200, seed, name)).tolist() == expected
