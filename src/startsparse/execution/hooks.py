"""How a sparsifier is tied to torch objects: who holds a parameter, optimizer step hooks, load hooks.

Nothing here keeps a model from being copied or pickled: a copy of a hook does nothing.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from .optimizers import check_loaded

if TYPE_CHECKING:
    from ..sparsifier import Sparsifier

_HOLDERS = WeakIdKeyDictionary()
_PATIENCE = 1.0  # seconds to wait for another thread's collection


def attached_to(parameter: Tensor) -> Any:
    """The sparsifier that holds a parameter, or None."""
    if parameter in _HOLDERS and _HOLDERS[parameter]() is not None:
        collect_garbage()  # one that nobody can reach any more, but its optimizer's hooks, does not count
    holder = _HOLDERS.get(parameter)
    return holder() if holder else None


def collect_garbage() -> None:
    """``gc.collect()``, which does nothing while another thread collects: that is waited for."""
    done: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            done.append(threading.get_ident())

    gc.callbacks.append(note)
    try:
        end = time.monotonic() + _PATIENCE
        gc.collect()
        while threading.get_ident() not in done and time.monotonic() < end:
            time.sleep(0.001)
            gc.collect()
    finally:
        gc.callbacks.remove(note)


def claim(sparsifier: Sparsifier, parameters: Iterable[Tensor]) -> None:
    """Note who holds these parameters."""
    for parameter in parameters:
        _HOLDERS[parameter] = weakref.ref(sparsifier)


def release(parameters: Iterable[Tensor]) -> None:
    """Note that nobody holds these parameters any more."""
    for parameter in parameters:
        _HOLDERS.pop(parameter, None)


def _inert() -> Any:
    return nothing


def nothing(*args: Any) -> None:
    """What a hook becomes in a copy of the model."""


class _ModuleHook:
    """A hook of a module: in a copy of the model it does nothing."""

    def __init__(self, holder: weakref.ref):
        self._holder = holder

    def __deepcopy__(self, memo: dict) -> Any:
        return nothing

    def __reduce__(self) -> Any:
        return _inert, ()


class LoadHook(_ModuleHook):
    """Runs after a state was loaded into a module."""

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        sparsifier = self._holder()
        if sparsifier is not None:
            sparsifier._after_load(module)


class ThawHook(_ModuleHook):
    """Runs before the forward pass of a layer that was frozen: from the first backward pass on it is watched."""

    def __call__(self, module: nn.Module, args: tuple) -> None:
        if not torch.compiler.is_compiling() and (site := self._holder()) is not None:
            site.hook()


class StepHooks:
    """Around an optimizer's step: the sparsifier's clock, and steps that a mask update replaces."""

    def __init__(self, sparsifier: Sparsifier):
        self._sparsifier = sparsifier
        self._set_aside: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def register(cls, optimizer: Optimizer, sparsifier: Sparsifier) -> list:
        """Hook a sparsifier to an optimizer; returns the handles to remove."""
        hooks = cls(sparsifier)
        return [
            optimizer.register_step_pre_hook(hooks.before),
            optimizer.register_step_post_hook(hooks.after),
            optimizer.register_load_state_dict_pre_hook(hooks.loading),
        ]

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step pre-hook."""
        if self._sparsifier._clock.before(optimizer, _has_closure(args, kwargs), _overflow(optimizer)):
            parameters = [
                p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            self._set_aside = [(p, p.grad) for p in parameters]
            for parameter in parameters:
                parameter.grad = None

    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step post-hook."""
        for parameter, gradient in self._set_aside:
            parameter.grad = gradient
        self._set_aside = []
        self._sparsifier._clock.after(optimizer, _overflow(optimizer))

    def loading(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """The pre-hook of ``load_state_dict``."""
        sites = self._sparsifier._sites
        names = {id(site.parameter): name for name, site in sites.items()}
        check_loaded(optimizer, state, names)


def _has_closure(args: tuple, kwargs: dict) -> bool:
    """Whether a step was given a closure; ``args`` may begin with the optimizer itself."""
    return kwargs.get("closure") is not None or any(callable(argument) for argument in args)


def _overflow(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler found an overflow: a fused optimizer runs its hooks on the skipped step too."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
