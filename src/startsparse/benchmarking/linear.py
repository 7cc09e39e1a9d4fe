"""Linear layers: one training step against dense, masked dense, torch CSR and other libraries.

Numbers above 1 are times faster than dense ``F.linear`` in float32, in the same interleaved run. ``drop-in`` takes and
gives row-major activations, ``native`` leaves them in the blocked layout of its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .. import kernels
from . import rivals
from .timing import Options, Row, measure, step
from .torch_csr import CsrLinear


def rows(options: Options) -> Iterator[Row]:
    """One row for each width, batch and sparsity."""
    for size in options.sizes or ((512,) if options.quick else (512, 1024, 2048)):
        for batch in options.batches or (128,):
            for sparsity in options.sparsities or (
                (0.9, 0.99) if options.quick else (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
            ):
                times = measure(contenders(size, batch, sparsity), options)
                yield {"size": size, "batch": batch, "sparsity": sparsity} | times.against("dense")


def contenders(size: int, batch: int, sparsity: float) -> dict[str, Callable[[], None]]:
    """Name -> training step, for one layer of ``size`` x ``size``."""
    torch.manual_seed(0)
    count = round(size * size * (1 - sparsity))
    positions = torch.randperm(size * size)[:count].sort().values
    pattern = kernels.Pattern.build(positions, size, size)
    weight = torch.randn(size, size)
    mask = torch.zeros(size * size).index_fill_(0, positions, 1.0).view(size, size)
    values = pattern.take_from(weight).requires_grad_()
    weight = (weight * mask).requires_grad_()
    bias = torch.randn(size, requires_grad=True)
    x, dy = torch.randn(batch, size, requires_grad=True), torch.randn(batch, size)
    lanes = kernels.lanes_for(batch)
    blocked = kernels.to_blocked(x.detach(), lanes).requires_grad_()
    blocked_dy = kernels.to_blocked(dy, lanes)
    feature_major, feature_dy = x.detach().t().contiguous().requires_grad_(), dy.t().contiguous()
    csr = CsrLinear(weight.detach(), mask)
    csr_values = csr.values.clone().requires_grad_()

    def ours(x: torch.Tensor, batch: int | None) -> torch.Tensor:
        return kernels.sparse_linear(x, values, pattern.blob, size, bias, batch=batch)

    return {
        "dense": step([x, weight, bias], lambda: F.linear(x, weight, bias), dy),
        "masked": step([x, weight, bias], lambda: F.linear(x, weight * mask, bias), dy),
        "torch-csr": step(
            [feature_major, csr_values, bias], lambda: csr(feature_major, csr_values, bias), feature_dy
        ),
        **rivals.linear(weight.detach(), x, dy),
        "drop-in": step([x, values, bias], lambda: ours(x, None), dy),
        "native": step([blocked, values, bias], lambda: ours(blocked, batch), blocked_dy),
    }
