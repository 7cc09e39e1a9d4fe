"""The table of tensors: rows of JSON to descriptions and back; ``docs/formats/compact_file.md``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import container, positions
from .errors import FormatError

STORED = container.DTYPES | {
    "BF16": np.dtype("<u2"), "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"), "BOOL": np.dtype("u1"),
    "C64": np.dtype("<u8"),
}  # fmt: skip
"""Name of a dtype -> the numpy dtype that holds its bits."""

_MOST_AXES = 64


@dataclass(frozen=True)
class Row:
    """One name of the table.

    Attributes:
        name: the tensor's name.
        dtype: a key of ``STORED``; of a tied name that of the tensor it shares.
        shape: likewise.
        mask: the end of a sparse tensor's row (encoding, count, ...); empty for a dense tensor.
        alias: for a tied name the number of the row that has the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    mask: tuple[Any, ...] = ()
    alias: int | None = None

    @property
    def size(self) -> int:
        """Positions of the tensor."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Values the file holds of it."""
        return 0 if self.alias is not None else self.mask[1] if self.mask else self.size

    @property
    def group(self) -> str:
        """The container's tensor its values are in."""
        return f"{'live' if self.mask else 'dense'}.{self.dtype}"


def dump(rows: Sequence[Row]) -> bytes:
    """The table as JSON.

    Example:
        >>> dump([Row("fc.weight", "F32", (2, 4), ("bits", 2)), Row("fc.bias", "F32", (2,))])
        b'{"dtypes":["F32"],"tensors":[[0,"fc.weight",0,[2,4],"bits",2],[3,"bias",0,[2]]]}'
    """
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    table, before = [], ""
    for row in rows:
        keep = _shared(before, row.name)
        head, before = [keep, row.name[keep:]], row.name
        if row.alias is not None:
            table.append([*head, row.alias])
        else:
            table.append([*head, dtypes.index(row.dtype), list(row.shape), *row.mask])
    return container.compact_json({"dtypes": dtypes, "tensors": table}).encode()


def _shared(a: str, b: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def parse(text: bytes) -> list[Row]:
    """The inverse of ``dump``; every row is checked by itself and against those before it.

    Raises:
        FormatError: this is not a table of the format.

    Example:
        >>> parse(b'{"dtypes":["F32"],"tensors":[[0,"fc.weight",0,[2,4],"bits",2],[3,"bias",0,[2]]]}')[1]
        Row(name='fc.bias', dtype='F32', shape=(2,), mask=(), alias=None)
    """
    match container.parse_json(text, "its layout table"):
        case {"dtypes": list(dtypes), "tensors": list(table), **rest} if not rest:
            pass
        case _:
            raise FormatError("its layout table has not the two parts 'dtypes' and 'tensors'")
    for dtype in dtypes:
        if not isinstance(dtype, str) or dtype not in STORED:
            raise FormatError(f"the layout table names an unknown dtype: {dtype!r:.40}")
    rows: list[Row] = []
    seen: set[str] = set()
    before = ""
    for number, item in enumerate(table):
        row = _parse_row(item, before, dtypes, rows)
        if row.name in seen:
            raise FormatError(f"row {number} of the layout table gives the name {row.name!r} a second time")
        seen.add(row.name)
        rows.append(row)
        before = row.name
    return rows


def _parse_row(item: Any, before: str, dtypes: list[str], rows: list[Row]) -> Row:
    match item:
        case [int(keep), str(suffix), int(), *_] if not isinstance(keep, bool) and 0 <= keep <= len(before):
            name = before[:keep] + suffix
        case _:
            raise FormatError(f"row {len(rows)} of the layout table is no row of this format: {item!r:.80}")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in suffix):
        raise FormatError(f"the name in row {len(rows)} of the layout table is no valid text: {name!r:.80}")
    match item[2:]:
        case [int(alias)] if not isinstance(alias, bool):
            if not 0 <= alias < len(rows) or rows[alias].alias is not None:
                raise FormatError(f"{name!r} is tied to row {alias}, which has no tensor before it")
            return Row(name, rows[alias].dtype, rows[alias].shape, alias=alias)
        case [int(code), list(shape), *mask] if 0 <= code < len(dtypes) and not isinstance(code, bool):
            if len(shape) > _MOST_AXES or any(type(length) is not int or length < 0 for length in shape):
                raise FormatError(f"{name!r} has an impossible shape: {shape!r:.80}")
            if max(math.prod(shape), *shape, 0) >= 2**62:
                raise FormatError(f"{name!r} has a shape beyond any machine: {shape!r:.80}")
            if mask:
                positions.parse(mask, math.prod(shape), name)  # raises when it makes no sense
            return Row(name, dtypes[code], tuple(shape), tuple(mask))
    raise FormatError(f"the row of {name!r} in the layout table is no row of this format: {item!r:.80}")
