"""Damaged and lying files: every one is a FormatError that names the file, or gives the very tensors."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse.artifact import FormatError, container, load, save

BIG = 1 << 40


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("abuse") / "net.sparse.safetensors"


@pytest.fixture(scope="module")
def sound(place, content):
    save(content, place)
    return np.fromfile(place, np.uint8)


def parts(sound):
    tensors, metadata, _ = container.read(sound)
    table = json.loads(tensors.pop("layout").tobytes())
    return tensors, metadata, table


def seal(path, tensors, metadata, table) -> None:
    """A file with a true checksum, whatever it says."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    whole(dict(tensors, layout=np.frombuffer(text, np.uint8)), metadata).tofile(path)


def whole(tensors, metadata) -> np.ndarray:
    return np.concatenate(container.write({name: [array] for name, array in tensors.items()}, metadata))


def refused(path, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)


def row_of(table, encoding):
    return next(row for row in table["tensors"] if len(row) > 4 and row[4] == encoding)


def rewrite(edit):
    def attack(tensors, metadata, table):
        edit(table["tensors"], table)

    return attack


def in_row(encoding, position, value):
    def attack(tensors, metadata, table):
        row_of(table, encoding)[position] = value

    return attack


def in_metadata(key, value):
    def attack(tensors, metadata, table):
        metadata[key] = value

    return attack


def in_tensor(name, edit):
    def attack(tensors, metadata, table):
        tensors[name] = edit(tensors[name])

    return attack


def flip_last_bit(array):
    return np.append(array[:-1], array[-1] ^ np.uint8(1))


