"""A module that runs by its trace: when it does, and when it runs its own ``forward``.

Its class is changed in place, to a subclass whose ``forward`` runs the trace; the object and all that it holds stay. A
deep copy has the trace, too; a pickled model is of the class it was, as what its ``forward`` says may have changed by the
time it is loaded.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.eager import is_plain
from . import fused
from .guard import Guard
from .program import Program
from .turned import PLAIN, turn_back


@dataclass(eq=False)
class Trace:
    """What runs in the place of a module's ``forward``.

    Attributes:
        ways: by mode (training or not): the program, and whether the module is still the one it was made of.
        inputs: how many arguments it takes.
        aside: why the module's own ``forward`` ran, and how often.
        used: how often the trace did.
        always: also where ``fused_blocks`` is off.
    """

    ways: Mapping[bool, tuple[Program, Guard]]
    inputs: int
    always: bool = False
    aside: Counter[str] = field(default_factory=Counter)
    used: int = 0

    def __deepcopy__(self, memo: dict) -> Trace:
        return self

    def __reduce__(self) -> Any:
        return _nothing, ()

    def turn(self, module: nn.Module) -> None:
        """Let a module run by this trace from now on."""
        turn_back(module)
        module.__class__ = _traced_class(type(module), self)

    def modules(self, module: nn.Module, args: tuple, kwargs: Mapping) -> tuple[dict[str, nn.Module], str]:
        """The modules inside by name, and why the trace must not be used for a call (or an empty string)."""
        if kwargs or len(args) != self.inputs:
            return {}, "called with other arguments than the ones it needs"
        if not (is_plain(*args) if all(isinstance(arg, Tensor) for arg in args) else False):
            return {}, "not a plain call with tensors on the CPU (autocast, transforms, modes, subclasses)"
        if torch._C._is_tracing() or fused.observed_globally():
            return {}, "somebody looks at all modules"
        if module.training not in self.ways:
            return {}, f"it could not be traced with training={module.training}"
        return self.ways[module.training][1].modules(module)

    def run(self, module: nn.Module, plain: type[nn.Module], args: tuple, kwargs: Mapping) -> Any:
        """The module's output."""
        if not (fused.is_on() or self.always):
            return plain.forward(module, *args, **kwargs)
        found, why = self.modules(module, args, kwargs)
        if why:
            self.aside[why] += 1
            return plain.forward(module, *args, **kwargs)
        self.used += 1
        return self.ways[module.training][0].run(found, args)


def trace_of(module: nn.Module) -> Trace | None:
    """By which trace a module runs."""
    return type(module).__dict__.get("_startsparse_trace")


def _traced_class(plain: type[nn.Module], trace: Trace) -> type[nn.Module]:
    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return plain.forward(self, *args, **kwargs)
        return trace.run(self, plain, args, kwargs)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        reduced = plain.__reduce_ex__(self, protocol)
        if isinstance(reduced, str) or reduced[1][:1] != (type(self),):
            return reduced  # the class says itself how its modules are copied
        return _again, (plain, trace, *reduced[1][1:]), *reduced[2:]

    held = {"forward": forward, "__reduce_ex__": __reduce_ex__, PLAIN: plain, "_startsparse_trace": trace}
    held |= {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain.__name__, (plain,), held)


def _again(plain: type[nn.Module], trace: Trace | None, *given: Any) -> nn.Module:
    """A module that is about to get its state: a copy runs by the trace of the original, one that was loaded by none."""
    kind = plain if trace is None else _traced_class(plain, trace)
    return kind.__new__(kind, *given)


def _nothing() -> None:
    return None
