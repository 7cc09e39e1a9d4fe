"""The compiled kernels, called through ctypes: tensors in, tensors out, status codes turned into words."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from startsparse.kernels.fallback import empty
from startsparse.kernels.geometry import Layer
from startsparse.kernels.memory import room, scratch

_WORDS = {
    1: "the pattern is not one that Pattern.build made (or it was cut short, or copied to an odd address)",
    2: "the pattern belongs to a layer of another shape",
    3: "positions must be strictly ascending",
    4: "a position lies outside the weight",
    5: "too large: at most 2^31 - 1 live weights, and 4 GiB for one tile of activations",
    6: "a position to drop is not live",
    7: "a position to grow is live already",
    8: "no memory for building a pattern",
}

_LINK = 7  # fields of ``struct Link``, 8 bytes each

_SIGNATURES = {
    "ss_width": (c_int32,),
    "ss_pattern_bytes": (c_int64, *[c_int64] * 5),
    "ss_pattern_build": (c_int32, c_void_p, *[c_int64] * 5, c_void_p, c_int32, c_int32),
    "ss_pattern_change": (c_int32, c_void_p, c_int64, *[c_void_p, c_int64] * 3, c_void_p, c_int32),
    "ss_pattern_row_major": (c_int32, c_void_p, c_int64, c_void_p, c_void_p, c_int32),
    "ss_pattern_sources": (c_int32, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32),
    "ss_take": (c_int32, c_int64, *[c_void_p] * 3, c_int64, c_int64, c_int32),
    "ss_find_positions": (None, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int32),
    "ss_part_positions": (None, *[c_void_p, c_int64] * 2, *[c_void_p] * 3, c_int32),
    "ss_mark_positions": (None, c_void_p, c_void_p, c_int64, c_int32),
    "ss_find_marked": (None, c_void_p, c_void_p, c_int64, c_void_p, c_int32),
    "ss_scores_above": (
        c_int64,
        c_void_p,
        c_int64,
        c_int64,
        *[c_void_p, c_int64] * 2,
        c_float,
        c_void_p,
        c_int32,
    ),
    "ss_list_scores": (None, c_void_p, c_int64, c_int64, *[c_void_p] * 3, c_int32),
    "ss_take_highest": (c_int32, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int32),
    "ss_pick": (c_int32, c_void_p, c_int64, c_void_p, c_int64, c_int32, c_void_p, c_int64, c_int32),
    "ss_forward": (c_int64, c_void_p, c_void_p, c_int64, *[c_void_p] * 5, c_int64, c_int32),
    "ss_backward": (c_int64, c_void_p, c_void_p, c_int64, *[c_void_p] * 7, c_int64, c_int32),
    "ss_chain_forward": (c_int64, c_void_p, *[c_int64] * 3, *[c_void_p] * 4, c_int64, c_int32),
    "ss_chain_backward": (c_int64, c_void_p, *[c_int64] * 3, *[c_void_p] * 5, c_int64, c_int32),
    "ss_pack": (None, c_void_p, c_void_p, c_void_p, c_int32),
    "ss_unpack": (None, c_void_p, c_void_p, c_void_p, c_int32),
}


def pack_links(*links: Sequence[int]) -> bytes:
    """Layers of a chain as an array of ``struct Link`` of ``csrc/abi.h``: each field of each, addresses that are none 0."""
    return struct.pack(f"{_LINK * len(links)}q", *chain.from_iterable(links))


def _check(status: int) -> None:
    if status:
        raise ValueError(f"startsparse: {_WORDS.get(status, f'kernel status {status}')}")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class NativeBackend:
    """The loaded library. Tensors given to it are contiguous, on the CPU and of the right dtype: ``ops`` sees
    to that."""

    name = "native"

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.width = library.ss_width()
        self.passes = self._forward, self._backward = library.ss_forward, library.ss_backward
        self._chain_forward, self._chain_backward = library.ss_chain_forward, library.ss_chain_backward

    def build(self, positions: Tensor, rows: int, cols: int, groups: int, block: int, threads: int) -> Tensor:
        """Sorted row-major positions [nnz], int64 or int32 -> pattern blob (uint8)."""
        shape = (rows, cols, groups, positions.numel(), block)
        blob = torch.empty(self.library.ss_pattern_bytes(*shape), dtype=torch.uint8)
        wide = positions.dtype == torch.int64
        _check(self.library.ss_pattern_build(blob.data_ptr(), *shape, positions.data_ptr(), wide, threads))
        return blob

    def change(
        self, blob: Tensor, shape: tuple[int, int, int, int, int], drop: Tensor, grow: Tensor, threads: int
    ) -> tuple[Tensor, Tensor]:
        """A pattern less ``drop`` and plus ``grow`` (both int64, sorted), and where each of its values lies in the one
        before, or -1 (int32).

        Args:
            shape: Of the new one: rows, cols, groups, live weights, and columns per block.
        """
        now = torch.empty(self.library.ss_pattern_bytes(*shape), dtype=torch.uint8)
        source = torch.empty(shape[3], dtype=torch.int32)
        changes = drop.data_ptr(), drop.numel(), grow.data_ptr(), grow.numel()
        given = blob.data_ptr(), blob.numel(), *changes, now.data_ptr(), shape[4]
        _check(self.library.ss_pattern_change(*given, source.data_ptr(), threads))
        return now, source

    def row_major(self, blob: Tensor, nnz: int, threads: int) -> tuple[Tensor, Tensor]:
        """Positions in row-major order (int64), and where each one's value lies (int32)."""
        positions = torch.empty(nnz, dtype=torch.int64)
        order = torch.empty(nnz, dtype=torch.int32)
        _check(
            self.library.ss_pattern_row_major(
                blob.data_ptr(), blob.numel(), positions.data_ptr(), order.data_ptr(), threads
            )
        )
        return positions, order

    def sources(self, before: Tensor, now: Tensor, nnz: int, threads: int) -> Tensor:
        """For each of the ``nnz`` weights of ``now``: its place in the value order of ``before``, or -1
        (int32)."""
        source = torch.empty(nnz, dtype=torch.int32)
        _check(
            self.library.ss_pattern_sources(
                before.data_ptr(), before.numel(), now.data_ptr(), now.numel(), source.data_ptr(), threads
            )
        )
        return source

    def take(self, tensors: Sequence[Tensor], source: Tensor, threads: int) -> list[Tensor]:
        """``tensor[source]`` of each, zero where source is -1. Any dtypes of 1, 2, 4 or 8 bytes."""
        moved = [torch.empty(source.numel(), dtype=tensor.dtype) for tensor in tensors]
        for size in {tensor.element_size() for tensor in tensors}:
            pairs = [
                (old, now) for old, now in zip(tensors, moved, strict=True) if old.element_size() == size
            ]
            old, now = (
                (c_void_p * len(pairs))(*(t.data_ptr() for t in side)) for side in zip(*pairs, strict=True)
            )
            _check(
                self.library.ss_take(len(pairs), old, now, source.data_ptr(), source.numel(), size, threads)
            )
        return moved

    def find(self, positions: Tensor, wanted: Tensor, threads: int) -> Tensor:
        """Where each wanted position stands among others, or -1; all int64 and sorted."""
        at = torch.empty(wanted.numel(), dtype=torch.int64)
        given = positions.data_ptr(), positions.numel(), wanted.data_ptr(), wanted.numel()
        self.library.ss_find_positions(*given, at.data_ptr(), threads)
        return at

    def part(self, a: Tensor, b: Tensor, threads: int) -> tuple[Tensor, Tensor]:
        """Positions of ``a`` that are not in ``b``, and the other way round; all int64 and sorted."""
        only, counts = (torch.empty_like(a), torch.empty_like(b)), (c_int64 * 2)()
        given = a.data_ptr(), a.numel(), b.data_ptr(), b.numel()
        self.library.ss_part_positions(*given, *(t.data_ptr() for t in only), counts, threads)
        return only[0][: counts[0]], only[1][: counts[1]]

    def mark(self, bits: Tensor, positions: Tensor, threads: int) -> None:
        """Set the bits of positions (int64, sorted): one bit each, the first of a byte of ``bits`` (uint8) highest."""
        self.library.ss_mark_positions(bits.data_ptr(), positions.data_ptr(), positions.numel(), threads)

    def marked(self, bits: Tensor, positions: Tensor, threads: int) -> Tensor:
        """Whether the bit of each position is set: bool."""
        found = torch.empty(positions.numel(), dtype=torch.bool)
        self.library.ss_find_marked(
            bits.data_ptr(), positions.data_ptr(), positions.numel(), found.data_ptr(), threads
        )
        return found

    def above(
        self, gradient: Tensor, start: int, live: Tensor, returning: Tensor, bar: float, threads: int,
        room: Callable[[int], tuple[Tensor, Tensor]] = empty,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Entries of a block of gradient of more than ``bar`` in absolute value, but for those at live positions.

        Args:
            gradient: float32, contiguous.
            start: Position of its first entry.
            live: int64, sorted.
            returning: Those of them, int64 and sorted, that are not left out.
            bar: -inf for all but NaN.
            room: Gives tensors to write to, for so many.

        Returns:
            Their positions, int64 and rising, and absolute values.
        """
        passed = torch.empty(-(-gradient.numel() // 64) + 64, dtype=torch.int64)  # a bit each, and some room
        block = gradient.data_ptr(), gradient.numel(), start
        others = live.data_ptr(), live.numel(), returning.data_ptr(), returning.numel()
        count = self.library.ss_scores_above(*block, *others, bar, passed.data_ptr(), threads)
        positions, scores = room(count)
        found = positions.data_ptr(), scores.data_ptr()
        self.library.ss_list_scores(*block, passed.data_ptr(), *found, threads)
        return positions, scores

    def highest(self, scores: Tensor, count: int, prefer: Tensor | None, threads: int) -> Tensor | None:
        """The ``count`` highest of float32 scores, contiguous, as a bool tensor; among equal ones those preferred, then
        those of lower index.

        None, and the caller has to look why, where a score is NaN or too few are more than -inf.
        """
        taken = torch.empty(scores.numel(), dtype=torch.bool)
        given = scores.data_ptr(), scores.numel(), count, _address(prefer)
        return taken if self.library.ss_take_highest(*given, taken.data_ptr(), threads) else None

    def pick(self, items: Tensor, mask: Tensor, wanted: bool, threads: int) -> Tensor:
        """``items[mask]``, or those that the mask leaves out: items of 4 or 8 bytes, mask bool, both contiguous."""
        count = int(np.count_nonzero(mask.numpy()))
        picked = torch.empty(count if wanted else mask.numel() - count, dtype=items.dtype)
        given = items.data_ptr(), items.element_size(), mask.data_ptr(), mask.numel(), wanted
        _check(self.library.ss_pick(*given, picked.data_ptr(), picked.numel(), threads))
        return picked

    def forward(
        self,
        layer: Layer,
        blob: Tensor,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        y: Tensor,
        threads: int,
    ) -> None:
        """Fill ``y``."""
        pattern = layer.address, blob.data_ptr(), blob.numel()
        tensors = x.data_ptr(), values.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr()
        if self._forward(
            *pattern, *tensors, *room(), threads
        ):  # not by ``_with_scratch``: each call counts here
            _with_scratch(self._forward, (*pattern, *tensors), threads)

    def backward(
        self, layer: Layer, blob: Tensor, x: Tensor, dy: Tensor, values: Tensor,
        dx: Tensor | None, dw: Tensor | None, db: Tensor | None, threads: int,
    ) -> None:  # fmt: skip
        """Fill those of ``dx``, ``dw`` and ``db`` that are given."""
        pattern = layer.address, blob.data_ptr(), blob.numel()
        found = _address(dx), _address(dw), _address(db)
        tensors = x.data_ptr(), dy.data_ptr(), values.data_ptr(), *found
        if self._backward(*pattern, *tensors, *room(), threads):
            _with_scratch(self._backward, (*pattern, *tensors), threads)

    def chain_forward(
        self,
        links: bytes,
        batch: int,
        lanes: int,
        x: Tensor,
        kept: Tensor,
        y: Tensor,
        threads: int,
    ) -> None:
        """Fill ``y``, row-major, and ``kept``: the outputs of all layers but the last, blocked, one after the other.

        ``links``: of ``pack_links``; whoever calls keeps alive what they point at.
        """
        tensors = x.data_ptr(), kept.data_ptr(), y.data_ptr()
        _with_scratch(
            self._chain_forward, (links, len(links) // (8 * _LINK), batch, lanes, *tensors), threads
        )

    def chain_backward(
        self, links: bytes, batch: int, lanes: int, x: Tensor, dy: Tensor, kept: Tensor,
        dx: Tensor | None, threads: int,
    ) -> None:  # fmt: skip
        """Fill ``dx`` where it is given, and the gradients whose addresses the links hold."""
        tensors = x.data_ptr(), dy.data_ptr(), kept.data_ptr(), _address(dx)
        _with_scratch(
            self._chain_backward, (links, len(links) // (8 * _LINK), batch, lanes, *tensors), threads
        )

    def pack(self, layer: Layer, x: Tensor, blocked: Tensor, threads: int) -> None:
        """Row-major [batch, channels, ...] -> blocked [tiles, channels, ..., lanes], missing items zero."""
        self.library.ss_pack(layer.address, x.data_ptr(), blocked.data_ptr(), threads)

    def unpack(self, layer: Layer, blocked: Tensor, x: Tensor, threads: int) -> None:
        """Blocked -> row-major."""
        self.library.ss_unpack(layer.address, blocked.data_ptr(), x.data_ptr(), threads)


def _with_scratch(function, arguments: tuple, threads: int) -> None:
    """Call; where the scratch at hand is too small, the kernel says how much it needs."""
    status = function(*arguments, *room(), threads)
    if status < 0:
        scratch(-status)
        status = function(*arguments, *room(), threads)
    _check(status)
