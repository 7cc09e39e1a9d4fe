"""The sparsifier's state as plain data and tensors, and the checks when it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .draw import Drawn
from .masks import fingerprint, pack, unpack

FORMAT = 1
Shapes = Mapping[str, tuple[int, ...]]


def pack_masks(masks: Mapping[str, Tensor], drawn: Mapping[str, Drawn]) -> dict[str, Any]:
    """Each mask as its draw if it is one, else as bits, with a hash over all of them."""
    packed = {name: drawn[name].as_dict() if name in drawn else pack(mask) for name, mask in masks.items()}
    return {"layers": packed, "sha256": fingerprint(masks)}


def unpack_masks(state: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Tensor], dict[str, Drawn]]:
    """The inverse of ``pack_masks``.

    Raises:
        ValueError: the masks that come out are not those that went in.
    """
    drawn = {name: Drawn(**value) for name, value in state["layers"].items() if isinstance(value, dict)}
    masks = {
        name: torch.from_numpy(drawn[name].mask()).view(shapes[name])
        if name in drawn
        else unpack(value, shapes[name])
        for name, value in state["layers"].items()
    }
    if fingerprint(masks) != state["sha256"]:
        raise ValueError("the masks of this sparsifier state do not match their hash: the state is damaged")
    return masks, drawn


def pack_sources(sources: Mapping[str, Tensor | None], drawn: Mapping[str, Drawn]) -> dict[str, Any]:
    """Each source as its draw, as bits, or as None for all positions."""
    return {
        name: drawn[name].as_dict() if name in drawn else None if source is None else pack(source)
        for name, source in sources.items()
    }


def unpack_sources(state: dict[str, Any], shapes: Shapes) -> dict[str, Tensor | None]:
    """The inverse of ``pack_sources``: flat bool tensors or None."""
    return {
        name: torch.from_numpy(Drawn(**value).mask())
        if isinstance(value, dict)
        else None
        if value is None
        else unpack(value, shapes[name]).reshape(-1)
        for name, value in state.items()
    }


def check(state: dict[str, Any], describe: dict[str, Any], shapes: Shapes) -> None:
    """Refuse a state that is not of this method, source and model.

    Raises:
        ValueError: names the first thing that differs.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError("this is not the state of a sparsifier: it has no 'format'")
    if state["format"] != FORMAT:
        raise ValueError(
            f"sparsifier state of format {state['format']!r}; this version reads format {FORMAT}"
        )
    for part in ("method", "source"):
        theirs, ours = state["describe"][part], describe[part]
        for key in [*ours, *theirs]:
            if theirs.get(key) != ours.get(key):
                raise ValueError(
                    f"the state's {part}.{key} is {theirs.get(key)!r}, the sparsifier's is {ours.get(key)!r}: attach "
                    "with the same method and source as the run that was saved"
                )
    layers = state["masks"]["layers"]
    missing, unknown = shapes.keys() - layers.keys(), layers.keys() - shapes.keys()
    if missing or unknown:
        raise ValueError(
            f"the state's layers differ: missing {sorted(missing)}, unknown {sorted(unknown)}: attach with the same layers="
        )
