"""How a layer's activations lie in the blocked layout, described once per shape for the kernels.

Blocked activations are ``[tile][channel][pixel][lane]``: ``lanes`` items of the batch are neighbours in
memory, so that one weight meets a whole vector of items at one address. A convolution's input is padded in
this layout, and a stride of s becomes stride 1 over s x s phase images, so that the pixels of an output line
are neighbours in the input as well.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import lru_cache

Pair = tuple[int, int]


class Geometry(ctypes.Structure):
    """Mirrors ``struct Geometry`` of ``csrc/abi.h``, which says what each field means."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "batch", "lanes", "tiles", "channels", "pixels", "plane", "kernel", "out_pixels", "lines",
            "in_line", "line", "blocked",
        )
    ] + [
        ("shift", ctypes.POINTER(ctypes.c_int32)), ("place", ctypes.POINTER(ctypes.c_int32)),
        ("out_image", ctypes.c_int64), ("out_place", ctypes.POINTER(ctypes.c_int32)),
    ]  # fmt: skip


@dataclass(frozen=True)
class ConvShape:
    """A convolution but for its batch: channels, image (height, width) and the usual four pairs."""

    channels: int
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> Pair:
        """Height and width of the output; zero or less where the kernel does not fit."""
        return self._out(0), self._out(1)

    def _out(self, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (self.size[axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


@dataclass(frozen=True)
class Layer:
    """A layer's shape at one batch size: the struct for the kernels, and what the torch fallback reads."""

    geometry: Geometry
    conv: ConvShape | None = None
    address: ctypes.Array = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "address", ctypes.byref(self.geometry))


def lanes_for(batch: int, line: int = 1, widest: int = 64) -> int:
    """Items per tile: enough for long vectors, not many more than there are.

    Args:
        batch: Number of items.
        line: Output pixels that are neighbours in memory: vectors may be filled along them instead.
        widest: At most so many.
    """
    lanes = 16
    while lanes < widest and lanes < batch and lanes * line < 128:
        lanes *= 2
    return lanes


def linear_lanes(items: int, features: int, weights: int, threads: int) -> int:
    """Items per tile of a linear layer that takes and gives row-major activations.

    Each thread has a tile of its own where that is possible, so that no activation crosses from core to core. Where
    the weights outnumber the activations, that costs more than it saves: every thread would read all of them.

    Args:
        items: Rows of x.
        features: Inputs and outputs together.
        weights: Live ones.
        threads: That compute.
    """
    if weights > items * features:
        return lanes_for(items, widest=128)
    return lanes_for(items, widest=32 if 32 < items <= 32 * threads else 64)


@lru_cache(maxsize=4096)
def linear_layer(batch: int, features: int, lanes: int, blocked: bool) -> Layer:
    """The layer with ``features`` inputs, at this batch size."""
    return Layer(
        Geometry(
            batch,
            lanes,
            -(-batch // lanes),
            features,
            1,
            1,
            1,
            1,
            1,
            1,
            1,
            blocked,
            (ctypes.c_int32 * 1)(0),
            None,
        )
    )


@lru_cache(maxsize=4096)
def conv_layer(batch: int, shape: ConvShape, lanes: int, blocked: bool) -> Layer:
    """The convolution at this batch size.

    One lane is for few items: an item's rows are then computed as one line of the padded image, the pixels between
    its lines too, so that vectors are filled along it.
    """
    rows = _axis(
        *(pair[0] for pair in (shape.size, shape.kernel, shape.stride, shape.padding, shape.dilation))
    )
    columns = _axis(
        *(pair[1] for pair in (shape.size, shape.kernel, shape.stride, shape.padding, shape.dilation))
    )
    (height, width), (out_height, out_width) = shape.size, shape.out_size
    extent = columns.phases * rows.extent * columns.extent  # of one row phase

    def pixel(row: Pair, column: Pair) -> int:
        return row[0] * extent + (column[0] * rows.extent + row[1]) * columns.extent + column[1]

    plane = rows.phases * extent
    shift = [pixel(row, column) for row in rows.taps for column in columns.taps]
    place = [
        -1 if row is None or column is None else pixel(row, column)
        for row in rows.items
        for column in columns.items
    ]
    identity = plane == len(place) and place == list(range(plane))
    lines, line = (1, out_height * out_width) if columns.extent == out_width else (out_height, out_width)
    out_image, out_place, out_pixels = out_height * out_width, None, out_height * out_width
    if lanes == 1:
        found = [y * columns.extent + x for y in range(out_height) for x in range(out_width)]
        out_place = (ctypes.c_int32 * len(found))(*found)
        lines, line = 1, -(-out_height * columns.extent // 16) * 16
        out_pixels = line
    return Layer(
        Geometry(
            batch, lanes, -(-batch // lanes), shape.channels, height * width, plane, len(shift),
            out_pixels, lines, columns.extent, line, blocked,
            (ctypes.c_int32 * len(shift))(*shift),
            None if identity else (ctypes.c_int32 * len(place))(*place), out_image, out_place,
        ),
        shape,
    )  # fmt: skip


@dataclass(frozen=True)
class _Axis:
    """One axis of the padded, phased image. Places are (phase, index within it); None: never read."""

    phases: int
    extent: int
    taps: list[Pair]
    items: list[Pair | None]


def _axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> _Axis:
    """Where the pixels and the kernel's taps of one axis lie, keeping only the phases and indices some tap
    reads."""
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    used = sorted({tap * dilation % stride for tap in range(kernel)})
    extent = out + dilation * (kernel - 1) // stride
    taps = [(used.index(tap * dilation % stride), tap * dilation // stride) for tap in range(kernel)]
    items = []
    for i in range(size):
        index, phase = divmod(i + padding, stride)
        items.append((used.index(phase), index) if phase in used and index < extent else None)
    return _Axis(len(used), extent, taps, items)
