"""What is recorded of moving topologies, against the masks seen step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import dynamics
from startsparse.methods import Change

METHODS = ["rigl", "set", "ggr", "gmp", "static", "snip"]


def job(name: str = "ggr", execution: str = "masked", steps: int = 12, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    moving = {"update_interval": 2} if name in ("rigl", "set", "ggr", "gmp") else {}
    method = ss.methods.make(name, density=0.2, **moving, **options)
    return model, optimizer, ss.attach(model, optimizer, method, total_steps=steps, execution=execution)


def step(model, optimizer, index: int) -> None:
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(index))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_recorded_is_what_was_seen(name, execution):
    model, optimizer, sparse = job(name, execution)
    seen = [{n: mask.clone() for n, mask in sparse.masks.items()}]
    for index in range(12):
        step(model, optimizer, index)
        seen.append({n: mask.clone() for n, mask in sparse.masks.items()})
    found = sparse.dynamics()
    moved = [i for i in range(12) if any(not torch.equal(seen[i][n], seen[i + 1][n]) for n in seen[0])]
    assert [s for s, c in zip(found.steps, found.churn, strict=True) if c > 0] == moved
    assert set(moved) <= set(found.steps)
    for row in found.layers:
        masks = [state[row.name] for state in seen]
        assert row.num_start == int(masks[0].sum()) and row.num_active == int(masks[-1].sum())
        assert row.num_visited == int(torch.stack(masks).any(0).sum())
        assert row.dropped == [int((masks[i] & ~masks[i + 1]).sum()) for i in found.steps]
        assert row.grown == [int((masks[i + 1] & ~masks[i]).sum()) for i in found.steps]
        assert row.live == [int(masks[i + 1].sum()) for i in found.steps]
        now = masks[-1]
        assert row.dead_units == int((~now.any(0)).sum()) + int((~now.any(1)).sum())
        assert found.densities[row.name] == [
            int(m.sum()) / m.numel() for m in (masks[0], *(masks[i + 1] for i in found.steps))
        ]
    total = sum(mask.numel() for mask in seen[0].values())
    for index, at in enumerate(found.steps):
        gone = sum(int((seen[at][n] & ~seen[at + 1][n]).sum()) for n in seen[0])
        assert found.churn[index] == gone / sum(int(mask.sum()) for mask in seen[at].values())
    everything = sum(int(torch.stack([state[n] for state in seen]).any(0).sum()) for n in seen[0])
    assert found.exploration == everything / total
    assert bool(found.steps) is (name != "static")
    assert sparse.report().num_moved == sum(sum(row.dropped) for row in found.layers)


def test_growth_shares_count_what_came_back_at_once():
    model, optimizer, sparse = job("ggr", drop_schedule="constant", drop_fraction=0.5, rho=1.0, floor=1)
    for index in range(9):
        step(model, optimizer, index)
    found = sparse.dynamics()
    rows = dict(zip(sparse.masks, found.layers, strict=True))
    for index in range(len(found.steps)):
        live = [row.num_start if index == 0 else row.live[index - 1] for row in found.layers]
        drops = [min(count // 2, count - 1) for count in live]
        asked = [
            now - before + drop
            for now, before, drop in zip((r.live[index] for r in found.layers), live, drops, strict=True)
        ]
        assert [found.growth_shares[n][index] for n in rows] == [count / sum(drops) for count in asked]
    assert any(sum(row.returned) for row in found.layers)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("at", [0, 1, 5, 6])
def test_it_goes_on_after_a_checkpoint(at, execution):
    model, optimizer, sparse = job("ggr", execution)
    whole = job("ggr", execution)
    for index in range(12):
        step(*whole[:2], index)
        if index == at:
            saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, sparse)])
            model, optimizer, sparse = job("ggr", execution, seed=0)
            for part, state in zip((model, optimizer, sparse), saved, strict=True):
                part.load_state_dict(state)
        step(model, optimizer, index)
    assert sparse.dynamics() == whole[2].dynamics()
    old = sparse.state_dict()
    del old["dynamics"]
    sparse.load_state_dict(old)  # of a version that recorded nothing: begins anew
    assert sparse.dynamics().steps == []
    assert sparse.dynamics().exploration == sparse.density


def test_flops_are_those_of_the_topology_now():
    _, _, sparse = job("rigl")
    counts = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    found = sparse.dynamics(example_input=torch.zeros(3, 12))
    assert found.flops == 2 * sum(counts.values())
    assert sparse.dynamics().flops is None
    assert (
        found.summary()["inference_flops"] == found.flops
        and "inference_flops" not in sparse.dynamics().summary()
    )
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 5))
    sparse = ss.attach(conv, torch.optim.SGD(conv.parameters(), lr=0.1), ss.Static(0.5))
    live = [int(mask.sum()) for mask in sparse.masks.values()]
    assert sparse.dynamics(torch.zeros(1, 2, 5, 5)).flops == 2 * 25 * live[0] + 2 * live[1]


def test_it_prints_and_is_plain_data():
    model, optimizer, sparse = job("ggr")
    assert "0 updates" in str(sparse.dynamics())
    for index in range(5):
        step(model, optimizer, index)
    text = str(sparse.dynamics())
    assert "2 updates, the last one moved" in text and "0.weight" in text
    assert sparse.dynamics().as_dict()["layers"][0]["name"] == "0.weight"
    assert set(sparse.dynamics().summary()) == {"density", "exploration", "churn", "dead_units"}


class Layer:
    """The least a recorder looks at."""

    def __init__(self, size: int, live: list[int]):
        self.shape, self.live = (size,), live

    def positions(self):
        return torch.tensor(self.live)

    @property
    def num_active(self):
        return len(self.live)


def test_very_many_updates_are_added_up(monkeypatch):
    monkeypatch.setattr(dynamics, "MOST", 8)
    recorder = dynamics.Recorder({"w": 1000})
    recorder.before({"w": Layer(1000, list(range(10)))})
    for index in range(101):
        change = Change(torch.tensor([index]), torch.tensor([10 + index]))
        recorder.after(index, {"w": change}, {"w": 10})
        assert len(recorder.rows) == len(recorder.steps) <= 17
    assert sum(int(row[0, 0]) for row in recorder.rows) == 101
    assert recorder.steps[-1] == 100 and recorder.steps == sorted(recorder.steps)
    assert recorder.visited("w", 10) == 111
    assert all(int(row[0, 3]) == 10 for row in recorder.rows)
