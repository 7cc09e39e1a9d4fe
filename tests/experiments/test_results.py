"""Reading runs: what is there, and what is half-written."""

from __future__ import annotations

import shutil

import pytest

from startsparse.cli.main import main
from startsparse.experiments.results import ResultsError, gather, read


def test_a_real_run(trained):
    rigl, dense = trained
    assert (rigl.settings["method.name"], dense.settings["method"]) == ("rigl", None)
    assert rigl.samples == 6 * 64 and rigl.seconds > 0 and list(rigl.laps()) == [3, 6]
    assert [row["step"] for row in rigl.validations()] == [6]
    assert rigl.settings["method.seed"] == "of the run" and "seed" not in rigl.settings


def test_folders_and_folders_of_folders(finished, tmp_path):
    folders = {finished(seed) for seed in range(3)}
    assert {run.folder for run in gather([tmp_path / "runs"])} == folders
    one = folders.pop()
    assert [run.folder for run in gather([one, one])] == [one]


def test_steps_made_again_count_once(finished):
    folder = finished(seconds=1.0)
    with open(folder / "timing.jsonl", "a") as file:
        file.write('{"step": 40, "seconds": 2.0}\n')
    assert read(folder).seconds == pytest.approx(0.5 + 2.0)


def test_half_written_runs_are_named(finished, tmp_path):
    good, stopped, begun, torn = finished(0), finished(1), finished(2, validations=()), finished(3)
    (stopped / "result.json").unlink()
    (begun / "result.json").unlink()
    (torn / "result.json").write_text('{"test_accuracy": 0.9')
    with pytest.raises(ResultsError) as error:
        gather([tmp_path / "runs", tmp_path / "nowhere", tmp_path])
    told = str(error.value).splitlines()
    assert len(told) == 5 and not any(str(good) in line for line in told)
    text = str(error.value)
    assert f"{stopped} has not ended (it stopped after step 40)" in text
    assert f"{begun} has not ended (it has only begun)" in text
    assert f"{torn}/result.json is damaged" in text
    assert "nowhere does not exist" in text and f"no runs in {tmp_path}" in text


def test_no_run(tmp_path):
    with pytest.raises(ResultsError, match=r"no folder of a run: it has no recipe.yaml"):
        read(tmp_path)


@pytest.mark.parametrize("junk", [b'{"step": ', b"\xff\xfe"], ids=["torn", "no text"])
@pytest.mark.parametrize(
    ("name", "commands"),
    [("result.json", "report ls"), ("version.json", "report"), ("metrics.jsonl", "report ls"), ("timing.jsonl", "report")],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_other_runs_are_listed(
    trained, tmp_path, capsys, name, commands, junk
):
    damaged, other = (shutil.copytree(run.folder, tmp_path / run.folder.name) for run in trained)
    _ = (damaged / name).write_bytes(junk)
    for command in commands.split():
        asked = [command, "runs", "--out", str(tmp_path)] if command == "ls" else [command, str(damaged)]
        assert main(asked) == (0 if command == "ls" else 2)
        told = "".join(capsys.readouterr())
        assert str(damaged / name) in told and "is damaged" in told
        assert command != "ls" or f"{other.name}  done: " in told
