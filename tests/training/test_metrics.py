import json

import pytest
import torch

from startsparse.training.metrics import JsonLines, Running, Stopwatch


def test_lines_are_cut_to_a_checkpoint(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.cut(0)  # nothing there yet
    lines.write({"step": 1})
    kept = lines.length
    lines.write({"step": 2})
    with open(lines.path, "ab") as file:
        file.write(b'{"step": 3')  # killed in the middle of a line
    lines.cut(kept)
    assert [json.loads(line) for line in lines.path.read_text().splitlines()] == [{"step": 1}]
    with pytest.raises(ValueError, match=r"has 12 bytes, the checkpoint was written after 99"):
        lines.cut(99)


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="the run can be resumed") as caught:
        JsonLines(tmp_path / "missing" / "metrics.jsonl").write({})
    assert caught.value.filename.endswith("metrics.jsonl")


def test_running_weighs_batches_by_size_and_is_resumable():
    running, other = Running("cpu"), Running("cpu")
    running.add(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 0]))
    other.load_state_dict(running.state_dict())
    for each in (running, other):
        each.add(torch.tensor(5.0), torch.eye(1), torch.tensor([0]))
    assert running.take() == other.take() == {"loss": 2.0, "accuracy": 0.75}
    assert running.take() == {"loss": 0.0, "accuracy": 0.0}


def test_a_stopwatch_leaves_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("startsparse.training.metrics.time.perf_counter", lambda: now[0])
    watch = Stopwatch(step=5)
    now[0] = 2.0
    with watch.paused():
        now[0] = 10.0
    now[0] = 11.0
    assert watch.lap(8) == {"step": 8, "seconds": 3.0, "seconds_per_step": 1.0}
    now[0] = 12.0
    assert watch.lap(10)["seconds_per_step"] == 0.5
