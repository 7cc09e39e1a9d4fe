"""The mask of a ticket, as a method that a sparsifier can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..methods import Method
from ..methods.base import Start, Views


@dataclass(frozen=True)
class Given(Method):
    """The mask of a ticket, as a method: it never changes."""

    masks: Mapping[str, Tensor] | None = None

    name: ClassVar[str] = "ticket"
    paper: ClassVar[str] = "Frankle and Carbin 2019"
    summary: ClassVar[str] = "a given mask"

    def hyper_parameters(self) -> dict[str, Any]:
        return {"density": self.density}

    def start(self, views: Views) -> dict[str, Start]:
        return {name: Start((self.masks or {})[name].reshape(-1).cpu()) for name in views}
