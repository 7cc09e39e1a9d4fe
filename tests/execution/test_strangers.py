"""An optimizer that attach() was not given does the training: said once, and only where that is so."""

from __future__ import annotations

import warnings

import pytest
import torch

import startsparse as ss

from .twins import Run, batch, loss_of, method, perceptron, seeded


def stepping(run: Run, *optimizers: torch.optim.Optimizer, steps: int = 25) -> list[str]:
    """What is said while several optimizers step in turn."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
                loss_of(run.model(batch(step, 4, 12))).backward()
                optimizer.step()
    assert all(one.filename == __file__ for one in said)
    return [str(one.message) for one in said]


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_another_optimizer_that_trains_is_named_once(execution):
    run = Run(seeded(perceptron), method("rigl"), execution=execution)
    other = torch.optim.SGD(run.model.parameters(), lr=0.01)
    (said,) = stepping(run, other)
    assert "made 10 steps over 0.weight, 3.weight, 5.weight: rigl does not see them" in said
    assert "detach() the sparsifier first" in said and run.sparse.step == 0
    assert stepping(run, other) == []


def test_optimizers_in_turn_with_the_attached_one_are_no_strangers():
    run = Run(seeded(perceptron), method("rigl"))
    other = torch.optim.SGD(run.model.parameters(), lr=0.01)
    assert stepping(run, other, run.optimizer) == []
    assert run.sparse.step == 25


def test_optimizers_of_other_weights_and_of_detached_ones_are_none_either():
    run = Run(seeded(perceptron), method("rigl"))
    norms = torch.optim.SGD(run.model[1].parameters(), lr=0.01)
    assert stepping(run, norms) == []
    run.sparse.detach()
    assert stepping(run, torch.optim.SGD(run.model.parameters(), lr=0.01)) == []


def test_all_given_optimizers_are_known():
    model = seeded(perceptron)
    first = torch.optim.SGD(model[:2].parameters(), lr=0.01)
    second = torch.optim.SGD(model[2:].parameters(), lr=0.01)
    run = Run(seeded(perceptron), method("static"))
    run.model = model
    sparse = ss.attach(model, [first, second], ss.SET(0.3, update_interval=5), total_steps=50)
    assert stepping(run, second) == [] and sparse.step == 0
