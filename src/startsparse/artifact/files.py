"""``save`` and ``load``: compact files of models, sparsifiers and mappings of tensors."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from .. import layers
from . import atomic, container, format, layout, models, state
from .errors import FormatError
from .format import Record
from .live import Live
from .models import SparseWeight
from .positions import Draw

Model = TypeVar("Model", bound=nn.Module)
_SMALL, _RATIO = 1 << 30, 1000  # what may be allocated for a file unasked: 1 GiB, or so many times its size


class SparseFile(dict[str, Tensor]):
    """The content of a compact file: name -> dense tensor with true zeros, in the order of the ``state_dict``.

    Attributes:
        masks: name -> bool tensor, for the sparse tensors.
        metadata: ``method``, ``source``, ``density``, ``masks`` (their hash), ``library``, ``user``, ...
        drawn: name -> the draw, for the masks that are stored as one.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        drawn: Mapping[str, Draw],
    ):
        super().__init__(tensors)
        self.masks = dict(masks)
        self.metadata = dict(metadata)
        self.drawn = dict(drawn)


def save(
    sparsifier_or_model: Any,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a compact file: the values of live weights, and where they are in as few bytes as will do.

    The file appears as a whole or not at all; the same input gives the same bytes, whatever executes the layers.
    Of a layer under sparse execution nothing of dense size is made.

    Args:
        sparsifier_or_model: a sparsifier; or a model, whose zeros in the weights of Linear, convolution and
            attention layers are the mask (sparse modules know their own); or a mapping name -> tensor, where zeros
            in floating-point tensors of two axes or more are; or a ``SparseFile``.
        path: where to, by custom ``*.sparse.safetensors``.
        metadata: what else to store, as JSON can hold it; ``load`` gives it back as ``.metadata["user"]``.

    Raises:
        TypeError: something else than a sparsifier, a model or tensors by name, or metadata that are no mapping.
        ValueError: values that are not zero outside a mask, tensors or metadata that the format cannot hold.
        OSError: the file cannot be written; what was there before is unharmed.

    Example:
        >>> import tempfile, torch
        >>> net = nn.Linear(64, 64)
        >>> with torch.no_grad():
        ...     _ = net.weight.mul_(torch.rand(64, 64) < 0.05)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(net, f"{folder}/net.sparse.safetensors")
        ...     file = load(f"{folder}/net.sparse.safetensors")
        >>> torch.equal(file["weight"], net.weight)
        True
    """
    tensors, masks, drawn, about = _content(sparsifier_or_model)
    if metadata is not None:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"metadata must be a mapping of what JSON can hold, got {metadata!r}")
        about["user"] = dict(metadata)
    try:
        container.compact_json(about.get("user"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can hold, and {metadata!r} is not: {error}") from error
    records = state.to_records(tensors, masks, drawn)
    atomic.write(path, format.pack(records, about, library()))


def library() -> str:
    """This library and its version, as files name their writer."""
    from .. import __version__  # not at the top: the package may be importing this module

    return f"startsparse {__version__}"


def _content(
    thing: Any,
) -> tuple[Mapping[str, Any], Mapping[str, Tensor], Mapping[str, Draw], dict[str, Any]]:
    """Tensors, masks, draws and description of whatever ``save`` was given."""
    if isinstance(thing, SparseFile):
        about = {key: thing.metadata.get(key) for key in ("method", "source", "user")}
        return thing, thing.masks, thing.drawn, about
    if isinstance(thing, nn.Module):
        masks = {name: state.nonzero(layer.parameter) for name, layer in _layers(thing).items()}
        return models.read(thing), masks, {}, {}
    if isinstance(thing, Mapping):
        for name in thing:
            if not isinstance(name, str):
                raise TypeError(f"tensors are saved by name, and {name!r} is not a str")
        return thing, {name: state.nonzero(t) for name, t in thing.items() if _has_holes(t)}, {}, {}
    if not hasattr(thing, "masks") or not hasattr(thing, "model"):
        raise TypeError(
            f"save takes a sparsifier, a model or a mapping of tensors, not {type(thing).__name__}"
        )
    described = thing.describe() if hasattr(thing, "describe") else {}
    about = {key: _jsonable(described.get(key)) for key in ("method", "source")}
    drawn = {name: _claim(draw) for name, draw in getattr(thing, "drawn", {}).items()}
    return models.read(thing.model), thing.masks, drawn, about


def _claim(draw: Any) -> Draw:
    return draw if isinstance(draw, Mapping) else dataclasses.asdict(draw)


def _layers(model: nn.Module) -> dict[str, layers.Layer]:
    whole = [n for n, p in model.named_parameters() if not (p.is_floating_point() or p.is_complex())]
    try:
        return layers.find(model, [f"!{name}" for name in whole])
    except ValueError:  # none of its weights may be sparse: all are stored as they are
        return {}


def _has_holes(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
        return False  # refused later, by name
    return tensor.is_floating_point() and tensor.ndim >= 2 and not bool(state.nonzero(tensor).all())


def _jsonable(value: Any) -> Any:
    """A description as JSON can hold it: what it has no word for becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if (
        value is None
        or isinstance(value, (str, bool, int))
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    return str(value)


@overload
def load(path: str | os.PathLike[str], model: None = None, *, max_bytes: int | None = None) -> SparseFile: ...
@overload
def load(path: str | os.PathLike[str], model: Model, *, max_bytes: int | None = None) -> Model: ...
def load(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, max_bytes: int | None = None
) -> Any:
    """Read a compact file, all of it checked.

    Args:
        path: the file.
        model: where to put the tensors; names, shapes and dtypes must be the file's. Unharmed if anything is wrong.
            Its layers under sparse execution take over live values and positions, and nothing dense is made for
            them.
        max_bytes: what the tensors and masks may need in memory. Without it and without a model: 1 GiB, or 1000
            times the size of the file, whichever is more.

    Returns:
        The model, or a ``SparseFile`` when none is given.

    Raises:
        FormatError: the file is not of this format, or is damaged, truncated, too large or lying.
        ValueError: the file is sound and does not fit the model.
        OSError: the file cannot be read.
    """
    file = os.fspath(path)
    if model is not None:
        layers.check_module(model)
    try:
        content = _read(file)
        parsed = format.parse(content)
        slots = {} if model is None else _fit(parsed.rows, model, file)
        _check_size(parsed, slots, model, max_bytes, len(content))
        records, metadata = format.build(parsed)
        if model is None:
            tensors, masks, drawn = state.to_state(records)
            return SparseFile(tensors, masks, metadata, drawn)
        dense, sparse = _distribute(records, slots, file)
    except FormatError as error:
        raise FormatError(f"{file} is not a sound compact file: {error}") from error
    models.fill(model, dense, sparse)
    return model


def _read(file: str) -> np.ndarray:
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise FormatError("it is not a regular file")
    return np.fromfile(file, np.uint8)


Slots = dict[str, tuple[str, Any]]
"""Name in the file -> key of the model's ``state_dict``, and the tensor or sparse weight there."""


def _fit(rows: list[layout.Row], model: nn.Module, file: str) -> Slots:
    """Where everything goes, when all names, shapes and dtypes agree."""
    own = models.read(model)
    keys = state.plain_names(own)
    stored = {row.name: row for row in rows}
    wrong = [f"{name!r} is in the file only" for name in stored if name not in keys]
    wrong += [f"{name!r} is in the model only" for name in keys if name not in stored]
    for name in stored.keys() & keys.keys():
        there, here = stored[name], own[keys[name]]
        if not isinstance(here, Tensor | SparseWeight) or here.device.type == "meta":
            wrong.append(f"{name!r} has no memory in the model (use to_empty first)")
        elif there.shape != tuple(here.shape):
            wrong.append(f"{name!r} has shape {there.shape} in the file, {tuple(here.shape)} in the model")
        elif state.DTYPES[there.dtype] != here.dtype:
            wrong.append(f"{name!r} is {state.DTYPES[there.dtype]} in the file, {here.dtype} in the model")
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{file} does not fit the model: {'; '.join(sorted(wrong)[:10])}{more}")
    return {name: (key, own[key]) for name, key in keys.items()}


def _check_size(
    parsed: format.Parsed, slots: Slots, model: nn.Module | None, max_bytes: int | None, file_bytes: int
) -> None:
    """Refuse what needs more memory than is allowed; a model of these shapes is leave enough."""
    if model is not None and max_bytes is None:
        return
    allowed = max(_SMALL, _RATIO * file_bytes) if max_bytes is None else max_bytes
    needed = parsed.num_bytes({name for name, (_, here) in slots.items() if isinstance(here, SparseWeight)})
    if needed > allowed:
        raise FormatError(
            f"it describes tensors of {needed:,} bytes, more than the {allowed:,} allowed; if you trust it, pass "
            "max_bytes=, or a model: nothing dense is made for its layers under sparse execution"
        )


def _distribute(
    records: Sequence[Record], slots: Slots, file: str
) -> tuple[dict[str, Tensor], dict[models.SparseModule, tuple[Tensor, Live]]]:
    """Dense tensors by key, live values and their positions by sparse module.

    Raises:
        ValueError: two names are one tensor in the model and have different contents in the file.
    """
    dense: dict[str, Tensor] = {}
    sparse: dict[models.SparseModule, tuple[Tensor, Live]] = {}
    first: dict[Any, tuple[str, Record]] = {}
    made: dict[str, Tensor] = {}  # dense, by the record's name
    for named in records:
        record = named if named.alias is None else records[named.alias]
        key, here = slots[named.name]
        other, its = first.setdefault(state.tie(here), (named.name, record))
        if its is not record and not state.same(its, record):
            raise ValueError(
                f"{file} does not fit the model, where {other!r} and {named.name!r} are one tensor"
            )
        if isinstance(here, SparseWeight):
            sparse[here.module] = state.live_values(record)
        else:
            dense[key] = made.get(record.name, made.setdefault(record.name, state.to_tensor(record)))
    return dense, sparse
