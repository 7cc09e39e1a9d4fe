"""Whether a module is still the one that was traced, compared before each use of the trace: cheap, and to the safe side.

Compared are, of every module whose ``forward`` is part of the trace, its class, its children's names and classes, hooks,
a replaced ``forward``, and the attributes that ``forward`` had read: numbers, words, functions, lists and dictionaries of
these, and one level of the attributes of other objects (a configuration). Whatever else a ``forward`` reads (globals,
attributes of classes) is not.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .fused import unobserved
from .turned import plain_class

if TYPE_CHECKING:
    from .tracing import Traced

_ABSENT = "no such attribute"
_COMPARED = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)
_BY_IDENTITY = (types.FunctionType, types.BuiltinFunctionType)


@dataclass(frozen=True)
class _Entry:
    """What one module was."""

    name: str
    kind: type
    forward: Any
    children: tuple[tuple[str, str, type], ...]  # key, name from the traced module on, class
    reads: tuple[tuple[str, Any], ...]
    entered: bool


class Guard:
    """What a module was when it was traced, in a mode.

    Args:
        module: the traced one.
        traced: what tracing found.
        training: the mode.
    """

    def __init__(self, module: nn.Module, traced: Traced, training: bool):
        needed = {part for name in traced.called | traced.entered for part in _with_parents(name)}
        self._training = training
        self._entries = tuple(
            _entry(name, one, traced, training)
            for name, one in module.named_modules()
            if name in needed and (name not in traced.called or name in traced.reads)
        )

    def modules(self, module: nn.Module) -> tuple[dict[str, nn.Module], str]:
        """The modules inside by name, and what is not as it was (or an empty string)."""
        found: dict[str, Any] = {"": module}
        for entry in self._entries:
            one = found[entry.name]
            held = one.__dict__
            children = held["_modules"]
            if plain_class(type(one)) is not entry.kind or len(children) != len(entry.children):
                return found, f"{_called(entry.name)} is not the module that was traced"
            for key, name, kind in entry.children:
                child = found[name] = children.get(key)
                if plain_class(type(child)) is not kind:
                    return found, f"{_called(name)} is not the module that was traced"
            if entry.entered and (entry.kind.forward is not entry.forward or "forward" in held):
                return found, f"the forward of {_called(entry.name)} was replaced"
            if entry.entered and entry.name and not unobserved(one):
                return found, f"somebody looks at {_called(entry.name)}"
            for attribute, was in entry.reads:
                if _of(one, attribute) != was:
                    return found, f"{_called(entry.name)}.{attribute} has changed"
        return found, ""


def changed(module: nn.Module, twin: nn.Module, attribute: str) -> bool:
    """Whether an attribute has other contents in a copy."""
    ignored = attribute == "training" or attribute in module._modules
    return not ignored and _of(module, attribute) != _of(twin, attribute)


def _entry(name: str, module: nn.Module, traced: Traced, training: bool) -> _Entry:
    kind = plain_class(type(module))
    children = tuple(
        (key, f"{name}.{key}" if name else key, plain_class(type(child)))
        for key, child in module._modules.items()
    )
    names = sorted(traced.reads.get(name, ()))
    reads = [(n, _of(module, n)) for n in names if n not in module._modules and n != "training"]
    reads += [("training", (bool, training))] if "training" in names else []
    return _Entry(name, kind, kind.forward, children, tuple(reads), name in traced.entered)


def _of(module: nn.Module, attribute: str) -> Any:
    """The contents of an attribute, as far as they are compared."""
    held = module.__dict__
    if attribute in held:
        return contents(held[attribute])
    for tensors in (held["_parameters"], held["_buffers"]):
        if attribute in tensors:
            return tensors[attribute] is None
    for kind in type(module).__mro__:
        if attribute in kind.__dict__:
            value = kind.__dict__[attribute]
            return contents(value) if isinstance(value, (*_COMPARED, list, tuple, dict, set)) else None
    return _ABSENT


def contents(value: Any, depth: int = 1) -> Any:
    """What is compared of a value: equal for equal contents, whichever object holds them.

    Example:
        >>> contents([1, {"a": 2.0}]) == contents([1, {"a": 2.0}]), contents(1) == contents(True)
        (True, False)
    """
    kind = type(value)
    if isinstance(value, _COMPARED):
        return kind, "nan" if isinstance(value, float) and math.isnan(value) else value
    if isinstance(value, _BY_IDENTITY):
        return value
    if isinstance(value, list | tuple):
        return kind, tuple(contents(one, depth) for one in value)
    if isinstance(value, set | frozenset):
        return kind, frozenset(contents(one, 0) for one in value)
    if isinstance(value, Mapping):
        return kind, tuple((contents(key, 0), contents(one, depth)) for key, one in value.items())
    if depth and not isinstance(value, Tensor | nn.Module) and hasattr(value, "__dict__"):
        return kind, tuple((key, contents(one, 0)) for key, one in vars(value).items())
    return kind


def _with_parents(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def _called(name: str) -> str:
    return name or "the model"
