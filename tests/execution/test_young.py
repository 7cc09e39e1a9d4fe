"""Adam's cold start: what it is, that "warmup" removes it exactly, and only it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.young import factor

LR, STEPS = 1e-3, 1000


def grow_late(state: str, execution: str = "masked", **options):
    """Train with a constant gradient until step 1000, then grow: the moves of grown weights, in learning rates."""
    model = nn.Linear(40, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, **options)
    method = ss.SET(
        0.5,
        drop_fraction=0.2,
        drop_schedule="constant",
        exclude_dropped=True,
        update_interval=STEPS - 1,
        update_end=STEPS,
        grown_state=state,
    )
    sparse = ss.attach(model, optimizer, method, total_steps=STEPS, execution=execution)
    x, moves, seen = torch.ones(1, 40), [], sparse.masks["weight"].clone()
    for step in range(STEPS + 12):
        before = sparse.dense_state_dict()["weight"].clone()
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        if step >= STEPS:
            moved = (before - sparse.dense_state_dict()["weight"]) / LR
            moves.append((moved[~seen & sparse.masks["weight"]], moved[seen & sparse.masks["weight"]]))
    return moves, optimizer, sparse


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_the_first_move_is_two_and_a_half_learning_rates_with_a_reset_and_one_with_warmup(execution):
    cold, _, _ = grow_late("reset", execution)
    warm, _, _ = grow_late("warmup", execution)
    assert len(cold[0][0]) == len(warm[0][0]) == 4
    assert cold[0][0].tolist() == pytest.approx([2.51] * 4, abs=0.01)
    assert max(float(grown.max()) for grown, _ in cold) == pytest.approx(5.2, abs=0.1), (
        "about the tenth move is the worst"
    )
    for grown, others in warm:
        assert grown.tolist() == pytest.approx([1.0] * 4, abs=2e-3), (
            "a constant gradient moves Adam by one each step"
        )
        assert others.tolist() == pytest.approx([1.0] * 16, abs=2e-3)


def test_other_betas():
    cold, _, _ = grow_late("reset", betas=(0.9, 0.95))
    assert cold[0][0].tolist() == pytest.approx([0.447] * 4, abs=0.002)
    warm, _, _ = grow_late("warmup", betas=(0.9, 0.95))
    assert warm[0][0].tolist() == pytest.approx([1.0] * 4, abs=2e-3)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_grown_weight_moves_as_a_parameter_of_its_own_that_was_born_then(kind, execution):
    """The weight that grew, and a lone parameter of a fresh Adam that sees the same gradients from then on."""
    torch.manual_seed(0)
    model = nn.Linear(30, 1, bias=False)
    optimizer = kind(model.parameters(), lr=LR, amsgrad=True, weight_decay=0.0, eps=1e-12)
    method = ss.SET(
        0.4,
        update_interval=150,
        update_end=160,
        exclude_dropped=True,
        grown_state="warmup",
        drop_fraction=0.9,
        drop_schedule="constant",
    )
    sparse = ss.attach(model, optimizer, method, total_steps=300, execution=execution)
    twin = other = at = place = None
    for step in range(300):
        x = torch.randn(8, 30, generator=torch.Generator().manual_seed(step))
        mask = sparse.masks["weight"].clone()
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().sum().backward()  # all weights want to be one
        if twin is not None:
            gradient = model.weight.grad
            gradient = gradient if execution == "masked" else gradient[None]
            index = at if execution == "masked" else place
            twin.grad = gradient.reshape(-1)[index][None].clone()
            other.step()
        optimizer.step()
        grown = (sparse.masks["weight"] & ~mask).reshape(-1).nonzero().squeeze(1)
        if len(grown) and twin is None:
            at = int(grown[0])
            place = int(sparse._sites["weight"].index_of(grown[:1]))
            twin = nn.Parameter(torch.zeros(1))
            other = kind([twin], lr=LR, amsgrad=True, weight_decay=0.0, eps=1e-12)
    assert twin is not None and float(twin.detach()) > 10 * LR
    assert float(sparse.dense_state_dict()["weight"].reshape(-1)[at]) == pytest.approx(
        float(twin.detach()), rel=1e-3
    )


def test_weights_grow_up():
    factors = factor(torch.tensor([10, 100, 5000, 20000]), 30000, 0.9, 0.999)
    assert bool((factors[1:] > factors[:-1]).all()) and factors[-1] > 0.999
    assert float(factor(torch.tensor([7]), 7, 0.9, 0.999)) == 1, "a weight of step 0 is as old as its tensor"
    _, _, sparse = grow_late("warmup", betas=(0.5, 0.5))
    assert len(sparse._sites["weight"].memory["young"]) == 0, "with short averages soon"


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_run_goes_on_bit_for_bit(execution):
    def job():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        rigl = ss.RigL(0.3, update_interval=3, grown_state="warmup")
        return model, optimizer, ss.attach(model, optimizer, rigl, total_steps=30, execution=execution)

    def run(model, optimizer, start, stop):
        for step in range(start, stop):
            optimizer.zero_grad()
            x = torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
            (model(x) - 1).square().mean().backward()
            optimizer.step()

    whole = job()
    run(*whole[:2], 0, 14)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    run(*whole[:2], 14, 30)
    assert any(len(site.memory["young"]) for site in whole[2]._sites.values())
    again = job()
    file.seek(0)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*again[:2], 14, 30)
    for name, weight in whole[2].dense_state_dict().items():
        assert torch.equal(weight, again[2].dense_state_dict()[name])


def test_without_bias_correction_it_is_a_reset():
    runs = []
    for state in ("reset", "warmup"):
        torch.manual_seed(0)
        model = nn.Linear(12, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        _ = ss.attach(model, optimizer, ss.SET(0.3, update_interval=3, grown_state=state), total_steps=30)
        for _ in range(30):
            optimizer.zero_grad()
            (model(torch.randn(6, 12)) - 1).square().mean().backward()
            optimizer.step()
        runs.append(copy.deepcopy(model.state_dict()))
    assert torch.equal(runs[0]["weight"], runs[1]["weight"])


def test_optimizers_whose_correction_is_not_known_are_refused_by_name():
    model = nn.Linear(12, 10)
    with pytest.raises(ValueError, match=r"'warmup'.*RAdam is not one of Adam, AdamW"):
        _ = ss.attach(
            model, torch.optim.RAdam(model.parameters()), ss.SET(0.3, grown_state="warmup"), total_steps=300
        )
