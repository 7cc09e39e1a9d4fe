"""Probe batches: their gradients decide with those of the step, and leave no other trace."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import startsparse as ss

from ..execution.twins import OPTIMIZERS, Run, assert_same_masks, batch, loss_of, perceptron, seeded

EXECUTIONS = ["masked", "sparse"]


def make(**options) -> ss.GGR:
    given = {"density": 0.25, "update_interval": 4, "drop_schedule": "constant", "floor": 1, "probes": 2}
    return ss.GGR(**(given | options))


def probed(run: Run, step: int) -> int:
    """Two other batches, wherever they are asked for."""
    made = 0
    for index in run.sparse.probes():
        loss_of(run.model(batch(1000 + 10 * step + index, 8, 12))).backward()
        made += 1
    return made


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("window", [1, 3])
def test_gradients_are_added_with_their_signs(execution, window):
    """The dense gradient that decides is the sum of those of the window's steps and of the probes."""
    decided = []

    class Watched(ss.GGR):
        def update(self, views, step, target, total_steps):
            decided.append(
                [view.gradients_at(torch.arange(view.shape[0] * view.shape[1])) for view in views.values()]
            )
            return super().update(views, step, target, total_steps)

    method = Watched(**(make(gradient_window=window).hyper_parameters()))
    run = Run(seeded(perceptron), method, OPTIMIZERS["sgd"], execution=execution, steps=40)
    sums, expected = None, []
    for step in range(9):
        wanted = method.wants_gradient(step, 40)
        batches = [batch(step, 8, 12)]
        if step in (4, 8):
            batches += [batch(1000 + 10 * step + index, 8, 12) for index in range(2)]
        if wanted:
            twin = seeded(perceptron)
            twin.load_state_dict(run.sparse.dense_state_dict())
            found = []
            for x in batches:
                twin.zero_grad()
                loss_of(twin(x)).backward()
                found.append([p.grad.clone() for n, p in twin.named_parameters() if n in run.sparse.masks])
            total = [torch.stack(parts).sum(0).view(-1) for parts in zip(*found, strict=True)]
            sums = total if sums is None else [a + b for a, b in zip(sums, total, strict=True)]
        if step in (4, 8):
            expected.append(sums)
            sums = None
        assert probed(run, step) == (2 if step in (4, 8) else 0)
        run.step(batch(step, 8, 12))
    assert len(decided) == len(expected) == 2
    for ours, theirs in zip(decided, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))

    def forward(self, x):
        return self.net(x)


def test_probes_leave_no_trace_but_in_the_masks():
    """With masks that cannot move, training is the same with and without: statistics, dropout, gradients, counts."""
    runs = []
    for count in (0, 2):
        torch.manual_seed(3)
        run = Run(
            seeded(Normed),
            make(probes=count, drop_fraction=0.0),
            OPTIMIZERS["sgd"],
            execution="masked",
            steps=40,
        )
        for step in range(10):
            run.optimizer.zero_grad(set_to_none=step % 2 == 0)
            assert probed(run, step) == (count if step in (4, 8) else 0)
            loss_of(run.model(batch(step, 8, 12))).backward()
            run.optimizer.step()
        runs.append(run)
    plain, with_probes = (run.model.state_dict() for run in runs)
    assert all(torch.equal(plain[name], with_probes[name]) for name in plain)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("between", [False, True])
def test_a_checkpoint_goes_on(execution, between):
    """Also one between the probes and the step they are for."""
    runs = [
        Run(seeded(perceptron, i), make(), OPTIMIZERS["sgd"], execution=execution, steps=40) for i in (0, 9)
    ]
    whole, resumed = runs
    for step in range(9):
        if step == 8 and not between:
            _ = restored(whole, resumed)
        _ = probed(whole, step)
        if step == 8 and between:
            _ = restored(whole, resumed)
        elif step == 8:
            _ = probed(resumed, step)
        for run in runs if step == 8 else [whole]:
            run.step(batch(step, 8, 12))
    assert_same_masks(whole, resumed)
    assert whole.sparse.report().num_updates == 2


def restored(whole: Run, resumed: Run) -> None:
    for part in ("model", "optimizer", "sparse"):
        getattr(resumed, part).load_state_dict(copy.deepcopy(getattr(whole, part).state_dict()))


def test_what_a_loop_does_wrong_is_said():
    run = Run(seeded(perceptron), make(), OPTIMIZERS["sgd"], execution="masked", steps=40)
    for step in range(4):
        run.step(batch(step, 8, 12))
    loss_of(run.model(batch(4, 8, 12))).backward()
    with pytest.raises(RuntimeError, match=r"probe batches of step 4 come too late.*before the step's own"):
        _ = probed(run, 4)
    with pytest.raises(
        RuntimeError, match=r"ggr\(probes=2\) got no probe batches before the update at step 4"
    ):
        run.optimizer.step()
    run.optimizer.zero_grad()
    run.sparse._topology.gradients.forget()
    with pytest.raises(RuntimeError, match="probe 0 of step 4 brought no gradient"):
        for _ in run.sparse.probes():
            pass
    with pytest.raises(ValueError, match="probes must be an int >= 0"):
        _ = make(probes=-1)
    with pytest.raises(
        ValueError, match=r"probes=2 are batches for a dense gradient, but rho=0.*looks at none"
    ):
        _ = make(rho=0.0, count_by="live")


def test_a_probe_that_is_not_finite_is_left_out():
    run = Run(seeded(perceptron), make(), OPTIMIZERS["sgd"], execution="masked", steps=40)
    for step in range(4):
        run.step(batch(step, 8, 12))
    rounds = run.sparse.probes()
    for index in (0, 1):
        assert next(rounds) == index
        (loss_of(run.model(batch(index, 8, 12))) * (1.0, float("nan"))[index]).backward()
    with pytest.warns(UserWarning, match="the gradient of probe 1 of step 4 is not finite: it is left out"):
        assert list(rounds) == []
    run.step(batch(4, 8, 12))
    assert run.sparse.report().num_updates == 1


def test_other_methods_ask_for_none_and_plans_count_them():
    model, x = seeded(perceptron), batch(0, 8, 12)
    sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.RigL(0.2), total_steps=1000)
    assert list(sparse.probes()) == []
    flops = [
        ss.plan(seeded(perceptron), make(probes=p), total_steps=40, example_input=x).flops for p in (0, 2)
    ]
    weights, live = 12 * 16 + 16 * 16 + 16 * 10, 152
    each = 2 * (2 * live + weights)  # forward and input gradient of live weights, the dense weight gradient
    assert flops[1].training - flops[0].training == pytest.approx(2 * 7 / 40 * each)


def test_a_recipe_asks_for_them(tmp_path):
    from startsparse.training import recipe, runs

    raw = {
        "data": {"name": "digits", "batch_size": 64},
        "model": {"name": "mlp", "widths": [16]},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"steps": 30, "log_every": 10},
        "out": str(tmp_path),
    }
    rows = []
    for count in (0, 3):
        method = {"name": "ggr", "density": 0.2, "update_interval": 10, "probes": count}
        chosen = recipe.parse(raw | {"method": method})
        _ = runs.run(chosen, progress=False)
        written = [json.loads(line) for line in (chosen.folder / "metrics.jsonl").read_text().splitlines()]
        rows.append([row for row in written if row["kind"] == "train"])
    assert rows[0][0]["loss"] == rows[1][0]["loss"], "the first update comes after step 10"
    assert rows[0][-1]["layer_density"] != rows[1][-1]["layer_density"]
