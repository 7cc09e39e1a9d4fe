"""Every recipe, found by glob: it is valid, and two of its steps run on the CPU, on random bytes of its data's shape."""

import json
from pathlib import Path

import pytest
import torch

from startsparse.training import data, recipe, runs

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
SHORT = ["train.epochs=null", "train.steps=2", "train.log_every=1", "train.device=cpu"]


def test_none_is_missed():
    assert len(RECIPES) == 6
    assert len(RECIPES) == sum(path.is_file() for path in FOLDER.rglob("*"))


@pytest.fixture
def random_data(monkeypatch):
    """In place of the real data: as many bytes as two batches need."""

    def load(name, root, validation, seed, options):
        entry = data.describe(name, root, options)
        generator = torch.Generator().manual_seed(seed)

        def split(count):
            inputs = torch.randint(256, (count, *entry.shape), generator=generator, dtype=torch.uint8)
            return data.Split(inputs, torch.randint(entry.classes, (count,), generator=generator))

        return data.Dataset(name, split(256), split(16), split(16), entry.mean, entry.std, entry.classes)

    monkeypatch.setattr("startsparse.training.build.data.load", load)


@pytest.mark.filterwarnings("ignore:rigl will never update")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps(path, tmp_path, random_data):
    chosen = recipe.load(path, [*SHORT, f"out={tmp_path}"])
    result = runs.run(chosen, progress=False)
    rows = [json.loads(line) for line in (chosen.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert result["density"] == (
        1.0 if chosen.method is None else pytest.approx(chosen.method.options["density"], abs=1e-4)
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_begins_with_what_it_is_for(path):
    assert path.read_text().startswith("# ")
