"""Magnitude, SNIP and GMP: hand-made tables from the papers' rules, global and layer by layer."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import startsparse as ss

from .tables import give_gradient, layer, written


def two_layers(a=(5.0, 1.0, -4.0, 0.5), b=(3.0, -2.0, 0.1, 0.2)) -> nn.Module:
    """Two layers of four weights: by magnitude a0 a2 b0 b1 a1 a3 b3 b2."""
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2, bias=False), b=nn.Linear(2, 2, bias=False)))
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor(a).view(2, 2))
        model.b.weight.copy_(torch.tensor(b).view(2, 2))
    return model


def sgd(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


# Han et al. 2015: what is smallest goes, once.
@pytest.mark.parametrize(
    ("density", "distribution", "a", "b"),
    [
        (1.0, "global", "1 1 1 1", "1 1 1 1"),
        (0.75, "global", "1 1 1 1", "1 1 0 0"),
        (0.5, "global", "1 0 1 0", "1 1 0 0"),
        (0.375, "global", "1 0 1 0", "1 0 0 0"),
        (0.5, "uniform", "1 0 1 0", "1 1 0 0"),
        (0.25, "uniform", "1 0 0 0", "1 0 0 0"),
        (0.75, "uniform", "1 1 1 0", "1 1 0 1"),
        (0.5, {"a": 0.25}, "1 0 0 0", "1 1 0 1"),
        (0.5, {"b": 1.0}, "0 0 0 0", "1 1 1 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:a.weight has no live weight left")
def test_magnitude_by_hand(density, distribution, a, b):
    model = two_layers()
    if distribution == {"b": 1.0}:
        with pytest.raises(ValueError, match="raise the density"):
            ss.attach(model, sgd(model), ss.Magnitude(density, distribution))
        return
    sparse = ss.attach(model, sgd(model), ss.Magnitude(density, distribution))
    assert (written(sparse.masks["a.weight"]), written(sparse.masks["b.weight"])) == (a, b)
    assert sparse.step == 0 and sparse.phase == "static"
    assert model.a.weight.detach().view(-1)[~sparse.masks["a.weight"].view(-1)].abs().sum() == 0


def test_magnitude_by_hand_warns_of_a_layer_it_empties():
    model = two_layers()
    with pytest.warns(UserWarning, match=r"b\.weight has no live weight left \(density 0\.25\)"):
        sparse = ss.attach(model, sgd(model), ss.Magnitude(0.25))
    assert written(sparse.masks["a.weight"]) == "1 0 1 0"


def test_magnitude_by_hand_ties_go_to_the_earlier_layer_and_index():
    model = two_layers(a=(1.0, 1.0, 1.0, 1.0), b=(1.0, -1.0, 2.0, 1.0))
    sparse = ss.attach(model, sgd(model), ss.Magnitude(0.375))
    assert (written(sparse.masks["a.weight"]), written(sparse.masks["b.weight"])) == ("1 1 0 0", "0 0 1 0")


def test_magnitude_inside_a_source_ranks_only_what_lives_there():
    model = two_layers()
    mask = torch.tensor([[False, True], [True, True]])
    sparse = ss.attach(model, sgd(model), ss.Magnitude(0.375), source=ss.MaskSource({"a.weight": mask}))
    assert (written(sparse.masks["a.weight"]), written(sparse.masks["b.weight"])) == ("0 0 1 0", "1 1 0 0")


# Lee et al. 2019: abs(weight * gradient), summed nowhere, the highest stay. The net y = w2 . (W1 x), loss y:
#   W1 = [[1, -2], [3, .5]], w2 = [2, -1], x = [1, 2]: h = W1 x = [-3, 4]
#   dy/dW1 = w2' x' = [[2, 4], [-1, -2]], so the scores of W1 are [[2, 8], [3, 1]]
#   dy/dw2 = h, so the scores of w2 are [6, 4]
@pytest.mark.parametrize(
    ("density", "distribution", "first", "second"),
    [
        (0.5, "global", "0 1 0 0", "1 1"),
        (1 / 3, "global", "0 1 0 0", "1 0"),
        (2 / 3, "global", "0 1 1 0", "1 1"),
        (5 / 6, "global", "1 1 1 0", "1 1"),
        (0.5, "uniform", "0 1 1 0", "1 0"),
        (1.0, "global", "1 1 1 1", "1 1"),
    ],
)
@pytest.mark.parametrize("closure", [False, True])
def test_snip_by_hand(density, distribution, first, second, closure):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model[1].weight.copy_(torch.tensor([[2.0, -1.0]]))
    optimizer = sgd(model, lr=100.0)  # a large step: scores must be those of the weights before it
    sparse = ss.attach(model, optimizer, ss.SNIP(density, distribution))
    assert sparse.phase == "scoring" and sparse.density == 1.0

    def backward():
        optimizer.zero_grad()
        loss = model(torch.tensor([[1.0, 2.0]])).sum()
        loss.backward()
        return loss

    if closure:
        optimizer.step(backward)
    else:
        backward()
        optimizer.step()
    assert (written(sparse.masks["0.weight"]), written(sparse.masks["1.weight"])) == (first, second)
    assert sparse.phase == "static"
    assert model[0].weight[0, 1].item() == -2 - 100 * 4, "the first step trains the sparse net"


def test_snip_scores_are_those_of_autograd_over_all_micro_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    parts = [(torch.randn(8, 20), torch.randint(5, (8,))) for _ in range(3)]
    weights = [model[0].weight, model[2].weight]
    whole = sum(nn.functional.cross_entropy(model(x), y) for x, y in parts)
    scores = [
        (w * g).abs().detach() for w, g in zip(weights, torch.autograd.grad(whole, weights), strict=True)
    ]
    sparse = ss.attach(model, optimizer, ss.SNIP(0.1))
    for x, y in parts:
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    threshold = torch.cat([s.reshape(-1) for s in scores]).sort(descending=True).values[74]
    expected = [score >= threshold for score in scores]
    assert sum(int(mask.sum()) for mask in expected) == sparse.target_count == 75
    assert all(torch.equal(a, b) for a, b in zip(expected, sparse.masks.values(), strict=True))


def test_snip_refuses_to_choose_without_a_gradient():
    model = two_layers()
    optimizer = sgd(model)
    ss.attach(model, optimizer, ss.SNIP(0.5))
    with pytest.raises(ValueError, match=r"snip.*gradient"):
        optimizer.step()


def test_snip_refuses_a_gradient_that_is_not_finite_and_leaves_the_model_alone():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, ss.SNIP(0.5))
    before = model.a.weight.detach().clone()
    model(torch.tensor([[1.0, torch.nan]])).sum().backward()
    with pytest.raises(ValueError, match=r"snip.*a\.weight.*not finite"):
        optimizer.step()
    assert torch.equal(model.a.weight, before) and sparse.step == 0 and sparse.density == 1.0
    optimizer.zero_grad()
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()  # the next batch decides
    assert sparse.density == 0.5


# Zhu and Gupta 2017: s_f + (s_i - s_f) (1 - progress)^3, here from 8 weights to 1 in updates at steps 0 .. 4:
#   densities 1, .4941, .2344, .1387, .125: counts 8, 4 (3.95), 2 (1.87), 1 (1.11), 1
def test_gmp_by_hand():
    model = layer([0.3, -0.8, 0.1, 0.7, -0.2, 0.6, 0.5, -0.4])
    optimizer = sgd(model)
    gmp = ss.GMP(0.125, update_interval=1, update_begin=0, update_end=5)
    sparse = ss.attach(model, optimizer, gmp)
    seen = [written(sparse.masks["fc.weight"])]
    for _ in range(6):
        give_gradient(model, [1.0] * 8)
        optimizer.step()
        seen.append(written(sparse.masks["fc.weight"]))
    assert seen == [
        "1 1 1 1 1 1 1 1",
        "1 1 1 1 1 1 1 1",
        "0 1 0 1 0 1 1 0",
        "0 1 0 1 0 0 0 0",
        "0 1 0 0 0 0 0 0",
        "0 1 0 0 0 0 0 0",
        "0 1 0 0 0 0 0 0",
    ]


@pytest.mark.parametrize(
    ("options", "start", "expected"),
    [
        # every 10 steps in [0, 100): 0 .. 90; cubic from 1000 to 100 of 1000
        (
            {"update_interval": 10, "update_begin": 0, "update_end": 100},
            1000,
            {
                0: 1000,
                9: 1000,
                10: 732,
                19: 732,
                20: 523,
                30: 367,
                40: 254,
                50: 179,
                60: 133,
                70: 110,
                80: 101,
            }
            | {90: 100, 91: 100, 500: 100},
        ),
        # begin between two updates: the curve begins there, the first update follows at 10
        (
            {"update_interval": 10, "update_begin": 5, "update_end": 16},
            1000,
            {5: 1000, 9: 1000, 10: 100, 15: 100},
        ),
        # inside a source of 400 the curve begins at 400
        (
            {"update_interval": 10, "update_begin": 0, "update_end": 41},
            400,
            {0: 400, 10: 227, 20: 138, 30: 105, 40: 100},
        ),
        # a single update reaches the density at once
        ({"update_interval": 10, "update_begin": 10, "update_end": 11}, 1000, {9: 1000, 10: 100}),
    ],
)
def test_gmp_by_hand_counts(options, start, expected):
    gmp = ss.GMP(0.1, **options)
    assert {step: gmp.target(step, 1000, start, None) for step in expected} == expected


@pytest.mark.filterwarnings("ignore:2.weight has no live weight left")
def test_gmp_pruned_weights_never_return_and_the_largest_of_that_moment_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = ss.attach(model, optimizer, ss.GMP(0.1, update_interval=3, update_end=0.8), total_steps=30)
    for _ in range(30):
        before = {name: mask.clone() for name, mask in sparse.masks.items()}
        model(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        kept = torch.cat([p[sparse.masks[n]] for n, p in model.named_parameters() if n in before])
        assert all(not bool((sparse.masks[n] & ~before[n]).any()) for n in before)
        assert kept.numel() == sparse.target_count
    assert sparse.phase == "fixed" and sparse.target_count == 30


@pytest.mark.parametrize(
    "distribution",
    [
        "uniform",
        "er",
        "erk",
        "balanced",
        "pyramidal",
        "uniform+",
        {"0": 0.2},
        {"*": 0.3},
    ],
)
def test_gmp_layer_by_layer_ends_at_the_distribution(distribution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 15))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = ss.GMP(0.3, distribution, update_interval=2, update_end=0.8)
    sparse = ss.attach(model, optimizer, method, total_steps=20)
    for _ in range(20):
        model(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sparse.target_count == 150
    shapes = {name: tuple(mask.shape) for name, mask in sparse.masks.items()}
    wanted = ss.distributions.allocate(distribution, shapes, 0.3)
    assert {name: int(mask.sum()) for name, mask in sparse.masks.items()} == wanted


# -- what cannot work ----------------------------------------------------------------------------------------------


def test_gmp_refuses_a_schedule_without_an_update():
    model = two_layers()
    with pytest.raises(
        ValueError, match=r"no multiple of update_interval=100 lies in \[1, 60\).*never be reached"
    ):
        ss.attach(model, sgd(model), ss.GMP(0.5, update_begin=1, update_end=60))


@pytest.mark.parametrize("name", ["gmp", "snip", "magnitude"])
def test_a_source_that_is_too_small_is_named(name):
    model = two_layers()
    method = ss.methods.make(name, density=0.75)
    with pytest.raises(ValueError, match=f"{name}: density 0.75 asks for 6 weights.*holds only 4"):
        ss.attach(model, sgd(model), method, source=ss.RandomSource(0.5), total_steps=1000)


@pytest.mark.parametrize("name", ["gmp", "snip"])
def test_a_frozen_layer_cannot_be_pruned_during_training(name):
    model = two_layers()
    model.b.weight.requires_grad_(False)
    method = ss.methods.make(name, density=0.5)
    with pytest.raises(ValueError, match=rf"{name}.*b\.weight never changes.*layers=\['!name'\]"):
        ss.attach(model, sgd(model), method, total_steps=1000)
    ss.attach(model, sgd(model), method, total_steps=1000, layers="!b")


@pytest.mark.parametrize("name", ["gmp", "snip"])
def test_a_distribution_that_can_never_be_met_is_refused_at_attachment(name):
    model = two_layers()
    method = ss.methods.make(name, density=0.25, distribution="erk+")
    with pytest.raises(ValueError, match="density"):
        ss.attach(model, sgd(model), method, total_steps=1000)


def test_a_density_below_one_weight_is_refused_at_attachment():
    model = two_layers()
    with pytest.raises(ValueError, match="density"):
        ss.attach(model, sgd(model), ss.GMP(0.01, "uniform", update_interval=1), total_steps=10)


@pytest.mark.parametrize("name", ["gmp", "snip", "magnitude", "static"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": -0.1}, r"density must be in \(0, 1\], got -0.1"),
        ({"density": 0.1, "distribution": "unifrom"}, "distribution 'unifrom': did you mean 'uniform'"),
        ({"density": 0.1, "densty": 0.1}, "'densty': did you mean 'density'"),
        ({"density": 0.1, "seed": "x"}, "seed must be an int, got 'x'"),
        ({}, "needs a density"),
    ],
)
def test_bad_hyper_parameters_are_named(name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        ss.methods.make(name, **given)
    assert name in str(caught.value)


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'rgil': did you mean 'rigl'"):
        ss.methods.make("rgil", density=0.1)
    with pytest.raises(ValueError, match="unknown kind 'attatch': did you mean 'attach'"):
        ss.methods.names("attatch")
