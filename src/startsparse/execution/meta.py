"""Models on the meta device: their live weights come into being sparse, nothing dense ever does.

Values follow the law of the layer's own ``reset_parameters``, drawn by the counter generator at the live positions
alone: they are a function of (seed, layer name, position), not of torch's random stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..draw import Drawn, Permutation
from ..layers import Geometry, Layer
from .interface import FirstSite
from .optimizers import replace


@dataclass(frozen=True)
class ShapeView:
    """A layer that has no values yet: enough for a method that starts from a random mask."""

    name: str
    shape: tuple[int, ...]
    capacity: int
    geometry: Geometry
    frozen: bool = False
    source: None = None
    num_active: int = 0

    def __getattr__(self, wanted: str):
        raise ValueError(
            f"{self.name} is on the meta device and has no weights to look at: start from a random mask "
            "(static, set, rigl, ... without flow repair) or build the model with values"
        )


class MetaSite(FirstSite):
    """A layer on the meta device before its first weights; sparse execution takes its place.

    Raises:
        ValueError: the source cannot be looked up without being stored.
    """

    execution = "meta"

    source: Drawn | None

    def __init__(self, layer: Layer, source: Drawn | Tensor | None):
        if isinstance(source, Tensor) or (source is not None and source.rule != "exact"):
            raise ValueError(
                f"{layer.name} is on the meta device: its source must be dense or RandomSource(draw='exact'), which "
                "can be looked up without being stored"
            )
        super().__init__(layer, source)
        self.parameter = layer.parameter
        self._drawn: Drawn | None = None

    def view(self) -> ShapeView:  # type: ignore[override]
        capacity = math.prod(self.shape) if self.source is None else int(self.source.count or 0)
        return ShapeView(
            self.name, self.shape, capacity, self.layer.geometry, not self.parameter.requires_grad
        )

    def place(self, mask: object) -> Drawn:
        """Note the first mask.

        Raises:
            ValueError: it is not an exact draw.
        """
        if not isinstance(mask, Drawn) or mask.rule != "exact":
            raise ValueError(
                f"{self.name} is on the meta device: its first mask must be an exact random draw; take another method, "
                "or model.to_empty(device='cpu') and initialise it"
            )
        self._drawn = mask
        return mask

    @property
    def num_active(self) -> int:
        return 0 if self._drawn is None else int(self._drawn.count or 0)

    def positions(self) -> Tensor:
        assert self._drawn is not None
        if self.source is None or self._drawn.nests_in(self.source):
            return torch.from_numpy(self._drawn.positions())
        order = Permutation(self._drawn.size, "exact", self._drawn.seed, self._drawn.name)
        inside = Permutation(self.source.size, "exact", self.source.seed, self.source.name)
        limit = int(self.source.count or 0)
        return torch.from_numpy(order.first_where(lambda at: inside.ranks(at) < limit, self.num_active))

    def first_values(self, positions: Tensor, seed: int) -> Tensor:
        return uniform(math.prod(self.shape), math.prod(self.shape[1:]), seed, self.name, positions)

    def remask(self) -> None:
        """Nothing to do: there are no weights."""


def uniform(size: int, fan_in: int, seed: int, name: str, positions: Tensor | None = None) -> Tensor:
    """U(-b, b) with b = 1 / sqrt(fan_in), the law of torch's Linear and convolutions, at some of ``size`` positions.

    Example:
        >>> bool((uniform(200, 100, 0, "fc.weight").abs() <= 0.1).all())
        True
    """
    where = np.arange(size) if positions is None else positions.numpy()
    ranks = Permutation(size, "init", seed, name).ranks(where)
    return torch.from_numpy(((2 * ranks + 1) / size - 1) / math.sqrt(max(fan_in, 1))).float()


@torch.no_grad()
def materialise_rest(
    model: nn.Module, layers: Mapping[str, Layer], optimizers: Iterable[Optimizer], seed: int
) -> None:
    """Give every other tensor of the model memory and first values.

    Biases of the sparse layers follow their layers' law, other modules their own ``reset_parameters``; tensors of
    modules without one (buffers of the user's own, say) cannot be made up.

    Raises:
        ValueError: names the module whose tensors cannot be made up.
    """
    owners = {id(layer.module): layer for layer in layers.values()}
    empty = {name: module for name, module in model.named_modules() if any(map(_is_meta, _tensors(module)))}
    for name, module in empty.items():
        if id(module) not in owners and not callable(getattr(module, "reset_parameters", None)):
            raise ValueError(
                f"{name or 'the model'} has tensors on the meta device and no reset_parameters() to fill them"
            )
    made: dict[int, nn.Parameter] = {}
    for module in empty.values():
        layer = owners.get(id(module))
        for key, old in list(module._parameters.items()):
            if not _is_meta(old) or old is None or (layer is not None and key == layer.attribute):
                continue
            if id(old) in made:  # shared with another module
                module._parameters[key] = made[id(old)]
                continue
            new = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
            module._parameters[key] = made[id(old)] = new
            replace(
                optimizers, old, new, lambda state, fresh: torch.full(state.shape, fresh, dtype=state.dtype)
            )
            if layer is not None:
                new.copy_(uniform(old.numel(), math.prod(layer.shape[1:]), seed, f"{layer.name}.{key}"))
        for key, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = torch.empty_like(buffer, device="cpu")
        if layer is None:
            _ = module.reset_parameters()  # type: ignore[operator]


def _tensors(module: nn.Module) -> list[Tensor | None]:
    return [*module._parameters.values(), *module._buffers.values()]


def _is_meta(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_meta
