"""The ways to say where live weights are, and the choice of the shortest; ``docs/formats/compact_file.md``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import coding
from .errors import FormatError
from .live import All, Coins, Live, Positions, exactly, same

Draw = Mapping[str, Any]
"""A claim that a mask is a draw: ``rule`` ("exact" or "bernoulli"), ``seed``, ``name``, ``count`` or ``density``."""

RULES = ("exact", "bernoulli")
_NO_BYTES = np.zeros(0, np.uint8)


def redraw(claim: Draw, size: int) -> Live:
    """The positions a claim stands for.

    Example:
        >>> redraw({"rule": "exact", "seed": 0, "name": "fc1.weight", "count": 2}, 6).all_positions()
        array([1, 3])
    """
    if claim["rule"] == "exact":
        return exactly(claim["count"], claim["seed"], claim["name"], size)
    return Coins(claim["density"], claim["seed"], claim["name"], size)


def encode(live: Live, name: str, claim: Draw | None = None) -> tuple[list[Any], np.ndarray]:
    """The shortest encoding of live positions.

    Args:
        live: the positions.
        name: the tensor's name, which a draw of the same name need not repeat.
        claim: the draw that made this mask. It is made again, and used only when every position agrees.

    Returns:
        The end of the tensor's row in the layout table, and the bytes that go to ``positions``.

    Example:
        >>> encode(Positions(lambda: np.array([600]), 1, 602), "w")
        (['rice', 1, 8, 2], array([88, 32], dtype=uint8))
        >>> claim = {"rule": "exact", "seed": 7, "name": "w", "count": 30}
        >>> encode(redraw(claim, 900), "w", claim)
        (['exact', 30, 7], array([], dtype=uint8))
    """
    size, count = live.size, live.count
    if count == size:
        return ["all", count], _NO_BYTES
    live = live.held()
    k, length = coding.rice_parameter(coding.gaps(live))
    options = [(["bits", count], (size + 7) // 8), (["rice", count, k, length], length)]
    if claim is not None and _agrees(claim, live):
        row = [claim["rule"], count, int(claim["seed"])]
        row += [float(claim["density"])] if claim["rule"] == "bernoulli" else []
        options.append((row + ([claim["name"]] if claim["name"] != name else []), 0))
    row, _ = min(options, key=lambda option: len(json.dumps(option[0], separators=(",", ":"))) + option[1])
    if row[0] == "bits":
        return row, coding.pack_bits(live)
    return row, coding.rice_encode(coding.gaps(live), count, k) if row[0] == "rice" else _NO_BYTES


def _agrees(claim: Draw, live: Live) -> bool:
    if claim["rule"] not in RULES or (claim["rule"] == "exact" and claim["count"] != live.count):
        return False
    return same(redraw(claim, live.size), live)


def parse(row: list[Any], size: int, name: str) -> tuple[int, int, Draw | None]:
    """Check the end of a row, and what follows from it, without touching ``positions``.

    Returns:
        The number of live positions, the number of bytes in ``positions``, and the draw (None if it is not one).

    Raises:
        FormatError: the row is not one of the format.

    Example:
        >>> parse(["rice", 1, 9, 2], 602, "w")
        (1, 2, None)
    """
    match row:
        case ["all", int(count)] if count == size:
            length, claim = 0, None
        case ["bits", int(count)]:
            length, claim = (size + 7) // 8, None
        case ["rice", int(count), int(), int(length)] if length >= 0:
            claim = None
        case ["exact", int(count), int(seed), *rest] if _is_name(rest):
            length, claim = 0, {"rule": "exact", "seed": seed, "name": (rest or [name])[0], "count": count}
        case ["bernoulli", int(count), int(seed), int() | float() as density, *rest] if (
            _is_name(rest) and math.isfinite(density) and 0 <= density <= 1
        ):
            length = 0
            claim = {"rule": "bernoulli", "seed": seed, "name": (rest or [name])[0], "density": density}
        case _:
            raise FormatError(f"the mask of {name!r} is in no known encoding: {_short(row)}")
    if any(isinstance(item, bool) for item in row) or not 0 <= count <= size:
        raise FormatError(f"the mask of {name!r} cannot be {_short(row)} over {size} positions")
    return count, length, claim


def _is_name(rest: list[Any]) -> bool:
    return not rest or (len(rest) == 1 and isinstance(rest[0], str))


def _short(row: list[Any]) -> str:
    return repr(row)[:80]


def decode(row: list[Any], packed: np.ndarray, size: int, name: str) -> Live:
    """The live positions of a row that ``parse`` accepted.

    Args:
        row: the end of the tensor's row.
        packed: its bytes of ``positions``, as many as ``parse`` said.
        size: positions of the tensor.
        name: the tensor's name.

    Raises:
        FormatError: the bytes and the row disagree. Of Rice codes this is found, and raised, when the positions are
            looked at.

    Example:
        >>> decode(["rice", 1, 8, 2], np.array([88, 32], np.uint8), 602, "w").all_positions()
        array([600])
    """
    count, _, claim = parse(row, size, name)

    def unrice() -> np.ndarray:
        try:
            return coding.rice_decode(packed, count, row[2], size)
        except (ValueError, OverflowError) as error:
            raise FormatError(f"the mask of {name!r} is damaged: {error}") from error

    if row[0] == "rice":
        return Positions(unrice, count, size)
    try:
        if claim is not None:
            live = redraw(claim, size)
        else:
            live = All(size) if row[0] == "all" else coding.unpack_bits(packed, size)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"the mask of {name!r} is damaged: {error}") from error
    if live.count != count:
        raise FormatError(f"the mask of {name!r} has {live.count} live positions where {count} are announced")
    return live
