import pytest

from startsparse.training import reading


def test_numbers_are_numbers():
    text = "{a: 1e-3, b: 5E4, c: 1.0e-3, d: .5e1, e: 12, f: '1e-3', g: e1, h: -2e-2, i: 1e}"
    assert reading.parse_yaml(text) == {
        "a": 0.001, "b": 50000.0, "c": 0.001, "d": 5.0, "e": 12, "f": "1e-3", "g": "e1", "h": -0.02, "i": "1e",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[1, 2]", "holds no sections"),
        ("", "holds no sections"),
    ],
)
def test_what_is_no_recipe(tmp_path, text, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(reading.ReadingError, match=says) as caught:
        reading.read_yaml(path)
    assert str(path) in str(caught.value)


def test_overrides():
    raw = {"method": "rigl", "train": {"epochs": 1}}
    changed = reading.override(
        raw, ["method.density=0.1", "train.epochs=null", "optimizer={name: sgd, lr: 1e-2}", "a.b.c=x=y"]
    )
    assert changed == {
        "method": {"name": "rigl", "density": 0.1},
        "train": {"epochs": None},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "a": {"b": {"c": "x=y"}},
    }
    assert raw == {"method": "rigl", "train": {"epochs": 1}}


@pytest.mark.parametrize("bad", ["seed", "=3", "a..b=1", ".=1", "a=[1"])
def test_bad_overrides(bad):
    with pytest.raises(reading.ReadingError):
        reading.override({}, [bad])
