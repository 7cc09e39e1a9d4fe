import pytest

from startsparse.training import recipe

BASE = {
    "name": "quick",
    "data": {"name": "digits"},
    "model": "lenet-300-100",
    "method": {"name": "rigl", "density": 0.1},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 2},
}


def wrong(**changes):
    with pytest.raises(recipe.RecipeError) as caught:
        recipe.parse(BASE | changes)
    return str(caught.value).splitlines()


def test_every_mistake_at_once_each_by_its_path():
    lines = wrong(
        data={"name": "digit", "augmnt": 1, "validation": "x"},
        source={"name": "random", "densty": 0.3},
        optimizer={"name": "adam", "lr": -1},
        seeed=3,
    )
    starts = [
        "data.name: unknown data set 'digit': did you mean 'digits'?",
        "data.validation: Input should be a valid",
        "data.augmnt: unknown key: did you mean 'augment'?",
        "seeed: unknown key: did you mean 'seed'?",
        "source.densty: random has no such option: did you mean 'density'?",
        "source.density: random needs it",
        "optimizer.lr: Invalid learning rate: -1",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"epochs": 1, "steps": 2}}, "train: give exactly one of epochs and steps"),
        ({"train": {}}, "train: give exactly one of epochs and steps"),
        ({"train": {"epochs": 1.5}}, "train.epochs: Input should be a valid integer, got 1.5"),
        ({"train": {"epochs": 1, "device": "gpu9"}}, "train.device: no such device: 'gpu9'"),
        ({"train": {"epochs": 1, "amp": "fp8"}}, "train.amp: "),
        (
            {"train": {"epochs": 1, "execution": "msked"}},
            "train.execution: unknown execution 'msked': did you mean 'masked'",
        ),
        ({"train": {"epochs": 1, "clip_norm": 0}}, "train.clip_norm: "),
        ({"data": {"name": "digits", "augment": "mixup"}}, "data.augment: unknown augmentation 'mixup'"),
        ({"data": {"name": "digits", "validation": 1.0}}, "data.validation: "),
        ({"data": {"name": "digits", "validation": 5000}}, "data.validation: "),
        ({"data": 3}, "data: "),
        ({"data": "digit"}, "data.name: unknown data set 'digit'"),
        ({"model": {"nam": "mlp"}}, "model.name: missing"),
        ({"model": 3}, "model: "),
        ({"source": 3}, "source: "),
        ({"seed": True}, "seed: "),
        ({"name": "../up"}, "name: "),
        ({"method": None, "layers": ["fc1"]}, "method: without one, source and layers mean nothing"),
    ],
)
def test_one_mistake_one_line(changes, says):
    (line,) = wrong(**changes)
    assert line.startswith(says), line


def test_a_bare_name_is_a_data_set_as_it_is_a_model():
    bare, named = recipe.parse(BASE | {"data": "digits"}), recipe.parse(BASE)
    assert bare == named and bare.folder == named.folder


def test_an_empty_recipe_names_what_is_missing():
    with pytest.raises(recipe.RecipeError) as caught:
        recipe.parse({})
    assert str(caught.value).splitlines() == [
        f"{key}: missing" for key in ("data", "model", "optimizer", "train")
    ]


def test_identity_is_what_is_not_default():
    base = recipe.parse(BASE)
    spelled_out = recipe.parse(
        BASE | {"model": {"name": "lenet-300-100", "classes": 10}, "method": {"name": "rigl", "density": 0.1, "seed": 0},
                "schedule": "cosine", "seed": 0}
    )  # fmt: skip
    assert spelled_out.folder == base.folder
    elsewhere = BASE | {
        "out": "other",
        "data": {"name": "digits", "root": "/data"},
        "train": {"epochs": 2, "checkpoint_every": 7},
    }
    assert recipe.parse(elsewhere).folder.name == base.folder.name
    others = [
        {"seed": 1},
        {"method": None},
        {"train": {"epochs": 3}},
        {"layers": ["fc1"]},
        {"schedule": "linear"},
    ]
    assert len({recipe.parse(BASE | other).folder.name for other in others} | {base.folder.name}) == 6


def test_the_resolved_recipe_is_complete_and_is_itself():
    resolved = recipe.parse(BASE | {"seed": 4, "source": {"name": "random", "density": 0.5}}).resolved()
    assert resolved["model"]["input_shape"] == [1, 8, 8]
    assert resolved["method"]["seed"] == resolved["source"]["seed"] == 4
    assert resolved["method"]["update_interval"] == 100 and resolved["optimizer"]["momentum"] == 0
    assert recipe.parse(resolved).resolved() == resolved
    assert (
        recipe.parse(resolved).folder
        == recipe.parse(BASE | {"seed": 4, "source": {"name": "random", "density": 0.5}}).folder
    )


def test_differences_are_named():
    before = recipe.parse(BASE).resolved()
    after = recipe.parse(BASE | {"out": "x", "method": {"name": "rigl", "density": 0.2}}).resolved()
    assert recipe.differences(before, after) == ["method.density: 0.1 in the folder, 0.2 now"]
    del before["method"]["density"]  # as if written by a version that did not know it
    assert recipe.differences(before, after) == []


def test_load_takes_its_name_from_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{data: {name: digits}, model: mlp, optimizer: sgd, train: {steps: 3}}")
    assert recipe.load(path).folder.name.startswith("mine-")
    assert recipe.load(path, ["name=other", "train.steps=4"]).train.steps == 4
    with pytest.raises(FileNotFoundError):
        recipe.load(tmp_path / "none.yaml")
