"""How a search is tied to torch: batch norm that stays, states that are loaded, backward passes that end."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..execution.hooks import nothing

if TYPE_CHECKING:
    from .engine import Search


class KeepEvaluating:
    """A forward pre-hook that keeps a batch-norm layer in evaluation mode, whatever the loop asks of the model."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        module.training = False


def freeze_batch_norm(model: nn.Module) -> list:
    """Keep all batch-norm layers in evaluation mode; returns the handles to remove."""
    return [
        module.register_forward_pre_hook(KeepEvaluating())
        for module in model.modules()
        if isinstance(module, _BatchNorm)
    ]


class LoadHook:
    """Runs after a state was loaded into a module; in a copy of the model it does nothing."""

    def __init__(self, search: Search):
        self._search = weakref.ref(search)

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        search = self._search()
        if search is not None:
            search._after_load(module)

    def __deepcopy__(self, memo: dict) -> Any:
        return nothing

    def __reduce__(self) -> Any:
        return _inert, ()


def _inert() -> Any:
    return nothing


def distributed() -> bool:
    """Whether there are processes to average over."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Reducer:
    """Averages what arrives in one backward pass over all processes, when the pass ends."""

    def __init__(self):
        self._waiting: dict[str, tuple[Tensor, Any]] = {}

    def add(self, name: str, signal: Tensor, deliver: Any) -> None:
        """``deliver(signal)`` at once, or averaged at the end of the backward pass where there are processes."""
        if not distributed():
            deliver(signal)
            return
        if not self._waiting:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # type: ignore[attr-defined]
        self._waiting[name] = (signal, deliver)

    def check_idle(self) -> None:
        """Refuse to go on after a backward pass that did not end."""
        if self._waiting:
            self._waiting = {}
            raise RuntimeError(
                "a backward pass of the search did not end: its gradients are lost on some process"
            )

    def _finish(self) -> None:
        waiting, self._waiting = self._waiting, {}
        world = torch.distributed.get_world_size()
        for name in sorted(waiting):
            signal, deliver = waiting[name]
            torch.distributed.all_reduce(signal)
            deliver(signal / world)
