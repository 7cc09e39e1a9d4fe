"""Grids of runs: what they hold, that finished runs are skipped, and that one failure stops nobody."""

from __future__ import annotations

import pytest

from startsparse.experiments import sweep
from startsparse.training.recipe import RecipeError, each_seed
from startsparse.training.seeds import parse_seeds

RAW = {
    "data": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "widths": [8]},
    "method": {"name": "static", "density": 0.2},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"steps": 2},
}


def raw(tmp_path, **changes):
    return RAW | {"out": str(tmp_path / "runs")} | changes


def test_every_combination_seeds_last(tmp_path):
    axes = {"method.name": ["static", "set"], "optimizer.lr": [0.1, 0.2, 0.3]}
    found = sweep.expand(raw(tmp_path), axes, [0, 5])
    told = [(one.method.name, one.optimizer.options["lr"], one.seed) for one in found]
    assert told == [
        (name, lr, seed) for name in ("static", "set") for lr in (0.1, 0.2, 0.3) for seed in (0, 5)
    ]
    assert len({one.folder for one in found}) == 12


def test_axes_of_the_recipe(tmp_path):
    own = raw(tmp_path, sweep={"method.density": [0.1, 0.2]}, seeds="0..1")
    assert len(sweep.expand(own)) == 4
    assert len(sweep.expand(own, {"method.density": [0.3]})) == 2
    (one,) = sweep.expand(raw(tmp_path))
    assert one.method.options["density"] == 0.2


def test_a_method_may_be_exchanged_as_a_whole(tmp_path):
    found = sweep.expand(raw(tmp_path), {"method": [None, {"name": "rigl", "density": 0.5}]})
    assert found[0].method is None and found[1].method.name == "rigl"


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"method.density": [0.1, 2]}, r"method.density=2: method.density: static: density must be in"),
        ({"optimizer.lr": []}, "sweep.optimizer.lr: no values"),
        ({"optimizer.lr": [0.1, 0.1]}, "optimizer.lr=0.1: the same run as another combination"),
        ({"method.densty": [0.1]}, "method.densty=0.1: method.densty: static has no such option"),
    ],
)
def test_what_cannot_be_run_is_said_first(tmp_path, axes, says):
    with pytest.raises(RecipeError, match=says):
        sweep.expand(raw(tmp_path), axes)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["method.density", "=1,2", "a..b=1", "a= "])
def test_no_axis(text):
    with pytest.raises(RecipeError, match="is no axis"):
        sweep.axis(text)


def test_a_sweep_that_is_no_mapping(tmp_path):
    with pytest.raises(RecipeError, match="sweep: a mapping"):
        sweep.expand(raw(tmp_path, sweep=[1]))


def test_finished_runs_are_skipped(tmp_path, monkeypatch):
    recipes = sweep.expand(raw(tmp_path), {"method.name": ["static", "magnitude"]})
    first = list(sweep.run_all(recipes[:1]))
    assert first[0].result["steps"] == 2 and not first[0].skipped
    both = list(sweep.run_all(recipes))
    assert [outcome.skipped for outcome in both] == [True, False]
    assert both[0].result == first[0].result
    monkeypatch.setattr("startsparse.training.runs.run", None)
    assert all(outcome.skipped for outcome in sweep.run_all(recipes))


def test_one_that_fails_stops_nobody(tmp_path):
    recipes = sweep.expand(raw(tmp_path), {"optimizer.lr": [1e30, 0.1]})
    failed, well = sweep.run_all(recipes)
    assert failed.result is None and "loss" in failed.error
    assert well.result is not None


def test_several_at_once(tmp_path):
    recipes = sweep.expand(raw(tmp_path), {"optimizer.lr": [1e30, 0.1]})
    by_rate = {o.recipe.optimizer.options["lr"]: o for o in sweep.run_all(recipes, workers=2)}
    assert by_rate[0.1].result["steps"] == 2
    assert by_rate[1e30].result is None and "loss" in by_rate[1e30].error
    again = list(sweep.run_all(recipes[1:], workers=2))
    assert again[0].skipped and again[0].result == by_rate[0.1].result


def test_seeds_of_a_recipe():
    assert [one["seed"] for one in each_seed({"seeds": [2, 0]})] == [2, 0]
    assert each_seed({"seed": 3}) == [{"seed": 3}]
    assert [one["seed"] for one in each_seed({"seed": 3, "seeds": [1]}, [8])] == [8]


@pytest.mark.parametrize("given", ["", "0..", "a", "3..1", [], [0, 0], [True], [0.5], "0,0", None, "-1"])
def test_no_seeds(given):
    with pytest.raises(ValueError, match="a list of different integers"):
        parse_seeds(given)
