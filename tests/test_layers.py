from __future__ import annotations

import pytest
import torch
from torch import nn

from startsparse.costs import uses_per_sample
from startsparse.layers import Geometry, find, left_dense


class Net(nn.Module):
    """One of everything: convolutions, a norm, an embedding, attention, a bare matrix, a vector."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(5, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.embed = nn.Embedding(11, 8)
        self.stem = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose1d(6, 9, 3, groups=3)
        self.norm = nn.BatchNorm2d(8)
        self.volume = nn.Conv3d(2, 4, (1, 2, 3))
        self.attn = nn.MultiheadAttention(8, 2)
        self.fc = nn.Linear(8, 3)


DEFAULT = [
    "stem.weight",
    "up.weight",
    "volume.weight",
    "attn.in_proj_weight",
    "attn.out_proj.weight",
    "fc.weight",
]


def test_the_default_is_every_linear_convolution_and_projection():
    net = Net()
    found = find(net)
    assert list(found) == DEFAULT
    named = dict(net.named_parameters())
    for name, layer in found.items():
        assert layer.name == name
        assert layer.parameter is named[name]
        assert layer.shape == tuple(named[name].shape)


def test_geometry_of_each_kind():
    found = find(Net())
    assert found["stem.weight"].geometry == Geometry(transposed=False, groups=2)
    assert found["up.weight"].geometry == Geometry(transposed=True, groups=3)
    assert found["volume.weight"].geometry == found["fc.weight"].geometry == Geometry()
    assert found["attn.in_proj_weight"].geometry == Geometry()


@pytest.mark.parametrize(
    "kind",
    [
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
    ],
)
def test_all_convolutions(kind):
    found = find(kind(4, 8, 3, groups=2))
    assert list(found) == ["weight"]
    assert found["weight"].geometry == Geometry("Transpose" in kind.__name__, 2)


def test_attention_with_separate_projections():
    attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)
    assert list(find(attention)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("fc", ["fc.weight"]),
        ("fc.weight", ["fc.weight"]),
        (["fc", "stem"], ["stem.weight", "fc.weight"]),  # always in module order
        ("attn.*", ["attn.in_proj_weight", "attn.out_proj.weight"]),
        ("attn.out_proj", ["attn.out_proj.weight"]),
        ("embed", ["embed.weight"]),
        ("position", ["position"]),
        ("*", ["position", "embed.weight", *DEFAULT]),
        ("!fc", DEFAULT[:-1]),
        (["!fc", "!stem"], DEFAULT[1:-1]),
        (["*", "!embed", "!position"], DEFAULT),
        (["*.weight", "!attn*", "!embed"], ["stem.weight", "up.weight", "volume.weight", "fc.weight"]),
        (["stem", "module.fc"], ["stem.weight", "fc.weight"]),
        ([], DEFAULT),
    ],
)
def test_layers_by_choice(layers, expected):
    assert list(find(Net(), layers)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("head", "layers: 'head' matches no parameter of the model; .*known: position, embed.weight"),
        ("!head", "layers: '!head' matches no parameter"),
        (["fc", "fc.wieght"], "'fc.wieght' matches no parameter of the model; did you mean 'fc.weight'"),
        ("norm", r"layers: 'norm' only matches vectors \(norm.weight\)"),
        ("*.bias", r"'\*.bias' only matches vectors \(stem.bias"),
        ("scale", r"only matches vectors \(scale\)"),
        (["fc", "!fc"], "no layer is left to be sparse"),
        (["!*"], "no layer is left to be sparse"),
    ],
)
def test_choices_that_mean_nothing_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        find(Net(), layers)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.ReLU(), "the model has no parameter of two or more dimensions"),
        (nn.BatchNorm1d(3), "the model has no parameter of two or more dimensions"),
        (
            nn.Embedding(4, 5),
            "there is no Linear, convolution or attention; name others in layers=, known: weight",
        ),
    ],
    ids=str,
)
def test_a_model_without_layers_is_refused(model, why):
    with pytest.raises(ValueError, match=f"no layer is left to be sparse: {why}"):
        find(model)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"fc": 0.1}, "got a dict: densities by layer are the method's distribution="),
        (3, "must be names or globs .*, got 3"),
        ([None], r"must be names or globs .*, got \[None\]"),
        (nn.Linear(2, 2), "must be names or globs .*, got Linear"),
        ([nn.Linear(2, 2)], r"must be names or globs .*, got \[Linear"),
    ],
    ids=str,
)
def test_what_is_no_name_is_refused(layers, message):
    with pytest.raises(TypeError, match=message):
        find(Net(), layers)


def test_weights_of_integers_are_refused_by_name():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"0\.weight is torch\.int8: .*layers=\['!0\.weight'\]"):
        find(net)
    assert list(find(net, "!0.weight")) == ["1.weight"]


class Wrapper(nn.Module):
    """As DistributedDataParallel (``module``) and torch.compile (``_orig_mod``) hold a model."""

    def __init__(self, attribute, inner):
        super().__init__()
        setattr(self, attribute, inner)


@pytest.mark.parametrize(
    "prefixes", [["module"], ["_orig_mod"], ["module", "_orig_mod"], ["_orig_mod", "module"]]
)
def test_wrappers_do_not_change_names(prefixes):
    net = wrapped = Net()
    for prefix in prefixes:
        wrapped = Wrapper(prefix, wrapped)
    assert list(find(wrapped)) == DEFAULT
    assert find(wrapped)["fc.weight"].parameter is net.fc.weight
    assert list(find(wrapped, "module.fc")) == list(find(wrapped, "fc")) == ["fc.weight"]
    with pytest.raises(ValueError, match="only matches vectors"):
        find(wrapped, "norm")


def test_tied_weights_appear_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert list(find(net)) == ["0.weight"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("2", ["0.weight"]),
        ("2.weight", ["0.weight"]),
        ("!2", ["3.weight"]),
        (["[23]*"], ["0.weight", "3.weight"]),
    ],
)
def test_any_name_of_a_tied_weight_means_it(layers, expected):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4))
    assert list(find(model, layers)) == expected
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    assert list(find(tied, layers)) == expected


def test_a_weight_tied_to_an_embedding_is_sparse_by_choice_alone():
    class Language(nn.Module):
        def __init__(self, embedding_first):
            super().__init__()
            if embedding_first:
                self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)
            else:
                self.head, self.embed = nn.Linear(4, 11), nn.Embedding(11, 4)
            self.head.weight = self.embed.weight
            self.fc = nn.Linear(4, 4)

    for first, name in ((True, "embed.weight"), (False, "head.weight")):
        net = Language(first)
        assert list(find(net)) == ["fc.weight"]
        assert list(find(net, name)) == [name]
        assert left_dense(net, find(net)) == {name: 44}


def test_a_linear_weight_that_the_model_itself_holds_too_is_sparse_by_default():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Parameter(torch.ones(4, 4))
            self.fc = nn.Linear(4, 4)
            self.fc.weight = self.shared

    assert list(find(Shared())) == ["shared"]


def test_the_parameter_is_the_one_the_module_holds_now():
    net = nn.Linear(3, 2)
    layer = find(net)["weight"]
    net.weight = nn.Parameter(torch.zeros(2, 3))
    assert layer.parameter is net.weight


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyConv2d(3, 3)], ids=["linear", "conv"])
def test_lazy_modules_are_refused_until_they_are_initialised(lazy):
    with pytest.raises(ValueError, match=r"1\.weight is not initialised yet: run the model once"):
        find(nn.Sequential(nn.Conv2d(1, 1, 1), lazy))


def test_lazy_modules_are_welcome_afterwards():
    net = nn.Sequential(nn.LazyLinear(3))
    _ = net(torch.zeros(1, 7))
    assert find(net)["0.weight"].shape == (3, 7)


def test_what_is_left_dense_is_counted():
    net = Net()
    assert left_dense(net, find(net)) == {"position": 40, "embed.weight": 88}
    assert left_dense(net, find(net, "*")) == {}
    assert left_dense(net, find(net, "!fc"))["fc.weight"] == 24


def test_finding_changes_nothing():
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    _ = find(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_conv1d_of_transformers_is_a_linear_layer_with_its_axes_turned():
    """The class as the library has it: (in, out), found by its name and module."""

    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(6, 9)), nn.Parameter(torch.zeros(9))

        def forward(self, x):
            return x @ self.weight + self.bias

    mine = nn.Sequential(Conv1D(), nn.Linear(9, 2))
    assert list(find(mine)) == ["1.weight"]
    Conv1D.__module__ = "transformers.pytorch_utils"
    found = find(mine)
    assert list(found) == ["0.weight", "1.weight"]
    assert found["0.weight"].geometry == Geometry(transposed=True)
    assert uses_per_sample(mine, found, torch.zeros(5, 7, 6))[0] == {"0.weight": 7.0, "1.weight": 7.0}
