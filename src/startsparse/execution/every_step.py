"""Listening to the steps of all optimizers there are and will be, also those made later by somebody else.

Torch's global hooks are kept in one dictionary that every optimizer walks through at every step. A hook removed when
the garbage collector finds its owner, which may be in the middle of such a walk, would break the step. So one pair of
hooks is registered, once and for good, and it looks up who listens.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Listener(Protocol):
    """Asked around the steps of every optimizer."""

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step pre-hook."""

    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step post-hook."""


_LISTENERS: weakref.WeakValueDictionary[int, Listener] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def listen(listener: Listener) -> int:
    """Call a listener around every step, for as long as somebody else holds it; returns the number to stop it with."""
    if (number := next(_NUMBERS)) == 0:
        _ = register_optimizer_step_pre_hook(_before)
        _ = register_optimizer_step_post_hook(_after)
    _LISTENERS[number] = listener
    return number


def stop_listening(number: int) -> None:
    """Call a listener no more; one that is gone already is no error."""
    _LISTENERS.pop(number, None)


def _before(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for listener in list(_LISTENERS.values()):
        listener.before(optimizer, args, kwargs)


def _after(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    for listener in list(_LISTENERS.values()):
        listener.after(optimizer, args, kwargs)
