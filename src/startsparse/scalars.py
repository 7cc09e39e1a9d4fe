"""Numbers of NumPy, torch and others as Python's own: they compare, print and are saved as such."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from torch import Tensor

_PLAIN = (bool, int, float, str, type(None))


def as_plain(value: Any) -> Any:
    """A number as Python's int, float or bool, whatever library it is of; anything else as it is.

    Example:
        >>> as_plain(np.float32(0.5)), as_plain(np.int64(3)), as_plain("3")
        (0.5, 3, '3')
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real | Decimal):
        return float(value)
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        return value.item()
    return value


def make_plain(holder: Any) -> None:
    """Make plain numbers of all fields of a (frozen) dataclass, and of the densities of a ``distribution``."""
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        if field.name == "distribution" and isinstance(value, Mapping):
            plain = {key: as_plain(item) for key, item in value.items()}
        else:
            plain = as_plain(value)
        if plain is not value:
            object.__setattr__(holder, field.name, plain)
