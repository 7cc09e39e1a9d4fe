"""The way past Python: a layer's call and its autograd node in C++, where one is compiled (see ``node_build``).

``linear`` and ``conv2d`` take the registered operators' arguments and give y, or NotImplemented where the call is not
the plain eager one that C++ knows; they are None where there is no compiled node. Python then does the same, more
slowly: ``eager`` and the operators. Results are the same bits: both call the same kernels.

Environment:
    STARTSPARSE_NODE: ``auto`` (default): the compiled node where there is one, else the system's compiler makes one in
        the background, for processes that begin later; ``python``: neither.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from startsparse.kernels import build, eager, library, memory, node_build, observe, ops
from startsparse.kernels.native import NativeBackend

linear: Callable[..., Tensor] | None
conv2d: Callable[..., Tensor] | None

_lock = threading.Lock()
_module: ModuleType | None = None  # once loaded it stays: torch knows its nodes


def has_node() -> bool:
    """Whether calls go through the compiled node in this process."""
    if linear is _first_linear:
        _decide()
    return linear is not None


def compile_node() -> str | None:
    """Have it compiled where it is missing, which takes 15 seconds; None, or why it cannot be.

    For this process too, unless ``STARTSPARSE_NODE`` says otherwise.
    """
    try:
        folder = library.cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if node_build.load(folder) is None:
            node_build.build_into(folder)
    except (build.CompileError, OSError) as error:
        return str(error)
    forget()
    return None


def _first_linear(*call: Any) -> Any:
    _decide()
    return NotImplemented if linear is None else linear(*call)


def _first_conv2d(*call: Any) -> Any:
    _decide()
    return NotImplemented if conv2d is None else conv2d(*call)


def forget() -> None:
    """Let the next call decide."""
    global linear, conv2d
    linear, conv2d = _first_linear, _first_conv2d


def _decide() -> None:
    with _lock:
        if linear is _first_linear:  # another thread may have been here first
            _find()


def _find() -> None:
    global linear, conv2d, _module
    asked = os.environ.get("STARTSPARSE_NODE", "auto")
    if asked not in ("auto", "python"):
        raise ValueError(f"STARTSPARSE_NODE must be 'auto' or 'python', not {asked!r}")
    kernels = library.backend()
    if asked == "python" or not isinstance(kernels, NativeBackend):
        linear = conv2d = None
        return
    if _module is None:
        _module = node_build.load_or_start(library.cache_folder())
        if _module is None:
            linear = conv2d = None
            return
        memory.lenders.append(_module.lend)
        observe.listen(_module.watched)
    entries = (ctypes.cast(entry, ctypes.c_void_p).value for entry in kernels.passes)
    _module.begin(*entries, library.most_threads(), _plan, eager.gradients, _room)
    linear, conv2d = _module.linear, _module.conv2d


def _plan(kind: int, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, *rest: Any) -> tuple:
    """What C++ keeps of calls with these shapes: addresses of the layer forward and backward, its output's shape,
    outputs, threads, whether activations are blocked, and what ``eager.gradients`` takes."""
    passes = (ops.LINEAR, ops.CONV2D)[kind]
    layer, shape, outputs, team, along = call = passes.prepare(x, values, bias, pattern, *rest)
    held = eager.Held(passes, call, rest, x.shape, values.shape)
    ahead, back = (ctypes.addressof(each.geometry) for each in (along or layer, layer))
    return ahead, back, tuple(shape), outputs, team, bool(layer.geometry.blocked), held


def _room(floats: int) -> tuple[int, int]:
    """This thread's scratch, grown to so many floats."""
    memory.scratch(floats)
    return memory.room()


forget()
library.forgetting.append(forget)
