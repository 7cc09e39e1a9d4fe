"""Which masks are legal: unstructured, N:M, block, constant fan-in, channel.

A layout arranges the positions of a weight in groups of one size. Either groups live or die as a whole (block,
channel), or each group keeps the same number of live positions (N:M, constant fan-in). Every legal mask has a count
that is a multiple of the layout's quantum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("unstructured", "N:M", "block:HxW", "fan_in", "channel")


@dataclass(frozen=True)
class Layout:
    """A family of legal masks; ``parse`` makes one from its name.

    Attributes:
        kind: "unstructured", "n:m", "block", "fan_in" or "channel".
        numbers: (N, M) of N:M, (H, W) of a block.
    """

    kind: str
    numbers: tuple[int, int] = (1, 1)

    @property
    def whole(self) -> bool:
        """Whether groups live or die as a whole, instead of keeping a quota each."""
        return self.kind in ("unstructured", "block", "channel")

    def arrange(self, shape: tuple[int, ...], name: str = "weight") -> Tensor:
        """Positions of a weight by group, int64, (number of groups, group size).

        N:M groups run along the inputs, for each tap of a convolution apart; blocks lie in the (out, in) matrix of
        each tap; fan-in and channel groups are all weights of one output unit.

        Raises:
            ValueError: the shape does not divide into the groups.

        Example:
            >>> parse("2:4").arrange((1, 8)).tolist()
            [[0, 1, 2, 3], [4, 5, 6, 7]]
        """
        positions = torch.arange(math.prod(shape)).view(shape[0], shape[1], -1)
        if self.kind == "unstructured":
            return positions.view(-1, 1)
        if self.kind in ("fan_in", "channel"):
            return positions.view(shape[0], -1)
        taps = positions.permute(2, 0, 1)  # (taps, out, in)
        self.check({name: shape})
        height, width = self.tile
        grid = taps.reshape(-1, shape[0] // height, height, shape[1] // width, width)
        return grid.permute(0, 1, 3, 2, 4).reshape(-1, height * width)

    @property
    def tile(self) -> tuple[int, int]:
        """Outputs and inputs that a group of N:M or of a block spans."""
        return (1, self.numbers[1]) if self.kind == "n:m" else self.numbers

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse shapes that do not divide into the groups, all of them at once.

        Raises:
            ValueError: names the layers and how to leave them out.
        """
        height, width = self.tile
        odd = [name for name, shape in shapes.items() if shape[0] % height or shape[1] % width]
        if odd:
            listed = ", ".join(f"{name} of shape {tuple(shapes[name])}" for name in odd)
            outputs = f"outputs of {height} and " if height > 1 else ""
            raise ValueError(
                f"{listed} {'does' if len(odd) == 1 else 'do'} not divide into {self}, which needs multiples: {outputs}"
                f"inputs of {width}; leave {'it' if len(odd) == 1 else 'them'} out with "
                f"layers={[f'!{name}' for name in odd]}"
            )

    def units(self, shape: tuple[int, ...], count: int, name: str = "weight") -> int:
        """Groups that live (whole layouts) or live positions of each group, nearest to ``count`` live weights."""
        groups, size = self.arrange(shape, name).shape
        if self.kind == "n:m":
            return self.numbers[0]
        return min(groups, round(count / size)) if self.whole else min(size, round(count / groups))

    def legal(self, mask: Tensor) -> bool:
        """Whether a mask, of the weight's shape, belongs to the layout.

        Example:
            >>> parse("1:2").legal(torch.tensor([[True, False, False, True]]))
            True
        """
        live = mask.reshape(-1)[self.arrange(tuple(mask.shape))].sum(1)
        if self.whole:
            return bool(((live == 0) | (live == live.new_tensor(self._size(mask.shape)))).all())
        return bool((live == (self.numbers[0] if self.kind == "n:m" else live[0])).all())

    def _size(self, shape) -> int:
        return self.arrange(tuple(shape)).shape[1]

    def __str__(self) -> str:
        if self.kind == "n:m":
            return f"{self.numbers[0]}:{self.numbers[1]}"
        return f"block:{self.numbers[0]}x{self.numbers[1]}" if self.kind == "block" else self.kind


def parse(name: str) -> Layout:
    """A layout by name: "unstructured", "2:4" (any N:M), "block:4x4" (any HxW), "fan_in" or "channel".

    Raises:
        ValueError: the name is none of these, or N:M does not have 0 < N < M.

    Example:
        >>> parse("2:4"), str(parse("block:4x8"))
        (Layout(kind='n:m', numbers=(2, 4)), 'block:4x8')
    """
    if name in ("unstructured", "fan_in", "channel"):
        return Layout(name)
    if (found := re.fullmatch(r"(\d+):(\d+)", name)) and 0 < int(found[1]) < int(found[2]):
        return Layout("n:m", (int(found[1]), int(found[2])))
    if (found := re.fullmatch(r"block:(\d+)x(\d+)", name)) and min(int(found[1]), int(found[2])) > 0:
        return Layout("block", (int(found[1]), int(found[2])))
    raise ValueError(f"unknown layout {name!r}; known: {', '.join(NAMES)} (0 < N < M, H and W at least 1)")
