"""Every recipe, found by glob: a dry run passes, and two small steps run on the CPU, on random bytes of its data's shape."""

import json
from pathlib import Path

import pytest
import torch

from startsparse.training import data, dry, dry_stages, models, recipe, runs, stages

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
ALL = sorted(FOLDER.rglob("*.yaml"))
SEVERAL = [path for path in ALL if stages.has_stages(recipe.read(path))]
RECIPES = [path for path in ALL if path not in SEVERAL]
SHORT = ["train.epochs=null", "train.steps=2", "train.log_every=1", "train.device=cpu"]
SMALL = ["data.batch_size=4", "train.accumulate=1"]
LARGE = {
    "imagenet": "data.size=72",
    "tinyshakespeare": "data.context=32",
}  # the same net on less of each example


def test_none_is_missed():
    assert len(ALL) >= 24 and len(SEVERAL) >= 2
    assert len(ALL) == sum(path.is_file() for path in FOLDER.rglob("*"))


@pytest.fixture
def random_data(monkeypatch):
    """In place of the real data: as many bytes as two batches need."""

    def load(name, root, validation, seed, options):
        entry = data.describe(name, root, options)
        generator = torch.Generator().manual_seed(seed)

        def split(count):
            inputs = torch.randint(256, (count, *entry.shape), generator=generator, dtype=torch.uint8)
            if not entry.mean and not entry.is_text:
                inputs = inputs.float()  # rows of a table
            return data.Split(inputs, torch.randint(entry.classes, (count,), generator=generator))

        return data.Dataset(name, split(16), split(2), split(2), entry.mean, entry.std, entry.classes)

    monkeypatch.setattr("startsparse.training.build.data.load", load)


def num_parameters(path):
    with torch.device("meta"):
        return sum(p.numel() for p in models.make(**recipe.load(path).resolved()["model"]).parameters())


QUICK = [path for path in RECIPES if num_parameters(path) < 3_000_000]  # of the others, a dry run is enough


def test_enough_of_them_are_run():
    assert len(QUICK) >= 13


@pytest.mark.filterwarnings("ignore:.* will never update")
@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_two_steps(path, tmp_path, random_data):
    method = recipe.load(path).method
    smaller = ["data.batch_size=4", *(["method.rounds=2"] if method and method.name == "synflow" else [])]
    chosen = recipe.load(path, [*SHORT, *smaller, f"out={tmp_path}"])
    result = runs.run(chosen, progress=False)
    rows = [json.loads(line) for line in (chosen.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert result["density"] == (
        1.0 if chosen.method is None else pytest.approx(chosen.method.options["density"], abs=1e-4)
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_checks_all_but_the_training(path, tmp_path, monkeypatch):
    """Where there are no data it says so; where there are, all is ready."""
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    chosen = recipe.load(path, ["train.device=cpu"])
    found = dry.check(chosen)
    assert found.plan is None or found.plan.num_final == round(
        chosen.method.options["density"] * found.plan.num_weights
    )
    home = tmp_path / chosen.data.name
    if chosen.data.entry().has_home:
        assert len(found.missing) == 1 and str(home) in found.missing[0] and "not ready" in str(found)
        home.mkdir()
        assert data.missing(chosen.data.name) is None
    assert found.facts["data"].startswith(chosen.data.name) and not list(tmp_path.glob("runs"))


@pytest.mark.parametrize("path", SEVERAL, ids=lambda path: path.stem)
def test_a_dry_run_of_several_stages(path, tmp_path, monkeypatch):
    """Every stage that trains is looked at, and what is missing is said once."""
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    chosen = stages.load_all(path, ["train.device=cpu"])[0]
    found = dry_stages.check(chosen)
    trained = [(i, stage) for i, stage in enumerate(chosen.stages) if stage.recipe is not None]
    assert [heading for heading, _ in found.stages] == [f"stages[{i}]: {stage.kind}" for i, stage in trained]
    home = tmp_path / chosen.base.data.name
    assert [str(home) in lack for lack in found.missing] == [True] * chosen.base.data.entry().has_home
    assert found.as_dict()["ready"] == (not found.missing) and not list(tmp_path.glob("runs"))


@pytest.mark.parametrize("path", [p for p in SEVERAL if "jackpot" in p.stem], ids=lambda path: path.stem)
def test_a_search_says_what_it_searches(path):
    """With and without the classifier, which the authors leave out."""
    (chosen,) = stages.load_all(path, ["train.device=cpu", "stages.1.method.density=0.1"])
    says = dict(dry_stages.check(chosen).stages)["stages[1]: search"].facts["method"]
    assert "2,345,491 of 23,454,912 searched weights (density 0.1; 0.1723 of all weights" in says
    assert "fc.weight left out" in says


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_begins_with_what_it_is_for(path):
    assert path.read_text().startswith("# ")
