"""GGR: a table worked out by hand, its exactness over random updates, RigL as its special case, bad input."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.methods import DenseView
from startsparse.methods.redistribute import affordable, highest, shared
from startsparse.selection import top_k

from .tables import bits, written

# Two layers, four and two of whose weights live. By magnitude 3 and 2 of layer a go first, then 1, 0; 0 of layer b,
# then 1. Dense gradients by magnitude, of both layers together: a2 9, b0 8, a6 7, b2 6, a4 5, b3 3, a5 2, a3 1 = b5 1.
A = (
    [4.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0],
    "1 1 1 1 0 0 0 0",
    [0.0, 0.0, 9.0, 1.0, -5.0, 2.0, 7.0, -0.5],
)
B = ([1.0, -2.0, 0.0, 0.0, 0.0, 0.0], "1 1 0 0 0 0", [8.0, 0.0, 6.0, -3.0, 0.0, 1.0])


def view(name: str, weights, mask: str, gradient, source: str | None = None) -> DenseView:
    return DenseView(
        name,
        torch.tensor([weights]),
        bits(mask).view(1, -1),
        None if source is None else bits(source),
        None if gradient is None else torch.tensor([gradient]),
    )


def after(views: dict[str, DenseView], method: ss.GGR, step: int = 1, total_steps: int = 100):
    """The masks after an update, as written."""
    live = sum(v.num_active for v in views.values())
    changes = method.update(views, step, live, total_steps)
    masks = {}
    for name, seen in views.items():
        mask = seen.mask.reshape(-1).clone()
        if name in changes:
            assert bool(mask[changes[name].dropped].all()) and not bool(mask[changes[name].grown].any())
            mask[changes[name].dropped] = False
            mask[changes[name].grown] = True
        masks[name] = mask
    assert sum(int(mask.sum()) for mask in masks.values()) == live
    return {name: written(mask) for name, mask in masks.items()}


def make(**options) -> ss.GGR:
    return ss.GGR(
        **(
            {"density": 0.5, "drop_schedule": "constant", "update_interval": 1, "rho": 1.0, "floor": 1}
            | options
        )
    )


# Each layer drops the share of smallest magnitude, R in all; the R highest abs(gradient) of what may grow in both layers
# say how many each of them gets. With rho=1 they also say where.
@pytest.mark.parametrize(
    ("options", "a", "b"),
    [
        ({"drop_fraction": 0.24}, "1 1 1 1 0 0 0 0", "1 1 0 0 0 0"),  # less than one weight of either
        (
            {"drop_fraction": 0.25},
            "1 1 1 0 0 0 1 0",
            "1 1 0 0 0 0",
        ),  # a3 goes; b0 is live, so the best is a6, 7
        ({"drop_fraction": 0.5}, "1 1 1 0 0 0 1 0", "1 1 0 0 0 0"),  # a3, a2, b0 go; a2, b0, a6 come: 9, 8, 7
        (
            {"drop_fraction": 0.5, "exclude_dropped": True},
            "1 1 0 0 1 0 1 0",
            "0 1 1 0 0 0",
        ),  # a6, b2, a4: 7, 6, 5
        (
            {"drop_fraction": 1.0, "floor": 0},
            "0 0 1 0 1 0 1 0",
            "1 0 1 1 0 0",
        ),  # 9, 8, 7, 6, 5, 3: three each
        (
            {"drop_fraction": 1.0, "floor": 2},
            "1 1 1 0 0 0 1 0",
            "1 1 0 0 0 0",
        ),  # only a3, a2 go: 9, 7 (b0 is live)
        (
            {"drop_fraction": 1.0, "floor": "units"},
            "1 0 1 0 0 0 1 0",
            "1 1 1 0 0 0",
        ),  # one each stays: 9, 8, 7, 6
        ({"drop_fraction": 0.34}, "1 1 1 0 0 0 1 0", "1 1 0 0 0 0"),
        (
            {"drop_fraction": 0.34, "drop_scope": "global"},
            "1 1 1 0 0 0 1 0",
            "1 1 0 0 0 0",
        ),  # a3, a2 are smallest
        (
            {"drop_fraction": 0.67, "drop_scope": "global"},
            "1 0 1 0 0 0 1 0",
            "1 1 1 0 0 0",
        ),  # a3, a2, b0; b1 is held
        ({"drop_fraction": 0.5, "normalise": "l2"}, "1 1 1 0 0 0 0 0", "1 1 1 0 0 0"),  # see below
        ({"drop_fraction": 0.5, "count_by": "dropped"}, "1 1 1 0 0 0 1 0", "1 1 0 0 0 0"),  # a 2, b 1
        ({"drop_fraction": 0.5, "count_by": "live"}, "1 1 1 0 0 0 1 0", "1 1 0 0 0 0"),  # 2 to 1 are left
        ({"drop_fraction": 0.5, "count_by": "mean_gradient"}, "1 1 1 0 0 0 0 0", "1 1 1 0 0 0"),  # 2.5 to 4
        ({"drop_fraction": 0.5, "count_by": "sum_gradient"}, "1 1 1 0 0 0 1 0", "1 1 0 0 0 0"),  # 24.5 to 18
    ],
)
def test_ggr_by_hand(options, a, b):
    # l2: a has norm sqrt(160.25) = 12.66 over what may grow, b sqrt(110) = 10.49: b0 .763, a2 .711, b2 .572, a6 .553.
    assert after({"a": view("a", *A), "b": view("b", *B)}, make(**options)) == {"a": a, "b": b}


def test_ggr_by_hand_of_full_layers():
    """Ten times the gradient in b: it would get 80, 60, 30 and 10 of the six; its ceiling or its source is full before."""
    strong = (*B[:2], [10 * g for g in B[2]])
    views = {"a": view("a", *A), "b": view("b", *strong)}
    everything = {"drop_fraction": 1.0, "floor": 0}
    assert after(views, make(**everything)) == {"a": "0 0 1 0 0 0 1 0", "b": "1 0 1 1 0 1"}
    assert after(views, make(**everything, ceiling=0.5)) == {"a": "0 0 1 0 1 0 1 0", "b": "1 0 1 1 0 0"}
    views["b"] = view("b", *strong, source="1 1 0 1 0 0")
    assert after(views, make(**everything)) == {"a": "0 0 1 0 1 1 1 0", "b": "1 0 0 1 0 0"}


def test_a_share_of_the_growth_is_random():
    weights = torch.arange(1.0, 101).view(1, -1) * bits(" ".join(["1 0"] * 50))
    gradient = torch.arange(100.0).view(1, -1) + 1
    grown = {}
    for rho in (0.0, 0.3, 1.0):
        for seed in range(40):
            seen = DenseView("w", weights, weights != 0, None, gradient)
            method = make(drop_fraction=0.4, rho=rho, exclude_dropped=True, seed=seed)
            grown[rho, seed] = set(method.update({"w": seen}, 1, 50, 100)["w"].grown.tolist())
    best = list(range(99, 0, -2))
    assert all(len(positions) == 20 for positions in grown.values())
    assert all(grown[1.0, seed] == set(best[:20]) for seed in range(40))
    assert all(grown[0.3, seed] >= set(best[:6]) for seed in range(40))
    for rho, places in ((0.3, best[6:]), (0.0, best)):
        times = torch.tensor([sum(place in grown[rho, seed] for seed in range(40)) for place in places])
        expected = 40 * (14 / 44 if rho else 20 / 50)
        assert abs(times.float().mean().item() - expected) < 1e-5
        assert int(times.min()) >= 3 and int(times.max()) <= 28, "everywhere alike"


@pytest.mark.filterwarnings("ignore:ggr. no gradient")
def test_positions_without_a_gradient_are_drawn_not_taken_in_order():
    mask = torch.zeros(1, 400, dtype=torch.bool)
    mask[0, :40] = True
    seen = DenseView("w", mask * torch.arange(1.0, 401), mask, None, torch.zeros(1, 400))
    everywhere = (
        make(drop_fraction=0.5, exclude_dropped=True, rho=0.5).update({"w": seen}, 1, 40, 100)["w"].grown
    )
    assert len(everywhere) == 20 and everywhere.max() > 200
    rigl = make(drop_fraction=0.5, exclude_dropped=True, rho=1.0).update({"w": seen}, 1, 40, 100)["w"].grown
    assert rigl.tolist() == list(range(40, 60)), "the rule of RigL: ties by index"


def test_layers_no_gradient_asks_for_get_back_what_they_dropped():
    views = {"a": view("a", *A[:2], None), "b": view("b", *B[:2], [0.0] * 6)}
    with pytest.warns(UserWarning, match="ggr: no gradient reached an inactive weight"):
        counts = {n: m.count("1") for n, m in after(views, make(drop_fraction=0.5)).items()}
    assert counts == {"a": 4, "b": 2}
    views["b"] = view(
        "b", *B[:2], [0.0, 0.0, 1e-30, 0.0, 0.0, 0.0]
    )  # the one place that is asked for; two are left
    counts = {n: m.count("1") for n, m in after(views, make(drop_fraction=0.5, exclude_dropped=True)).items()}
    assert counts == {"a": 3, "b": 3}


def test_frozen_layers_take_no_part():
    views = {"a": view("a", *A), "b": view("b", *B)}
    views["b"].frozen = True
    assert after(views, make(drop_fraction=0.5)) == {"a": "1 1 1 0 0 0 1 0", "b": "1 1 0 0 0 0"}
    views["a"].frozen = True
    assert make(drop_fraction=0.5).update(views, 1, 6, 100) == {}


# -- laws ----------------------------------------------------------------------------------------------------------


class Net:
    """Views of layers whose weights and gradients are drawn anew for every update, with ties and zeros."""

    def __init__(self, seed: int, source: bool, layers: str = "bacf"):
        self.generator = torch.Generator().manual_seed(seed)
        shapes = {"b": (6, 5), "a": (4, 4), "c": (3, 2, 2, 2), "f": (2, 3)}
        dense = {"b": 0.3, "a": 0.7, "c": 0.1, "f": 1.0}
        self.masks = {name: self.draw(shapes[name]) < dense[name] for name in layers}
        self.sources = dict.fromkeys(layers)
        if source:
            self.sources = {
                n: (mask | (self.draw(mask.shape) < 0.3)).reshape(-1) for n, mask in self.masks.items()
            }

    def draw(self, shape) -> torch.Tensor:
        return torch.rand(tuple(shape), generator=self.generator)

    def views(self) -> dict[str, DenseView]:
        kind = int(self.draw((1,)) * 4)  # no gradient at all, zeros, a few values, many
        views = {}
        for name, mask in self.masks.items():
            shape = mask.shape
            gradient = (self.draw(shape) - 0.5) * (0, 0, 4, 1000)[kind]
            gradient = None if kind == 0 else gradient.round()
            weight = ((self.draw(shape) - 0.5) * 6).round() * self.masks[name]
            views[name] = DenseView(name, weight, self.masks[name], self.sources[name], gradient)
        return views

    def apply(self, changes) -> None:
        for name, change in changes.items():
            flat = self.masks[name].reshape(-1).clone()
            assert bool(flat[change.dropped].all()) and not bool(flat[change.grown].any())
            flat[change.dropped], flat[change.grown] = False, True
            if self.sources[name] is not None:
                assert not bool((flat & ~self.sources[name]).any())
            self.masks[name] = flat.view(self.masks[name].shape)

    @property
    def num_active(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())


@pytest.mark.filterwarnings("ignore:ggr. .* got no growth", "ignore:ggr. no gradient")
def test_ten_thousand_random_updates_keep_the_count_to_the_weight():
    rng, layers = random.Random(0), []
    for trial in range(100):
        net = Net(trial, trial % 3 == 0, layers="bf")
        live = net.num_active
        for step in range(100):
            method = make(
                drop_fraction=rng.choice([0.1, 0.5, rng.random(), 1.0]),
                rho=rng.choice([0.0, 0.5, 1.0]),
                count_by=rng.choice(["top_gradients", "top_gradients", "mean_gradient", "live"]),
                normalise="none",
                drop_scope=rng.choice(["layer", "layer", "global"]),
                floor=rng.choice([0, 1, "units", 0.5]),
                ceiling=rng.choice([1.0, 0.6]),
                exclude_dropped=rng.random() < 0.3,
            )
            views = net.views()
            before = {name: mask.sum() for name, mask in net.masks.items()}
            changes = method.update(views, step, live, 10**6)
            net.apply(changes)
            assert net.num_active == live
            for name, mask in net.masks.items():
                if before[name] > 0 and method.floor == 1:
                    assert int(mask.sum()) >= 1
                limit = int(method.ceiling * mask.numel() + 1e-9)
                assert int(mask.sum()) <= max(limit, int(before[name])), "no layer grows above its ceiling"
        layers.append(sorted(int(m.sum()) for m in net.masks.values()))
    assert len({tuple(counts) for counts in layers}) > 20, "weights moved across layers"


@pytest.mark.filterwarnings("ignore:ggr. .* got no growth", "ignore:ggr. no gradient")
@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_the_order_of_layers_does_not_matter(rho):
    for trial in range(30):
        net = Net(trial, source=trial % 2 == 0)
        views = net.views()
        orders = [views, dict(reversed(views.items()))]
        first, second = (
            make(rho=rho, drop_fraction=0.6, floor=0.5).update(order, 3, 0, 100) for order in orders
        )
        for name in views:
            assert torch.equal(first[name].dropped, second[name].dropped)
            assert torch.equal(first[name].grown, second[name].grown)


@pytest.mark.filterwarnings("ignore:ggr. .* got no growth", "ignore:ggr. no gradient")
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("layers", ["one", "counts forced"])
def test_rigl_is_its_special_case_bit_for_bit(layers, exclude):
    """With one layer, or where each layer gets back what it dropped, and gradients alone that place."""
    for trial in range(120):
        net = Net(trial, source=trial % 2 == 0)
        options = {"drop_fraction": trial / 120, "exclude_dropped": exclude, "drop_schedule": "constant"}
        rigl = ss.RigL(0.5, update_interval=1, **options)
        ggr = make(**options, floor=0, count_by="top_gradients" if layers == "one" else "dropped")
        views = net.views()
        for chosen in [{name: views[name]} for name in views] if layers == "one" else [views]:
            ours, theirs = (method.update(chosen, 7, 0, 100) for method in (ggr, rigl))
            for name in chosen:
                assert torch.equal(ours[name].dropped, theirs[name].dropped)
                assert torch.equal(ours[name].grown, theirs[name].grown)


def test_half_precision_is_ranked_in_float32():
    """Two gradients that are one number in bfloat16 after the norm of their layer was taken out."""
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        views = {}
        for name, table in (("a", A), ("b", B)):
            seen = view(name, *table)
            views[name] = DenseView(name, seen.weight.to(dtype), seen.mask, None, seen.gradient.to(dtype))
        result = after(views, make(drop_fraction=0.5, normalise="l2"))
        assert result == {"a": "1 1 1 0 0 0 0 0", "b": "1 1 1 0 0 0"}
        _, scores = views["a"].candidates(3, torch.empty(0, dtype=torch.int64))
        assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# -- the parts -----------------------------------------------------------------------------------------------------


def test_shares_under_ceilings():
    room = {"x": 3, "y": 100, "z": 100}
    assert shared(10, {"x": 8.0, "y": 1.0, "z": 1.0}, room) == {"x": 3, "y": 4, "z": 3}
    assert shared(10, {"x": 0.0, "y": 0.0, "z": 5.0}, room | {"z": 4}) == {"x": 0, "y": 6, "z": 4}
    assert shared(0, {"x": 1.0}, {"x": 3}) == {"x": 0}
    with pytest.raises(ValueError, match=r"104 weights cannot be shared.*room for 103"):
        shared(104, {"x": 1.0, "y": 1.0}, {"x": 3, "y": 100})


def test_ties_go_to_the_first_name_and_then_to_the_lower_index():
    scores = {"y": torch.ones(4), "x": torch.ones(2)}
    found = highest(lambda name: (torch.arange(len(scores[name])), scores[name]), scores, 3)
    assert {name: positions.tolist() for name, (positions, _) in found.items()} == {"x": [0, 1], "y": [0]}


@pytest.mark.parametrize("total", [0, 1, 7, 40, 1000])
def test_the_highest_of_many_layers_are_those_of_one_long_list(total):
    """Few distinct values, so that the bar is a tie again and again while the layers come by."""
    generator = torch.Generator().manual_seed(total)
    room = {f"layer{index:02}": 3 + 5 * index for index in range(20)}
    scores = {n: torch.randint(0, 6, (30,), generator=generator).float() for n in room}
    best = {n: top_k(scores[n], min(room[n], 30)) for n in room}
    given = {n: (best[n].nonzero().squeeze(1), scores[n][best[n]]) for n in room}
    found = highest(given.__getitem__, reversed(list(room)), total)
    alone = torch.cat([score for _, score in given.values()])
    chosen = top_k(alone, min(total, int((alone > 0).sum()))).split([len(p) for p, _ in given.values()])
    for mask, name in zip(chosen, room, strict=True):
        assert torch.equal(found[name][0], given[name][0][mask])
        assert torch.equal(found[name][1], given[name][1][mask])


def test_drops_shrink_where_nothing_can_grow_again():
    assert affordable({"a": 4, "b": 0}, {"a": 8, "b": 4}, {"a": 0, "b": 3}, {"a": 8, "b": 6}, False) == (
        {"a": 2, "b": 0},
        {"a": 0, "b": 2},
    )
    drops, room = affordable(
        {"a": 2}, {"a": 8}, {"a": 9}, {"a": 4}, True
    )  # above its ceiling: nothing may grow
    assert sum(drops.values()) <= sum(room.values())


# -- when gradients are taken --------------------------------------------------------------------------------------


def test_the_window_of_gradients():
    method = ss.GGR(0.1, update_interval=10, gradient_window=3, update_begin=10, update_end=31)
    wanted = [step for step in range(60) if method.wants_gradient(step, None)]
    assert wanted == [8, 9, 10, 18, 19, 20, 28, 29, 30]
    assert [step for step in range(60) if method.gradient_carry(step, None)] == [9, 10, 19, 20, 29, 30]
    every = ss.GGR(0.1, update_interval=2, gradient_window=2, update_end=7, update_begin=0)
    assert [step for step in range(9) if every.wants_gradient(step, None)] == [0, 1, 2, 3, 4, 5, 6]
    assert [step for step in range(9) if every.gradient_carry(step, None)] == [2, 4, 6]
    assert not ss.GGR(0.1, rho=0.0, count_by="live").wants_gradient(100, 1000)
    assert method.dense_gradient_steps(100) == 9


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rho": 1.5}, r"ggr: rho must be in \[0, 1\], got 1.5"),
        ({"rho": True}, "rho must be"),
        ({"ceiling": 0}, r"ceiling must be in \(0, 1\], got 0"),
        ({"floor": -1}, "floor must be an int >= 0, got -1"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\], got 1.5"),
        ({"floor": "unit"}, "floor 'unit': did you mean 'units'"),
        ({"floor": None}, "floor must be"),
        ({"count_by": "top"}, "unknown count_by 'top'"),
        ({"normalise": "fanin"}, "normalise 'fanin': did you mean 'fan_in'"),
        ({"drop_scope": "layers"}, "drop_scope 'layers': did you mean 'layer'"),
        ({"gradient_window": 0}, "gradient_window must be an int >= 1"),
        ({"gradient_window": 101}, "gradient_window=101 is longer than update_interval=100"),
        (
            {"normalise": "l2", "count_by": "live"},
            "normalise='l2' scales gradients that are ranked.*'live' ranks none",
        ),
    ],
)
def test_bad_hyper_parameters_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        ss.methods.make("ggr", density=0.1, **given)


def test_a_ceiling_that_is_too_low_is_refused():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"density 0.5 asks for 60 weights.*ceiling=0.4 the layers hold only 48"
    ):
        ss.attach(model, optimizer, ss.GGR(0.5, ceiling=0.4), total_steps=1000)
    sparse = ss.attach(model, optimizer, ss.GGR(0.5, ceiling=0.6), total_steps=1000)
    assert [int(mask.sum()) for mask in sparse.masks.values()] == [48, 12], (
        "first masks keep to it: ERK asks for .8"
    )


def test_a_layer_that_gets_nothing_is_named():
    views = {"a": view("a", *A), "b": view("b", *B[:2], [0.0] * 6)}
    method = make(drop_fraction=0.5, exclude_dropped=True, floor=0)
    memory = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(1, 4):
            views["b"].memory = memory
            memory = method.update(views, step, 6, 100)["b"].memory
    views["b"].memory = memory
    with pytest.warns(UserWarning, match=r"ggr: b got no growth in 4 updates.*floor="):
        memory = method.update(views, 4, 6, 100)["b"].memory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views["b"].memory = memory
        method.update(views, 5, 6, 100)
