"""Dry runs: what they find, and what they refuse."""

import json

import pytest

from startsparse.cli.main import main
from startsparse.training import dry, recipe, runs

DIGITS = {
    "name": "quick",
    "data": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "widths": [8]},
    "method": {"name": "static", "density": 0.25},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 2, "accumulate": 2},
}


@pytest.fixture
def chosen(tmp_path):
    def make(**changes):
        return recipe.parse(DIGITS | {"out": str(tmp_path / "runs")} | changes)

    return make


def test_it_counts_what_the_run_then_is(chosen):
    expected = dry.check(chosen())
    assert expected.missing == [] and str(expected).endswith("\nready")
    assert expected.facts["steps"] == "20 of 128 examples, 2 epochs"
    assert expected.facts["method"] == "static, 148 of 592 weights (density 0.25)"
    assert expected.facts["model"] == "mlp, 610 parameters, 1x8x8 -> 10"
    flops = expected.plan.flops.training * 128 * 20
    assert expected.facts["counted"].startswith(f"{flops:.3g} FLOPs of training")
    result = runs.run(chosen(), progress=False)
    assert (result["steps"], result["live_weights"], result["parameters"]) == (20, 148, 610)
    assert dry.check(chosen()).facts["folder"].endswith("done already")
    (chosen().folder / "result.json").unlink()
    assert dry.check(chosen()).facts["folder"].endswith("it would go on from its checkpoint")


def test_a_dense_run(chosen):
    found = dry.check(chosen(method=None))
    assert found.plan is None and found.facts["method"] == "none: a dense run" and found.as_dict()["ready"]


def test_what_could_not_start_anywhere_is_an_error(chosen):
    with pytest.raises(ValueError, match=r"train.accumulate: an epoch of 20 batches holds no step of 40"):
        dry.check(chosen(train={"epochs": 1, "accumulate": 40}))
    with pytest.raises(ValueError, match="layers"):
        dry.check(chosen(layers="conv*"))
    runs.run(chosen(train={"steps": 2}), progress=False)
    folder = chosen(train={"steps": 2}).folder
    content = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(content.replace("momentum: 0", "momentum: 0.5"))
    with pytest.raises(RuntimeError, match=r"belongs to another recipe: optimizer.momentum"):
        dry.check(chosen(train={"steps": 2}))


def test_text_and_tables(tmp_path, chosen):
    (tmp_path / "a.txt").write_text("to be or not to be, " * 50)
    text = {"name": f"text:{tmp_path / 'a.txt'}", "context": 8, "batch_size": 4}
    found = dry.check(chosen(data=text, model={"name": "gpt", "width": 8, "depth": 1, "heads": 1}))
    assert found.facts["model"].endswith(f"parameters, 8 -> 8x{len(set('to be or not to be, '))}")
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{i / 7},{i % 3}\n" for i in range(40)))
    table = {"name": f"table:{tmp_path / 'a.csv'}", "batch_size": 4}
    assert dry.check(chosen(data=table)).facts["model"] == "mlp, 43 parameters, 1 -> 3"
    result = runs.run(chosen(data=table), progress=False)
    assert result["steps"] == 6 and dry.check(chosen(data=table)).plan.flops.batch == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"name": "text:no.txt"}}, "data.name: no data set text:no.txt"),
        ({"data": {"name": "digits", "context": 9}}, "data.context: the data set digits has no such option"),
        (
            {"data": {"name": "tinyshakespeare", "context": 1}},
            "data.context: 2 characters or more",
        ),
        ({"data": {"name": "tinyshakespeare", "augment": "crop"}}, "data.augment: crop is for images"),
        (
            {"data": {"name": "tinyshakespeare"}, "model": "resnet20"},
            "model.input_shape: resnet20 takes images",
        ),
        (
            {"data": {"name": "digits"}, "model": {"name": "vit-tiny", "patch": 3}},
            "model.patch: patch 3 does not divide images of 8x8",
        ),
    ],
)
def test_what_does_not_fit_together_is_named_by_its_path(chosen, changes, says):
    with pytest.raises(recipe.RecipeError, match=says):
        chosen(**changes)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    file = tmp_path / "quick.yaml"
    file.write_text(json.dumps(DIGITS))
    assert main(["train", str(file), "--dry-run", f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith("ready\n")
    assert main(["train", str(file), "data.name=mnist", "--dry-run", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ready"] and "mnist does not exist" in told["missing"][0]
    assert not list(tmp_path.glob("*-*"))
