"""GGR in a training loop: both executions, windows over checkpoints, layers without a gradient, gradients that overflow."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import startsparse as ss

from ..execution.twins import OPTIMIZERS, Run, assert_same_masks, batch, loss_of, pair, perceptron, seeded

OPTIONS = {
    "as it comes": {},
    "window": {"gradient_window": 3},
    "random": {"rho": 0.0},
    "rest": {"count_by": "sum_gradient", "normalise": "none", "drop_scope": "global", "floor": "units"},
    "l2": {"normalise": "l2", "ceiling": 0.5, "floor": 0.5},
    "live": {"count_by": "live", "rho": 0.3, "exclude_dropped": True},
    "mean": {"count_by": "mean_gradient", "normalise": "none"},
}


def make(**options) -> ss.GGR:
    return ss.GGR(
        **({"density": 0.25, "update_interval": 4, "drop_schedule": "constant", "floor": 1} | options)
    )


def counts(sparse: ss.Sparsifier) -> list[int]:
    return [int(mask.sum()) for mask in sparse.masks.values()]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("source", [None, ss.RandomSource(0.6, "uniform", seed=3)], ids=["dense", "exact"])
def test_masked_and_sparse_execution_move_the_same_weights(name, source):
    masked, sparse = pair(perceptron, make(**OPTIONS[name]), OPTIMIZERS["adamw"], source=source, steps=40)
    start = counts(masked.sparse)
    for step in range(40):
        for run in (masked, sparse):
            run.step(*batch(step, 8, 12).chunk(1 + step % 2))
            assert sum(counts(run.sparse)) == sum(start) == run.sparse.target_count
        assert_same_masks(masked, sparse)
    assert masked.sparse.report().num_moved == sparse.sparse.report().num_moved > 0
    assert counts(masked.sparse) != start, "layers change their size"
    values = [parameter for parameter in sparse.model.parameters() if parameter.dim() == 1]
    assert sum(counts(sparse.sparse)) <= sum(value.numel() for value in values)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("at", [5, 6, 7, 8, 9])
def test_a_window_goes_on_after_a_checkpoint(execution, at):
    """Steps 6, 7 and 8 make the window of the update at 8."""

    def trained(resume: int | None) -> Run:
        run = Run(
            seeded(perceptron), make(gradient_window=3), OPTIMIZERS["sgd"], execution=execution, steps=20
        )
        for step in range(14):
            if step == resume:
                parts = {p: getattr(run, p).state_dict() for p in ("model", "optimizer", "sparse")}
                parts = copy.deepcopy(parts)
                run = Run(
                    seeded(perceptron, 9),
                    make(gradient_window=3),
                    OPTIMIZERS["sgd"],
                    execution=execution,
                    steps=20,
                )
                for part, state in parts.items():
                    getattr(run, part).load_state_dict(state)
            run.step(batch(step, 8, 12))
        return run

    whole, resumed = trained(None), trained(at)
    assert_same_masks(whole, resumed)
    assert all(torch.equal(whole.weights()[name], weight) for name, weight in resumed.weights().items())


def test_the_window_decides():
    """Gradients of the window's steps are added with their signs: what cancels asks for nothing."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = make(
        density=0.5, update_interval=2, gradient_window=2, drop_fraction=0.5, rho=1.0, exclude_dropped=True
    )
    sparse = ss.attach(
        model,
        optimizer,
        method,
        source=ss.MaskSource({"0.weight": torch.ones(1, 4, dtype=torch.bool)}),
        total_steps=10,
    )
    live = sparse.masks["0.weight"][0].clone()
    free = (~live).nonzero().squeeze(1).tolist()
    for step in range(3):
        gradient = torch.zeros(1, 4)
        gradient[0, free[0]] = 100.0 * (-1) ** step  # large, but cancels over steps 1 and 2
        gradient[0, free[1]] = 1.0
        model(gradient).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert bool(sparse.masks["0.weight"][0, free[1]]) and not bool(sparse.masks["0.weight"][0, free[0]])


