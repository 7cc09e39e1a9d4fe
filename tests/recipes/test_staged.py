"""Recipes of several stages, a few steps of each on digits: every stage does its part, at the density it says."""

from pathlib import Path

import pytest

from startsparse.training import recipe, stage_runs, stages

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
STAGED = [path for path in sorted(FOLDER.glob("fashion_*.yaml")) if stages.has_stages(recipe.read(path))]
KINDS = {
    "fashion_early_bird": ["train", "prune", "train"],
    "fashion_growing_regularisation": ["train", "transform", "fine-tune"],
    "fashion_imp_in_random": ["train", *["prune", "rewind", "train"] * 2],
    "fashion_imp_rewind": ["train", *["prune", "rewind", "train"] * 2],
    "fashion_pretrained_magnitude": ["train", "prune", "fine-tune"],
    "fashion_pretrained_obd": ["train", "prune", "fine-tune"],
    "fashion_rst": ["transform", "fine-tune"],
}


def test_none_is_missed():
    assert [path.stem for path in STAGED] == list(KINDS)


def shorter(raw: dict, out: Path) -> dict:
    """The same stages in few steps, and lotteries of two prunings."""
    raw |= {
        "out": str(out),
        "data": {"name": "digits", "batch_size": 300},
        "train": {"steps": 6, "log_every": 3},
    }
    for stage in raw["stages"]:
        if "train" in stage:
            stage["train"] = {"steps": 4}
        method = stage.get("method", {})
        if method.get("name") == "rst":
            method |= {"ramp_steps": 2, "stabilise_steps": 1}
        if method.get("name") == "imp":
            method["levels"] = 2
            method |= {"rewind_step": 3} if "rewind_step" in method else {}
    return raw


@pytest.mark.filterwarnings("ignore:.*e-folds", "ignore:.*no live weight left")
@pytest.mark.parametrize("path", STAGED, ids=lambda path: path.stem)
def test_a_few_steps(path, tmp_path):
    found = stages.parse(shorter(recipe.read(path), tmp_path))
    assert [stage.kind for stage in found.stages] == KINDS[path.stem]
    result = stage_runs.run(found, progress=False)
    wanted = 0.02 if path.stem == "fashion_rst" else 0.05
    assert result["density"] == pytest.approx(wanted, abs=1e-3)
    costs = result["costs"]
    assert (costs["dense_samples"] == 0) is (path.stem == "fashion_imp_in_random") and costs["sparse_samples"]
