"""The sub-network that was found, as a module: only the units that are needed, in the source's own numbering."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .assignment import Wired
from .graph import Affine, Target

_BYTES = 1 << 22  # of the columns of an unfolded image computed at a time: they stay in the cache


class SparseAffine(nn.Module):
    """Needed units of one layer, (N, units in, ...) -> (N, units out, ...).

    Buffers:
        units: the source's numbers of the units, sorted, (units out,).
        serves: the target's channel each serves.
        crow, columns, values: compressed rows; a column is ``place among the units read * taps + tap``.
        bias: (units out,).
    """

    units: Tensor
    serves: Tensor
    crow: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor

    def __init__(self, affine: Affine, tensors: Mapping[str, Tensor], read: int):
        super().__init__()
        self.taps, self.geometry, self.read = affine.taps, affine.geometry, read
        for key in ("units", "serves", "crow", "columns", "values", "bias"):
            self.register_buffer(key, tensors[key])

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, unfolding images."""
        if self.geometry is None:
            return self._multiply(x.flatten(1).T).T
        moves = self.geometry
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                x.shape[2:], moves.kernel, moves.stride, moves.padding, moves.dilation, strict=True
            )
        )
        at_once = max(1, _BYTES // (x.element_size() * x.shape[1] * self.taps * height * width))
        return torch.cat([self._convolve(part, height, width) for part in x.split(at_once)])

    def _convolve(self, x: Tensor, height: int, width: int) -> Tensor:
        assert self.geometry is not None
        moves = self.geometry
        unfolded = F.unfold(x, moves.kernel, moves.dilation, moves.padding, moves.stride)
        flat = unfolded.transpose(0, 1).reshape(unfolded.shape[1], -1)
        return self._multiply(flat).view(-1, len(x), height, width).transpose(0, 1)

    def _multiply(self, columns: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse")
            matrix = torch.sparse_csr_tensor(
                self.crow, self.columns, self.values, (len(self.units), self.read * self.taps)
            )
            return matrix @ columns.contiguous() + self.bias[:, None]


class InputCopies(nn.Module):
    """Needed units of the first layer: ``relu(sign * x[input] + shift)``, (N, inputs, ...) -> (N, units, ...)."""

    units: Tensor
    reads: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        for key in ("units", "reads", "weight", "bias"):
            self.register_buffer(key, tensors[key])

    def forward(self, x: Tensor) -> Tensor:
        """Copy, change signs, shift."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return torch.relu(x.index_select(1, self.reads) * self.weight.view(shape) + self.bias.view(shape))


class SubNetwork(nn.Module):
    """The target, computed by a part of a random source: one active position for each weight that is needed.

    Args:
        target: what it computes.
        copies: group of units -> copies of each, where additions tie groups; empty for a plain chain.
        tensors: name -> tensor, as ``state_dict`` gives them.

    Shape:
        as the target's input and output, float64.
    """

    def __init__(self, target: Target, copies: Mapping[str, int], tensors: Mapping[str, Tensor]):
        super().__init__()
        self.target, self.copies = target, dict(copies)
        self._keys = {name: str(i) for i, name in enumerate(target.layers)}
        self.entrance = InputCopies(_below(tensors, "entrance."))
        found = {name: _below(tensors, f"layers.{key}.") for name, key in self._keys.items()}
        units = {name: layer["units"].numpy() for name, layer in found.items()}
        self.held = held_units(target, copies, self.entrance.units.numpy(), units)
        self.layers = nn.ModuleDict()
        for name, affine in target.layers.items():
            read = len(self.held[target.nodes[name].reads[0]])
            self.layers[self._keys[name]] = SparseAffine(affine, found[name], read)

    def layer(self, name: str) -> SparseAffine:
        """The needed units of a layer of the target."""
        module = self.layers[self._keys[name]]
        assert isinstance(module, SparseAffine)
        return module

    @property
    def edges(self) -> int:
        """Active positions used, those of the first layer included."""
        return len(self.entrance.units) + sum(len(self.layer(name).values) for name in self.target.layers)

    def forward(self, x: Tensor) -> Tensor:
        """The target's output, by the source's edges."""
        values: dict[str, Tensor] = {}
        left = {name: len(readers) for name, readers in self.target.readers.items()}
        for name, node in self.target.nodes.items():
            values[name] = self._value(name, x, [values[read] for read in node.reads])
            for read in node.reads:
                left[read] -= 1
                if not left[read]:
                    del values[read]
        return values[self.target.output]

    def _value(self, name: str, x: Tensor, read: list[Tensor]) -> Tensor:
        node = self.target.nodes[name]
        if node.kind == "input":
            value = x.to(self.entrance.weight.dtype)
        elif node.affine is not None:
            value = self.layer(name)(read[0])
        elif node.kind == "add":
            value = self._add(name, *read)
        else:
            value = read[0] if node.run is None else node.run(read[0])
        return self.entrance(value) if name == self.target.entry else value

    def _add(self, name: str, first: Tensor, second: Tensor) -> Tensor:
        """Units of the same number meet; a lifted side is zero where it has none."""
        reads = self.target.nodes[name].reads
        at_first, at_second = (places(self.held[name], self.held[read], first.device) for read in reads)
        (there, at), (also, at_other) = at_first, at_second
        out = first.new_zeros(len(first), len(self.held[name]), *first.shape[2:])
        return out.index_add(1, there, first.index_select(1, at)).index_add(
            1, also, second.index_select(1, at_other)
        )

    def digest(self) -> str:
        """sha256 of all tensors."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            found.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return found.hexdigest()


def held_units(
    target: Target, copies: Mapping[str, int], entrance: np.ndarray, units: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The source's numbers of the units each value of the target is kept in."""
    held = {target.entry: entrance}
    for name, node in target.nodes.items():
        if node.affine is not None:
            held[name] = units[name]
        elif node.kind in ("each", "flatten"):
            held[name] = held[node.reads[0]]
        elif node.kind == "lift":
            held[name] = held[node.reads[0]] + node.shift[0] * copies[node.group]
        elif node.kind == "add":
            lifted = [target.nodes[read].kind == "lift" for read in node.reads]
            first, second = (held[read] for read in node.reads)
            held[name] = first if lifted[1] else second if lifted[0] else np.intersect1d(first, second)
    return held


def places(into: np.ndarray, units: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where units that both have stand, in ``into`` and in ``units``; both are sorted."""
    _, there, at = np.intersect1d(into, units, assume_unique=True, return_indices=True)
    return torch.from_numpy(there).to(device), torch.from_numpy(at).to(device)


def build(target: Target, wired: Wired, copies: Mapping[str, int], low: np.ndarray | None) -> SubNetwork:
    """The module of a finished embedding.

    Args:
        target: what was embedded.
        wired: edges of the needed units.
        copies: group -> copies of each unit.
        low: (inputs,) lower ends of the inputs, which are shifted to be positive; None where signs are copied.
    """
    reads = wired.serves % target.inputs
    tensors: dict[str, np.ndarray] = {
        "entrance.units": wired.inputs,
        "entrance.reads": reads,
        "entrance.weight": np.where(wired.serves >= target.inputs, -1.0, 1.0),
        "entrance.bias": np.zeros(len(reads)) if low is None else -low[reads],
    }
    held = held_units(
        target, copies, wired.inputs, {name: edges.units for name, edges in wired.edges.items()}
    )
    for i, (name, affine) in enumerate(target.layers.items()):
        edges, read = wired.edges[name], target.nodes[name].reads[0]
        bias = affine.bias
        if read == target.entry and low is not None:
            bias = bias + shifted_bias(affine, low)
        place = np.searchsorted(held[read], edges.columns // affine.taps)
        tensors |= {
            f"layers.{i}.units": edges.units,
            f"layers.{i}.serves": edges.serves,
            f"layers.{i}.crow": np.concatenate([[0], np.cumsum(edges.counts)]),
            f"layers.{i}.columns": place * affine.taps + edges.columns % affine.taps,
            f"layers.{i}.values": edges.values,
            f"layers.{i}.bias": bias[edges.serves],
        }
    return SubNetwork(target, copies, {key: torch.from_numpy(value) for key, value in tensors.items()})


def shifted_bias(affine: Affine, low: np.ndarray) -> np.ndarray:
    """What a shift of the inputs by ``-low`` adds to the sums, taken off again: ``sum_j w_ij low_j``."""
    per_group = affine.outputs // affine.groups
    blocks = low.reshape(affine.groups, -1)
    sums = affine.weight.sum(axis=2)
    return np.concatenate(
        [sums[g * per_group : (g + 1) * per_group] @ blocks[g] for g in range(affine.groups)]
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
