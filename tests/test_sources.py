from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import sources
from startsparse.distributions import Scaled, allocate
from startsparse.draw import Drawn, exact
from startsparse.flow import dead_units
from startsparse.layers import find
from startsparse.sources import DenseSource, MaskSource, RandomSource, ZerosSource


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 30), nn.ReLU(), nn.Linear(30, 10)
    )


def shapes_of(layers):
    return {name: layer.shape for name, layer in layers.items()}


def masks_of(source, layers):
    return {name: support.mask() for name, support in source.supports(layers).items()}


def test_dense_is_everything():
    assert masks_of(DenseSource(), find(net())) == {"0.weight": None, "3.weight": None, "5.weight": None}


@pytest.mark.parametrize("distribution", ["erk", "balanced", {"5": 1.0, "*": "uniform"}, Scaled({})])
@pytest.mark.parametrize("density", [0.2, 0.3, 0.999, 1.0])
def test_an_exact_source_holds_exactly_its_share(distribution, density):
    layers = find(net())
    if isinstance(distribution, Scaled):
        distribution = Scaled({name: 1.0 + i for i, name in enumerate(layers)})
    found = masks_of(RandomSource(density, distribution, seed=3), layers)
    expected = allocate(distribution, shapes_of(layers), density)
    assert {name: int(mask.sum()) for name, mask in found.items()} == expected
    assert all(mask.dtype == torch.bool and mask.dim() == 1 for mask in found.values())
    total = sum(math.prod(shape) for shape in shapes_of(layers).values())
    assert sum(expected.values()) == round(density * total)


def test_a_source_is_the_draw_of_its_seed_and_layer_name():
    layers = find(net())
    counts = allocate("erk", shapes_of(layers), 0.3)
    for name, support in RandomSource(0.3, seed=9).supports(layers).items():
        size = math.prod(layers[name].shape)
        assert support.positions == Drawn("exact", 9, name, size, count=counts[name])
        assert support.mask().tolist() == exact(size, counts[name], 9, name).tolist()
        assert support.repair is None


def test_the_source_does_not_depend_on_wrappers_initialisation_or_other_layers():
    torch.manual_seed(0)
    first = masks_of(RandomSource(0.3, "uniform"), find(net()))
    wrapped = nn.ModuleDict({"module": net()})
    second = masks_of(RandomSource(0.3, "uniform"), find(wrapped))
    alone = masks_of(RandomSource(0.3, "uniform"), find(net(), "3"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["3.weight"], alone["3.weight"])


def test_seeds_differ_and_larger_sources_contain_smaller_ones():
    layers = find(net())
    a, b = masks_of(RandomSource(0.3, seed=0), layers), masks_of(RandomSource(0.3, seed=1), layers)
    larger = masks_of(RandomSource(0.5, seed=0), layers)
    for name in ("0.weight", "3.weight"):
        assert not torch.equal(a[name], b[name])
        assert not bool((a[name] & ~larger[name]).any())


def test_a_bernoulli_source_has_the_density_it_drew():
    layers = find(nn.Linear(300, 400))
    counts = [
        int(masks_of(RandomSource(0.3, "uniform", seed, draw="bernoulli"), layers)["weight"].sum())
        for seed in range(20)
    ]
    sd = math.sqrt(120_000 * 0.3 * 0.7)
    assert all(abs(count - 36_000) < 4 * sd for count in counts)
    assert len(set(counts)) > 10


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
@pytest.mark.parametrize("flow", ["add", "keep_budget"])
def test_a_repaired_source_has_no_dead_units(draw, flow):
    layers = find(
        nn.Sequential(nn.Conv2d(8, 16, 3, groups=4), nn.ConvTranspose2d(16, 8, 2), nn.Linear(40, 50))
    )
    plain = RandomSource(0.03, "uniform", draw=draw).supports(layers)
    repaired = RandomSource(0.03, "uniform", draw=draw, flow=flow).supports(layers)
    assert sum(support.repair.added for support in repaired.values()) > 0
    for name, support in repaired.items():
        mask, layer, repair = support.mask(), layers[name], support.repair
        rows, columns = dead_units(mask.numpy(), layer.shape, layer.geometry)
        assert int(rows.sum() + columns.sum()) == repair.dead_after == 0
        assert int(mask.sum()) == int(plain[name].mask().sum()) + repair.added - repair.removed


def test_zeros_at_attachment_stay_out():
    model = net()
    with torch.no_grad():
        model[3].weight[:, ::2] = 0
        model[3].weight[0, 1] = -0.0
    found = masks_of(ZerosSource(), find(model))
    assert torch.equal(found["3.weight"], model[3].weight.detach().reshape(-1) != 0)
    assert not bool(found["3.weight"][1])
    assert bool(found["0.weight"].all())


def test_given_masks_hold_where_they_are_given():
    given = torch.rand(30, 64) < 0.4
    found = masks_of(MaskSource({"3.weight": given}), find(net()))
    assert torch.equal(found["3.weight"], given.reshape(-1))
    assert found["0.weight"] is None
    given.zero_()
    assert bool(found["3.weight"].any()), "the source keeps a copy"


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"4.weight": torch.ones(2, 2, dtype=torch.bool)},
            "'4.weight' is not a sparse layer: .*known: 0.weight",
        ),
        ({"3.weight": torch.ones(64, 30, dtype=torch.bool)}, r"has shape \(64, 30\), its weight \(30, 64\)"),
        ({"3.weight": torch.ones(30, 64)}, "it must be torch.bool"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        MaskSource(masks).supports(find(net()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": 0}, r"RandomSource: density must be in \(0, 1\], got 0"),
        ({"density": 1.5}, "density must be in"),
        ({"density": float("nan")}, "density must be in"),
        ({"density": True}, "density must be in"),
        ({"density": "0.3"}, "density must be in"),
        ({"density": 0.3, "distribution": "ekr"}, "unknown distribution 'ekr'"),
        ({"density": 0.3, "seed": 1.0}, "seed must be an int"),
        ({"density": 0.3, "seed": None}, "seed must be an int"),
        ({"density": 0.3, "draw": "exakt"}, "unknown draw 'exakt': did you mean 'exact'"),
        ({"density": 0.3, "flow": "keep"}, "unknown flow 'keep'.*known: none, add, keep_budget"),
    ],
)
def test_impossible_sources_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        RandomSource(**parameters)
    with pytest.raises(ValueError, match=message):
        sources.make("random", **parameters)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            "2:4",
            r"0.weight of shape \(8, 3, 3, 3\), 2.weight .* do not divide .* layers=\['!0.weight', '!2.weight'\]",
        ),
        (
            "block:4x3",
            r"3.weight of shape \(9, 12\) does .* outputs of 4 and inputs of 3; leave it out with layers",
        ),
        ("channel", r"layout channel .* 1.weight has its inputs first .* layers=\['!1.weight'\]"),
    ],
)
def test_layers_that_a_layout_does_not_fit_are_named_at_once(layout, message):
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ConvTranspose2d(8, 12, 1), torch.nn.Conv2d(6, 8, 1)]
    with pytest.raises(ValueError, match=message):
        RandomSource(0.5, layout=layout).supports(find(torch.nn.Sequential(*layers, torch.nn.Linear(12, 9))))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("randon", {}, "unknown source 'randon': did you mean 'random'"),
        ("random", {}, "source random needs a density"),
        ("random", {"density": 0.3, "sed": 1}, "source random has no parameter 'sed': did you mean 'seed'"),
        ("dense", {"density": 0.3}, "source dense has no parameter 'density'"),
    ],
)
def test_unknown_sources_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        sources.make(name, **parameters)


