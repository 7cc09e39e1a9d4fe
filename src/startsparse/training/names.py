"""Names people type: look one up, or say what was meant; and the extra a missing package belongs to."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TypeVar

from startsparse.names import nearest

T = TypeVar("T")

_PACKAGES = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
}  # where the import is called otherwise


def find(kind: str, name: object, table: Mapping[str, T]) -> T:
    """``table[name]``, or a ValueError that restates the question.

    Example:
        >>> find("model", "resnet2", {"resnet20": 1})
        Traceback (most recent call last):
        ValueError: unknown model 'resnet2': did you mean 'resnet20'? known: resnet20
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"unknown {kind} {name!r}: {nearest(str(name), sorted(table))}")


def require(module: str, purpose: str) -> ModuleType:
    """Import a package of the extra ``startsparse[train]``, or say which extra is missing.

    Example:
        >>> require("json", "reading results").__name__
        'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        message = f"{purpose} needs the package {package}: pip install 'startsparse[train]'"
        raise ModuleNotFoundError(message, name=top) from error
