import json

import pytest

import startsparse as ss
from startsparse.execution.choice import EXECUTIONS
from startsparse.training import recipe, runs
from startsparse.training.folder import FolderError, RunFolder, find_runs

RAW = {
    "name": "tiny",
    "data": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "widths": [16]},
    "method": {"name": "set", "density": 0.2, "update_interval": 5},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "train": {"epochs": 2, "log_every": 10},
}


def make(tmp_path, **changes):
    return recipe.parse(RAW | {"out": str(tmp_path / "runs")} | changes)


def test_a_run_leaves_everything(tmp_path, capsys):
    chosen = make(tmp_path)
    result = runs.run(chosen)
    names = {path.name for path in chosen.folder.iterdir()} - {".lock"}
    assert names == {
        "recipe.yaml", "version.json", "metrics.jsonl", "timing.jsonl", "checkpoint", "result.json", "net.sparse.safetensors",
    }  # fmt: skip
    assert result["density"] == result["live_weights"] / 1184 and result["live_weights"] == 237
    rows = [json.loads(line) for line in (chosen.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("train", 10), ("train", 20), ("validation", 20), ("train", 30), ("train", 40), ("validation", 40),
    ]  # fmt: skip
    assert rows[-1]["accuracy"] == result["validation_accuracy"] > 0.3
    assert not any("second" in key for row in rows for key in row)
    timing = [json.loads(line) for line in (chosen.folder / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing] == [10, 20, 30, 40]
    assert "validation loss" in capsys.readouterr().err
    assert result["density"] == pytest.approx(
        ss.load(chosen.folder / "net.sparse.safetensors").metadata["density"]
    )


def test_again_does_nothing(tmp_path, monkeypatch):
    chosen = make(tmp_path)
    first = runs.run(chosen, progress=False)
    monkeypatch.setattr("startsparse.training.runs.bench_of", None)
    assert runs.run(chosen, progress=False) == first


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "execution"), [(None, "masked"), *((RAW["method"], each) for each in EXECUTIONS)]
)
def test_stopped_between_steps_and_resumed(tmp_path, monkeypatch, method, execution):
    train = RAW["train"] | {"execution": execution}
    whole = make(tmp_path / "whole", method=method, train=train)
    runs.run(whole, progress=False)
    cut = make(tmp_path / "cut", method=method, train=train | {"checkpoint_every": 3})
    real, left = runs.loop.steps, [8, 11, 9, 100]

    def interrupted(job):
        budget = left.pop(0)
        for count, ended in enumerate(real(job)):
            yield ended
            if count == budget:
                raise Stop

    monkeypatch.setattr(runs.loop, "steps", interrupted)
    for _ in range(3):
        with pytest.raises(Stop):
            runs.run(cut, progress=False)
    (listed,) = find_runs(tmp_path / "cut" / "runs")
    assert listed.result is None
    runs.run(cut, progress=False)
    for name in ("checkpoint", "metrics.jsonl", "net.sparse.safetensors", "result.json"):
        assert (whole.folder / name).read_bytes() == (cut.folder / name).read_bytes(), name


def test_stopped_before_the_result_is_written(tmp_path, monkeypatch):
    chosen = make(tmp_path)
    expected = runs.run(chosen, progress=False)
    (chosen.folder / "result.json").unlink()
    assert runs.run(chosen, progress=False) == expected


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    chosen = make(tmp_path)
    RunFolder(chosen.folder).claim(chosen)
    file = chosen.folder / "recipe.yaml"
    file.write_text(file.read_text().replace("density: 0.2", "density: 0.3"))
    with pytest.raises(
        FolderError, match=r"method.density: 0.3 in the folder, 0.2 now.*choose another `out`"
    ):
        runs.run(chosen, progress=False)


def test_two_processes_do_not_share_a_folder(tmp_path):
    chosen = make(tmp_path)
    with RunFolder(chosen.folder).lock(), pytest.raises(FolderError, match="another process is running"):
        runs.run(chosen, progress=False)


def test_another_version_is_said_aloud(tmp_path):
    chosen = make(tmp_path)
    folder = RunFolder(chosen.folder)
    folder.claim(chosen)
    file = chosen.folder / "version.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"torch": "0.4"}))
    with pytest.warns(UserWarning, match=r"begun with torch 0.4, now .* not bit for bit"):
        folder.claim(chosen)


def test_a_mistake_that_shows_late_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="fc9"):
        runs.run(make(tmp_path, layers=["fc9"]), progress=False)
    assert not (tmp_path / "runs").exists()


def test_without_a_validation_part(tmp_path):
    result = runs.run(
        make(tmp_path, data={"name": "digits", "validation": 0, "batch_size": 64}), progress=False
    )
    assert result["validation_accuracy"] is None


def test_divergence_stops_the_run(tmp_path):
    chosen = make(tmp_path, optimizer={"name": "sgd", "lr": 1e30}, method={"name": "static", "density": 0.2})
    with pytest.raises(ArithmeticError, match="loss is nan at step 10"):
        runs.run(chosen, progress=False)


def test_metrics_tell_how_the_topology_moves(tmp_path):
    def rows(**changes):
        chosen = make(tmp_path, **changes)
        _ = runs.run(chosen, progress=False)
        written = [json.loads(line) for line in (chosen.folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in written if row["kind"] == "train"]

    moving = rows(method={"name": "ggr", "density": 0.2, "update_interval": 5})
    assert [row["exploration"] for row in moving] == sorted(row["exploration"] for row in moving)
    assert moving[0]["exploration"] > 0.2 and 0 < moving[0]["churn"] < 0.3 and moving[0]["dead_units"] >= 0
    assert set(moving[0]["layer_density"]) == {"fc1.weight", "fc2.weight"}
    assert "layer_density" not in rows()[0] and "churn" in rows()[0], (
        "a method whose layers keep their counts"
    )
    assert "churn" not in rows(method={"name": "static", "density": 0.2})[0]


def test_powerpropagation_is_a_key_of_a_recipe(tmp_path):
    static = {"name": "static", "density": 0.2}
    plain, powered = make(tmp_path, method=static), make(tmp_path, method=static, power=2.0)
    assert plain.folder != powered.folder and make(tmp_path, method=static, power=1.0).folder == plain.folder
    losses = [runs.run(each, progress=False)["validation_loss"] for each in (plain, powered)]
    assert losses[0] != losses[1]
    with pytest.raises(recipe.RecipeError, match=r"power: .*greater than or equal to 1"):
        make(tmp_path, method=static, power=0.5)
    with pytest.raises(recipe.RecipeError, match="method: without one, power means nothing"):
        make(tmp_path, method=None, power=2.0)
    with pytest.raises(ValueError, match="set grows weights at zero, where powerpropagation"):
        runs.run(make(tmp_path, power=2.0), progress=False)
