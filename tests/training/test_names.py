import builtins

import pytest

from startsparse.training.names import find, require


def test_find_takes_strings_only():
    assert find("thing", "a", {"a": 1}) == 1
    with pytest.raises(ValueError, match=r"unknown thing \['a'\]"):
        find("thing", ["a"], {"a": 1})


@pytest.mark.parametrize(
    ("module", "package"),
    [("yaml", "pyyaml"), ("PIL.Image", "pillow"), ("sklearn.datasets", "scikit-learn"), ("rich", "rich")],
)
def test_a_missing_package_names_the_extra(module, package, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("startsparse.training.names.importlib.import_module", missing)
    with pytest.raises(
        ModuleNotFoundError, match=rf"the package {package}: pip install 'startsparse\[train\]'"
    ):
        require(module, "this")
    assert builtins.__import__ is real
