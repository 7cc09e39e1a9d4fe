"""The safetensors container as bytes: a strict reader, and a writer whose bytes depend on its input alone.

The safetensors package reads these files; its writer is not used because the order of its metadata is not promised.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import FormatError

HEADER_LIMIT = 100_000_000
DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def compact_json(value: Any) -> str:
    """JSON without white space, in ASCII, keys sorted.

    Raises:
        ValueError: NaN or infinity, which JSON cannot hold.
        TypeError: something JSON has no word for.

    Example:
        >>> compact_json({"b": [1, 2], "a": None})
        '{"a":null,"b":[1,2]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str | bytes, what: str) -> Any:
    """A JSON value; refuses repeated keys, NaN and infinity.

    Raises:
        FormatError: ``text`` is not JSON; the message says what it should have been.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        repeated = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"{repeated!r} is given twice")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def checksum(metadata: Mapping[str, str], data: Iterable[np.ndarray]) -> str:
    """sha256 of the metadata (without their own checksum) and the data section, hexadecimal."""
    digest = hashlib.sha256(compact_json({k: v for k, v in metadata.items() if k != "checksum"}).encode())
    for part in data:
        digest.update(part.data)
    return digest.hexdigest()


def write(tensors: Mapping[str, Sequence[np.ndarray]], metadata: Mapping[str, str]) -> list[np.ndarray]:
    """The parts of a file, in order, as uint8 arrays; adds the checksum to the metadata.

    Args:
        tensors: name -> contiguous arrays (length,) of one dtype in ``DTYPES``, which follow one another.
        metadata: strings.

    Example:
        >>> parts = write({"a": [np.arange(2, dtype="<u2"), np.arange(1, dtype="<u2")]}, {"k": "v"})
        >>> tensors, metadata, _ = read(np.concatenate(parts))
        >>> tensors["a"], metadata["k"]
        (array([0, 1, 0], dtype=uint16), 'v')
    """
    order = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    data = [part.view(np.uint8) for name in order for part in tensors[name]]
    stamped = dict(metadata, checksum=checksum(metadata, data))
    header: dict[str, Any] = {"__metadata__": {key: stamped[key] for key in sorted(stamped)}}
    start = 0
    for name in order:
        dtype, length = tensors[name][0].dtype, sum(map(len, tensors[name]))
        stop = start + length * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": [length], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8), *data]


def read(buffer: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str], np.ndarray]:
    """Tensors (views into the buffer where it is aligned), metadata and data section of a file's bytes.

    Args:
        buffer: the whole file, uint8.

    Raises:
        FormatError: this is not a safetensors file of one-dimensional tensors that fill it exactly.
    """
    if len(buffer) < 8:
        raise FormatError(f"it has {len(buffer)} bytes, too few for a header")
    (length,) = struct.unpack("<Q", buffer[:8].tobytes())
    if length > min(HEADER_LIMIT, len(buffer) - 8):
        raise FormatError(f"its header claims {length} bytes, in a file of {len(buffer)}")
    header = parse_json(buffer[8 : 8 + length].tobytes(), "its header")
    data = buffer[8 + length :]
    if not isinstance(header, dict):
        raise FormatError("its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("its header has no metadata, or some that are not text")
    ranges = {name: _range(name, entry) for name, entry in header.items()}
    reached = 0
    for name, (_, start, stop) in sorted(ranges.items(), key=lambda item: item[1][1:]):
        if start != reached:
            raise FormatError(
                f"the data of {name!r} start at byte {start}, not at {reached}: a hole or an overlap"
            )
        reached = stop
    if reached != len(data):
        raise FormatError(f"its tensors need {reached} bytes of data, and it has {len(data)}")
    tensors = {name: data[start:stop].view(dtype) for name, (dtype, start, stop) in ranges.items()}
    return tensors, metadata, data


def _range(name: str, entry: Any) -> tuple[np.dtype, int, int]:
    match entry:
        case {"dtype": str(code), "shape": [int(size)], "data_offsets": [int(start), int(stop)], **rest} if (
            code in DTYPES and size >= 0 and 0 <= start <= stop and not rest
        ):
            dtype = DTYPES[code]
        case _:
            raise FormatError(f"the header's entry for {name!r} is none of this format: {entry!r:.80}")
    if stop - start != size * dtype.itemsize:
        raise FormatError(f"{name!r} claims {size} x {code} in {stop - start} bytes")
    return dtype, start, stop
