"""Searches as stages: first scores that are measured, distillation, both densities, and what says how it is done."""

import pytest
import torch

from startsparse.tickets.ticket import Ticket
from startsparse.training import dry, dry_stages, recipe, runs, stage_runs, stages
from startsparse.training.files import load_tree
from startsparse.training.recipe import RecipeError

SHARED = {
    "data": {"name": "digits", "batch_size": 64},
    "model": "lenet-300-100",
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "train": {"steps": 8},
}


def search(**more):
    method = {"name": "jackpot", "density": 0.3} | more.pop("method", {})
    fast = {"name": "sgd", "lr": 5.0}  # so that six steps change masks
    return {"stage": "search", "method": method, "optimizer": fast, "train": {"steps": 6}} | more


def described(tmp_path, *listed):
    return stages.parse(SHARED | {"out": str(tmp_path), "stages": [{"stage": "train"}, *listed]})


def masks(found):
    file = found.output(found.stages[1]) / stage_runs.OUTPUT
    return Ticket.of(load_tree(file)["ticket"]).masks


class Killed(Exception):
    pass


def test_distillation_changes_what_is_found_and_survives_a_kill(tmp_path, monkeypatch):
    plain = described(tmp_path, search())
    taught = described(tmp_path, search(distill={"share": 1}))
    assert plain.stages[0].address == taught.stages[0].address
    assert plain.stages[1].address != taught.stages[1].address
    for found in (plain, taught):
        stage_runs.run(found, progress=False)
    assert any(not torch.equal(mask, masks(plain)[name]) for name, mask in masks(taught).items())

    killed = described(tmp_path / "killed", search(distill=1.0, train={"steps": 6, "checkpoint_every": 3}))
    real, saved = runs.checkpoint.save, []

    def save(*args, **kwargs):
        real(*args, **kwargs)
        saved.append(1)
        if len(saved) == 2:  # the first one is the training's
            raise Killed

    monkeypatch.setattr(runs.checkpoint, "save", save)
    with pytest.raises(Killed):
        stage_runs.run(killed, progress=False)
    monkeypatch.setattr(runs.checkpoint, "save", real)
    stage_runs.run(killed, progress=False)
    assert all(torch.equal(mask, masks(taught)[name]) for name, mask in masks(killed).items())


def test_both_densities_are_told(tmp_path):
    result = stage_runs.run(described(tmp_path, search()), progress=False)
    whole, left_out = 64 * 300 + 300 * 100, 100 * 10
    assert result["density_without_classifier"] == pytest.approx(round(0.3 * whole) / whole)
    assert result["density"] == pytest.approx((round(0.3 * whole) + left_out) / (whole + left_out))


@pytest.mark.parametrize("init", ["snip", "wanda"])
def test_first_scores_may_be_measured(tmp_path, init):
    found = described(tmp_path, search(method={"init": init}))
    assert "measured when it begins" in dry_stages.check(found).stages[1][1].facts["method"]
    stage_runs.run(found, progress=False)
    assert sum(int(mask.sum()) for mask in masks(found).values()) > 0


def test_a_dry_run_names_the_stage_that_cannot_be(tmp_path):
    found = described(tmp_path, search(method={"name": "jackpot-nm", "density": 0.4, "scope": "2:5"}))
    with pytest.raises(ValueError, match=r"stages\[1\].*does not divide into 2:5"):
        dry_stages.check(found)


@pytest.mark.parametrize(
    ("distill", "says"),
    [
        (2, r"stages\[1\]\.distill\.share must be in \[0, 1\], got 2"),
        ("yes", r"stages\[1\]\.distill: a share such as 0\.5"),
        ({"shares": 0.5}, r"stages\[1\]\.distill\.shares: no such option: did you mean 'share'"),
        ({"temperature": 0}, r"stages\[1\]\.distill\.temperature must be positive"),
    ],
)
def test_wrong_distillation(tmp_path, distill, says):
    with pytest.raises(RecipeError, match=says):
        described(tmp_path, search(distill=distill))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            {"name": "jackpot", "density": 0.1},
            r"stages: \[\{stage: train\}, \{stage: search, method: \{name: jackpot",
        ),
        ({"name": "imp", "density": 0.1}, r"stages: \[\{stage: lottery, method: \{name: imp"),
    ],
)
def test_a_run_of_one_stage_says_where_such_a_method_belongs(tmp_path, method, says):
    chosen = recipe.parse(SHARED | {"out": str(tmp_path), "method": method})
    for start in (dry.check, lambda one: runs.run(one, progress=False)):
        with pytest.raises(ValueError, match=says):
            start(chosen)
