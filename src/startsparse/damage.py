"""What is wrong with a state that comes back, in words: which part of it, what it must be, what it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor


def refusal(what: str, wanted: str, found: Any) -> ValueError:
    """The error for a part of a state that is not what it must be.

    Example:
        >>> refusal("gradients", "a dict", torch.zeros(3))
        ValueError("the state's gradients must be a dict, not torch.float32 of shape (3,): the state is damaged")
    """
    if isinstance(found, Tensor):
        told = f"{found.dtype} of shape {tuple(found.shape)}"
    else:
        plain = isinstance(found, str | int | float | None)
        told = repr(found) if plain else f"a {type(found).__name__}"
    return ValueError(f"the state's {what} must be {wanted}, not {told}: the state is damaged")


def require(holds: bool, what: str, wanted: str, found: Any) -> None:
    """Raise ``refusal`` unless the condition holds."""
    if not holds:
        raise refusal(what, wanted, found)


def as_dict(value: Any, what: str) -> dict:
    """The value, which must be a dict."""
    if not isinstance(value, dict):
        raise refusal(what, "a dict", value)
    return value


def by_layer(value: Any, part: str, layers: Iterable[str]) -> dict[str, Any]:
    """The value, which must be a dict with an entry for each layer and no other."""
    found, known = as_dict(value, part), set(layers)
    missing, unknown = known - found.keys(), found.keys() - known
    if missing or unknown:
        raise ValueError(
            f"the state's layers differ: missing {sorted(missing)}, unknown {sorted(map(str, unknown))} in its {part}: "
            "give the same layers="
        )
    return found


def same(theirs: Any, ours: Any) -> bool:
    """Whether two pieces of plain data are equal; tensors and arrays never are plain data."""
    try:
        return bool(theirs == ours)
    except (RuntimeError, ValueError):
        return False


def is_tensor(value: Any, dim: int, *dtypes: torch.dtype) -> TypeGuard[Tensor]:
    """Whether it is a tensor of so many dimensions and one of these types."""
    return isinstance(value, Tensor) and value.dim() == dim and value.dtype in dtypes


def is_float(value: Any, shape: Iterable[int]) -> TypeGuard[Tensor]:
    """Whether it is a tensor of numbers of this shape."""
    return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) == tuple(shape)


def are_bits(value: Any, shape: Iterable[int]) -> bool:
    """Whether it is what ``masks.pack`` gives for a mask of this shape."""
    return is_tensor(value, 1, torch.uint8) and len(value) == -(-math.prod(shape) // 8)


def are_positions(value: Any, shape: Iterable[int]) -> bool:
    """Whether it is a vector of rising positions, int64, in a weight of this shape."""
    if not is_tensor(value, 1, torch.int64):
        return False
    inside = not len(value) or 0 <= int(value[0]) <= int(value[-1]) < math.prod(shape)
    return inside and bool((value[1:] > value[:-1]).all())
