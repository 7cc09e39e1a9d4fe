"""Lotteries and searches that are dropped, not closed, are collected whenever Python likes: also during a step."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import optimizer as of_torch

import startsparse as ss


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def dropped_lottery():
    tickets = ss.lottery(net(), ss.IMP(density=0.5, levels=1))
    level = next(tickets)
    level.knot = level, tickets
    return weakref.ref(level)


def dropped_search():
    search = ss.search(net(), ss.EdgePopup(density=0.5), total_steps=5)
    search.knot = search
    return weakref.ref(search)


@pytest.mark.parametrize("drop", [dropped_lottery, dropped_search])
@pytest.mark.parametrize("moment", ["pre", "post"])
def test_collected_during_a_step(drop, moment):
    register = getattr(of_torch, f"register_optimizer_step_{moment}_hook")
    handles = [register(lambda *_: print(gc.collect()))]
    alive = drop()
    assert alive() is not None
    handles.append(register(lambda *_: None))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    try:
        _ = optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert alive() is None
