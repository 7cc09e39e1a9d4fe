"""Torch tensors and sparse weights to records and back: names without wrappers, tied tensors once, bits kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import names
from . import layout
from .errors import FormatError
from .format import Record
from .live import PART, All, Bits, Live
from .models import SparseWeight
from .positions import Draw

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CARRIER = {"BF16": torch.int16, "F8_E4M3": torch.uint8, "F8_E5M2": torch.uint8}  # what numpy can hold


def plain_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Name without wrappers' prefixes -> key in ``state``.

    Raises:
        ValueError: two keys are the same name.

    Example:
        >>> plain_names({"module.fc.weight": 0})
        {'fc.weight': 'module.fc.weight'}
    """
    found: dict[str, str] = {}
    for key in state:
        name = names.plain(key)
        if name in found:
            raise ValueError(
                f"{found[name]!r} and {key!r} are both {name!r} without the prefixes of wrappers"
            )
        found[name] = key
    return found


def tie(value: Tensor | SparseWeight) -> Any:
    """Equal for two tensors exactly when they are the same elements of the same memory (or have none)."""
    if isinstance(value, SparseWeight):
        return id(value.module)
    where = (value.device, value.data_ptr()) if value.numel() else id(value)
    return where, value.dtype, value.shape, value.stride()


def nonzero(tensor: Tensor) -> Tensor:
    """Where a tensor is not zero, also of the types torch cannot compare: bool, NaN counts as not zero."""
    tensor = tensor.detach()
    eight_bits = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return (tensor.float() if eight_bits else tensor) != 0


def to_array(tensor: Tensor) -> tuple[str, np.ndarray]:
    """The dtype's name and the elements, flat, in the numpy dtype that holds their bits.

    Example:
        >>> to_array(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16))
        ('BF16', array([16256, 49152], dtype=uint16))
    """
    dtype = _NAMES[tensor.dtype]
    flat = _flat(tensor)
    array = flat.view(_CARRIER[dtype]).numpy() if dtype in _CARRIER else flat.numpy()
    return dtype, array.view(layout.STORED[dtype])


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)


def to_vector(array: np.ndarray, dtype: str, name: str) -> Tensor:
    """The inverse of ``to_array``, flat; shares the array's memory where it can.

    Raises:
        FormatError: a bool that is neither 0 nor 1.
    """
    if dtype == "BOOL" and array.size and array.max() > 1:
        raise FormatError(f"{name!r} holds bools that are neither 0 nor 1")
    array = np.require(array, requirements=["ALIGNED", "WRITEABLE"])
    if dtype in _CARRIER:
        carrier = np.dtype("<i2") if dtype == "BF16" else np.dtype("u1")
        return torch.from_numpy(array.view(carrier)).view(DTYPES[dtype])
    if dtype in ("BOOL", "C64"):
        array = array.view({"BOOL": np.bool_, "C64": np.complex64}[dtype])
    return torch.from_numpy(array)


def to_tensor(record: Record) -> Tensor:
    """The dense tensor of a record with values, zeros where nothing lives; it may share the record's memory.

    Raises:
        FormatError: a bool that is neither 0 nor 1.
    """
    assert record.values is not None
    values = record.values
    if record.live is not None:
        values, reached = np.empty(record.live.size, values.dtype), 0
        for part in _dense_parts(record):
            values[reached : reached + len(part)] = part
            reached += len(part)
    return to_vector(values, record.dtype, record.name).reshape(record.shape)


def live_values(record: Record) -> tuple[Tensor, Live]:
    """The live values of a record with values, row-major, and where they are; of a dense tensor that is everywhere."""
    assert record.values is not None
    live = record.live or All(record.values.size)
    return to_vector(record.values, record.dtype, record.name), live


def same(a: Record, b: Record) -> bool:
    """Whether two records with values, of one shape and dtype, are the same dense tensor, bit for bit."""
    pairs = zip(_dense_parts(a), _dense_parts(b), strict=True)
    return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in pairs)


def _dense_parts(record: Record) -> Iterator[np.ndarray]:
    assert record.values is not None
    live = record.live or All(record.values.size)
    reached = 0
    for start, where in zip(range(0, live.size, PART), live.positions(), strict=True):
        part = np.zeros(min(PART, live.size - start), record.values.dtype)
        part[where - start] = record.values[reached : reached + len(where)]
        reached += len(where)
        yield part


def to_mask(live: Live) -> Tensor:
    """The live positions as a flat bool tensor."""
    mask = np.empty(live.size, bool)
    for start, packed in zip(range(0, live.size, PART), live.bits(), strict=True):
        part = mask[start : start + PART]
        part[:] = np.unpackbits(packed, count=len(part)).view(bool)
    return torch.from_numpy(mask)


