import json
import subprocess
import sys
from pathlib import Path

import pytest

from startsparse.cli.main import main

RECIPE = """
data: {name: digits, batch_size: 64}
model: {name: mlp, widths: [8]}
method: {name: static, density: 0.2}
optimizer: {name: sgd, lr: 0.1}
train: {steps: 3}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return "r.yaml"


def test_train_and_again(path, capsys):
    assert main(["train", path, "--quiet", "--json", "seed=3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seed"] == 3 and Path(result["folder"], "result.json").exists()
    assert main(["train", path, "seed=3"]) == 0
    out, err = capsys.readouterr()
    assert "118 live weights (sparsity 80.07 %)" in out and result["folder"] in out and not err


def test_plan(path, capsys):
    assert main(["plan", path]) == 0
    out = capsys.readouterr().out
    assert "fc1.weight" in out and "FLOPs" in out and "the run would be runs/r-" in out
    assert main(["plan", path, "method.density=0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_final"] == 296
    assert main(["plan", path, "method=null"]) == 0
    assert "a dense run of 610 parameters" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_ls(path, capsys):
    assert main(["train", path, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "rigl",
        "erk",
        "random",
        "resnet20",
        "cifar10",
        "adamw",
        "cosine",
        "done: test accuracy",
    ):
        assert expected in out
    assert main(["ls", "runs", "--out", "nowhere"]) == 0
    assert capsys.readouterr().out == "runs in nowhere\n  none\n"


def test_ls_of_runs_that_are_not_done(path, capsys):
    assert main(["train", path, "--quiet"]) == 0
    (folder,) = Path("runs").iterdir()
    (folder / "result.json").unlink()
    capsys.readouterr()
    assert main(["ls", "runs"]) == 0
    assert "stopped after step 3" in capsys.readouterr().out
    (folder / "metrics.jsonl").unlink()
    assert main(["ls", "runs"]) == 0
    assert "just begun" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "none.yaml"], "startsparse: error: No such file or directory: none.yaml\n"),
        (
            ["train", "r.yaml", "method.density=3"],
            "startsparse: error: method.density: static: density must be in (0, 1], got 3\n",
        ),
        (["train", "r.yaml", "layers=[fc9]"], "startsparse: error: layers: 'fc9' matches no parameter"),
        (["plan", "r.yaml", "seed"], "startsparse: error: 'seed' is not an override"),
        (["train", "r.yaml", "seed=x", "out=3"], "startsparse: error: several things are wrong:\n  seed: "),
        (
            ["train", "r.yaml", "data.name=cifar10", "data.root=nowhere"],
            "startsparse: error: no data set cifar10 in nowhere",
        ),
    ],
)
def test_errors_are_a_clear_line(path, argv, says, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith(says) and not out and "Traceback" not in err
    assert main([*argv, "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "train", "sweep"])
def test_only_the_recipe_is_required(command, capsys):
    with pytest.raises(SystemExit):
        main([command])
    assert capsys.readouterr().err.endswith("the following arguments are required: recipe\n")


def test_a_damaged_checkpoint_names_the_remedy(path, capsys):
    assert main(["train", path, "--quiet"]) == 0
    (folder,) = Path("runs").iterdir()
    (folder / "result.json").unlink()
    with open(folder / "checkpoint", "r+b") as file:
        file.truncate(1000)
    capsys.readouterr()
    assert main(["train", path, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert f"{folder}/checkpoint is damaged" in err and "Remove" in err and err.count("\n") == 1


def test_an_interrupt_says_how_to_go_on(path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("startsparse.training.runs.run", stop)
    assert main(["train", path]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_a_bug_is_not_taken_for_a_mistake(path, monkeypatch, capsys):
    monkeypatch.setattr("startsparse.training.runs.run", lambda *_, **__: {}["lost"])
    assert main(["train", path]) == 2
    assert capsys.readouterr().err == "startsparse: error: KeyError: 'lost' (--traceback shows where)\n"


@pytest.mark.filterwarnings("default")
def test_warnings_are_a_line(path, capsys):
    assert main(["train", path, "--quiet", "method.density=0.002", "method.distribution=uniform"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("startsparse: warning: ") and "no live weight" in err


def test_usage_is_an_error_too(capsys):
    for argv in ([], ["trian"], ["ls", "everything"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_as_a_module():
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-m", "startsparse", "ls", "data"],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source)},
    )
    assert done.returncode == 0 and "fashion-mnist" in done.stdout
