"""The state of a model without anything dense for its sparse modules: reading it, and putting it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.modules import SparseConv2d, SparseLinear
from .live import All, Live, Positions

SparseModule = SparseLinear | SparseConv2d


class SparseWeight:
    """The weight of a sparse module: nothing is held here, everything is looked up when it is asked for."""

    def __init__(self, module: SparseModule):
        self.module = module

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        return tuple(self.module.dense_shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.module.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the values."""
        return self.module.weight.device

    def values(self) -> Tensor:
        """The live values, row-major."""
        return self.module.weight.detach()[self.module.live().order()]

    def live(self) -> Live:
        """Where they are."""
        count, size = self.module.weight.numel(), self.module.num_weights
        if count == size:
            return All(size)
        return Positions(lambda: self.module.live().positions().numpy(), count, size)


def read(model: nn.Module) -> dict[str, Any]:
    """A model's ``state_dict``, where a ``SparseWeight`` stands for each sparse module's weight and positions."""

    def shorten(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict) -> None:
        assert isinstance(module, SparseModule)
        state[f"{prefix}weight"] = SparseWeight(module)
        del state[f"{prefix}positions"]

    modules = [module for module in model.modules() if isinstance(module, SparseModule)]
    handles = [module.register_state_dict_post_hook(shorten) for module in modules]
    try:
        return dict(model.state_dict())
    finally:
        for handle in handles:
            handle.remove()


def fill(
    model: nn.Module, dense: Mapping[str, Tensor], sparse: Mapping[SparseModule, tuple[Tensor, Live]]
) -> None:
    """Put tensors and live values into a model; when that fails, the sparse modules are as before.

    Args:
        model: the model.
        dense: key of the ``state_dict`` -> tensor, for all but the sparse modules' weights.
        sparse: module -> its live values, row-major, and where they are.
    """
    with _unharmed(sparse):
        for module, (values, live) in sparse.items():
            module.load_weight(values, torch.from_numpy(live.all_positions()))
        model.load_state_dict(dense, strict=not sparse)  # the sparse weights are not missing: they are there


@contextmanager
def _unharmed(modules: Mapping[SparseModule, Any]) -> Iterator[None]:
    before = [(module, module.live(), module.weight.detach().clone()) for module in modules]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for module, live, values in before:
                module.put(live, values)
        raise
