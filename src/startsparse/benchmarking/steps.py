"""Whole training steps with a real optimizer: truly sparse and masked against the plain dense net."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import startsparse as ss

from .nets import Net, nets
from .timing import Options, Row, measure


def rows(options: Options) -> Iterator[Row]:
    """One row for each net: times faster than dense, at each sparsity."""
    for name, net in nets(options.sizes, options.quick).items():
        for batch in options.batches or (net.batch,):
            steps = {"dense": training_step(net, batch, 0.0, "masked")}
            for sparsity in options.sparsities or ((0.9,) if options.quick else (0.9, 0.95, 0.99)):
                steps.setdefault(f"masked {sparsity:g}", training_step(net, batch, sparsity, "masked"))
                steps[f"sparse {sparsity:g}"] = training_step(net, batch, sparsity, "sparse")
                if net.fuse:
                    steps[f"fused {sparsity:g}"] = training_step(net, batch, sparsity, "sparse", fuse=True)
            yield {"net": name, "batch": batch} | measure(steps, options).against("dense")


def training_step(
    net: Net, batch: int, sparsity: float, execution: str, fuse: bool = False
) -> Callable[[], None]:
    """One step of a net at a sparsity; at 0 it is the plain dense net, without anything attached."""
    torch.manual_seed(0)
    model = net.make()
    if net.optimizer == "adam fused":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if sparsity:
        _ = ss.attach(model, optimizer, ss.Static(1 - sparsity), execution=execution)
    x, y = torch.randn(batch, *net.shape), torch.randint(0, 10, (batch,))
    if fuse:
        _ = ss.fuse(model, x)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
