"""Checks that several methods share: hyper-parameters in range, layers that can take part."""

from __future__ import annotations

import math

from .base import Method, Views


def in_range(method: Method, field: str, low: float = 0.0, high: float = 1.0) -> None:
    """Refuse a hyper-parameter that is no number in [low, high].

    Raises:
        ValueError: names method, field and value.
    """
    value = getattr(method, field)
    number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not number or not low <= value <= high:
        bounds = f"in [{low:g}, {high:g}]" if high < math.inf else f"a number >= {low:g}"
        raise ValueError(f"{method.name}: {field} must be {bounds}, got {value!r}")


def refuse_frozen(method: Method, views: Views, why: str) -> None:
    """Refuse layers that never change where a method must change all of them.

    Raises:
        ValueError: names the layers.
    """
    frozen = [name for name, view in views.items() if view.frozen]
    if frozen:
        raise ValueError(
            f"{method.name} {why}, but {', '.join(frozen)} never changes (requires_grad=False): exclude it with "
            "layers=['!name']"
        )