@pytest.mark.parametrize(
    "source",
    [
        DenseSource(),
        ZerosSource(),
        RandomSource(0.3),
        RandomSource(0.25, {"0": 1.0, "*": "balanced"}, -7, "bernoulli", "keep_budget"),
        RandomSource(0.3, Scaled({"0.weight": 1.0, "3.weight": 0.1, "5.weight": 0.5})),
    ],
    ids=lambda source: f"{source.name}-{getattr(source, 'distribution', '')}",
)
def test_a_description_makes_the_same_source(source):
    again = sources.make(**sources.describe(source))
    assert sources.describe(again) == sources.describe(source)
    layers = find(net())
    expected, found = masks_of(source, layers), masks_of(again, layers)
    assert all(torch.equal(expected[n], found[n]) for n in layers if expected[n] is not None)
    assert type(again) is type(source)


def test_given_masks_are_only_named():
    masks = {"b": torch.ones(1, dtype=torch.bool), "a": torch.ones(1, dtype=torch.bool)}
    assert sources.describe(MaskSource(masks)) == {"name": "masks", "layers": ["a", "b"]}
    assert sources.names() == ["dense", "locked", "random", "zeros"]


# -- a mask drawn inside a source --------------------------------------------------------------------------------


def attached_count(method, source, model=None):
    model = model or nn.Linear(300, 400, bias=False)
    sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, source=source)
    for name, mask in sparse.masks.items():
        assert not bool((mask & ~sparse.source_masks[name]).any())
    return int(sum(mask.sum() for mask in sparse.masks.values()))


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_an_exact_mask_inside_a_source(draw, seed):
    assert attached_count(ss.Static(0.05, seed=0), RandomSource(0.3, seed=seed, draw=draw)) == 6000


@pytest.mark.parametrize(
    ("source_draw", "seed"),
    [
        ("exact", 0),
        ("exact", 5),
        ("bernoulli", 5),
        ("bernoulli", 0),
    ],
)
def test_a_bernoulli_mask_inside_a_source(source_draw, seed):
    method, source = ss.Static(0.05, draw="bernoulli", seed=0), RandomSource(0.3, seed=seed, draw=source_draw)
    assert abs(attached_count(method, source) - 6000) < 5 * math.sqrt(6000)


@pytest.mark.parametrize(
    "size",
    [(30, 10), (7, 3)],
)
def test_a_mask_may_fill_its_source(size):
    """The same density for both: every position of the source lives."""
    model = nn.Linear(*size, bias=False)
    assert attached_count(ss.Static(0.3), RandomSource(0.3), model) == round(0.3 * math.prod(size))
