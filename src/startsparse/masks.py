"""Masks as data: a mapping from parameter name to a bool tensor, True = active.

A leaf room: pure functions over tensors, no knowledge of models, methods or layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_PART = 1 << 26  # positions packed at a time

Masks = Mapping[str, Tensor]
"""Parameter name -> bool tensor of the parameter's shape; True = active."""


def counts(masks: Masks) -> dict[str, int]:
    """Active positions of each mask.

    Example:
        >>> counts({"fc": torch.tensor([[True, False], [True, True]])})
        {'fc': 3}
    """
    return {name: int(mask.sum()) for name, mask in masks.items()}


def num_active(masks: Masks) -> int:
    """Active positions of all masks together."""
    return sum(counts(masks).values())


def density(masks: Masks) -> float:
    """Share of active positions of all masks together, in [0, 1]; 0.0 for no mask at all."""
    total = sum(mask.numel() for mask in masks.values())
    return num_active(masks) / total if total else 0.0


def validate(masks: Masks, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse masks that are not bool tensors of exactly these names and shapes.

    Raises:
        ValueError: a name is missing or unknown, a tensor is not bool, or a shape differs.
    """
    for name in shapes.keys() - masks.keys():
        raise ValueError(f"no mask for {name!r}: masks are needed for {', '.join(shapes)}")
    for name, mask in masks.items():
        if name not in shapes:
            raise ValueError(f"mask for unknown parameter {name!r}: known are {', '.join(shapes)}")
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask of {name!r} is {mask.dtype}, it must be torch.bool (True = active)")
        if tuple(mask.shape) != tuple(shapes[name]):
            raise ValueError(f"the mask of {name!r} has shape {tuple(mask.shape)}, its weight {shapes[name]}")


def is_subset(inner: Masks, outer: Masks) -> bool:
    """Whether every active position of ``inner`` is active in ``outer``; names absent from ``outer`` are free."""
    return all(not bool((inner[name] & ~outer[name]).any()) for name in inner if name in outer)


def union(a: Masks, b: Masks) -> dict[str, Tensor]:
    """Positions active in ``a`` or ``b`` (same names)."""
    return {name: a[name] | b[name] for name in a}


def intersection(a: Masks, b: Masks) -> dict[str, Tensor]:
    """Positions active in ``a`` and ``b`` (same names)."""
    return {name: a[name] & b[name] for name in a}


def distance(a: Masks, b: Masks) -> float:
    """Jaccard distance of the active sets, in [0, 1]: 0 for equal masks, 1 for disjoint ones.

    Example:
        >>> distance({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([False, True, True])})
        0.6666666666666667
    """
    either = num_active(union(a, b))
    return 1 - num_active(intersection(a, b)) / either if either else 0.0


def pack(mask: Tensor) -> Tensor:
    """One bit a position, row-major, first position in the highest bit; uint8, shape (ceil(numel / 8),).

    Example:
        >>> pack(torch.tensor([True, False, False, False, False, False, False, True, True]))
        tensor([129, 128], dtype=torch.uint8)
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of ``pack``.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    size = int(np.prod(shape))
    if packed.numel() != (size + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes cannot hold a mask of shape {tuple(shape)} ({size} bits)")
    bits = np.unpackbits(packed.cpu().numpy(), count=size)
    return torch.from_numpy(bits.astype(bool)).reshape(tuple(shape))


def pack_positions(positions: Tensor, start: int, stop: int) -> np.ndarray:
    """``pack`` of the part ``start`` .. ``stop`` - 1 of a mask given by its active positions (int64, rising).

    ``start`` must be a multiple of 8. Needs memory for the part alone.

    Example:
        >>> pack_positions(torch.tensor([0, 7, 8]), 0, 9)
        array([129, 128], dtype=uint8)
    """
    low, high = torch.searchsorted(positions, torch.tensor([start, stop])).tolist()
    inside = positions[low:high].numpy() - start
    packed = np.zeros((stop - start + 7) // 8, np.uint8)
    if len(inside):
        byte = inside >> 3
        first = np.flatnonzero(np.diff(byte, prepend=-1))
        packed[byte[first]] = np.add.reduceat(np.uint8(128) >> (inside & 7).astype(np.uint8), first)
    return packed


def fingerprint(masks: Masks) -> str:
    """A sha256 over names, shapes and packed bits, in name order: equal exactly when the masks are.

    Example:
        >>> fingerprint({"w": torch.tensor([True, False])})[:16]
        '94606171a9534358'
    """
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    return fingerprint_positions(
        {n: m.reshape(-1).nonzero().squeeze(1).cpu() for n, m in masks.items()}, shapes
    )


def fingerprint_positions(positions: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """``fingerprint`` of masks given by their active positions (int64, rising, on the CPU)."""
    digest = hashlib.sha256()
    for name in sorted(positions):
        shape = tuple(shapes[name])
        digest.update(f"{name}|{shape}|".encode())
        size = math.prod(shape)
        for start in range(0, size, _PART):
            digest.update(pack_positions(positions[name], start, min(start + _PART, size)).tobytes())
    return digest.hexdigest()
