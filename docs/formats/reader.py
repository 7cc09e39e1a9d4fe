"""Reads compact files (`*.sparse.safetensors`, version 1; see compact_file.md) with numpy and safetensors alone."""

import hashlib
import io
import json

import numpy as np
from safetensors import safe_open


def live(size, own_name, packed, encoding, count, *more):
    """Positions of the live weights, ascending."""
    if encoding == "all":
        return np.arange(size)
    if encoding == "bits":
        return np.flatnonzero(np.unpackbits(np.frombuffer(packed.read((size + 7) // 8), np.uint8)))
    if encoding == "rice":
        bits, k = np.unpackbits(np.frombuffer(packed.read(more[1]), np.uint8)).astype(np.int64), more[0]
        quotients = np.diff(np.flatnonzero(bits[count * k :]), prepend=-1) - 1
        remainders = bits[: count * k].reshape(count, k) @ (1 << np.arange(k)[::-1])
        return np.cumsum((quotients << k) + remainders + 1) - 1
    name = more[-1] if isinstance(more[-1], str) else own_name  # from here on see drawn_masks.md
    digest = hashlib.sha256(f"startsparse.draw.1|{encoding}|{more[0]}|{name}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size).astype("<u8")
    if encoding == "bernoulli":
        return np.flatnonzero(words.view("<u4")[:size] < int(more[1] * 2**32))
    if size <= 4096:
        return np.sort(np.argsort(words, kind="stable")[:count])
    place, todo, num_bits = np.arange(count), np.arange(count), (size - 1).bit_length()
    while len(todo):  # one step of the permutation; what falls outside takes another
        halves = list(np.divmod(place[todo], 2 ** (num_bits - num_bits // 2)))[::-1]  # low, high
        for i in range(7, -1, -1):
            x = halves[1 - i % 2].astype(np.uint32) * np.uint32(0x9E3779B1) + words.view("<u4")[i]
            x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
            halves[i % 2] ^= (x ^ x >> 13) * np.uint32(0xC2B2AE35) >> 32 - (num_bits + 1 - i % 2) // 2
        place[todo] = halves[0] + halves[1] * 2 ** (num_bits - num_bits // 2)
        todo = todo[place[todo] >= size]
    return np.sort(place)


def read(path):
    """Name -> dense array; a type numpy lacks comes as the bits that hold it (bfloat16 as uint16)."""
    with safe_open(path, "numpy") as file:
        assert (file.metadata()["format"], file.metadata()["format_version"]) == ("startsparse", "1")
        stored = {name: file.get_tensor(name) for name in list(file.keys())}
    table = json.loads(stored["layout"].tobytes())
    packed, found, name = io.BytesIO(stored.get("positions", b"")), {}, ""
    for keep, suffix, number, *row in table["tensors"]:
        name = name[:keep] + suffix
        if row:
            where = live(size := int(np.prod(row[0])), name, packed, *(row[1:] or ["all", size]))
            group = f"{'live' if row[1:] else 'dense'}.{table['dtypes'][number]}"
            values, stored[group] = np.split(stored.get(group, np.zeros(0)), [len(where)])
            found[name] = np.zeros(row[0], values.dtype)
            found[name].reshape(-1)[where] = values
        else:  # tied to an earlier row
            found[name] = list(found.values())[number]
    return found
