"""The sparsifier's state as plain data and tensors, and the checks when it comes back.

Masks are stored as positions, whatever executes them, so a state moves between masked and sparse execution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .draw import Drawn
from .masks import fingerprint_positions, pack, unpack

FORMAT = 1
COUNTS = ("step", "start_count", "num_updates", "num_moved")
PARTS = ("describe", "masks", "sources", "gradients", "memory", *COUNTS)
Shapes = Mapping[str, tuple[int, ...]]


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
    layers = state["layers"]
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
    if fingerprint_positions(positions, shapes) != state["sha256"]:
        raise ValueError("the masks of this sparsifier state do not match their hash: the state is damaged")
    return positions, drawn


def _drawn(name: str, fields: dict[str, Any], shape: tuple[int, ...]) -> Drawn:
    try:
        drawn = Drawn(**fields)
    except TypeError as error:
        raise ValueError(f"the state's draw of {name!r} is not one this version knows: {error}") from error
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
    """The inverse of ``pack_sources``: flat bool tensors, draws or None."""
    return {name: _unpack_source(name, value, shapes[name]) for name, value in state.items()}


def _unpack_source(name: str, value: Any, shape: tuple[int, ...]) -> Tensor | Drawn | None:
    if isinstance(value, dict):
        return _drawn(name, value, shape)
    return None if value is None else unpack(value, shape).reshape(-1)


def check(state: dict[str, Any], describe: dict[str, Any], shapes: Shapes) -> dict[str, int]:
    """Refuse a state that is not of this method, source and model; returns its counts by name.

    Raises:
        ValueError: names the first thing that differs.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError("this is not the state of a sparsifier: it has no 'format'")
    if state["format"] != FORMAT:
        raise ValueError(
            f"sparsifier state of format {state['format']!r}; this version reads format {FORMAT}"
        )
    missing_parts = [part for part in PARTS if part not in state]
    if missing_parts:
        raise ValueError(f"the sparsifier state lacks {', '.join(missing_parts)}: it is damaged or cut short")
    counts = {key: state[key] for key in COUNTS}
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"the sparsifier state's {key} is {value!r}, it must be an int >= 0")
    if state["describe"].get("total_steps") != describe["total_steps"]:
        raise ValueError(
            f"the state is of a run of total_steps={state['describe'].get('total_steps')!r}, the sparsifier has "
            f"{describe['total_steps']!r}: schedules would differ, attach with the same total_steps"
        )
    if state["describe"].get("power", 1.0) != describe.get("power", 1.0):
        raise ValueError(
            f"the state is of a run with power={state['describe'].get('power', 1.0)}, the sparsifier has "
            f"{describe.get('power', 1.0)}: attach with the same power"
        )
    for part in ("method", "source"):
        theirs, ours = state["describe"][part], describe[part]
        for key in [*ours, *theirs]:
            if theirs.get(key) != ours.get(key):
                raise ValueError(
                    f"the state's {part}.{key} is {theirs.get(key)!r}, the sparsifier's is {ours.get(key)!r}: attach "
                    "with the same method and source as the run that was saved"
                )
    held = {
        "masks": state["masks"].get("layers", {}),
        "sources": state["sources"],
        "gradients": state["gradients"],
        "memory": state["memory"],
    }
    for part, layers in held.items():
        missing, unknown = shapes.keys() - layers.keys(), layers.keys() - shapes.keys()
        if missing or unknown:
            raise ValueError(
                f"the state's layers differ: missing {sorted(missing)}, unknown {sorted(unknown)} in its {part}: attach "
                "with the same layers="
            )
    for name, gradient in state["gradients"].items():
        if gradient is not None and tuple(gradient.shape) != tuple(shapes[name]):
            raise ValueError(
                f"the state's gradient of {name!r} is {tuple(gradient.shape)}, its weight {shapes[name]}"
            )
    return counts
