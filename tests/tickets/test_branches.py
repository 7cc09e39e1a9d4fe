"""What a ticket is compared with: each branch changes what it says and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.methods.iterative import IMP
from startsparse.tickets import BRANCHES, Ticket, lottery, shuffle


def second_level(source=None) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    found = lottery(model, IMP(density=0.25, levels=1, rewind_step=1), source=source)
    for level in found:
        if level.index:
            return found, level
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.randn(8, 8)).square().mean().backward()
            optimizer.step()
    raise AssertionError


def test_what_each_branch_keeps():
    _, level = second_level()
    ticket = level.ticket
    for kind in BRANCHES:
        made = BRANCHES[kind](ticket, 3)
        same_mask = all(torch.equal(made.masks[n], m) for n, m in ticket.masks.items())
        same_weights = all(torch.equal(made.weights[n], w) for n, w in ticket.weights.items())
        fresh = {n: w.sort().values for n, w in ((n, w.reshape(-1)) for n, w in made.weights.items())}
        initial = {n: w.reshape(-1).sort().values for n, w in ticket.initial.items()}
        assert ss.masks.counts(made.masks) == ss.masks.counts(ticket.masks)
        assert same_mask == (kind in ("reinit", "retrain")), kind
        assert same_weights == (kind in ("shuffle", "retrain")), kind
        assert all(torch.equal(fresh[n], initial[n]) for n in initial) == (kind in ("reinit", "random"))
        assert made.step == (1 if same_weights else 0)


@pytest.mark.parametrize("kind", ["reinit", "shuffle", "random"])
def test_draws_depend_on_the_seed_alone(kind):
    _, level = second_level()
    a, b, c = (BRANCHES[kind](level.ticket, seed) for seed in (1, 1, 2))
    for part in ("masks", "weights"):
        x, y, z = (getattr(t, part)["0.weight"] for t in (a, b, c))
        assert torch.equal(x, y)
        if not torch.equal(x, getattr(level.ticket, part)["0.weight"]):
            assert not torch.equal(x, z)


def test_a_shuffled_mask_stays_inside_the_source_and_is_uniform():
    _, level = second_level(ss.RandomSource(0.6, seed=2))
    sources = level.ticket.sources
    assert ss.masks.is_subset(shuffle(level.ticket, 5).masks, sources)
    ticket = Ticket({"w": torch.arange(40) < 10}, {"w": torch.ones(40)})
    hits = sum(shuffle(ticket, seed).masks["w"].float() for seed in range(400))
    assert hits.sum() == 4000
    assert hits.min() > 60 and hits.max() < 140  # 100 expected, sd 8.7


def test_a_branch_trains_beside_its_level_on_a_model_of_its_own():
    found, level = second_level()
    other = level.branch("shuffle", seed=1)
    before = {n: t.clone() for n, t in level.model.state_dict().items()}
    assert other.density == level.density and other.start_step == level.start_step == 1
    optimizer = torch.optim.AdamW(other.model.parameters(), lr=0.1)
    for _ in range(2):
        other.model(torch.randn(8, 8)).square().mean().backward()
        optimizer.step()
        for name, mask in other.masks.items():
            assert not bool(other.model.get_parameter(name).detach()[~mask].any())
    assert (other.step, level.step) == (2, 0)
    assert all(torch.equal(before[n], t) for n, t in level.model.state_dict().items())
    assert other.budget.samples == 16 and level.budget.samples == 0
    assert other.close().keys() == before.keys()
    assert level.branch("reinit").start_step == 0, "fresh weights begin the schedule anew"
    with pytest.raises(ValueError, match=r"unknown branch 'reinitt'.*did you mean 'reinit'"):
        level.branch("reinitt")
    assert len(found) == 1


def test_a_sparse_model_is_not_branched():
    _, level = second_level()
    level.attach(torch.optim.SGD(level.model.parameters(), lr=0.1), execution="sparse")
    with pytest.raises(ValueError, match="branch before level"):
        level.branch("shuffle")
