"""Masks as data: a mapping from parameter name to a bool tensor, True = active.

A leaf room: pure functions over tensors, no knowledge of models, methods or layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_PART = 1 << 20  # positions packed at a time, a multiple of 8

Masks = Mapping[str, Tensor]
"""Parameter name -> bool tensor of the parameter's shape; True = active."""


class Lazy(Mapping[str, Tensor]):
    """Masks that are made when they are looked at, so that a mapping over huge layers costs nothing.

    Example:
        >>> masks = Lazy({"w": lambda: torch.ones(2, dtype=torch.bool)})
        >>> list(masks), masks["w"]
        (['w'], tensor([True, True]))
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        return repr(dict(self))


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


def is_among(positions: Tensor, others: Tensor) -> Tensor:
    """Which positions are among others, both rising without repeats: bool of the positions' shape.

    Example:
        >>> is_among(torch.tensor([1, 4, 9]), torch.tensor([0, 4, 5]))
        tensor([False,  True, False])
    """
    if positions.device.type != "cpu" or not len(others):
        return torch.isin(positions, others, assume_unique=True)
    return in_common(positions, others)[0]


def in_common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Which of a's positions are among b's, and which of b's among a's; both rising without repeats.

    Example:
        >>> in_common(torch.tensor([1, 4, 9]), torch.tensor([0, 4, 5, 9]))
        (tensor([False,  True,  True]), tensor([False,  True, False,  True]))
    """
    if a.device.type != "cpu" or not len(a) or not len(b):
        return torch.isin(a, b, assume_unique=True), torch.isin(b, a, assume_unique=True)
    both = np.concatenate([a.numpy(), b.numpy()])
    both.sort(kind="stable")  # two rising runs: merged in one pass, where torch's isin sorts
    twice = both[1:][both[1:] == both[:-1]]
    found = []
    for positions in (a.numpy(), b.numpy()):
        among = np.zeros(len(positions), bool)
        among[np.searchsorted(positions, twice)] = True
        found.append(torch.from_numpy(among))
    return found[0], found[1]


def chosen(items: Tensor, mask: Tensor) -> Tensor:
    """``items[mask]``, in a quarter of the time on the CPU; both 1-d.

    Example:
        >>> chosen(torch.tensor([3, 5, 8]), torch.tensor([True, False, True]))
        tensor([3, 8])
    """
    if items.device.type != "cpu":
        return items[mask]
    return torch.from_numpy(items.detach().numpy()[np.flatnonzero(mask.numpy())])


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
    return torch.from_numpy(bits.view(bool)).reshape(tuple(shape))


def pack_positions(positions: Tensor, start: int, stop: int) -> np.ndarray:
    """``pack`` of the part ``start`` .. ``stop`` - 1 of a mask given by its active positions (int64, rising).

    ``start`` must be a multiple of 8. Needs memory for the part alone.

    Example:
        >>> pack_positions(torch.tensor([0, 7, 8]), 0, 9)
        array([129, 128], dtype=uint8)
    """
    low, high = np.searchsorted(positions.numpy(), [start, stop])
    part = np.zeros(stop - start, bool)
    part[positions.numpy()[low:high] - start] = True
    return np.packbits(part)


def fingerprint(masks: Masks) -> str:
    """A sha256 over names, shapes and packed bits, in name order: equal exactly when the masks are.

    Takes one mask at a time from the mapping, and packs it in small parts.

    Example:
        >>> fingerprint({"w": torch.tensor([True, False])})[:16]
        '94606171a9534358'
    """

    def layers() -> Iterator[tuple[str, tuple[int, ...], Iterable[np.ndarray]]]:
        for name in sorted(masks):
            mask = masks[name]
            flat = mask.detach().reshape(-1)
            parts = (pack(flat[start : start + _PART]).numpy() for start in range(0, len(flat), _PART))
            yield name, tuple(mask.shape), parts

    return fingerprint_parts(layers())


def fingerprint_positions(positions: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """``fingerprint`` of masks given by their active positions (int64, rising, on the CPU).

    Takes the positions of one mask at a time from the mapping, and packs them in small parts.
    """

    def layers() -> Iterator[tuple[str, tuple[int, ...], Iterable[np.ndarray]]]:
        for name in sorted(positions):
            shape, where = tuple(shapes[name]), positions[name]
            size = math.prod(shape)
            starts = range(0, size, _PART)
            yield name, shape, (pack_positions(where, start, min(start + _PART, size)) for start in starts)

    return fingerprint_parts(layers())


def fingerprint_parts(layers: Iterable[tuple[str, tuple[int, ...], Iterable[np.ndarray]]]) -> str:
    """``fingerprint`` of masks that nobody holds as a whole.

    Args:
        layers: name, shape and bits of each mask, in the order of the names; the bits as ``pack`` gives them, uint8,
            cut between bytes at will.

    Example:
        >>> fingerprint_parts([("w", (2,), [np.array([128], np.uint8)])])[:16]
        '94606171a9534358'
    """
    digest = hashlib.sha256()
    for name, shape, parts in layers:
        digest.update(f"{name}|{shape}|".encode())
        for part in parts:
            digest.update(part.data)
    return digest.hexdigest()
