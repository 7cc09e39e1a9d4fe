"""Tensors, positions and metadata to the bytes of a compact file and back: numpy in, numpy out, no files, no models.

The format is written down in ``docs/formats/compact_file.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import masks as masks_room
from . import container, layout, positions
from .errors import FormatError
from .live import Live
from .positions import Draw

FORMAT, VERSION = "startsparse", "1"
_JSON_KEYS = ("method", "source", "user")


@dataclass(frozen=True)
class Record:
    """One tensor, or one more name for a tensor.

    Attributes:
        name: its name.
        dtype: a key of ``layout.STORED``.
        shape: its shape.
        values: its live values, row-major, as ``layout.STORED[dtype]``; None for a tied name.
        live: where these are; None for a dense tensor, of which all values are given.
        draw: the draw that the live positions are, if they are one.
        alias: for a tied name the number of the record that has the values.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: np.ndarray | None
    live: Live | None = None
    draw: Draw | None = None
    alias: int | None = None


def pack(records: Sequence[Record], metadata: Mapping[str, Any], library: str) -> list[np.ndarray]:
    """The parts of a file, in order, as uint8 arrays.

    Args:
        records: the tensors in the order of the ``state_dict``.
        metadata: ``method``, ``source`` and ``user``, values that JSON can hold; what is None is left out.
        library: what to name as the writer.

    Example:
        >>> from .live import of_mask
        >>> live = of_mask(np.array([True, False, False, True]))
        >>> record = Record("fc.weight", "F32", (2, 2), np.array([0.5, 2], np.float32), live)
        >>> file = np.concatenate(pack([record], {"method": "static"}, "startsparse 0.1.0"))
        >>> records, metadata = build(parse(file))
        >>> records[0].values, metadata["density"], metadata["method"]
        (array([0.5, 2. ], dtype=float32), 0.5, 'static')
    """
    rows: list[layout.Row] = []
    tensors: dict[str, list[np.ndarray]] = {}
    for record in records:
        mask = ()
        if record.values is not None:
            if record.live is not None:
                tail, packed = positions.encode(record.live, record.name, record.draw)
                mask = tuple(tail)
                tensors.setdefault("positions", []).append(packed)
            kind = "dense" if record.live is None else "live"
            tensors.setdefault(f"{kind}.{record.dtype}", []).append(record.values)
        rows.append(layout.Row(record.name, record.dtype, record.shape, mask, record.alias))
    tensors["layout"] = [np.frombuffer(layout.dump(rows), np.uint8)]
    text = {key: container.compact_json(metadata[key]) for key in _JSON_KEYS if metadata.get(key) is not None}
    text |= {"format": FORMAT, "format_version": VERSION, "library": library} | _summary(records)
    return container.write({name: parts for name, parts in tensors.items() if any(map(len, parts))}, text)


def _summary(records: Sequence[Record]) -> dict[str, str]:
    """Density and hash of the masks, as the metadata hold them."""
    found = sorted([(r.name, r.shape, r.live) for r in records if r.live is not None], key=lambda f: f[0])
    total = sum(live.size for _, _, live in found)
    density = sum(live.count for _, _, live in found) / total if total else 1.0
    masks = masks_room.fingerprint_parts((name, shape, live.bits()) for name, shape, live in found)
    return {"density": container.compact_json(density), "masks": masks}


@dataclass(frozen=True)
class Parsed:
    """A file whose parts were checked, and whose tensors were not built yet: nothing large was allocated."""

    rows: list[layout.Row]
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]

    def num_bytes(self, sparse: Collection[str] = ()) -> int:
        """What the tensors and masks will need in memory.

        Args:
            sparse: names of the tensors of which live values and their positions are wanted, nothing dense.
        """
        total = 0
        for row in self.rows:
            if row.alias is None:
                item = layout.STORED[row.dtype].itemsize
                few = row.name in sparse
                total += row.count * (item + 8) if few else row.size * (item + bool(row.mask))
        return total


def parse(buffer: np.ndarray) -> Parsed:
    """Check the bytes of a file: container, version, checksum, table, lengths.

    Args:
        buffer: the whole file, uint8.

    Raises:
        FormatError: it is no compact file, or a damaged or lying one.
    """
    tensors, metadata, data = container.read(buffer)
    if metadata.get("format") != FORMAT:
        raise FormatError(f"its metadata say format {metadata.get('format')!r}, not {FORMAT!r}")
    if (version := metadata.get("format_version")) != VERSION:
        raise FormatError(f"it has format version {version!r}; this library reads version {VERSION!r}")
    if metadata.get("checksum") != container.checksum(metadata, [data]):
        raise FormatError("its checksum does not fit its content: it was damaged or changed")
    if "layout" not in tensors or tensors["layout"].dtype != np.uint8:
        raise FormatError("it has no layout table")
    rows = layout.parse(tensors.pop("layout").tobytes())
    expected: dict[str, int] = {}
    for row in rows:
        if row.alias is None:
            expected[row.group] = expected.get(row.group, 0) + row.count
        if row.mask:
            _, length, _ = positions.parse(list(row.mask), row.size, row.name)
            expected["positions"] = expected.get("positions", 0) + length
    for name in tensors.keys() - expected.keys():
        raise FormatError(f"it holds a tensor {name!r} that its layout table does not know")
    for name, count in expected.items():
        dtype = np.dtype("u1") if name == "positions" else layout.STORED[name.split(".")[1]]
        array = tensors.setdefault(name, np.zeros(0, dtype))
        if array.dtype != dtype or len(array) != count:
            raise FormatError(f"{name!r} has {len(array)} values of {array.dtype}, not {count} of {dtype}")
    return Parsed(rows, tensors, metadata)


def build(parsed: Parsed) -> tuple[list[Record], dict[str, Any]]:
    """The records and the metadata of a parsed file; values are views into its bytes.

    Raises:
        FormatError: masks that are damaged, or do not fit their hash or the density.
    """
    records: list[Record] = []
    reached: dict[str, int] = {}

    def take(group: str, count: int) -> np.ndarray:
        start = reached.get(group, 0)
        reached[group] = start + count
        return parsed.tensors[group][start : start + count]

    for row in parsed.rows:
        live, claim = None, None
        if row.mask:
            tail = list(row.mask)
            _, length, claim = positions.parse(tail, row.size, row.name)
            live = positions.decode(tail, take("positions", length), row.size, row.name)
        values = take(row.group, row.count) if row.alias is None else None
        records.append(Record(row.name, row.dtype, row.shape, values, live, claim, row.alias))
    for key, value in _summary(records).items():
        if parsed.metadata.get(key) != value:
            raise FormatError(f"its masks have {key} {value}, its metadata say {parsed.metadata.get(key)}")
    return records, _plain(parsed.metadata)


def _plain(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Metadata as Python values, without the checksum."""
    plain: dict[str, Any] = {key: value for key, value in metadata.items() if key != "checksum"}
    for key in (*_JSON_KEYS, "density", "format_version"):
        if key in plain:
            plain[key] = container.parse_json(plain[key], f"its metadata {key!r}")
    return plain