def to_records(
    state: Mapping[str, Any], masks: Mapping[str, Tensor], drawn: Mapping[str, Draw]
) -> list[Record]:
    """One record a name of a ``state_dict``.

    Args:
        state: name -> tensor or sparse weight; tensors that share memory are stored once.
        masks: name -> bool tensor of the tensor's shape. Of tied names any may be given, or all when they agree. Those
            of sparse weights are not looked at.
        drawn: name -> the draw its mask is.

    Raises:
        ValueError: a mask without a tensor or of another shape, values that are not zero outside a mask, or
            a tensor of a kind the format has no word for.
    """
    keys = plain_names(state)
    mask_keys = plain_names(masks)
    drawn = {name: drawn[key] for name, key in plain_names(drawn).items()}
    for name in mask_keys.keys() - keys.keys():
        raise ValueError(
            f"there is a mask for {name!r} and no such tensor; {names.nearest(name, list(keys))}"
        )
    tensors = {name: _checked(state[key], name) for name, key in keys.items()}
    tied: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        tied.setdefault(tie(tensor), []).append(name)
    number: dict[str, int] = {}
    records: list[Record] = []
    for name, tensor in tensors.items():
        group = tied[tie(tensor)]
        if name != group[0]:
            first = records[number[group[0]]]
            records.append(Record(name, first.dtype, first.shape, None, alias=number[group[0]]))
            continue
        number[name] = len(records)
        claim = next((drawn[other] for other in group if other in drawn), None)
        if isinstance(tensor, SparseWeight):
            dtype, values = to_array(tensor.values())
            records.append(Record(name, dtype, tensor.shape, values, tensor.live(), claim))
            continue
        masked = {other: masks[mask_keys[other]] for other in group if other in mask_keys}
        live = _live(tensor, masked) if masked else None
        dtype, values = to_array(tensor)
        if isinstance(live, Bits):
            values = _pick(values, live)
        records.append(Record(name, dtype, tuple(tensor.shape), values, live, claim if masked else None))
    return records


def _checked(value: Any, name: str) -> Tensor | SparseWeight:
    if isinstance(value, SparseWeight):
        return value
    if not isinstance(value, Tensor):
        raise TypeError(f"{name!r} is a {type(value).__name__}; a compact file holds tensors only")
    known = value.dtype in _NAMES and value.layout == torch.strided
    if not known or value.is_quantized or value.device.type == "meta":
        kind = f"{value.dtype}, {value.layout}, on {value.device}"
        raise ValueError(
            f"{name!r} cannot be stored: it is {kind}, and strided tensors with values are needed"
        )
    return value


def _live(tensor: Tensor, masks: Mapping[str, Tensor]) -> Live:
    """The one mask of a group of tied names, checked against the values, a part at a time."""
    (name, mask), *others = masks.items()
    if mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise ValueError(
            f"the mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; "
            f"torch.bool of shape {tuple(tensor.shape)} is needed"
        )
    for other, its in others:
        if not torch.equal(its.cpu(), mask.cpu()):
            raise ValueError(f"{name!r} and {other!r} are one tensor and have different masks")
    weights, flat = _flat(tensor), _flat(mask)
    parts, outside = [np.zeros(0, np.uint8)], 0
    for start in range(0, len(flat), PART):
        part = flat[start : start + PART]
        outside += int((nonzero(weights[start : start + PART]) & ~part).sum())
        parts.append(np.packbits(part.numpy()))
    if outside:
        raise ValueError(
            f"{outside} values of {name!r} outside its mask are not zero: re-apply the mask before saving"
        )
    live = Bits(np.concatenate(parts), len(flat))
    return All(live.size) if live.count == live.size else live


def _pick(values: np.ndarray, live: Live) -> np.ndarray:
    """The live ones of all values of a tensor."""
    picked = np.empty(live.count, values.dtype)
    reached = 0
    for part in live.positions():
        picked[reached : reached + len(part)] = values[part]
        reached += len(part)
    return picked


def to_state(records: Sequence[Record]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Draw]]:
    """Dense tensors, masks and draws by name; tied names share one tensor."""
    tensors: list[Tensor] = []
    for record in records:
        if record.alias is None:
            tensor = to_tensor(record)
            tensors.append(tensor.clone() if record.live is None else tensor)
        else:
            tensors.append(tensors[record.alias])
    return (
        {record.name: tensor for record, tensor in zip(records, tensors, strict=True)},
        {r.name: to_mask(r.live).reshape(r.shape) for r in records if r.live is not None},
        {r.name: dict(r.draw) for r in records if r.draw is not None},
    )
