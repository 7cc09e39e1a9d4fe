"""Files that are whole or not there: atomic writes, and a sealed container for nested state.

A sealed file is ``MAGIC``, the SHA-256 of the payload, and the payload: one safetensors block whose metadata holds
the tree as JSON, with the tensors numbered. No pickle is read or written, so a file can be wrong but never run code.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from startsparse.artifact import atomic

MAGIC = b"startsparse state 1\n"


class DamagedFile(ValueError):
    """A file is truncated, altered or of another kind."""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DamagedFile: it is none; names it.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error


def write_atomic(path: Path, *chunks: bytes) -> None:
    """Write ``chunks`` to ``path``, its folder made where needed: a reader sees the old content or the new.

    Raises:
        OSError: the content could not be written (a full disk); the message names the file and the remedy, and what
            stood at ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        atomic.write(path, [np.frombuffer(chunk, np.uint8) for chunk in chunks])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        old = "what was saved before is intact" if path.exists() else "nothing was left behind"
        raise OSError(
            error.errno, f"the disk is full, {old}: free some space and run again", str(path)
        ) from error


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def save_tree(path: Path, tree: object) -> None:
    """Save nested dicts, lists, tuples, numbers, strings and tensors to one sealed file, atomically.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "state"
        >>> save_tree(file, {"w": torch.ones(2), 3: [1.5, None, ("a", True)]})
        >>> load_tree(file)
        {'w': tensor([1., 1.]), 3: [1.5, None, ('a', True)]}
    """
    tensors: list[torch.Tensor] = []
    text = json.dumps(_encode(tree, tensors, "state"))
    named = {str(i): tensor for i, tensor in enumerate(_apart(tensors))}
    payload = save_tensors(named, metadata={"tree": text})
    write_atomic(path, MAGIC, hashlib.sha256(payload).digest(), payload)


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote, tensors on the CPU.

    Raises:
        DamagedFile: the file is truncated, altered or not one of ours.
    """
    content = memoryview(path.read_bytes())
    digest, payload = content[len(MAGIC) : len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    if content[: len(MAGIC)] != MAGIC:
        raise DamagedFile(f"{path} is not a startsparse state file (or of another version)")
    if hashlib.sha256(payload).digest() != digest:
        raise DamagedFile(f"{path} is damaged: its {len(content)} bytes do not match their checksum")
    try:
        size = int.from_bytes(payload[:8], "little")
        tree = json.loads(json.loads(bytes(payload[8 : 8 + size]))["__metadata__"]["tree"])
        return _decode(tree, load_tensors(bytes(payload)))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error


def _apart(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors, contiguous on the CPU, none sharing memory with another (tied weights are stored twice)."""
    seen: set[int] = set()
    for original in tensors:
        tensor = original.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        yield tensor


def _encode(value: object, tensors: list[torch.Tensor], where: str) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, tuple | list):
        items = [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return {"dict": [[_encode(k, tensors, where), _encode(v, tensors, f"{where}.{k}")] for k, v in pairs]}
    raise TypeError(f"{where} holds a {type(value).__name__}, which a state file cannot store")


def _decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    if kind == "tensor":
        return tensors[str(body)]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in body)
    return {_decode(key, tensors): _decode(value, tensors) for key, value in body}
