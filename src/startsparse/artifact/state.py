"""Torch tensors to records and back: names without wrappers, tied tensors once, bits kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import names
from . import layout
from .errors import FormatError
from .format import Record
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


def tie(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors exactly when they are the same elements of the same memory (or have none)."""
    where = (tensor.device, tensor.data_ptr()) if tensor.numel() else id(tensor)
    return where, tensor.dtype, tensor.shape, tensor.stride()


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
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    array = flat.view(_CARRIER[dtype]).numpy() if dtype in _CARRIER else flat.numpy()
    return dtype, array.view(layout.STORED[dtype])


def to_tensor(record: Record) -> Tensor:
    """The inverse of ``to_array`` for a record with values.

    Raises:
        FormatError: a bool that is neither 0 nor 1.
    """
    array = record.values
    assert array is not None
    if record.dtype == "BOOL" and array.size and array.max() > 1:
        raise FormatError(f"{record.name!r} holds bools that are neither 0 nor 1")
    if record.dtype in _CARRIER:
        carrier = np.dtype("<i2") if record.dtype == "BF16" else np.dtype("u1")
        flat = torch.from_numpy(array.view(carrier)).view(DTYPES[record.dtype])
    elif record.dtype in ("BOOL", "C64"):
        flat = torch.from_numpy(array.view({"BOOL": np.bool_, "C64": np.complex64}[record.dtype]))
    else:
        flat = torch.from_numpy(array)
    return flat.reshape(record.shape)


def to_records(
    state: Mapping[str, Any], masks: Mapping[str, Tensor], drawn: Mapping[str, Draw]
) -> list[Record]:
    """One record a name of a ``state_dict``.

    Args:
        state: name -> tensor; tensors that share memory are stored once.
        masks: name -> bool tensor of the tensor's shape. Of tied names any may be given, or all when they agree.
        drawn: name -> the draw its mask is.

    Raises:
        ValueError: a mask without a tensor or of another shape, values that are not zero outside a mask, or
            a tensor of a kind the format has no word for.
    """
    keys = plain_names(state)
    masks = {name: masks[key] for name, key in plain_names(masks).items()}
    drawn = {name: drawn[key] for name, key in plain_names(drawn).items()}
    for name in masks.keys() - keys.keys():
        raise ValueError(
            f"there is a mask for {name!r} and no such tensor; {names.nearest(name, list(keys))}"
        )
    tensors = {name: _tensor(state[key], name) for name, key in keys.items()}
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
        dtype, values = to_array(tensor)
        masked = [other for other in group if other in masks]
        mask, claim = None, None
        if masked:
            mask = _mask(tensor, masks, masked)
            claim = next((drawn[other] for other in masked if other in drawn), None)
        records.append(Record(name, dtype, tuple(tensor.shape), values, mask, claim))
    return records


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name!r} is a {type(value).__name__}; a compact file holds tensors only")
    known = value.dtype in _NAMES and value.layout == torch.strided
    if not known or value.is_quantized or value.device.type == "meta":
        kind = f"{value.dtype}, {value.layout}, on {value.device}"
        raise ValueError(
            f"{name!r} cannot be stored: it is {kind}, and strided tensors with values are needed"
        )
    return value


def _mask(tensor: Tensor, masks: Mapping[str, Tensor], masked: Sequence[str]) -> np.ndarray:
    """The one mask of a group of tied names, checked against the values."""
    name, mask = masked[0], masks[masked[0]]
    if mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise ValueError(
            f"the mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; "
            f"torch.bool of shape {tuple(tensor.shape)} is needed"
        )
    for other in masked[1:]:
        if not torch.equal(masks[other].cpu(), mask.cpu()):
            raise ValueError(f"{name!r} and {other!r} are one tensor and have different masks")
    if outside := int((nonzero(tensor) & ~mask.to(tensor.device)).sum()):
        raise ValueError(
            f"{outside} values of {name!r} outside its mask are not zero: re-apply the mask before saving"
        )
    return mask.detach().cpu().contiguous().reshape(-1).numpy()


def to_state(records: Sequence[Record]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Draw]]:
    """Tensors, masks and draws by name; tied names share one tensor."""
    tensors: list[Tensor] = []
    for record in records:
        tensors.append(to_tensor(record) if record.alias is None else tensors[record.alias])
    return (
        {record.name: tensor for record, tensor in zip(records, tensors, strict=True)},
        {r.name: torch.from_numpy(r.mask).reshape(r.shape) for r in records if r.mask is not None},
        {r.name: dict(r.draw) for r in records if r.draw is not None},
    )
