"""Whoever must see a sparse layer's input and output gradient in the backward pass can watch its pattern.

The backward operators run on real tensors wherever they are called from, eager or compiled, so this is where
a dense gradient can be asked for without a hook in the graph.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_watchers: dict[int, list[Callable[[Tensor, Tensor], None]]] = {}
_listeners: list[Callable[[int], None]] = []


class Watch:
    """A registration; ``remove`` ends it."""

    def __init__(self, address: int, callback: Callable[[Tensor, Tensor], None]):
        self._address, self._callback = address, callback

    def remove(self) -> None:
        """Stop watching; a second call does nothing."""
        callbacks = _watchers.get(self._address, [])
        if self._callback in callbacks:
            callbacks.remove(self._callback)
        if not callbacks:
            _ = _watchers.pop(self._address, None)
        _tell()


def watch(pattern: Tensor, callback: Callable[[Tensor, Tensor], None]) -> Watch:
    """Call ``callback(x, dy)`` in every backward pass of the row-major layers with this pattern blob."""
    _watchers.setdefault(pattern.data_ptr(), []).append(callback)
    _tell()
    return Watch(pattern.data_ptr(), callback)


def notify(pattern: Tensor, x: Tensor, dy: Tensor) -> None:
    """Tell the watchers of a pattern; nothing happens where there are none."""
    if _watchers:
        for callback in list(_watchers.get(pattern.data_ptr(), ())):
            callback(x, dy)


def is_watched(pattern: Tensor) -> bool:
    """Whether anybody watches a pattern."""
    return bool(_watchers) and pattern.data_ptr() in _watchers


def listen(listener: Callable[[int], None]) -> None:
    """Call ``listener`` with the number of watched patterns now, and whenever it changes."""
    _listeners.append(listener)
    listener(len(_watchers))


def _tell() -> None:
    for listener in _listeners:
        listener(len(_watchers))