LIES = {
    "another format": (in_metadata("format", "pt"), "format 'pt'"),
    "a future version": (
        in_metadata("format_version", "2"),
        "format version '2'; this library reads version '1'",
    ),
    "a wrong hash": (in_metadata("masks", "0" * 64), "masks have masks"),
    "a wrong density": (in_metadata("density", "0.5"), "masks have density"),
    "a method that is no JSON": (in_metadata("method", "exec('1')"), "'method' is not valid JSON"),
    "too few values": (in_tensor("live.F32", lambda a: a[:-1]), "'live.F32' has"),
    "too many values": (in_tensor("dense.F32", lambda a: np.append(a, a[:1])), "'dense.F32' has"),
    "values of another dtype": (in_tensor("live.F64", lambda a: a.view("<i8")), "'live.F64' has"),
    "positions cut": (in_tensor("positions", lambda a: a[:-1]), "'positions' has"),
    "positions of another dtype": (in_tensor("positions", lambda a: a.view("i1")), "'positions' has"),
    "positions changed": (
        in_tensor("positions", flip_last_bit),
        "mask of .* is damaged|live positions where",
    ),
    "an unknown tensor": (lambda t, m, _: t.update(evil=np.zeros(1, "u1")), "'evil' that its layout"),
    "a tensor missing": (lambda t, m, _: t.pop("dense.I64"), "'dense.I64' has 0 values"),
    "a count too high": (in_row("bits", 5, 251), "'live.F16' has"),
    "another seed": (in_row("exact", 6, 8), "masks have masks"),
    "another drawn count": (in_row("exact", 5, 301), "'live.F32' has"),
    "another density of a draw": (in_row("bernoulli", 7, 0.5), "live positions where"),
    "a seed that is a list": (in_row("exact", 6, [0]), "no known encoding"),
    "another parameter": (in_row("rice", 6, 2), "is damaged"),
    "a huge parameter": (in_row("rice", 6, 10**300), "is damaged"),
    "a shape too small": (in_row("rice", 3, [5, 6]), "is damaged|cannot be"),
    "a negative shape": (in_row("rice", 3, [-1, 600]), "impossible shape"),
    "terabytes of zeros": (in_row("rice", 3, [BIG, 600]), "more than the 1,073,741,824 allowed"),
    "terabytes drawn": (in_row("exact", 3, [BIG]), "more than the 1,073,741,824 allowed"),
    "terabytes of bits": (in_row("bits", 3, [BIG]), "'positions' has"),
    "terabytes dense": (rewrite(lambda rows, _: rows[-2].__setitem__(3, [BIG])), "'dense.F32' has"),
    "a name twice": (rewrite(lambda rows, _: rows.append([0, "flags", 0, [0]])), "'flags' a second time"),
    "a dtype changed": (rewrite(lambda rows, t: t["dtypes"].reverse()), "has .* values of|that its layout"),
    "a row too many": (rewrite(lambda rows, _: rows.append([0, "x", 0, [3]])), "'dense.F32' has"),
    "a row too few": (rewrite(lambda rows, _: rows.pop(2)), "has .* values|tied"),
    "rows exchanged": (
        rewrite(lambda rows, _: rows.insert(0, rows.pop(1))),
        "row 0|damaged|live positions where",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_under_a_true_checksum(place, sound, lie):
    attack, reason = LIES[lie]
    tensors, metadata, table = parts(sound)
    attack(tensors, metadata, table)
    seal(place, tensors, metadata, table)
    tracemalloc.start()
    try:
        refused(place, reason)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_no_layout(place, sound):
    tensors, metadata, _ = parts(sound)
    whole(tensors, metadata).tofile(place)
    refused(place, "no layout table")
    seal(place, tensors, metadata, b"[" * 100_000)
    refused(place, "layout table is not valid JSON")


def test_a_file_may_be_allowed_more_and_less(place, sound):
    tensors, metadata, table = parts(sound)
    row_of(table, "rice")[3] = [1 << 15, 1 << 15]
    seal(place, tensors, metadata, table)
    refused(place, "pass max_bytes=")
    sound.tofile(place)
    with pytest.raises(FormatError, match="more than the 10 allowed"):
        load(place, max_bytes=10)


def test_a_model_of_these_shapes_is_leave_enough(place, monkeypatch):
    model = torch.nn.Linear(30, 30)
    save(model, place)
    monkeypatch.setattr("startsparse.artifact.files._SMALL", 1)
    monkeypatch.setattr("startsparse.artifact.files._RATIO", 0)
    refused(place, "more than the 1 allowed")
    assert load(place, model) is model


def outcome(path, content: np.ndarray):
    """The tensors of a file with this content, or None when it is refused."""
    content.tofile(path)
    try:
        return load(path, max_bytes=1 << 22)
    except FormatError as error:
        assert str(path) in str(error)
        return None


positions = st.floats(0, 1, exclude_max=True)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(where=positions, change=st.integers(1, 255), header=st.booleans())
def test_a_changed_byte_is_found(place, sound, content, same, where, change, header):
    changed = sound.copy()
    length = 8 + int(sound[:8].view("<u8")[0]) if header else len(sound)
    changed[int(where * length)] ^= change
    found = outcome(place, changed)
    if found is not None:  # white space in the header, say
        same(found, content)
        same(found.masks, content.masks)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(where=positions, count=st.integers(0, 40), filling=st.binary(max_size=20))
def test_cut_and_filled_files_are_refused(place, sound, where, count, filling):
    at = int(where * len(sound))
    patched = np.concatenate([sound[:at], np.frombuffer(filling, np.uint8), sound[at + count :]])
    if not np.array_equal(patched, sound):
        assert outcome(place, patched) is None
    assert outcome(place, sound[:at]) is None


@settings(derandomize=True, deadline=None, max_examples=300)
@given(where=positions, change=st.integers(1, 255), text=st.sampled_from(["layout", "positions"]))
def test_a_changed_byte_under_a_true_checksum_breaks_nothing(place, sound, where, change, text):
    tensors, metadata, table = parts(sound)
    tensors["layout"] = np.frombuffer(container.compact_json(table).encode(), np.uint8)
    array = tensors[text].copy()
    array[int(where * len(array))] ^= change
    tensors[text] = array
    found = outcome(place, whole(tensors, metadata))
    if found is not None:
        assert all(
            bool((tensor[~found.masks[name]] == 0).all())
            for name, tensor in found.items()
            if name in found.masks
        )


@settings(derandomize=True, deadline=None, max_examples=100)
@given(noise=st.binary(max_size=200))
def test_noise_is_refused(place, noise):
    assert outcome(place, np.frombuffer(noise, np.uint8)) is None