class Forked(nn.Module):
    """A branch that is never used, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.frozen, self.unused, self.used = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.used(self.frozen(x))


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_frozen_layers_stay_and_unused_ones_give_their_weights_away_down_to_the_floor(execution):
    run = Run(seeded(Forked), make(floor=3, drop_fraction=0.6), execution=execution, steps=60)
    frozen, unused, used = counts(run.sparse)
    weight = run.weights()["frozen.weight"].clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(44):
            run.step(batch(step, 8, 12))
    assert [str(one.message)[:63] for one in said] == [
        "ggr: unused.weight got no growth in 4 updates and is down to 3 "
    ]
    assert counts(run.sparse) == [frozen, 3, used + unused - 3]
    assert torch.equal(run.weights()["frozen.weight"], weight)


def test_an_update_whose_window_overflowed_is_left_out():
    run = Run(seeded(perceptron), make(gradient_window=3), execution="masked", steps=40)
    for step in range(4):
        run.step(batch(step, 8, 12))
    before = {name: mask.clone() for name, mask in run.sparse.masks.items()}
    run.optimizer.zero_grad()
    weights = copy.deepcopy(run.model.state_dict())
    (loss_of(run.model(batch(4, 8, 12))) * float("nan")).backward()
    with pytest.warns(UserWarning, match=r"ggr: the dense gradient of .* is not finite at step 4.*left out"):
        run.optimizer.step()
    run.model.load_state_dict(weights)
    run.optimizer.state.clear()
    assert all(torch.equal(mask, before[name]) for name, mask in run.sparse.masks.items())
    for step in range(5, 9):
        run.step(batch(step, 8, 12))
    assert any(not torch.equal(mask, before[name]) for name, mask in run.sparse.masks.items())


def test_without_any_gradient_layers_keep_their_size():
    run = Run(seeded(perceptron), make(), execution="masked", steps=40)
    start = counts(run.sparse)
    for _ in range(4):
        run.optimizer.step()
    with pytest.warns(UserWarning, match="ggr: no gradient reached an inactive weight"):
        run.optimizer.step()
    assert counts(run.sparse) == start and run.sparse.report().num_moved > 0


def test_updates_in_a_row_without_any_gradient_say_it_once():
    run = Run(seeded(perceptron), make(), execution="masked", steps=40)
    said = []
    for trained in (False, True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(12):
                run.step(batch(step, 8, 12)) if trained else run.optimizer.step()
                run.optimizer.zero_grad()
        said.append(sum("no gradient reached" in str(one.message) for one in caught))
    assert said == [1, 0, 1] and run.sparse.report().num_updates > 6


def counts_of(model: nn.Module) -> list[int]:
    """Live weights of the layers as training begins."""
    model = copy.deepcopy(model)
    return counts(ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), make(), total_steps=40))


def test_plans_count_the_dense_gradients_of_the_window():
    model = seeded(perceptron)
    x = batch(0, 8, 12)
    plans = [ss.plan(model, make(gradient_window=w), total_steps=40, example_input=x) for w in (1, 3)]
    assert [plan.flops.dense_gradient_steps for plan in plans] == [7, 21]
    weights = 12 * 16 + 16 * 16 + 16 * 10
    assert [plan.gradients.bytes for plan in plans] == [4 * weights] * 2, "one accumulator a layer"
    assert [plan.gradients.kept for plan in plans] == [False, True]
    live, moved = round(0.25 * weights), [int(0.3 * count) for count in counts_of(model)]
    assert [plan.gradients.reduced for plan in plans] == [12 * 2 * sum(moved) + 4 * live, None], (
        "twice what moves"
    )
    assert "KiB of candidates at 7 steps (at most 2.4 KiB with several micro-batches" in str(plans[0])
    assert "dense gradients: at most 2.4 KiB at 21 steps, kept from step to step" in str(plans[1])
    assert ss.plan(model, ss.Static(0.5)).gradients is None
