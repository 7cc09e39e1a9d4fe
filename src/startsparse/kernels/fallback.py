"""The same results without a compiler: patterns and passes in plain torch.

The formulation is the best that torch's public operators allow: activations feature-major, the weight as CSR
in both orientations, ``sparse.mm`` for y and dx, ``sampled_addmm`` for dw. Where torch was built without MKL,
which these need, the same sums are taken over blocks of weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from startsparse.kernels.geometry import Layer
from startsparse.masks import chosen

MAGIC = 0x31305350524154
HEADER_FIELDS = 16
_CHUNK = 1 << 22  # floats of one block of products


def empty(number: int) -> tuple[Tensor, Tensor]:
    """Room for so many positions and scores."""
    return torch.empty(number, dtype=torch.int64), torch.empty(number)


@dataclass(frozen=True)
class Parts:
    """A pattern blob taken apart; the tensors are views. Field by field ``struct Header`` of
    ``csrc/abi.h``."""

    rows: int
    cols: int
    groups: int
    nnz: int
    col_ptr: Tensor
    row_index: Tensor
    row_ptr: Tensor
    segment_ptr: Tensor
    forward_col: Tensor
    forward_value: Tensor


def _align(size: int) -> int:
    return (size + 63) // 64 * 64


def _header(rows: int, cols: int, groups: int, nnz: int, block: int) -> list[int]:
    """The header's fields for a pattern of this shape."""
    blocks = -(-cols // block)
    row_bytes, col_bytes = (2 if n <= 65536 else 4 for n in (rows, groups * cols))
    sizes = (
        4 * (groups * cols + 1), row_bytes * nnz, 4 * (rows + 1),
        4 * (blocks * rows + 1), col_bytes * nnz, 4 * nnz,
    )  # fmt: skip
    offsets, end = [], _align(8 * HEADER_FIELDS)
    for size in sizes:
        offsets.append(end)
        end += _align(size)
    return [MAGIC, end, rows, cols, groups, nnz, block, blocks, row_bytes, col_bytes, *offsets]


def take_apart(blob: Tensor) -> Parts:
    """Views of a blob's arrays.

    Raises:
        ValueError: It is not a pattern.
    """
    head = (
        blob[: 8 * HEADER_FIELDS].clone().view(torch.int64).tolist()
        if blob.numel() >= 8 * HEADER_FIELDS
        else [0]
    )
    if head[0] != MAGIC or min(head[2:4]) < 0 or min(head[4], head[6]) < 1 or head[1] != blob.numel():
        raise ValueError("startsparse: the pattern is not one that Pattern.build made (or it was cut short)")
    rows, cols, groups, nnz, block, blocks, row_bytes, col_bytes, *offsets = head[2:]
    if head != _header(rows, cols, groups, nnz, block):
        raise ValueError("startsparse: the pattern's header contradicts itself")
    counts = (groups * cols + 1, nnz, rows + 1, blocks * rows + 1, nnz, nnz)
    widths = (4, row_bytes, 4, 4, col_bytes, 4)
    arrays = []
    for offset, count, width in zip(offsets, counts, widths, strict=True):
        arrays.append(blob[offset : offset + count * width].view(torch.uint16 if width == 2 else torch.int32))
    return Parts(rows, cols, groups, nnz, *arrays)


def _starts(kind: Tensor, kinds: int) -> Tensor:
    """Number of items of each kind -> first item of each kind, int32 [kinds + 1]."""
    starts = torch.zeros(kinds + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(kind, minlength=kinds).cumsum(0)
    return starts


def _wide(index: Tensor) -> Tensor:
    """uint16 or int32 indices -> int64."""
    return index.to(torch.int64)


class TorchBackend:
    """What ``NativeBackend`` does, with the same patterns, in torch."""

    name = "torch"
    width = 0

    def build(self, positions: Tensor, rows: int, cols: int, groups: int, block: int, threads: int) -> Tensor:
        positions = positions.to(torch.int64)
        if positions.numel() > 2**31 - 1:
            raise ValueError("startsparse: too large: at most 2^31 - 1 live weights")
        if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= rows * cols):
            raise ValueError("startsparse: a position lies outside the weight")
        if bool((positions[1:] <= positions[:-1]).any()):
            raise ValueError("startsparse: positions must be strictly ascending")
        row, col = positions // max(cols, 1), positions % max(cols, 1)
        column = row // max(rows // groups, 1) * cols + col  # global
        by_value = torch.argsort(column, stable=True)  # row-major index of each value
        value_of = torch.empty_like(by_value)
        value_of[by_value] = torch.arange(by_value.numel())
        segment = col // block * rows + row
        by_segment = torch.argsort(segment, stable=True)
        head = _header(rows, cols, groups, positions.numel(), block)
        index_type = {2: torch.uint16, 4: torch.int32}
        arrays = (
            _starts(column, groups * cols), row[by_value].to(index_type[head[8]]), _starts(row, rows),
            _starts(segment, head[7] * rows), column[by_segment].to(index_type[head[9]]),
            value_of[by_segment].to(torch.int32),
        )  # fmt: skip
        blob = torch.zeros(head[1], dtype=torch.uint8)
        for offset, array in zip((0, *head[10:]), (torch.tensor(head), *arrays), strict=True):
            data = array.view(torch.uint8)
            blob[offset : offset + data.numel()] = data
        return blob

    def change(
        self, blob: Tensor, shape: tuple[int, int, int, int, int], drop: Tensor, grow: Tensor, threads: int
    ) -> tuple[Tensor, Tensor]:
        rows, cols, groups, nnz, block = shape
        positions, order = self.row_major(blob, 0, threads)
        for name, changed in (("drop", drop), ("grow", grow)):
            if bool((changed[1:] <= changed[:-1]).any()):
                raise ValueError(f"startsparse: positions to {name} must be strictly ascending")
        dropped = torch.isin(positions, drop)
        if int(dropped.sum()) != drop.numel():
            raise ValueError("startsparse: a position to drop is not live")
        if bool(torch.isin(grow, positions[~dropped]).any()):
            raise ValueError("startsparse: a position to grow is live already")
        now, by_position = torch.cat((positions[~dropped], grow)).sort()
        built = self.build(now, rows, cols, groups, block, threads)
        source = torch.empty(nnz, dtype=torch.int32)
        was = torch.cat((order[~dropped], torch.full((grow.numel(),), -1, dtype=torch.int32)))
        source[self.row_major(built, nnz, threads)[1].to(torch.int64)] = was[by_position]
        return built, source

    def row_major(self, blob: Tensor, nnz: int, threads: int) -> tuple[Tensor, Tensor]:
        parts = take_apart(blob)
        positions, order = torch.sort(_positions(parts))
        return positions, order.to(torch.int32)

    def sources(self, before: Tensor, now: Tensor, nnz: int, threads: int) -> Tensor:
        old, new = take_apart(before), take_apart(now)
        if (old.rows, old.cols, old.groups) != (new.rows, new.cols, new.groups):
            raise ValueError("startsparse: the pattern belongs to a layer of another shape")
        sorted_old, order = torch.sort(_positions(old))
        wanted = _positions(new)
        if not old.nnz:
            return torch.full((new.nnz,), -1, dtype=torch.int32)
        at = torch.searchsorted(sorted_old, wanted).clamp_(max=old.nnz - 1)
        return torch.where(sorted_old[at] == wanted, order[at], -1).to(torch.int32)

    def take(self, tensors: Sequence[Tensor], source: Tensor, threads: int) -> list[Tensor]:
        kept = source >= 0
        at = source[kept].to(torch.int64)
        moved = [torch.zeros(source.numel(), dtype=tensor.dtype) for tensor in tensors]
        for old, now in zip(tensors, moved, strict=True):
            now[kept] = old[at]
        return moved

    def find(self, positions: Tensor, wanted: Tensor, threads: int) -> Tensor:
        if not positions.numel():
            return torch.full_like(wanted, -1)
        at = torch.searchsorted(positions, wanted).clamp_(max=positions.numel() - 1)
        return torch.where(positions[at] == wanted, at, -1)

    def part(self, a: Tensor, b: Tensor, threads: int) -> tuple[Tensor, Tensor]:
        return a[~torch.isin(a, b)], b[~torch.isin(b, a)]

    def mark(self, bits: Tensor, positions: Tensor, threads: int) -> None:
        for bit in range(8):  # those of one bit share no byte
            bits[positions[positions & 7 == bit] >> 3] |= 128 >> bit

    def marked(self, bits: Tensor, positions: Tensor, threads: int) -> Tensor:
        return (bits[positions >> 3] << (positions & 7)) & 128 != 0

    def above(
        self, gradient: Tensor, start: int, live: Tensor, returning: Tensor, bar: float, threads: int,
        room: Callable[[int], tuple[Tensor, Tensor]] = empty,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        scores = gradient.reshape(-1).abs()
        at = (scores > bar).nonzero().flatten()
        free, back = self.find(live, at + start, threads) < 0, self.find(returning, at + start, threads) >= 0
        at = at[free | back]
        found = room(len(at))
        for to, items in zip(found, (at + start, scores[at]), strict=True):
            to.copy_(items)
        return found

    def highest(self, scores: Tensor, count: int, prefer: Tensor | None, threads: int) -> Tensor | None:
        return None  # NumPy is as quick

    def pick(self, items: Tensor, mask: Tensor, wanted: bool, threads: int) -> Tensor:
        return chosen(items, mask if wanted else ~mask)

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
        parts = _fitting(layer, blob)
        out = _multiply(parts, values, _columns(layer, x), transposed=False)
        if bias is not None:
            out += bias[:, None]
        y.copy_(_to_output(layer, out, parts.rows).view(y.shape))

    def backward(
        self, layer: Layer, blob: Tensor, x: Tensor, dy: Tensor, values: Tensor,
        dx: Tensor | None, dw: Tensor | None, db: Tensor | None, threads: int,
    ) -> None:  # fmt: skip
        parts = _fitting(layer, blob)
        out = _from_output(layer, dy, parts.rows)
        if db is not None:
            db.copy_(out.sum(1))
        if dw is not None:
            dw.copy_(_sample(parts, _columns(layer, x), out))
        if dx is not None:
            dx.copy_(_fold(layer, _multiply(parts, values, out, transposed=True)).view(dx.shape))

    def pack(self, layer: Layer, x: Tensor, blocked: Tensor, threads: int) -> None:
        g = layer.geometry
        flat = x.reshape(g.batch, g.channels)
        blocked.copy_(_blocked(layer, flat).view(blocked.shape))

    def unpack(self, layer: Layer, blocked: Tensor, x: Tensor, threads: int) -> None:
        x.copy_(_unblocked(layer, blocked).view(x.shape))


def _positions(parts: Parts) -> Tensor:
    """Row-major position of each value, in value order (int64)."""
    counts = parts.col_ptr[1:] - parts.col_ptr[:-1]
    column = torch.repeat_interleave(torch.arange(counts.numel()), counts.to(torch.int64))
    return _wide(parts.row_index) * parts.cols + column % max(parts.cols, 1)


def _fitting(layer: Layer, blob: Tensor) -> Parts:
    parts = take_apart(blob)
    if parts.groups * parts.cols != layer.geometry.channels * layer.geometry.kernel:
        raise ValueError("startsparse: the pattern belongs to a layer of another shape")
    return parts


def _blocked(layer: Layer, flat: Tensor) -> Tensor:
    """[batch, features] -> [tiles, features, lanes], missing items zero."""
    g = layer.geometry
    padded = F.pad(flat, (0, 0, 0, g.tiles * g.lanes - g.batch))
    return padded.view(g.tiles, g.lanes, flat.shape[1]).transpose(1, 2)


def _unblocked(layer: Layer, x: Tensor) -> Tensor:
    """[tiles, ..., lanes] -> [batch, features]."""
    g = layer.geometry
    features = math.prod(x.shape[1:-1])
    return x.view(g.tiles, features, g.lanes).transpose(1, 2).reshape(g.tiles * g.lanes, features)[: g.batch]


def _row_major(layer: Layer, x: Tensor) -> Tensor:
    """Activations in the layer's layout -> [batch, features]."""
    g = layer.geometry
    if g.blocked:
        return _unblocked(layer, x)
    return x.reshape(g.batch, math.prod(x.shape[1:]) if x.dim() > 1 and layer.conv else x.shape[-1])


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """Input activations -> [global columns, batch * output pixels]: what each weight's column sees."""
    g, conv = layer.geometry, layer.conv
    flat = _row_major(layer, x)
    if conv is None or not g.batch:
        return flat.t().contiguous() if conv is None else flat.new_zeros(g.channels * g.kernel, 0)
    image = flat.view(g.batch, conv.channels, *conv.size)
    windows = F.unfold(image, conv.kernel, conv.dilation, conv.padding, conv.stride)
    return windows.transpose(0, 1).reshape(g.channels * g.kernel, -1)


def _fold(layer: Layer, columns: Tensor) -> Tensor:
    """Transpose of ``_columns``: gradients of the columns -> of the input, in the input's own layout."""
    g, conv = layer.geometry, layer.conv
    if conv is None or not g.batch:
        flat = columns.t() if conv is None else columns.new_zeros(0, g.channels * g.pixels)
    else:
        windows = columns.view(g.channels * g.kernel, g.batch, -1).transpose(0, 1)
        flat = F.fold(windows, conv.size, conv.kernel, conv.dilation, conv.padding, conv.stride).reshape(
            g.batch, -1
        )
    shape = () if conv is None else conv.size
    return _in_layout(layer, flat, (g.channels, *shape))


def _to_output(layer: Layer, out: Tensor, rows: int) -> Tensor:
    """[rows, batch * pixels] -> y in the layer's layout."""
    g, conv = layer.geometry, layer.conv
    flat = out.view(rows, g.batch, g.out_pixels).transpose(0, 1).reshape(g.batch, rows * g.out_pixels)
    return _in_layout(layer, flat, (rows, *(() if conv is None else conv.out_size)))


def _from_output(layer: Layer, dy: Tensor, rows: int) -> Tensor:
    g = layer.geometry
    return _row_major(layer, dy).view(g.batch, rows, g.out_pixels).transpose(0, 1).reshape(rows, -1)


def _in_layout(layer: Layer, flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[batch, features] -> the layer's layout, features as ``shape``."""
    g = layer.geometry
    if not g.blocked:
        return flat.reshape(g.batch, *shape)
    return _blocked(layer, flat).reshape(g.tiles, *shape, g.lanes)


def _multiply(parts: Parts, values: Tensor, columns: Tensor, transposed: bool) -> Tensor:
    """W @ columns, or W^T @ columns: [rows or global columns, n]."""
    n_columns = parts.groups * parts.cols
    if torch.backends.mkl.is_available() and parts.nnz and columns.numel():
        if transposed:
            matrix = _csr(parts.col_ptr, parts.row_index, values, (n_columns, parts.rows))
        else:
            position, order = torch.sort(_positions(parts))
            row = position // parts.cols
            column = position % parts.cols + row // (parts.rows // parts.groups) * parts.cols
            matrix = _csr(parts.row_ptr, column, values[order], (parts.rows, n_columns))
        return torch.sparse.mm(matrix, columns)
    row, column = _coordinates(parts)
    out_index, in_index, size = (column, row, n_columns) if transposed else (row, column, parts.rows)
    out = columns.new_zeros(size, columns.shape[1])
    step = max(1, _CHUNK // max(columns.shape[1], 1))
    for i in range(0, parts.nnz, step):
        part = slice(i, i + step)
        out.index_add_(0, out_index[part], columns[in_index[part]] * values[part, None])
    return out


def _sample(parts: Parts, columns: Tensor, out: Tensor) -> Tensor:
    """Gradient of each value, in value order: the inner products of its column and its row."""
    if torch.backends.mkl.is_available() and parts.nnz and columns.numel():
        zeros = columns.new_zeros(parts.nnz)
        pattern = _csr(parts.col_ptr, parts.row_index, zeros, (parts.groups * parts.cols, parts.rows))
        return torch.sparse.sampled_addmm(pattern, columns, out.t(), beta=0.0).values()
    row, column = _coordinates(parts)
    step = max(1, _CHUNK // max(columns.shape[1], 1))
    pieces = [
        (columns[column[i : i + step]] * out[row[i : i + step]]).sum(1) for i in range(0, parts.nnz, step)
    ]
    return torch.cat(pieces) if pieces else columns.new_zeros(0)


def _csr(ptr: Tensor, index: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            ptr.to(torch.int32), index.to(torch.int32), values, size, check_invariants=False
        )


def _coordinates(parts: Parts) -> tuple[Tensor, Tensor]:
    """Row and global column of each value, in value order (int64)."""
    counts = (parts.col_ptr[1:] - parts.col_ptr[:-1]).to(torch.int64)
    return _wide(parts.row_index), torch.repeat_interleave(torch.arange(counts.numel()), counts)
