"""Modules whose class was changed in place: what it was, and the way back.

The class that stands in for another is a subclass of it and holds no state of its own, so that the object stays all
that it was: ``isinstance``, attributes, parameters, state_dict.
"""

from __future__ import annotations

from torch import nn

PLAIN = "_startsparse_plain"
"""The attribute of a class that stands in for another: which one."""


def plain_class(kind: type) -> type:
    """What a class stands in for, or the class itself.

    Example:
        >>> plain_class(nn.Linear).__name__
        'Linear'
    """
    return kind.__dict__.get(PLAIN, kind)


def turn_back(module: nn.Module) -> None:
    """Give a module the class that it had."""
    plain = plain_class(type(module))
    if plain is not type(module):
        module.__class__ = plain
