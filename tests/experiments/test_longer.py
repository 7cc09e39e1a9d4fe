"""Equal budgets: final trainings of one length, and cheaper runs that train longer in the end. Runs of one stage and several."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from startsparse.cli.main import main
from startsparse.experiments import longer, staged
from startsparse.experiments.results import ResultsError, gather, read
from startsparse.experiments.tabulate import tabulate
from startsparse.training import loop, recipe, runs, stage_runs, stages
from startsparse.training.files import load_tree

BASE = {
    "data": {"name": "digits", "batch_size": 32},
    "model": {"name": "mlp", "widths": [16, 12]},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "train": {"steps": 12, "log_every": 4},
}
RST = {"name": "rst", "density": 0.2, "ramp_steps": 5, "stabilise_steps": 3, "bound": 30.0}
STAGED = [
    {"stage": "transform", "method": RST, "train": {"steps": 9}},
    {"stage": "fine-tune", "train": {"steps": 12}},
]
STATIC = {"method": {"name": "static", "density": 0.2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one stage and one of two, 12 and 9 + 12 steps, each of two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    for seed in (0, 1):
        where = {"out": str(folder), "seed": seed}
        _ = runs.run(recipe.parse(BASE | STATIC | where | {"name": "static"}), progress=False)
        several = stages.parse(BASE | where | {"name": "rst", "stages": STAGED})
        _ = stage_runs.run(several, progress=False)
    return folder


@pytest.fixture
def made(finished, tmp_path, monkeypatch):
    """These runs, moved elsewhere; and how many steps are made from here on."""
    counted = []
    real = loop.steps

    def counting(job):
        for ended in real(job):
            counted.append(job.position.step)
            yield ended

    monkeypatch.setattr(loop, "steps", counting)
    return shutil.copytree(finished, tmp_path / "runs"), counted


def test_runs_of_several_stages_stand_in_the_table(made):
    folder, _ = made
    found = tabulate(gather([folder]))
    assert [row.label for row in found.rows] == ["rst, fine-tune", "static"]
    assert {label: cost.samples for label, cost in found.budgets.items()} == {
        "rst, fine-tune": 21 * 32,
        "static": 12 * 32,
    }
    cost = found.budgets["rst, fine-tune"]
    total = 64 * 16 + 16 * 12 + 12 * 10
    assert cost.flops == pytest.approx(32 * 6 * (8 * total + 13 * round(0.2 * total)))
    assert cost.seconds > 0
    assert any("not seen the same number" in note for note in found.notes)
    with pytest.raises(ResultsError, match="several stages and is not validated on the way"):
        tabulate(gather([folder]), "validation_accuracy", match="samples")


def test_the_final_training_is_as_long_in_all(made):
    folder, _ = made
    found = tabulate(gather([folder]), budget="fine-tune")
    assert "the final training of all groups has 12 steps" in found.notes
    where = {"out": str(folder), "name": "long"}
    for seed in (0, 1):
        changed = BASE | STATIC | where | {"seed": seed, "train": {"steps": 15, "log_every": 4}}
        _ = runs.run(recipe.parse(changed), progress=False)
    with pytest.raises(ResultsError, match=r"its steps are: rst, fine-tune 12; static .*12; static .*15"):
        tabulate(gather([folder]), budget="fine-tune")


def test_cheaper_runs_train_longer_in_the_end_and_only_once(made, capsys):
    folder, counted = made
    arguments = ["compare", str(folder), "--budget", "total", "--format", "csv"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    rows = [line.split(",") for line in told.out.strip().splitlines()[1:]]
    assert {row[-3] for row in rows} == {str(21.0 * 32)}, "all have seen the same samples"
    assert told.err.count("9 steps more") == 2 and len(counted) == 2 * 21
    assert main(arguments) == 0
    assert len(counted) == 2 * 21, "what is done is not done again"
    assert len(gather([folder])) == 4, "the longer runs lie apart"
    (one, _) = gather([folder / "extended"])
    assert one.settings["train.steps"] == 21 and one.result["steps"] == 21


def test_of_several_stages_the_last_one_alone_is_longer(made):
    folder, counted = made
    short = [run for run in gather([folder]) if staged.is_staged(run.folder)]
    listed = [STAGED[0], {"stage": "fine-tune", "train": {"steps": 20}}]
    other = stages.parse(BASE | {"out": str(folder), "name": "rst", "stages": listed})
    _ = stage_runs.run(other, progress=False)
    assert len(counted) == 20, "the transformation is shared"
    found = longer.to_equal_totals([short[0], read(other.folder)])
    assert len(counted) == 20, "and so is the longer fine-tuning: it is the same one"
    assert found[0].samples == found[1].samples == 29 * 32
    assert longer.final_steps(found[0]) == 20 and found[0].folder.parent.name == "extended"
    assert longer.chain_of(found[0]).folder == found[0].folder
    ends = [
        load_tree(chain.output(chain.stages[-1]) / "output")["ticket"]["weights"]
        for chain in (other, longer.chain_of(found[0]))
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_since_when_the_number_of_live_weights_is_the_final_one(tmp_path):
    changed = BASE | {"out": str(tmp_path), "method": RST | {"density": 0.5}}
    chosen = recipe.parse(changed)
    _ = runs.run(chosen, progress=False)
    assert longer.final_steps(read(chosen.folder)) == 12 - 8


def test_what_cannot_be_compared_is_named(made):
    folder, _ = made
    found = gather([folder])
    with pytest.raises(ResultsError, match="unknown budget 'finetune': did you mean 'fine-tune'"):
        tabulate(found, budget="finetune")
    with pytest.raises(ResultsError, match="take one"):
        tabulate(found, budget="total", match="samples")
    file = next(run.folder for run in found if staged.is_staged(run.folder)) / "stages.json"
    told = json.loads(file.read_text())
    told["stages"][0]["address"] = "0" * 12
    file.write_text(json.dumps(told))
    with pytest.raises(ResultsError, match="made by another version"):
        tabulate(gather([folder]), budget="total")


def test_other_commands_know_runs_of_several_stages(made, capsys):
    folder, counted = made
    several = next(run.folder for run in gather([folder]) if staged.is_staged(run.folder))
    assert main(["ls", "runs", "--out", str(folder)]) == 0
    assert f"{several.name}  done: test accuracy" in capsys.readouterr().out
    assert main(["report", str(several)]) != 0
    assert "has several stages, a page is of one training" in capsys.readouterr().err
    file = folder / "rst.yaml"
    file.write_text(json.dumps(BASE | {"out": str(folder), "stages": STAGED}))
    assert main(["plan", str(file)]) != 0
    assert "a recipe of several stages is for train, sweep and compare" in capsys.readouterr().err
    grid = ["--grid", "stages.1.train.steps=12,13", "--seeds", "0,1"]
    assert main(["sweep", str(file), *grid]) == 0
    out = capsys.readouterr().out
    assert out.count("was done") == 2 and "stages[1].train.steps=13" in out
    assert len(counted) == 2 * 13, "the transformation is shared"
