import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from startsparse.training import data


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'cifar-10': did you mean 'cifar10'"):
        data.load("cifar-10")
    with pytest.raises(ValueError, match="unknown data set 'digit'"):
        data.load("mnist", fallback="digit")


def test_digits_are_split_by_seed():
    first, again, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.validation.inputs, again.validation.inputs)
    assert not torch.equal(first.validation.inputs, other.validation.inputs)
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert sorted(len(part) for part in (first.train, first.validation, first.test)) == [144, 360, 1293]


def test_the_table_describes_digits_truly():
    entry, whole = data.TABLE["digits"], data.load("digits", validation=0.0)
    values = whole.train.inputs.float() / 255
    assert (len(whole.train), whole.input_shape) == (entry.examples, entry.shape)
    assert abs(float(values.mean()) - entry.mean[0]) < 1e-4 and abs(float(values.std()) - entry.std[0]) < 1e-4
    normal = whole.normalise(whole.train.inputs)
    assert abs(float(normal.mean())) < 1e-3 and abs(float(normal.std()) - 1) < 1e-3


def test_nowhere_to_be_had(tmp_path, own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="STARTSPARSE_DATA"):
        data.load("mnist")
    with pytest.warns(UserWarning, match="FALLING BACK to the data set 'digits' instead of 'mnist'"):
        assert data.load("mnist", fallback="digits").name == "digits"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.load("mnist", root=tmp_path / "elsewhere")


def test_damaged_data_never_fall_back(tmp_path, monkeypatch, write_idx):
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", (1, 2), b"")
    with pytest.raises(data.DamagedData):
        data.load("mnist", fallback="digits")


@pytest.fixture
def fake_hub(tmp_path, own_cache, monkeypatch):
    """A stand-in for the package ``datasets`` that has one small data set."""
    calls: list[str] = []

    def load_dataset(repository):
        calls.append(repository)
        if "cifar" in repository:
            raise ConnectionError("no network\nmore")
        if "landscapes" in repository:
            pictures = [Image.new("L", (side, side), side) for side in (6, 9)]
            return {
                "train": {"img": pictures, "y": [0, 1], "target": [2, 0]},
                "valid": {"img": pictures[:1], "target": [1]},
            }
        if "text" in repository:
            return {"train": {"sentence": ["a"], "label": [0]}, "test": {"sentence": ["a"], "label": [0]}}
        if "untested" in repository:
            return {"train": {}}
        images = list(np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28))
        rows = {"image": images, "label": [1, 2, 3]}
        return {"train": rows, "test": rows}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path / "nothing"))
    return calls


def test_a_download_is_kept(fake_hub, own_cache):
    first = data.load("mnist", validation=1)
    again = data.load("mnist", validation=1)
    assert fake_hub == ["ylecun/mnist"]
    assert torch.equal(first.test.inputs, again.test.inputs) and first.input_shape == (1, 28, 28)
    assert [Path(path).suffix for path in own_cache.iterdir()] == [".decoded"]


def test_a_failed_download_says_why(fake_hub):
    with pytest.raises(FileNotFoundError, match="download of uoft-cs/cifar10 failed: no network"):
        data.load("cifar10")


def test_a_hub_repository_by_name(fake_hub):
    options = data.Options(size=4)
    entry = data.describe("hub:someone/landscapes", options=options)
    assert (entry.shape, entry.classes, entry.examples) == ((3, 4, 4), 3, 2)
    whole = data.load("hub:someone/landscapes", options=options, validation=0)
    assert whole.train.labels.tolist() == [2, 0] and whole.train.inputs[:, 0, 0, 0].tolist() == [6, 9]
    assert len(whole.test) == 1 and fake_hub == ["someone/landscapes"]
    asked = data.Options(size=4, label="y")
    with pytest.raises(
        data.DamagedData, match="someone/landscapes, valid: no label column y; known: img, target"
    ):
        data.describe("hub:someone/landscapes", options=asked)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "hub:someone/landscapes",
            r"train, row 1: an image of \(3, 9, 9\), the first is of \(3, 6, 6\): .* data.size",
        ),
        ("hub:someone/text", "train: no image column image or img or .*; known: sentence, label"),
        ("hub:someone/untested", "has the parts train: train and test were expected"),
        ("hub:someone", "hub: is followed by a repository, owner/name"),
        ("hub:someone/cifar", "download of someone/cifar failed: no network"),
    ],
)
def test_what_is_wrong_with_a_hub_repository(fake_hub, name, says):
    with pytest.raises((ValueError, OSError), match=says):
        data.describe(name)


def test_what_is_not_there_is_told_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    assert data.missing("digits") is None
    assert "mnist does not exist: set STARTSPARSE_DATA" in (data.missing("mnist") or "")
    assert "would be downloaded" in (data.missing("cifar100") or "")
    assert "no data set text:a.txt" in (data.missing("text:a.txt") or "")
    (tmp_path / "mnist").mkdir()
    assert data.missing("mnist") is None and data.missing("mnist", root=tmp_path / "x") is not None


@pytest.mark.parametrize("validation", [-0.1, 1.0, 1437, True])
def test_an_impossible_validation_part(validation):
    with pytest.raises(ValueError, match="validation is a share"):
        data.load("digits", validation=validation)
