"""The file of one mask over given weights: where it is active, in as few bytes as will do, and what goes with it.

The format is written down in ``docs/formats/mask_file.md``. It holds none of the weights, only their hash.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..artifact import FormatError, atomic, coding, container, positions, state
from ..artifact.files import library
from ..artifact.live import Bits
from ..masks import fingerprint_parts

FORMAT, VERSION = "startsparse-mask", "1"
Shapes = Mapping[str, tuple[int, ...]]


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """A sha256 over names, shapes, types and bits of weights, in the order of the names.

    Example:
        >>> import torch
        >>> hash_weights({"w": torch.zeros(2)})[:16]
        '06f6f696ec7dd367'
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        dtype, flat = state.to_array(weights[name])
        digest.update(f"{name}|{tuple(weights[name].shape)}|{dtype}|".encode())
        digest.update(np.ascontiguousarray(flat).data)
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str],
    packed: Mapping[str, np.ndarray],
    shapes: Shapes,
    weights_hash: str,
    extras: Mapping[str, Tensor],
) -> None:
    """Write a mask; the file is there as a whole or not at all.

    Args:
        path: where to, by custom ``*.mask.safetensors``.
        packed: name -> one bit a weight, as ``masks.pack`` gives them, uint8.
        shapes: name -> shape of the weight.
        weights_hash: ``hash_weights`` of the weights the mask belongs to.
        extras: tensors that go with this mask, by their name in the model's ``state_dict``.
    """
    rows, parts = [], []
    for name, bits in packed.items():
        row, found = positions.encode(Bits(bits, math.prod(shapes[name])), name)
        rows.append([name, list(shapes[name]), *row])
        parts.append(found)
    tensors = {"positions": parts} if sum(map(len, parts)) else {}
    kinds = []
    for number, (name, tensor) in enumerate(extras.items()):
        dtype, flat = state.to_array(tensor)
        kinds.append([name, dtype, list(tensor.shape)])
        if flat.size:
            tensors[f"extra.{number}"] = [flat]
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "library": library(),
        "weights": weights_hash,
        "masks": _fingerprint(packed, shapes),
        "layers": container.compact_json(rows),
        "extras": container.compact_json(kinds),
    }
    atomic.write(path, container.write(tensors, metadata))


def read(
    path: str | os.PathLike[str], shapes: Shapes, weights_hash: str
) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """The masks by name, one bit a weight, and the tensors that go with them; all of the file is checked.

    Raises:
        FormatError: the file is no mask file, or damaged or lying.
        ValueError: the file is sound, and of other layers or other weights.
        OSError: the file cannot be read.
    """
    file = os.fspath(path)
    try:
        tensors, metadata, data = container.read(np.fromfile(file, np.uint8))
        if metadata.get("format") != FORMAT or metadata.get("format_version") != VERSION:
            raise FormatError(
                f"its metadata say format {metadata.get('format')!r}, version {metadata.get('format_version')!r}; this "
                f"library reads {FORMAT!r}, version {VERSION!r}"
            )
        if metadata.get("checksum") != container.checksum(metadata, [data]):
            raise FormatError("its checksum does not fit its content: it was damaged or changed")
        rows = _rows(metadata, "layers")
        stored = {row[0]: tuple(row[1]) for row in rows}
        if stored != dict(shapes):
            different = sorted(n for n in stored.keys() | shapes.keys() if stored.get(n) != shapes.get(n))
            raise ValueError(
                f"{file} is a mask of other layers: {', '.join(different[:5])} differ in name or shape"
            )
        if metadata.get("weights") != weights_hash:
            raise ValueError(
                f"{file} is a mask of other weights: it belongs to weights with hash {metadata.get('weights')!s:.16}..., "
                f"these have {weights_hash:.16}...; a mask is worth nothing without the very weights it was found on"
            )
        packed = _bits(rows, tensors.pop("positions", np.zeros(0, np.uint8)))
        if metadata.get("masks") != _fingerprint(packed, shapes):
            raise FormatError("its masks do not fit their hash")
        return packed, _extras(_rows(metadata, "extras"), tensors)
    except FormatError as error:
        raise FormatError(f"{file} is not a sound mask file: {error}") from error


def _rows(metadata: Mapping[str, str], key: str) -> list[list[Any]]:
    rows = container.parse_json(metadata.get(key, ""), f"its {key}")
    for row in rows if isinstance(rows, list) else [None]:
        match row:
            case [str(), list(shape), str(), *_] if key == "layers" and _is_shape(shape):
                continue
            case [str(), str(dtype), list(shape)] if (
                key == "extras" and _is_shape(shape) and dtype in state.DTYPES
            ):
                continue
        raise FormatError(f"its {key} are none of this format: {row!r:.80}")
    if len({row[0] for row in rows}) != len(rows):
        raise FormatError(f"its {key} name something twice")
    return rows


def _is_shape(shape: list[Any]) -> bool:
    return all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in shape)


def _fingerprint(packed: Mapping[str, np.ndarray], shapes: Shapes) -> str:
    return fingerprint_parts((name, shapes[name], [packed[name]]) for name in sorted(packed))


def _bits(rows: list[list[Any]], code: np.ndarray) -> dict[str, np.ndarray]:
    packed, reached = {}, 0
    for name, shape, *row in rows:
        size = math.prod(shape)
        _, length, _ = positions.parse(row, size, name)
        if reached + length > len(code):
            raise FormatError(f"the positions of {name!r} are cut short")
        live = positions.decode(row, code[reached : reached + length], size, name)
        packed[name] = coding.pack_bits(live)
        reached += length
    if reached != len(code):
        raise FormatError(f"{len(code) - reached} bytes behind the last positions")
    return packed


def _extras(kinds: list[list[Any]], tensors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    extras, used = {}, set()
    for number, (name, dtype, shape) in enumerate(kinds):
        key = f"extra.{number}"
        array = tensors.get(key, np.zeros(0, state.layout.STORED[dtype]))
        if len(array) != math.prod(shape) or array.dtype != state.layout.STORED[dtype]:
            raise FormatError(f"{name!r} has {len(array)} values of {array.dtype}, not {shape} of {dtype}")
        extras[name] = state.to_vector(array.copy(), dtype, name).reshape(shape)
        used.add(key)
    if unknown := tensors.keys() - used:
        raise FormatError(f"it holds tensors that it does not name: {', '.join(sorted(unknown))}")
    return extras
