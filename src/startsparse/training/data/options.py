"""What a data set may be asked for besides its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Options:
    """Options of a data set; None leaves its default.

    Args:
        size: side of the square that images are resized to, in pixels.
        context: characters a model of text sees at once.
        label: the column of a table that holds the class.
    """

    size: int | None = None
    context: int | None = None
    label: str | None = None

    def __post_init__(self):
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: a positive number of pixels was expected, got {self.size}")
        if self.context is not None and self.context < 2:
            raise ValueError(f"context: 2 characters or more were expected, got {self.context}")

    def refuse_others(self, name: str, allowed: Sequence[str]) -> None:
        """Refuse options that a data set does not have.

        Example:
            >>> Options(context=8).refuse_others("cifar10", ())
            Traceback (most recent call last):
            ValueError: context: the data set cifar10 has no such option (it has none)
        """
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in allowed:
                has = f"it has {', '.join(allowed)}" if allowed else "it has none"
                raise ValueError(f"{field.name}: the data set {name} has no such option ({has})")
