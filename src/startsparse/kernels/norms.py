"""Convolutions between batch norms, as the compiled kernels compute them, all blocked.

What a norm does is done by its neighbours on their way: the convolution after it applies it (and the ReLU) as it
pads its input, the one before it takes the moments of its output while that is in cache; backward likewise.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

from torch import Tensor

from startsparse.kernels.geometry import Layer
from startsparse.kernels.library import threads
from startsparse.kernels.native import NativeBackend, _with_scratch

_FEW = 1 << 18  # multiply-adds, or numbers, that are not worth waking a second thread for

_SIGNATURES = {
    "ss_fused_forward": (c_int64, c_void_p, c_void_p, c_int64, *[c_void_p] * 6, c_int64, c_int32),
    "ss_fused_backward": (c_int64, c_void_p, c_void_p, c_int64, *[c_void_p] * 8, c_int64, c_int32),
    "ss_norm_apply": (None, *[c_void_p] * 4, c_int32, c_void_p, c_int32),
    "ss_norm_gate": (None, *[c_void_p] * 7, c_int32),
    "ss_batch_statistics": (None, c_void_p, c_void_p, c_float, *[c_void_p] * 4),
    "ss_running_statistics": (None, c_int64, c_void_p, c_void_p, c_float, *[c_void_p] * 3),
    "ss_batch_gradient": (None, *[c_void_p] * 7),
}


class _Fusion(ctypes.Structure):
    """Mirrors ``struct Fusion`` of ``csrc/abi.h``."""

    _fields_ = [(name, c_void_p) for name in ("pre", "moments", "y", "post", "add", "sums")]


class _Blocked(ctypes.Structure):
    """Mirrors ``struct Blocked`` of ``csrc/abi.h``."""

    _fields_ = [(name, c_int64) for name in ("batch", "lanes", "tiles", "channels", "pixels")]


class Norm(NamedTuple):
    """What a batch norm comes to, per channel.

    Attributes:
        pre: scale, shift and mean: [3, channels].
        more: 1 / deviation, and the variance for running statistics: [2, channels]; None of a norm that uses these.
    """

    pre: Tensor
    more: Tensor | None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _blocked(y: Tensor, batch: int) -> _Blocked:
    """Of activations [tiles, channels, height, width, lanes]."""
    tiles, channels, height, width, lanes = y.shape
    return _Blocked(batch, lanes, tiles, channels, height * width)


class Fused:
    """These kernels. Tensors are contiguous float32 on the CPU; ``block`` sees to that."""

    def __init__(self, native: NativeBackend):
        self._library = native.library
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def forward(
        self, layer: Layer, blob: Tensor, x: Tensor, pre: Tensor | None, values: Tensor, bias: Tensor | None,
        y: Tensor, moments: Tensor | None,
    ) -> None:  # fmt: skip
        """Fill y, and the moments [tiles, channels, 2] of it; ``pre`` is the norm whose ReLU is read instead of x."""
        fusion = _Fusion(_address(pre), _address(moments))
        tensors = (byref(fusion), x.data_ptr(), values.data_ptr(), _address(bias), y.data_ptr())
        arguments = (layer.address, blob.data_ptr(), blob.numel(), *tensors)
        _with_scratch(self._library.ss_fused_forward, arguments, _team(layer, values))

    def backward(
        self, layer: Layer, blob: Tensor, x: Tensor, pre: Tensor | None, values: Tensor,
        dz: Tensor, y: Tensor, post: Tensor, add: Tensor | None,
        dx: Tensor | None, dw: Tensor | None, db: Tensor | None, sums: Tensor | None,
    ) -> None:  # fmt: skip
        """Fill those of dx, dw and db that are given.

        Args:
            dz: gradient of what the norm after the convolution gave; ``post`` makes that of y out of it.
            add: is added to dx; not with ``pre``.
            sums: with ``pre``: filled with what ``norm_gradient`` needs of the norm before.
        """
        fusion = _Fusion(_address(pre), None, y.data_ptr(), post.data_ptr(), _address(add), _address(sums))
        out = (_address(dx), _address(dw), _address(db))
        tensors = (byref(fusion), x.data_ptr(), dz.data_ptr(), values.data_ptr(), *out)
        arguments = (layer.address, blob.data_ptr(), blob.numel(), *tensors)
        _with_scratch(self._library.ss_fused_backward, arguments, _team(layer, values))

    def apply(self, y: Tensor, pre: Tensor, add: Tensor | None, relu: bool, out: Tensor, batch: int) -> None:
        """out = scale * y + shift (+ add), or the ReLU of it."""
        tensors = (y.data_ptr(), pre.data_ptr(), _address(add), relu, out.data_ptr())
        self._library.ss_norm_apply(byref(_blocked(y, batch)), *tensors, _few(y))

    def gate(self, dy: Tensor, out: Tensor | None, y: Tensor, pre: Tensor, dz: Tensor, batch: int) -> Tensor:
        """Fill dz, the gradient before the ReLU that gave ``out`` (None: there is none, and dz is dy); the sums."""
        sums = dy.new_empty(y.shape[0], y.shape[1], 2)
        tensors = (
            dy.data_ptr(),
            _address(out),
            y.data_ptr(),
            pre[2].data_ptr(),
            dz.data_ptr(),
            sums.data_ptr(),
        )
        self._library.ss_norm_gate(byref(_blocked(y, batch)), *tensors, _few(y))
        return sums

    def batch_norm(
        self, y: Tensor, batch: int, moments: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> Norm:
        """The norm that the moments of a batch come to."""
        pre, more = moments.new_empty(3, y.shape[1]), moments.new_empty(2, y.shape[1])
        self._library.ss_batch_statistics(
            byref(_blocked(y, batch)), moments.data_ptr(), eps, _address(weight), _address(bias), pre.data_ptr(),
            more.data_ptr(),
        )  # fmt: skip
        return Norm(pre, more)

    def running_norm(
        self, mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> Norm:
        """The norm that running statistics come to."""
        pre = mean.new_empty(3, mean.numel())
        self._library.ss_running_statistics(
            mean.numel(), mean.data_ptr(), variance.data_ptr(), eps, _address(weight), _address(bias),
            pre.data_ptr(),
        )  # fmt: skip
        return Norm(pre, None)

    def norm_gradient(
        self, y: Tensor, batch: int, sums: Tensor, pre: Tensor, more: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What ``backward`` wants as ``post``, [4, channels], and the gradients of the norm's weight and bias."""
        post = pre.new_empty(4, y.shape[1])
        dweight, dbias = pre.new_empty(y.shape[1]), pre.new_empty(y.shape[1])
        self._library.ss_batch_gradient(
            byref(_blocked(y, batch)), sums.data_ptr(), pre.data_ptr(), more.data_ptr(), post.data_ptr(),
            dweight.data_ptr(), dbias.data_ptr(),
        )  # fmt: skip
        return post, dweight, dbias


def _team(layer: Layer, values: Tensor) -> int:
    g = layer.geometry
    few = values.numel() * g.batch * g.out_pixels <= _FEW and g.batch * g.channels * g.plane <= _FEW
    return 1 if few else threads()


def _few(y: Tensor) -> int:
    return 1 if y.numel() <= _FEW else threads()
