"""Many masks, one backbone: the weights are held once, and the model turns from one mask to another in place."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..execution.hooks import attached_to
from ..layers import find
from ..masks import Masks, pack, unpack, validate
from ..names import nearest, plain
from . import mask_file


@dataclass(frozen=True)
class _Entry:
    """One mask: a bit a weight by layer, and what else of the model's state goes with it."""

    bits: Mapping[str, np.ndarray]
    extras: Mapping[str, Tensor]


class Backbone:
    """The dense weights of a model and any number of masks over them.

    The weights are held once, a mask as one bit a weight. With a mask go the tensors of the model's
    state that differ from the backbone's when it is added: running statistics of batch norm, a task's classifier.

    Args:
        model: with its dense weights, or with those of a mask when ``weights`` are given.
        layers: the weights that are masked, as for ``ss.search``; default: every Linear and convolution weight.
        weights: name -> dense weight, e.g. ``search.weights``; their layers are the masked ones then.

    Raises:
        ValueError: an unknown layer, or a model that is searched or attached: end that first.

    Example:
        >>> import startsparse as ss
        >>> model = nn.Linear(4, 2)
        >>> backbone = Backbone(model)
        >>> backbone.add("left", {"weight": torch.tensor([[True, True, False, False]] * 2)})
        >>> backbone.add("right", {"weight": torch.tensor([[False, False, True, True]] * 2)})
        >>> backbone.switch("right")
        >>> model.weight[:, :2].count_nonzero().item(), backbone.names, backbone.current
        (0, ['left', 'right'], 'right')
        >>> _ = backbone.restore()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[str] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ):
        self.model = model
        self._layers = find(model, layers if weights is None else list(weights))
        for name, layer in self._layers.items():
            if attached_to(layer.parameter):
                raise ValueError(f"{name} is searched or attached: end that before its masks are switched")
        self.weights = {
            name: (layer.parameter if weights is None else weights[name]).detach().clone()
            for name, layer in self._layers.items()
        }
        self._state = {name: value.clone() for name, value in self._others().items()}
        self._entries: dict[str, _Entry] = {}
        self._hash = ""
        self._displaced: set[str] = set()  # names of the model's state that are some mask's
        self.current: str | None = None
        if weights is not None:
            _ = self.restore()

    @property
    def names(self) -> list[str]:
        """Names of the masks, in the order they were added."""
        return list(self._entries)

    @property
    def hash(self) -> str:
        """A hash of the dense weights, which the files of masks hold."""
        if not self._hash:
            self._hash = mask_file.hash_weights(self.weights)
        return self._hash

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: layer.shape for name, layer in self._layers.items()}

    def _others(self) -> dict[str, Tensor]:
        """The model's state without the masked weights."""
        return {
            plain(name): value.detach()
            for name, value in self.model.state_dict(keep_vars=True).items()
            if plain(name) not in self._layers
        }

    def add(self, name: str, masks: Masks) -> None:
        """Take a mask up, with what the model's other state is now; the model itself is left as it is.

        Raises:
            ValueError: masks of other layers or shapes.
        """
        try:
            validate(masks, self._shapes)
        except ValueError as error:
            raise ValueError(
                f"{error}; a backbone of the layers of these masks is ss.Backbone(model, layers=list(masks))"
            ) from error
        extras = {
            key: value.cpu().clone()
            for key, value in self._others().items()
            if not torch.equal(value.cpu(), self._state[key].cpu())
        }
        self._entries[name] = _Entry({n: pack(masks[n]).numpy() for n in self._layers}, extras)

    def masks(self, name: str) -> dict[str, Tensor]:
        """The masks by layer: bool tensors of the weights' shapes."""
        bits = self._entry(name).bits
        return {n: unpack(torch.from_numpy(bits[n]), layer.shape) for n, layer in self._layers.items()}

    @torch.no_grad()
    def switch(self, name: str) -> None:
        """Turn the model to a mask: its active weights, zeros elsewhere, its statistics and classifier."""
        entry = self._entry(name)
        for layer in self._layers.values():
            parameter, weight = layer.parameter.detach(), self.weights[layer.name]
            bits = entry.bits[layer.name]
            if parameter.is_contiguous() and weight.is_contiguous() and parameter.device.type == "cpu":
                _write_bits(parameter, weight, bits)
            else:
                mask = unpack(torch.from_numpy(bits), layer.shape).to(parameter.device)
                _ = parameter.copy_(torch.where(mask, weight, 0))
        self._set_others(entry.extras)
        self.current = name

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """Turn the model back to its dense weights and its own state, bit for bit."""
        for layer in self._layers.values():
            _ = layer.parameter.detach().copy_(self.weights[layer.name])
        self.current = None
        self._displaced = set(self._state)
        self._set_others({})
        return self.model

    def _set_others(self, extras: Mapping[str, Tensor]) -> None:
        if not (extras or self._displaced):
            return
        others = self._others()
        for key in self._displaced - extras.keys():
            _ = others[key].copy_(self._state[key])
        for key, value in extras.items():
            _ = others[key].copy_(value)
        self._displaced = set(extras)

    def save(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write one mask to a small file, which names the weights it belongs to by their hash.

        The weights themselves are saved once, as any model: ``ss.save(backbone.restore(), path)``.
        """
        entry = self._entry(name)
        mask_file.write(path, entry.bits, self._shapes, self.hash, entry.extras)

    def load(self, path: str | os.PathLike[str], name: str) -> None:
        """Take a mask up from its file.

        Raises:
            FormatError: the file is damaged or none of a mask.
            ValueError: it is a mask of other weights or layers. Nothing has changed then.
            OSError: the file cannot be read.
        """
        bits, extras = mask_file.read(path, self._shapes, self.hash)
        others = self._others()
        for key, value in extras.items():
            if key not in others or others[key].shape != value.shape or others[key].dtype != value.dtype:
                raise ValueError(f"{os.fspath(path)}: {key!r} does not fit the model's state")
        self._entries[name] = _Entry({layer: bits[layer] for layer in self._layers}, extras)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise ValueError(f"no mask {name!r}: {nearest(name, self.names)}")
        return self._entries[name]


_CHUNK = 1 << 12  # bytes of a mask at a time: what they become stays in the cache


def _write_bits(out: Tensor, weight: Tensor, bits: np.ndarray) -> None:
    """``weight`` where a bit is set, zero elsewhere, in one pass: a byte of the mask becomes eight words to clear by."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    source, target = (tensor.view(-1).view(words).numpy() for tensor in (weight, out))
    table = _table(source.dtype.str)
    cleared = np.empty((_CHUNK, 8), source.dtype)
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK]
        np.take(table, part, axis=0, out=cleared[: len(part)], mode="clip")
        at = slice(8 * start, min(8 * (start + len(part)), len(source)))
        np.bitwise_and(source[at], cleared.reshape(-1)[: at.stop - at.start], out=target[at])


@functools.cache
def _table(dtype: str) -> np.ndarray:
    """A byte -> for each of its bits, highest first, all ones or all zeros; (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return (0 - bits.astype(np.int64)).astype(dtype)
