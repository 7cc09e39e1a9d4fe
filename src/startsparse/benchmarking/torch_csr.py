"""The best sparse linear layer that torch's public operators allow, as a rival.

Activations are feature-major, both orientations of the pattern are built beforehand, ``sparse.mm`` computes y
and dx, and ``sampled_addmm`` the gradient of the values.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class CsrLinear:
    """y [out, batch] = W x [in, batch] + bias, W in CSR with ``values`` in row-major order."""

    def __init__(self, weight: Tensor, mask: Tensor):
        live = mask.nonzero()
        self.values = weight[live[:, 0], live[:, 1]]
        self.shape = tuple(weight.shape)
        self.ptr, self.index, _ = _csr(live[:, 0], live[:, 1], weight.shape[0])
        self.back_ptr, self.back_index, self.order = _csr(live[:, 1], live[:, 0], weight.shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once: that CSR is in beta
            _ = self.matrix(self.values)

    def __call__(self, x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return _Function.apply(x, values, bias, self)

    def matrix(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(self.ptr, self.index, values, self.shape, check_invariants=False)

    def transposed(self, values: Tensor) -> Tensor:
        shape = self.shape[::-1]
        return torch.sparse_csr_tensor(
            self.back_ptr, self.back_index, values[self.order], shape, check_invariants=False
        )


def _csr(row: Tensor, column: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """CSR pointers, indices (int32), and where each entry came from."""
    order = torch.argsort(row * (int(column.max()) + 1) + column)
    ptr = torch.zeros(rows + 1, dtype=torch.int32)
    ptr[1:] = torch.bincount(row, minlength=rows).cumsum(0)
    return ptr, column[order].to(torch.int32), order


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, layer):
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        return torch.sparse.mm(layer.matrix(values), x).add_(bias[:, None])

    @staticmethod
    def backward(ctx, dy):
        x, values = ctx.saved_tensors
        dx = torch.sparse.mm(ctx.layer.transposed(values), dy)
        pattern = ctx.layer.matrix(torch.zeros_like(values))
        dw = torch.sparse.sampled_addmm(pattern, dy, x.t(), beta=0.0).values()
        return dx, dw, dy.sum(1), None
