"""One rank of ``test_ddp.py``: trains a net under DistributedDataParallel in several ways and saves what came out."""

from __future__ import annotations

import contextlib
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import startsparse as ss

STEPS = 7


def build() -> nn.Module:
    """The same net on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def batch(step: int) -> torch.Tensor:
    """The whole batch of a step; a rank takes its part."""
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).double()


def method(name: str) -> ss.methods.Method:
    """A short schedule."""
    if name.startswith("rst"):
        after = name.endswith("decoupled")  # has no momentum, and must not shrink a weight past zero
        penalty, bound = ("decoupled", 8.0) if after else ("gradient", 20.0)
        return ss.RST(density=0.25, ramp_steps=2, stabilise_steps=2, bound=bound, penalty=penalty)
    moving = {"update_interval": 2, "update_end": 100} if name in ("rigl", "set", "gmp", "ggr") else {}
    return ss.methods.make(name, density=0.25, **moving)


def train(name: str, rank: int, ranks: int, parts: int, order: str, sync_all: bool) -> dict:
    """Seven steps; with one rank this is the reference."""
    torch.manual_seed(100 + rank)  # the ranks' own randomness must not matter
    model = build()
    wrapped = model
    if ranks > 1 and order == "after":
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    sparse = ss.attach(wrapped, optimizer, method(name), total_steps=100)
    if ranks > 1 and order != "after":
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=order == "before, views")
    for step in range(STEPS):
        optimizer.zero_grad()
        mine = batch(step).chunk(ranks)[rank].chunk(parts)
        for index, part in enumerate(mine):
            last = index == len(mine) - 1
            quiet = wrapped.no_sync() if ranks > 1 and not (last or sync_all) else contextlib.nullcontext()
            with quiet:
                (wrapped(part).square().mean() / parts).backward()
        for key, mask in sparse.masks.items():
            assert not bool(dict(model.named_parameters())[key].grad[~mask].any()), key
        optimizer.step()
        for key, mask in sparse.masks.items():
            assert not bool(dict(model.named_parameters())[key][~mask].any()), key
    assert list(sparse.masks) == ["0.weight", "2.weight"]
    return {
        "masks": dict(sparse.masks),
        "weights": {key: value.detach() for key, value in model.named_parameters()},
        "moved": sparse.report().num_moved,
    }


CASES = {
    f"{name}-{order}": (name, 1, order, False)
    for name in ("rigl", "set", "snip", "gmp", "static", "ggr")
    for order in ("before", "before, views", "after")
} | {
    "pulled": ("rst", 1, "before", False),
    "pulled-views": ("rst", 1, "before, views", False),
    "pulled-after": ("rst", 1, "after", False),
    "pulled-decoupled": ("rst-decoupled", 1, "before", False),
    "accumulated-pulled": ("rst", 2, "before", False),
    "accumulated": ("rigl", 2, "before", False),
    "accumulated-views": ("rigl", 2, "before, views", False),
    "accumulated-snip": ("snip", 2, "after", False),
    "accumulated-synchronised": ("rigl", 2, "before", True),
}


def main(rank: int, ranks: int, store: str, out: str) -> None:
    """Run every case."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.save({case: train(n, rank, ranks, p, o, s) for case, (n, p, o, s) in CASES.items()}, out)
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
