from __future__ import annotations

import pytest

from startsparse.names import matches, nearest, plain

NAMES = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv1.bias", "attn.in_proj_weight", "fc.weight"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("_orig_mod.module.module.fc.weight", "fc.weight"),
        ("my_module.fc.weight", "my_module.fc.weight"),
        ("modules.fc.weight", "modules.fc.weight"),
        ("encoder.module.fc.weight", "encoder.module.fc.weight"),
    ],
)
def test_prefixes_of_wrappers_are_stripped(name, expected):
    assert plain(name) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("fc.weight", ["fc.weight"]),
        ("fc", ["fc.weight"]),
        ("module.fc", ["fc.weight"]),
        ("_orig_mod.module.fc.weight", ["fc.weight"]),
        ("*", NAMES),
        ("*.weight", ["conv1.weight", "layer1.0.conv1.weight", "fc.weight"]),
        ("conv1", ["conv1.weight"]),
        ("*conv1", ["conv1.weight", "layer1.0.conv1.weight"]),
        ("layer?.0.*", ["layer1.0.conv1.weight", "layer1.0.conv1.bias"]),
        ("[cf]*.weight", ["conv1.weight", "fc.weight"]),
        ("attn", []),
        ("FC", []),
        ("conv", []),
        ("", []),
    ],
)
def test_a_key_is_a_name_a_glob_or_a_module(pattern, expected):
    assert matches(pattern, NAMES) == expected


def test_errors_name_the_nearest_and_the_known():
    assert nearest("fc.wieght", NAMES).startswith("did you mean 'fc.weight'? known: conv1.weight, ")
    assert nearest("something else", ["a", "b"]) == "known: a, b"
    many = [f"layer{i}" for i in range(41)]
    assert nearest("x", many).endswith("layer39, ...")
    assert nearest("x", many[:40]).endswith("layer39")
