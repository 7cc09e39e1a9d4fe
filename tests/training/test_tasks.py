"""Runs on other things than small images in memory: text, and image files that are decoded when they are looked at."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from startsparse.training import loop, recipe, runs
from startsparse.training.data import images
from startsparse.training.metrics import Running


class Stop(Exception):
    pass


@pytest.fixture
def letters(tmp_path):
    """A text whose next character is the next letter."""
    path = tmp_path / "letters.txt"
    path.write_text("abcdefgh" * 200)
    return {
        "data": {"name": f"text:{path}", "context": 8, "batch_size": 16, "validation": 0.2},
        "model": {"name": "gpt", "width": 16, "depth": 1, "heads": 2},
    }


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """Bright and dark pictures of several sizes, on disk."""
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 4)):
        for name, level in (("bright", 200), ("dark", 20)):
            (tmp_path / "squares" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(level - 20, level + 20, (10 + i % 3, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "squares" / part / name / f"{i}.png")
    return {
        "data": {
            "name": f"folder:{tmp_path / 'squares'}",
            "size": 8,
            "batch_size": 8,
            "augment": "resized-crop-flip",
        },
        "model": {"name": "small-cnn", "widths": [4, 8]},
    }


def make(tmp_path, out, changes):
    rest = {
        "name": "task",
        "method": {"name": "rigl", "density": 0.3, "update_interval": 4},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"steps": 40, "log_every": 10, "checkpoint_every": 5},
        "out": str(tmp_path / out),
    }
    return recipe.parse(rest | changes)


@pytest.mark.filterwarnings("ignore:left dense")
@pytest.mark.parametrize("task", ["letters", "squares"])
def test_it_learns_and_a_stopped_run_goes_on(tmp_path, request, monkeypatch, task):
    changes = request.getfixturevalue(task)
    whole, stopped = make(tmp_path, "whole", changes), make(tmp_path, "stopped", changes)
    result = runs.run(whole, progress=False)
    assert result["test_accuracy"] > 0.9 and result["test_loss"] < 0.5
    go_on = loop.steps

    def interrupted(job):
        for step, ended in enumerate(go_on(job)):
            yield ended
            if step == 22:
                raise Stop

    monkeypatch.setattr(loop, "steps", interrupted)
    with pytest.raises(Stop):
        runs.run(stopped, progress=False)
    monkeypatch.setattr(loop, "steps", go_on)
    assert runs.run(stopped, progress=False) == result
    first, second = ((chosen.folder / "metrics.jsonl").read_bytes() for chosen in (whole, stopped))
    assert first == second and b'"validation"' in first


@pytest.mark.filterwarnings("ignore:left dense")
def test_losses_of_text_are_nats_a_character(tmp_path, letters):
    """At a learning rate of nothing a net of small weights knows as good as nothing: log 8."""
    chosen = make(
        tmp_path,
        "runs",
        letters | {"method": None, "optimizer": {"name": "sgd", "lr": 1e-9}, "train": {"steps": 1}},
    )
    result = runs.run(chosen, progress=False)
    assert result["validation_loss"] == pytest.approx(math.log(8), abs=0.05)
    rows = [json.loads(line) for line in (chosen.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(8), abs=0.05)


def test_every_character_counts_once():
    running = Running("cpu")
    outputs = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    labels = torch.tensor([[1, 1, 1]])
    running.add(loop.loss_of(outputs, labels), outputs, labels)
    running.add(torch.tensor(1.0), outputs[:, :1], labels[:, :1])
    taken = running.take()
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert taken["accuracy"] == 0.75 and taken["loss"] == pytest.approx((2 * right + wrong + 1) / 4)


def test_large_examples_are_evaluated_a_few_at_a_time(monkeypatch):
    from startsparse.training.data import Dataset, Split, TextSplit

    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return torch.zeros(*x.shape[: 1 if x.dim() == 4 else 2], 3)

    images_ = Split(torch.zeros(5, 3, 2400, 1200, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    text = TextSplit.cut(torch.zeros(3 * 30_000 + 1, dtype=torch.long), 30_000)
    for split, mean in ((images_, (0.5,) * 3), (text, ())):
        loop.evaluate(Model(), Dataset("x", split, split, split, mean, mean, 3), split)
    assert seen == [1, 1, 1, 1, 1, 2, 1]
