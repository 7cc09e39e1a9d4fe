"""Patterns: which weights of a layer live, in the form the kernels read, and the order their values are kept
in.

**Value order.** The parameter of a sparse layer is a vector with one value per live weight. It, its gradient
and any
optimizer state follow the order of the backward pass: by *global column*, then by row. The weight is seen as
a matrix ``[rows, cols]``: out_features x in_features, or out_channels x (in_channels/groups * kernel height *
kernel width). The global column is ``group * cols + column``; without groups it is the column.
``Pattern.order`` leads from row-major order to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from startsparse.kernels.library import backend, threads

_WEIGHTS_PER_SEGMENT = 12  # of the forward order: enough to pay for a visit of the row
_MIN_BLOCK = 128


@dataclass(frozen=True, eq=False)
class Pattern:
    """The live positions of one weight.

    Attributes:
        blob: The pattern as one flat uint8 tensor: what the operators take and what a module keeps as its
            buffer.
        rows, cols: Shape of the weight as a matrix.
        groups: Of a convolution; 1 for a linear layer.
        nnz: Number of live weights.
    """

    blob: Tensor
    rows: int
    cols: int
    groups: int
    nnz: int

    @staticmethod
    def build(positions: Tensor, rows: int, cols: int, groups: int = 1, taps: int = 1) -> Pattern:
        """The pattern of sorted row-major positions (``row * cols + col``), by counting, without a dense
        tensor.

        Args:
            positions: Strictly ascending, int64 or int32, on the CPU, [nnz].
            rows: Output features or channels.
            cols: Weights per output: in_features, or in_channels/groups * kernel height * kernel width.
            groups: Divides ``rows``.
            taps: Kernel height * kernel width; keeps a channel's taps together in the forward pass.

        Raises:
            ValueError: The positions are not such a tensor, not sorted or outside the weight.
        """
        if rows < 0 or cols < 0 or groups < 1 or rows % groups:
            raise ValueError(f"startsparse: no weight has {rows} rows, {cols} columns and {groups} groups")
        positions = _positions(positions, "positions")
        block = _block(rows, cols, positions.numel(), taps)
        blob = backend().build(positions, rows, cols, groups, block, threads())
        return Pattern(blob, rows, cols, groups, positions.numel())

    @staticmethod
    def from_mask(mask: Tensor, groups: int = 1) -> Pattern:
        """The pattern of a bool tensor of the weight's shape, [out, in] or [out, in/groups, height,
        width]."""
        if mask.dtype != torch.bool or mask.dim() < 2:
            raise ValueError(
                f"startsparse: a mask is a bool tensor of 2 or more dimensions, not {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        positions = mask.detach().reshape(-1).nonzero().flatten().cpu()
        return Pattern.build(
            positions, mask.shape[0], mask[0].numel() if len(mask) else 0, groups, mask[0, 0].numel()
        )

    @staticmethod
    def of(blob: Tensor) -> Pattern:
        """The pattern in a blob, as a module's buffer keeps it."""
        from startsparse.kernels.fallback import take_apart

        parts = take_apart(blob)
        return Pattern(blob, parts.rows, parts.cols, parts.groups, parts.nnz)

    def positions(self) -> Tensor:
        """Row-major positions, ascending: int64 [nnz]."""
        return self._row_major[0]

    @cached_property
    def _row_major(self) -> tuple[Tensor, Tensor]:
        """Positions, and where each one's value lies (int32); kept as long as this object, which lives shortly."""
        return backend().row_major(self.blob, self.nnz, threads())

    def order(self) -> Tensor:
        """Where each weight's value lies, weights in row-major order: int64 [nnz].

        ``values[order]`` is row-major; ``values[order] = sorted_values`` brings row-major values into value
        order.
        """
        return self._row_major[1].to(torch.int64)

    def places(self, positions: Tensor) -> Tensor:
        """Where the values of some positions lie, int64; ascending positions, those that are not live left out."""
        at = backend().find(self.positions(), _positions(positions, "positions").to(torch.int64), threads())
        return self._row_major[1][at[at >= 0]].to(torch.int64)

    def in_rows(self, values: Tensor) -> Tensor:
        """Values in value order, [nnz], as a new tensor in row-major order."""
        return backend().take([values.detach().contiguous()], self._row_major[1], threads())[0]

    def value_positions(self) -> Tensor:
        """Row-major position of each value, in value order: int64 [nnz]."""
        positions, order = self._row_major
        out = torch.empty_like(positions)
        out[order.to(torch.int64)] = positions
        return out

    def dense(self, values: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The weight with its zeros, [rows, cols] or ``shape``. Dense memory: for small layers, export and
        tests."""
        out = values.new_zeros(self.rows * self.cols)
        out[self.value_positions()] = values.detach()
        return out.view(*(shape or (self.rows, self.cols)))

    def take_from(self, weight: Tensor) -> Tensor:
        """Values of the live weights of a dense weight, in value order: [nnz]."""
        return weight.detach().reshape(-1)[self.value_positions()]

    def changed(self, drop: Tensor, grow: Tensor, taps: int = 1) -> tuple[Pattern, Tensor]:
        """The pattern after a topology event, and its ``source``: -1 for all that has grown.

        Args:
            drop: Ascending row-major positions that die; each must be live.
            grow: Ascending row-major positions that come to life; none may be live, unless it is dropped in
                this event.
            taps: As for ``build``.
        """
        drop, grow = (_positions(t, name).to(torch.int64) for t, name in ((drop, "drop"), (grow, "grow")))
        nnz = max(0, self.nnz - drop.numel() + grow.numel())
        shape = self.rows, self.cols, self.groups, nnz, _block(self.rows, self.cols, nnz, taps)
        blob, source = backend().change(self.blob, shape, drop, grow, threads())
        return Pattern(blob, *shape[:4]), source

    def move(self, now: Pattern, tensors: Sequence[Tensor], reset: Tensor | None = None) -> list[Tensor]:
        """What belonged to this pattern's weights, for the weights of ``now``: the kept ones' moved, the new
        ones' zero.

        Args:
            now: A pattern of the same shape.
            tensors: Values and state, each [nnz] in value order, of any dtype of 1 to 8 bytes.
            reset: Row-major positions live in both whose value and state start at zero all the same (dropped
                and grown again in one event).

        Returns:
            One new tensor per given one, [now.nnz].
        """
        source = self.source(now)
        if reset is not None and reset.numel():
            source[now.places(reset)] = -1
        return self.take(source, tensors)

    def source(self, now: Pattern) -> Tensor:
        """For each weight of ``now``, a pattern of the same shape, in value order: where its value lies here, or -1;
        int32 [now.nnz]."""
        return backend().sources(self.blob, now.blob, now.nnz, threads())

    def take(self, source: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What belonged to this pattern's weights, [nnz] each, at other places, zero at -1: a new tensor per given
        one."""
        for tensor in tensors:
            if tensor.shape != (self.nnz,) or tensor.device.type != "cpu" or tensor.element_size() > 8:
                raise ValueError(
                    f"startsparse: state to move must be [{self.nnz}] on the CPU, not {tuple(tensor.shape)} "
                    f"{tensor.dtype} on {tensor.device}"
                )
        return backend().take([tensor.detach().contiguous() for tensor in tensors], source, threads())


def _block(rows: int, cols: int, nnz: int, taps: int) -> int:
    """Columns per block of the forward order."""
    block = max(_MIN_BLOCK, -(-_WEIGHTS_PER_SEGMENT * rows * cols // max(nnz, 1)))
    return min(block + -block % taps, max(cols, 1))


def _positions(tensor: Tensor, name: str) -> Tensor:
    """Checked positions: 1-d, integer, on the CPU, contiguous."""
    if tensor.dim() != 1 or tensor.dtype not in (torch.int64, torch.int32) or tensor.device.type != "cpu":
        raise ValueError(
            f"startsparse: {name} must be a 1-d int64 or int32 tensor on the CPU, not {tuple(tensor.shape)} "
            f"{tensor.dtype} on {tensor.device}"
        )
    return tensor.detach().contiguous()
