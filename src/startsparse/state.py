"""Masks and sources as plain data and tensors.

Masks are stored as positions, whatever executes them, so a state moves between masked and sparse execution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .damage import are_bits, as_dict, by_layer, is_tensor, require
from .draw import Drawn
from .masks import fingerprint_positions, pack, unpack

FORMAT = 1
Shapes = Mapping[str, tuple[int, ...]]
_AMOUNTS: dict[str, dict[str, type]] = {"exact": {"count": int}, "bernoulli": {"density": float}}


def pack_masks(positions: Mapping[str, Tensor], drawn: Mapping[str, Drawn], shapes: Shapes) -> dict[str, Any]:
    """Each mask as its draw if it is one, else as positions or bits, whichever is less; and a hash over all of them.

    Args:
        positions: name -> active positions, int64, rising, on the CPU.
        drawn: name -> draw, for the masks that are exactly one.
        shapes: name -> shape of the weight.
    """
    packed = {
        name: drawn[name].as_dict() if name in drawn else _pack(where, math.prod(shapes[name]))
        for name, where in positions.items()
    }
    return {"layers": packed, "sha256": fingerprint_positions(positions, shapes)}


def unpack_masks(state: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Tensor], dict[str, Drawn]]:
    """The inverse of ``pack_masks``: positions and draws.

    Raises:
        ValueError: the masks that come out are not those that went in.
    """
    state = as_dict(state, "masks")
    layers = by_layer(state.get("layers"), "masks", shapes)
    for name, value in layers.items():
        good = isinstance(value, dict) or is_tensor(value, 1, torch.int32, torch.int64)
        good = good or are_bits(value, shapes[name])
        require(good, f"mask of {name!r}", f"a draw, positions or bits of the shape {shapes[name]}", value)
    drawn = {n: _drawn(n, value, shapes[n]) for n, value in layers.items() if isinstance(value, dict)}
    positions = {
        name: torch.from_numpy(drawn[name].positions()) if name in drawn else _unpack(value, shapes[name])
        for name, value in layers.items()
    }
    for name, where in positions.items():
        if len(where) and not 0 <= int(where.min()) <= int(where.max()) < math.prod(shapes[name]):
            raise ValueError(
                f"the state has positions of {name!r} that lie outside its weight: the state is damaged"
            )
    if fingerprint_positions(positions, shapes) != state.get("sha256"):
        raise ValueError("the masks of this sparsifier state do not match their hash: the state is damaged")
    return positions, drawn


def _drawn(name: str, fields: dict[str, Any], shape: tuple[int, ...]) -> Drawn:
    try:
        drawn = Drawn(**fields)
    except TypeError as error:
        raise ValueError(f"the state's draw of {name!r} is not one this version knows: {error}") from error
    kinds = {"rule": str, "seed": int, "name": str, "size": int} | _AMOUNTS.get(
        str(drawn.rule), {"rule": None}
    )
    if any(type(getattr(drawn, key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"the state's draw of {name!r} is not one this version knows: {fields}")
    if drawn.size != math.prod(shape):
        raise ValueError(
            f"the state's draw of {name!r} has {drawn.size} positions, its weight {math.prod(shape)}"
        )
    return drawn


def _pack(positions: Tensor, size: int) -> Tensor:
    narrow = positions.to(torch.int32) if size < 2**31 else positions
    if narrow.numel() * narrow.element_size() < size / 8:
        return narrow
    mask = torch.zeros(size, dtype=torch.bool)
    mask[positions] = True
    return pack(mask)


def _unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    return (
        packed.long()
        if packed.dtype != torch.uint8
        else unpack(packed, shape).reshape(-1).nonzero().squeeze(1)
    )


def pack_sources(sources: Mapping[str, Tensor | Drawn | None], drawn: Mapping[str, Drawn]) -> dict[str, Any]:
    """Each source as its draw, as bits, or as None for all positions."""
    return {
        name: drawn[name].as_dict() if name in drawn else pack(source) if isinstance(source, Tensor) else None
        for name, source in sources.items()
    }


def unpack_sources(state: dict[str, Any], shapes: Shapes) -> dict[str, Tensor | Drawn | None]:
    """The inverse of ``pack_sources``: flat bool tensors, draws or None.

    Raises:
        ValueError: there is something else.
    """
    layers = by_layer(state, "sources", shapes)
    return {name: _unpack_source(name, value, shapes[name]) for name, value in layers.items()}


def _unpack_source(name: str, value: Any, shape: tuple[int, ...]) -> Tensor | Drawn | None:
    if isinstance(value, dict):
        return _drawn(name, value, shape)
    if value is None:
        return None
    require(
        are_bits(value, shape), f"source of {name!r}", f"None, a draw or bits of the shape {shape}", value
    )
    return unpack(value, shape).reshape(-1)
