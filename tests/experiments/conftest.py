"""What the tests of experiments share: finished runs with figures of our choice."""

from __future__ import annotations

import json

import pytest

from startsparse.experiments.results import read
from startsparse.training import recipe, runs
from startsparse.training.folder import RunFolder

RAW = {
    "name": "tiny",
    "data": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "widths": [8]},
    "method": {"name": "static", "density": 0.2},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 2},
}


@pytest.fixture
def finished(tmp_path):
    """Make a finished run's folder with these figures, changes of its recipe by dotted path."""

    def make(seed=0, accuracy=0.9, validations=(0.5, 0.8), seconds=1.0, steps=40, **changes):
        raw = RAW | {"seed": seed, "out": str(tmp_path / "runs")}
        for path, value in changes.items():
            section, _, key = path.partition("__")
            raw[section] = (raw[section] or {}) | {key: value} if key else value
        chosen = recipe.parse(raw)
        folder = RunFolder(chosen.folder)
        folder.claim(chosen)
        for i, value in enumerate(validations, start=1):
            step = steps * i // len(validations)
            folder.metrics.write({"kind": "validation", "step": step, "accuracy": value, "loss": 1 - value})
            folder.timing.write({"step": step, "seconds": seconds / len(validations)})
        folder.write_result({"test_accuracy": accuracy, "test_loss": 1.0, "steps": steps, "seed": seed})
        return folder.path

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two real runs of a few steps: of RigL and dense."""
    out = str(tmp_path_factory.mktemp("trained"))
    raw = RAW | {"out": out, "train": {"steps": 6, "log_every": 3}}
    made = [raw | {"method": {"name": "rigl", "density": 0.2, "update_interval": 2}}, raw | {"method": None}]
    chosen = [recipe.parse(one) for one in made]
    for one in chosen:
        assert json.dumps(runs.run(one, progress=False))
    return [read(one.folder) for one in chosen]
