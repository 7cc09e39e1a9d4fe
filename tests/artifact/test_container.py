import json
import struct

import numpy as np
import pytest
from safetensors import deserialize

from startsparse.artifact import FormatError, container


def whole(tensors, metadata=None):
    parts = {name: [array] for name, array in tensors.items()}
    return np.concatenate(container.write(parts, metadata or {}))


def handmade(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(struct.pack("<Q", len(text)) + text + data, np.uint8)


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_wide_items_come_first_and_every_tensor_is_aligned():
    tensors = {"a": np.arange(3, dtype="u1"), "b": np.arange(3, dtype="<f8"), "c": np.arange(1, dtype="<f4")}
    content = whole(tensors, {"z": "1", "a": "é"})
    back, metadata, data = container.read(content)
    assert list(back) == ["b", "c", "a"]
    assert list(metadata) == ["a", "checksum", "z"]
    assert (len(content) - len(data)) % 8 == 0
    for name, array in tensors.items():
        assert np.array_equal(back[name], array)


def test_the_order_of_the_input_does_not_matter():
    arrays = {"a": np.arange(3, dtype="u1"), "b": np.arange(2, dtype="u1")}
    backwards = dict(reversed(arrays.items()))
    assert np.array_equal(whole(arrays, {"x": "1", "y": "2"}), whole(backwards, {"y": "2", "x": "1"}))


def test_the_safetensors_library_agrees():
    tensors = {name: np.arange(5).astype(dtype) for name, dtype in container.DTYPES.items()}
    found = dict(deserialize(whole(tensors, {"k": "v"}).tobytes()))
    assert {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in found.items()} == {
        name: (name, [5], array.tobytes()) for name, array in tensors.items()
    }


def test_arrays_that_follow_one_another_are_one_tensor():
    pieces = {
        "a": [np.arange(2, dtype="<u4"), np.zeros(0, "<u4"), np.arange(3, dtype="<u4")],
        "b": [np.ones(1, "u1")],
    }
    joined = {name: np.concatenate(arrays) for name, arrays in pieces.items()}
    assert np.array_equal(np.concatenate(container.write(pieces, {"k": "v"})), whole(joined, {"k": "v"}))


META = {"__metadata__": {}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros(5, np.uint8), "5 bytes, too few"),
        (np.frombuffer(struct.pack("<Q", 2**63) + b"{}", np.uint8), "claims 9223372036854775808 bytes"),
        (handmade(b"{"), "not valid JSON"),
        (handmade(b"\xff\xfe{}"), "not valid JSON"),
        (handmade(b"[" * 200_000), "not valid JSON"),
        (handmade(b"[1]"), "not a JSON object"),
        (handmade(b'{"a":1,"a":2}'), "'a' is given twice"),
        (handmade(b'{"__metadata__":{"a":NaN}}'), "NaN is no JSON number"),
        (handmade({}), "no metadata"),
        (handmade({"__metadata__": {"a": 1}}), "not text"),
        (handmade(META | {"t": 3}), "entry for 't'"),
        (handmade(META | {"t": entry(dtype="F7")}, b"12"), "entry for 't'"),
        (handmade(META | {"t": entry() | {"more": 1}}, b"12"), "entry for 't'"),
        (handmade(META | {"t": entry(shape=(-2,))}, b"12"), "entry for 't'"),
        (handmade(META | {"t": entry(shape=(1, 2))}, b"12"), "entry for 't'"),
        (handmade(META | {"t": entry(shape=(3,))}, b"12"), "3 x U8 in 2 bytes"),
        (handmade(META | {"t": entry(dtype="F32", shape=(2**60,), offsets=(0, 2**62))}), "and it has 0"),
        (handmade(META | {"t": entry()}, b"123"), "need 2 bytes of data, and it has 3"),
        (handmade(META | {"t": entry(offsets=(1, 3))}, b"123"), "a hole or an overlap"),
        (handmade(META | {"t": entry(), "u": entry()}, b"12"), "a hole or an overlap"),
        (handmade(META | {"t": entry(offsets=(2, 0))}, b"12"), "entry for 't'"),
    ],
)
def test_unsound_containers_are_refused(content, reason):
    with pytest.raises(FormatError, match=reason):
        container.read(content)


def test_json_has_one_spelling():
    assert container.compact_json({"b": "ä", "a": 1.0}) == '{"a":1.0,"b":"\\u00e4"}'
    with pytest.raises(ValueError):
        container.compact_json(float("nan"))
