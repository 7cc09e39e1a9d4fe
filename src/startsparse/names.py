"""Names of parameters: prefixes that wrappers add, globs, and the nearest known name for an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

_WRAPPERS = ("module.", "_orig_mod.")


def plain(name: str) -> str:
    """The name without the prefixes of DistributedDataParallel and torch.compile.

    Example:
        >>> plain("module._orig_mod.fc1.weight")
        'fc1.weight'
    """
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def matches(pattern: str, names: Iterable[str]) -> list[str]:
    """The names a key means: a parameter name, a glob over them, or a module's name for its weight.

    Example:
        >>> matches("fc*", ["conv.weight", "fc1.weight", "fc2.weight"])
        ['fc1.weight', 'fc2.weight']
        >>> matches("conv", ["conv.weight", "conv.in_proj_weight"])
        ['conv.weight']
    """
    pattern = plain(pattern)
    return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.weight")]


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known name if one is close, and all of them if they are few.

    Example:
        >>> nearest("rigel", ["rigl", "set"])
        "did you mean 'rigl'? known: rigl, set"
        >>> nearest("SET", ["rigl", "set"])
        "did you mean 'set'? known: rigl, set"
    """
    close = [one for one in known if one.lower() == name.lower()] or difflib.get_close_matches(
        name, known, n=1
    )
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(known) if len(known) <= 40 else ", ".join(known[:40]) + ", ..."
    return f"{hint}known: {shown}"
