"""Soft gradual pruning: what was pruned keeps its value and comes back where a live weight has become smaller."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Zhu and Gupta 2017: the mask is chosen anew from all values at each pruning.
@pytest.mark.parametrize(
    ("distribution", "target", "hidden", "first", "second"),
    [
        ("global", 5, 0.0, "1 1 1 1", "1 0 0 0"),
        ("global", 3, 0.0, "1 1 0 0", "1 0 0 0"),
        ("global", 3, -2.5, "1 0 0 0", "1 0 1 0"),  # a hidden weight of b is larger than 2
        (
            "uniform",
            4,
            0.0,
            "1 1 0 0",
            "1 0 1 0",
        ),  # half of each; of the zeros of b the lower index that is free
        ("uniform", 4, -2.5, "1 1 0 0", "1 0 1 0"),
    ],
)
def test_softgmp_by_hand(distribution, target, hidden, first, second):
    views = {
        "a": view([-5.0, 2.0, 0.5, 0.1], "1 1 1 1", name="a"),
        "b": view(
            [3.0, 0.0, 0.0, 0.0], "1 0 0 0", name="b", memory={"hidden": torch.tensor([0, 0, hidden, 0])}
        ),
    }
    if distribution == "uniform" and not hidden:
        views["b"] = view([3.0, 0.0, 0.7, 0.0], "1 0 1 0", name="b")
    softgmp = ss.SoftGMP(0.5, distribution, update_interval=1, update_begin=0, update_end=50)
    assert updated(softgmp, views, 1, target) == {"a": first, "b": second}


def test_values_rest_behind_their_zeros_and_return():
    torch.manual_seed(0)
    model = nn.Linear(10, 10, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    method = ss.SoftGMP(0.3, update_interval=2, update_begin=2, update_end=30)
    sparse = ss.attach(model, optimizer, method, total_steps=40)
    returned = 0
    for step in range(40):
        mask, weight = sparse.masks["weight"].clone(), model.weight.detach().clone()
        hidden = sparse._sites["weight"].memory["hidden"].clone()
        model(torch.randn(5, 10)).square().sum().backward()
        assert not bool(model.weight.grad[~mask].any())
        optimizer.step()
        optimizer.zero_grad()
        now, after = sparse.masks["weight"], sparse._sites["weight"].memory["hidden"]
        assert mask_rules.num_active(sparse.masks) == sparse.target_count
        assert not bool(model.weight[~now].any()) and not bool(after[now].any())
        assert torch.equal(after[~now & ~mask], hidden[~now & ~mask]), "hidden values rest"
        assert torch.equal(model.weight[now & ~mask], hidden[now & ~mask]), "and return as they were"
        returned += int((now & ~mask).sum())
        assert step < 2 or bool((weight[mask & ~now] != 0).all())
    assert returned > 0 and sparse.target_count == 30
