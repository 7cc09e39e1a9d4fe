"""A named choice and its options, checked against the signature of what will be built, before anything is built."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from startsparse import methods, sources
from startsparse.names import nearest
from startsparse.training import models, optim
from startsparse.training.names import find


@dataclass(frozen=True)
class Kind:
    """One section of a recipe that names something: how its target is found, and tried out at no cost.

    Attributes:
        target: name -> what has the signature (a class or a function); ValueError for an unknown name.
        trial: (name, options) -> anything; raises what is wrong with the values.
        filled: parameters the run fills in itself, so that they are neither required nor allowed.
    """

    target: Callable[[str], Callable[..., Any]]
    trial: Callable[[str, dict[str, Any]], object]
    filled: tuple[str, ...] = ()


def _source(name: str) -> type:
    table: dict[str, type] = {kind.name: kind for kind in typing.get_args(sources.Source)}
    return find("source", name, {known: table[known] for known in sources.names()})


def _trial_optimizer(name: str, options: dict[str, Any]) -> object:
    return optim.make(name, [torch.nn.Parameter(torch.zeros(1, 1))], **options)


def _trial_model(name: str, options: dict[str, Any]) -> object:
    with torch.device("meta"):
        return models.make(name, **options)


KINDS = {
    "model": Kind(models.get, _trial_model),
    "method": Kind(methods.get, lambda name, options: methods.make(name, **options)),
    "source": Kind(_source, lambda name, options: sources.make(name, **options)),
    "optimizer": Kind(optim.optimizer_class, _trial_optimizer, ("params",)),
    "schedule": Kind(
        lambda name: find("schedule", name, optim.SCHEDULES),
        lambda name, options: optim.schedule(name, **options),
    ),
}


def problems(
    section: str, name: str, options: Mapping[str, Any], context: Mapping[str, Any] | None = None
) -> list[str]:
    """Everything that is wrong with a named choice, each line led by its path.

    ``context`` holds defaults of this run that win over those of the signature, where it has such parameters.

    Example:
        >>> for line in problems("optimizer", "sgd", {"lr": "fast", "momentom": 0.9}):
        ...     print(line.split(" known:")[0])
        optimizer.momentom: sgd has no such option: did you mean 'momentum'?
        optimizer.lr: Input should be a valid number, got 'fast'
        >>> problems("method", "rigl", {"density": 2})
        ['method.density: rigl: density must be in (0, 1], got 2']
    """
    kind = KINDS[section]
    try:
        parameters = _parameters(kind, name)
    except ValueError as error:
        return [f"{section}.name: {error}"]
    unknown = [key for key in options if key not in parameters]
    found = [
        f"{section}.{key}: {name} has no such option: {nearest(key, sorted(parameters))}" for key in unknown
    ]
    for key, value in options.items():
        if key in parameters and (wrong := _mistyped(kind, name, key, value)):
            found.append(f"{section}.{key}: {wrong}")
    missing = [key for key, default in parameters.items() if default is inspect.Parameter.empty]
    found += [f"{section}.{key}: {name} needs it" for key in missing if key not in options]
    fitted = {key: value for key, value in (context or {}).items() if key in parameters}
    return found or _refused(section, kind, name, fitted | dict(options))


def resolve(
    section: str, name: str, options: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """The name and every option, given or default; a required one that is not given is left out.

    Args:
        section: a key of ``KINDS``.
        name: what is chosen.
        options: what is given.
        context: defaults of this run that win over those of the signature, where it has such parameters.
    """
    defaults = _defaults(section, name, context)
    given = {key: value for key, value in defaults.items() if value is not inspect.Parameter.empty} | dict(
        options
    )
    return {"name": name} | {key: _plain(given[key]) for key in defaults if key in given}


def non_default(
    section: str, name: str, options: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """The name and the options that differ from their defaults.

    Example:
        >>> non_default("optimizer", "sgd", {"lr": 0.1, "momentum": 0}, {})
        {'name': 'sgd', 'lr': 0.1}
        >>> non_default("model", "mlp", {"classes": 3, "widths": [8]}, {"classes": 3})
        {'name': 'mlp', 'widths': [8]}
    """
    defaults = _defaults(section, name, context)
    given = {key: _plain(value) for key, value in options.items()}
    return {"name": name} | {key: value for key, value in given.items() if value != _plain(defaults[key])}


def _defaults(section: str, name: str, context: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _parameters(KINDS[section], name)
    return parameters | {key: value for key, value in context.items() if key in parameters}


def _parameters(kind: Kind, name: str) -> dict[str, Any]:
    target = kind.target(name)
    if dataclasses.is_dataclass(target):
        target = target.__init__
    signature = inspect.signature(target).parameters
    return {key: p.default for key, p in signature.items() if key not in ("self", *kind.filled)}


def _mistyped(kind: Kind, name: str, key: str, value: object) -> str | None:
    """What the annotation of a parameter has against a value; no annotation, no objection."""
    target: Any = kind.target(name)
    try:
        hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
        adapter = TypeAdapter(hints[key], config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (KeyError, NameError, TypeError, PydanticUserError):
        return None
    for form in [value, tuple(value)] if isinstance(value, list) else [value]:
        try:
            adapter.validate_python(form)
        except ValidationError as error:
            first = error.errors()[0]
        else:
            return None
    return f"{first['msg']}, got {value!r}"


def _refused(section: str, kind: Kind, name: str, options: dict[str, Any]) -> list[str]:
    """Try the values out; blame the option the message names, or the one without which it is not raised."""
    try:
        kind.trial(name, options)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        message = str(error).splitlines()[0]
        named = [key for key in options if re.search(rf"\b{re.escape(key)}\b", message)]
        blamed = named or [key for key in options if _passes_without(kind, name, options, key)]
        return [f"{section}.{blamed[0]}: {message}" if blamed else f"{section}: {message}"]
    return []


def _passes_without(kind: Kind, name: str, options: dict[str, Any], key: str) -> bool:
    try:
        kind.trial(name, {other: value for other, value in options.items() if other != key})
    except (ValueError, TypeError, RuntimeError, ImportError):
        return False
    return True


def _plain(value: Any) -> Any:
    """The value as YAML and JSON know it."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
