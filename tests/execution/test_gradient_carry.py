"""Gradients of several steps: a window sums them with their signs, in both executions, and survives a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import startsparse as ss
from startsparse.methods import Change, drop_grow

from .twins import OPTIMIZERS, batch, loss_of, perceptron, seeded

SEEN: list[dict] = []


@dataclass(frozen=True)
class Windowed(drop_grow.RigL):
    """RigL on the sum of the last ``window`` dense gradients; notes what it saw."""

    window_steps: int = 3
    carry: float = 1.0
    name: ClassVar[str] = "windowed"

    def wants_gradient(self, step, total_steps):
        return any(self.due(step + ahead, total_steps) for ahead in range(self.window_steps))

    def gradient_carry(self, step, total_steps):
        return (
            self.carry if self.wants_gradient(step - 1, total_steps) and not self.due(step - 1, None) else 0.0
        )

    def update(self, views, step, target, total_steps):
        everything = {
            name: view.candidates(view.capacity - view.num_active, view.active_positions()[:0])
            for name, view in views.items()
        }
        SEEN.append(everything)
        changes = super().update(views, step, target, total_steps)
        count = {n: torch.tensor(int(v.memory.get("updates", torch.tensor(0))) + 1) for n, v in views.items()}
        return {n: Change(c.dropped, c.grown, {"updates": count[n]}) for n, c in changes.items()}


def run(execution, steps, carry=1.0, resume_at=None, micro=1, poison=None):
    """Masks, what was seen at updates, and the dense gradients of every step."""
    SEEN.clear()
    model = seeded(perceptron)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = Windowed(0.3, update_interval=4, update_end=100, carry=carry)
    sparse = ss.attach(model, optimizer, method, total_steps=steps, execution=execution)
    gradients = []
    for step in range(steps):
        if step == resume_at:
            state = sparse.state_dict()
            assert any("gradient" in held for held in state["memory"].values())
            sparse.detach()
            sparse = ss.attach(model, optimizer, method, total_steps=steps, execution=execution)
            sparse.load_state_dict(state)
        for at in range(micro):
            x = batch(10 * step + at, 6, 12)
            plain = seeded(perceptron)
            plain.load_state_dict(sparse.dense_state_dict())
            loss_of(plain(x)).backward()
            gradients.append({n: p.grad for n, p in plain.named_parameters() if n in sparse.masks})
            loss = loss_of(model(x))
            (loss * float("inf") if step == poison else loss).backward()
        if step == poison:
            optimizer.zero_grad()  # this step is never taken
            continue
        optimizer.step()
        optimizer.zero_grad()
    return sparse, list(SEEN), gradients


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize(("carry", "micro"), [(1.0, 1), (0.5, 1), (1.0, 2)])
def test_the_gradients_of_a_window_are_added_with_their_signs(execution, carry, micro):
    _, seen, gradients = run(execution, 9, carry, micro=micro)
    assert len(seen) == 2  # at steps 4 and 8
    for update, step in enumerate((4, 8)):
        for name, (positions, scores) in seen[update].items():
            total = sum(
                carry**ago * gradients[(step - ago) * micro + at][name]
                for ago in range(3)
                for at in range(micro)
            )
            assert torch.allclose(scores, total.abs().reshape(-1)[positions], atol=1e-6)
            assert len(positions)


@pytest.mark.parametrize("execution", ["masked", "sparse"])
@pytest.mark.parametrize("resume_at", [3, 4])
def test_a_window_survives_a_checkpoint(execution, resume_at):
    whole, seen, _ = run(execution, 9)
    again, seen_again, _ = run(execution, 9, resume_at=resume_at)
    for name, mask in whole.masks.items():
        assert torch.equal(mask, again.masks[name])
    for before, after in zip(seen, seen_again, strict=True):
        assert all(torch.equal(before[name][1], after[name][1]) for name in before)
    memory = again.state_dict()["memory"]
    assert {name: int(held["updates"]) for name, held in memory.items()} == dict.fromkeys(memory, 2)


def test_a_step_that_was_skipped_is_not_in_the_window():
    _, seen, gradients = run("masked", 6, poison=3)  # the clock stands still at step 3
    for name, (positions, scores) in seen[0].items():
        total = gradients[2][name] + gradients[4][name] + gradients[5][name]
        assert torch.allclose(scores, total.abs().reshape(-1)[positions], atol=1e-6)


def test_nothing_is_kept_outside_a_window():
    sparse, _, _ = run("masked", 5)
    assert all("gradient" not in held for held in sparse.state_dict()["memory"].values())


def test_half_precision_is_summed_in_single():
    """256 + 1 is 256 in bfloat16: eight steps of a gradient of 1 after one of 256 must not vanish."""
    weight = torch.nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.0)
    method = Windowed(0.5, "uniform", update_interval=9, update_begin=8, update_end=100, window_steps=9)
    SEEN.clear()
    _ = ss.attach(weight, optimizer, method, total_steps=20)
    for step in range(10):
        scale = 256.0 if step == 1 else 1.0
        (weight(torch.full((1, 2), scale, dtype=torch.bfloat16))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    ((_, scores),) = SEEN[0].values()
    assert scores.tolist() == [256.0 + 8.0]
