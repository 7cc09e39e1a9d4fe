"""Within what scores are compared: a layer, all layers, a row, an N:M group; or whole blocks and channels.

A scope is a layout of ``startsparse.layouts``. Here weights are arranged in its groups and back by views, and masks
are chosen within them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from ..layouts import Layout, parse
from ..selection import top_k, top_k_in_rows

NAMES = ("layer", "global", "row", "N:M", "block:HxW", "channel")


def layout_of(scope: str) -> Layout:
    """The layout of a scope.

    Raises:
        ValueError: it is none of ``NAMES``.

    Example:
        >>> str(layout_of("2:4")), str(layout_of("row")), str(layout_of("layer"))
        ('2:4', 'fan_in', 'unstructured')
    """
    if scope in ("layer", "global"):
        return Layout("unstructured")
    if scope == "row":
        return Layout("fan_in")
    if scope == "channel" or re.fullmatch(r"\d+:\d+|block:\d+x\d+", str(scope)):
        return parse(scope)
    raise ValueError(f"unknown scope {scope!r}; known: {', '.join(NAMES)} (0 < N < M, H and W at least 1)")


def has_units(layout: Layout) -> bool:
    """Whether groups live or die as a whole and have one score each."""
    return layout.whole and layout.kind != "unstructured"


def grouped(values: Tensor, layout: Layout) -> Tensor:
    """A weight-shaped tensor by group, (groups, group size), in the order of ``layout.arrange``.

    Example:
        >>> import torch
        >>> grouped(torch.arange(8.0).view(2, 4), parse("block:2x2"))
        tensor([[0., 1., 4., 5.],
                [2., 3., 6., 7.]])
    """
    if layout.kind == "unstructured":
        return values.reshape(-1, 1)
    if layout.kind in ("fan_in", "channel"):
        return values.reshape(values.shape[0], -1)
    out, inputs = values.shape[:2]
    height, width = layout.tile
    taps = values.reshape(out, inputs, -1).permute(2, 0, 1)
    grid = taps.reshape(-1, out // height, height, inputs // width, width)
    return grid.permute(0, 1, 3, 2, 4).reshape(-1, height * width)


def ungrouped(groups: Tensor, layout: Layout, shape: tuple[int, ...]) -> Tensor:
    """The inverse of ``grouped``, contiguous."""
    if layout.kind not in ("n:m", "block"):
        return groups.reshape(shape).contiguous()
    height, width = layout.tile
    grid = groups.reshape(-1, shape[0] // height, shape[1] // width, height, width)
    taps = grid.permute(0, 1, 3, 2, 4).reshape(-1, shape[0], shape[1])
    return taps.permute(1, 2, 0).reshape(shape).contiguous()


def group_size(layout: Layout, shape: tuple[int, ...], name: str) -> int:
    """Positions of a group.

    Raises:
        ValueError: the shape does not divide into groups; names the layer and the remedy.
    """
    if layout.kind == "unstructured":
        return 1
    if layout.kind in ("fan_in", "channel"):
        return math.prod(shape[1:])
    layout.check({name: shape})
    height, width = layout.tile
    return height * width


def check_room(
    method: str, scope: str, counts: Mapping[str, int], sources: Mapping[str, Tensor | None]
) -> None:
    """Refuse a source that leaves a group fewer positions than the scope keeps of it.

    Raises:
        ValueError: names the layer, its tightest group and the remedy.
    """
    layout = layout_of(scope)
    if layout.whole:
        return
    for name, source in sources.items():
        if source is None or not source.numel():
            continue
        room = grouped(source, layout).sum(1)
        kept, tightest = counts[name] // len(room), int(room.argmin())
        if int(room[tightest]) < kept:
            raise ValueError(
                f"{method}: {name}: scope {scope} keeps {kept} weights of every group, and the source leaves one of "
                f"them only {int(room[tightest])}: a source of layout={str(layout)!r} or a denser one leaves enough"
            )


def legal_count(layout: Layout, shape: tuple[int, ...], count: int, name: str) -> int:
    """The number of active weights nearest to ``count`` that the scope can have.

    Example:
        >>> legal_count(parse("block:2x2"), (4, 4), 7, "w"), legal_count(parse("2:4"), (4, 4), 7, "w")
        (8, 8)
    """
    size, total = group_size(layout, shape, name), math.prod(shape)
    if layout.kind == "n:m":
        return layout.numbers[0] * (total // size)
    quantum = size if layout.whole else total // size
    return min(total, round(count / quantum) * quantum)


def choose(key: Tensor, count: int, layout: Layout, mask: Tensor | None, name: str) -> Tensor:
    """The ``count`` highest keys that are legal, ties to ``mask`` and then to the lower index.

    Args:
        key: of the weight's shape; (groups,) where groups live as a whole; ``-inf`` must not be taken.
        count: a legal number of positions, or of groups where these live as a whole.
        layout: of the scope.
        mask: preferred positions, of the key's shape.
        name: of the layer, for errors.

    Returns:
        Bool of the key's shape.
    """
    if layout.whole:
        return top_k(key, count, prefer=mask, what=name)
    rows = grouped(key, layout)
    prefer = None if mask is None else grouped(mask, layout)
    best = top_k_in_rows(rows, count // len(rows), prefer=prefer, what=name)
    return ungrouped(best, layout, tuple(key.shape))
