"""YAML in, plain data out: no surprise conversions, no key twice, and overrides by dotted path."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class ReadingError(ValueError):
    """The text is not a recipe at all."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes ``1e-3`` for the number it is and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ReadingError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text.

    Example:
        >>> parse_yaml("{lr: 1e-3, steps: 10}")
        {'lr': 0.001, 'steps': 10}
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: it builds plain data only
    except yaml.YAMLError as error:
        raise ReadingError(f"not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (ReadingError, UnicodeDecodeError) as error:
        raise ReadingError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ReadingError(f"{path} holds no sections (a mapping was expected, got {type(content).__name__})")
    return content


def override(raw: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy with ``a.b=value`` assignments made; values are YAML.

    Example:
        >>> override({"method": {"name": "rigl"}, "seed": 0}, ["method.density=0.02", "seed=3"])
        {'method': {'name': 'rigl', 'density': 0.02}, 'seed': 3}
    """
    result = raw
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise ReadingError(
                f"{assignment!r} is not an override: write key=value, such as method.density=0.02"
            )
        try:
            value = parse_yaml(text)
        except ReadingError as error:
            raise ReadingError(f"{assignment!r}: {error}") from error
        result = assign(result, path, value)
    return result


def assign(raw: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted path set; sections on the way are made, a bare name becomes one.

    A number is a place in a list that is there, such as ``stages.1.method.density``.

    Example:
        >>> assign({"method": "rigl"}, "method.density", 0.02)
        {'method': {'name': 'rigl', 'density': 0.02}}
        >>> assign({"stages": [{"stage": "train"}, {"stage": "rewind"}]}, "stages.1.step", 5)["stages"][1]
        {'stage': 'rewind', 'step': 5}

    Raises:
        ReadingError: the list has no such place.
    """
    first, _, rest = path.partition(".")
    result = dict(raw)
    if rest and isinstance(listed := result.get(first), list):
        place, _, rest = rest.partition(".")
        if not place.isdigit() or int(place) >= len(listed):
            raise ReadingError(f"{first}.{place}: {first} is a list, its places are 0 to {len(listed) - 1}")
        one = assign({"": listed[int(place)]}, f".{rest}" if rest else "", value)[""]
        result[first] = [*listed[: int(place)], one, *listed[int(place) + 1 :]]
        return result
    if rest:
        child = result.get(first)
        inner = {"name": child} if isinstance(child, str) else child if isinstance(child, Mapping) else {}
        result[first] = assign(inner, rest, value)
    else:
        result[first] = value
    return result


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value, of nested mappings.

    Example:
        >>> flatten({"a": {"b": 1}, "c": None})
        {'a.b': 1, 'c': None}
    """
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{path}.{key}" if path else str(key))
    return flat
