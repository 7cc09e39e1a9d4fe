"""Other people's sparse layers, where they are installed: SparseProp (linear, convolution) and SparseLab (linear)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from .timing import step


def linear(weight: Tensor, x: Tensor, dy: Tensor) -> dict[str, Callable[[], None]]:
    """Name -> training step of a layer with this sparse weight [out, in].

    SparseLab draws its own positions, as many.

    References:
        Nikdan et al., SparseProp, ICML 2023, https://arxiv.org/abs/2302.04852
        SparseLab, https://github.com/DarshanFofadiya/sparselab
    """
    found = {}
    dense = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        dense.weight.copy_(weight)
    if find_spec("sparseprop"):
        from sparseprop.modules import SparseLinear  # type: ignore[import-not-found]

        found["sparseprop"] = _step(SparseLinear.from_dense(dense), x, dy)
    if find_spec("sparselab"):
        from sparselab import SparseLinear as LabLinear  # type: ignore[import-not-found]

        share = 1 - float(weight.count_nonzero()) / weight.numel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's note that CSR is in beta
            found["sparselab"] = _step(LabLinear(*weight.shape[::-1], sparsity=share), x, dy)
    return found


def conv(weight: Tensor, padding: int, x: Tensor, dy: Tensor) -> dict[str, Callable[[], None]]:
    """Name -> training step of a convolution with this sparse weight: SparseProp's two variants."""
    if not find_spec("sparseprop"):
        return {}
    from sparseprop.modules import SparseConv2d  # type: ignore[import-not-found]

    dense = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding, bias=False)
    with torch.no_grad():
        dense.weight.copy_(weight)
    variants = {"sparseprop": False, "sparseprop-on": True}
    return {
        name: _step(SparseConv2d.from_dense(dense, vectorizing_over_on=over), x, dy)
        for name, over in variants.items()
    }


def _step(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    x = x.detach().clone().requires_grad_()
    return step([x, *module.parameters()], lambda: module(x), dy)
