"""The commands about many runs, from a sweep to a citation."""

from __future__ import annotations

import csv
import json
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


def test_from_a_sweep_to_a_table(path, capsys):
    grid = ["sweep", path, "--grid", "method.name=static,magnitude", "--seeds", "0..1"]
    assert main([*grid, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("runs/r-") == 4 and not Path("runs").exists()
    assert main(grid) == 0
    out = capsys.readouterr().out
    assert out.count(": done, validation accuracy") == 4 and "cannot tell with 2 seeds" in out
    assert main(grid) == 0
    assert capsys.readouterr().out.count("was done") == 4
    assert (
        main(
            [
                "compare",
                "runs",
                "--by",
                "method",
                "--baseline",
                "static",
                "--format",
                "csv",
                "--output",
                "t.csv",
            ]
        )
        == 0
    )
    rows = list(csv.DictReader(Path("t.csv").read_text().splitlines()))
    assert [(row["group"], row["verdict"]) for row in rows] == [
        ("magnitude", "cannot tell with 2 seeds"), ("static", "baseline"),
    ]  # fmt: skip
    assert main(["compare", "runs", "--match", "samples", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("|  | validation_accuracy |")
    folder = str(next(Path("runs").iterdir()))
    assert main(["report", folder]) == 0 and Path(folder, "report.html").exists()
    pages = [Path(folder, "report.html") for folder in Path("runs").iterdir()]
    assert main(["report", *(str(page.parent) for page in pages)]) == 0 and all(p.exists() for p in pages)
    assert main(["export", folder, "--to", "dense"]) == 0
    assert Path(f"{Path(folder).name}.safetensors").exists()


def test_a_sweep_with_a_failure(path, capsys):
    assert main(["sweep", path, "--grid", "optimizer.lr=0.1,1e30", "train.steps=2"]) == 1
    out, err = capsys.readouterr()
    assert ": failed" in out and ": done" in out and "loss" in err


def test_seeds_as_one_command(path, capsys):
    Path(path).write_text(RECIPE + "seeds: [0, 1]\n")
    assert main(["train", path, "--quiet", "--json"]) == 0
    assert [json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()] == [0, 1]
    before = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}
    assert main(["train", path, "--quiet", "--seeds", "0..2"]) == 0
    assert capsys.readouterr().out.count("test accuracy") == 3
    assert (
        all(file.stat().st_mtime_ns == at for file, at in before.items())
        and len(list(Path("runs").iterdir())) == 3
    )
    assert main(["plan", path]) == 0


def test_cite(capsys):
    assert main(["cite", "rigl"]) == 0
    assert capsys.readouterr().out.startswith("rigl: Evci et al., Rigging the Lottery")
    assert main(["cite", "--all", "--bibtex"]) == 0
    assert capsys.readouterr().out.count("@inproceedings{evci2020rigging,") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["compare", "nowhere"], "nowhere does not exist"),
        (["compare", "."], "no runs in ."),
        (["cite"], "name a method, or --all"),
        (["cite", "rigll"], "did you mean 'rigl'"),
        (["sweep", "r.yaml", "--grid", "method.density"], "is no axis"),
        (["sweep", "r.yaml", "--workers", "0"], "--workers is at least 1"),
        (["train", "r.yaml", "--seeds", "0..x"], "such as 0..4 was expected"),
        (["train", "r.yaml", "seed=1", "seeds=[0]"], "give seed or seeds, not both"),
        (["report", "."], "no folder of a run"),
        (["report", "a", "b", "--output", "page.html"], "--output is one page, and 2 runs are given"),
        (["export", ".", "--to", "dense"], "no folder of a run"),
    ],
)
def test_mistakes_in_a_line(path, capsys, argv, says):
    assert main(argv) == 2
    assert says in capsys.readouterr().err
