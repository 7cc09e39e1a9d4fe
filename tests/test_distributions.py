from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.golden_tables import (
    DENSITIES,
    GOLDEN,
    NETS,
    NUM_TENSORS_AND_WEIGHTS,
    PYRAMIDAL_ROOTS,
    agrees,
)

from startsparse import distributions
from startsparse.distributions import Scaled, allocate, densities

RULES = ("balanced", "er", "erk", "erk+", "pyramidal", "smart", "uniform", "uniform+")
HOLD = ("erk+", "smart", "uniform+")  # they hold layers at a density of their own, and refuse too few weights
quick = settings(max_examples=60, deadline=None, derandomize=True)


def sizes_of(shapes):
    return {name: math.prod(shape) for name, shape in shapes.items()}


def total_of(shapes):
    return sum(sizes_of(shapes).values())


def held(rule, shapes, density):
    """Weights that a "+" rule keeps whatever the others get, by the rule's own description."""
    first, last = next(iter(shapes)), list(shapes)[-1]
    sizes = sizes_of(shapes)
    if rule == "erk+":
        return sizes[last] if len(shapes) > 1 else 0
    if rule == "smart":
        return max(density, 0.3) * sizes[last] if len(shapes) > 1 else 0
    if rule == "uniform+":
        stem = sizes[first] if len(shapes[first]) > 2 else 0
        return stem + max(density, 0.2) * sizes[last]
    return 0


# -- golden values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_the_shapes_are_those_of_the_tables(net):
    assert (len(NETS[net]), total_of(NETS[net])) == NUM_TENSORS_AND_WEIGHTS[net]


@pytest.mark.parametrize(("net", "rule", "density"), GOLDEN, ids=str)
def test_golden_densities(net, rule, density):
    found = densities(rule, NETS[net], density)
    printed = GOLDEN[net, rule, density]
    assert len(printed) >= 3
    assert {n: (found[n], p) for n, p in printed.items() if not agrees(found[n], p)} == {}


@pytest.mark.parametrize(
    ("net", "density"), [(net, p) for net in PYRAMIDAL_ROOTS for p in PYRAMIDAL_ROOTS[net]], ids=str
)
def test_golden_pyramidal_roots(net, density):
    found = list(densities("pyramidal", NETS[net], density).values())
    assert agrees(found[0], PYRAMIDAL_ROOTS[net][density])
    assert found == pytest.approx([found[0] ** level for level in range(1, len(found) + 1)], rel=1e-12)


def test_smart_ratios_by_hand():
    """The fourth, third and second layer from the end want 20, 12 and 6; the last one has its 0.3."""
    shapes = {"a": (10, 10), "b": (10, 10), "c": (10, 10), "fc": (10, 10)}
    left = 0.1 * 400 - 30
    expected = {"a": left * 20 / 38, "b": left * 12 / 38, "c": left * 6 / 38, "fc": 30.0}
    assert {n: d * 100 for n, d in densities("smart", shapes, 0.1).items()} == pytest.approx(expected)
    assert allocate("smart", shapes, 0.1) == {"a": 5, "b": 3, "c": 2, "fc": 30}


def test_golden_counts_of_a_classifier_that_pyramidal_starves():
    """2.7 and 0.29 expected weights of 5,120."""
    shapes = NETS["resnet18"]
    assert densities("pyramidal", shapes, 0.01)["linear"] * 5120 == pytest.approx(2.7, abs=0.05)
    assert densities("pyramidal", shapes, 0.005)["linear"] * 5120 == pytest.approx(0.29, abs=0.01)
    assert allocate("pyramidal", shapes, 0.001)["linear"] == 0


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("rule", RULES)
def test_budgets_are_exact_on_every_net(net, rule):
    shapes = NETS[net]
    sizes, total = sizes_of(shapes), total_of(shapes)
    before: dict[str, int] | None = None
    met = 0
    for density in sorted(DENSITIES):
        if held(rule, shapes, density) >= density * total:
            with pytest.raises(ValueError, match="raise the density or hold fewer layers"):
                densities(rule, shapes, density)
            continue
        met += 1
        real = densities(rule, shapes, density)
        assert sum(real[n] * sizes[n] for n in sizes) == pytest.approx(density * total, rel=1e-9)
        assert all(0 <= share <= 1 + 1e-12 for share in real.values())
        counts = allocate(rule, shapes, density)
        assert list(counts) == list(shapes)
        assert sum(counts.values()) == round(density * total)
        assert all(0 <= counts[n] <= sizes[n] for n in sizes)
        assert all(abs(counts[n] - real[n] * sizes[n]) < 1 + 1e-6 for n in sizes)
        if before is not None:
            assert all(counts[n] >= before[n] - 1 for n in sizes), "a denser net starves a layer"
        before = counts
    assert met >= 3


def test_density_one_is_dense():
    for rule in RULES:
        assert allocate(rule, NETS["resnet20"], 1.0) == sizes_of(NETS["resnet20"])


# -- oracles -----------------------------------------------------------------------------------------------------


def moved_to_dense(raw: dict[str, Fraction], sizes: dict[str, int], density: Fraction) -> dict[str, Fraction]:
    """The published loop in exact arithmetic: while somebody asks for more than all, make the greediest dense."""
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        share = sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        if not share:
            return dict.fromkeys(sizes, Fraction(1))
        epsilon = budget / share
        top = max(raw[name] for name in sizes if name not in dense)
        if epsilon * top <= 1:
            return {name: Fraction(1) if name in dense else epsilon * raw[name] for name in sizes}
        dense |= {name for name in sizes if name not in dense and raw[name] == top}


def raw_of(rule, shapes):
    sizes = sizes_of(shapes)
    if rule == "uniform":
        return dict.fromkeys(shapes, Fraction(1))
    if rule == "balanced":
        return {n: Fraction(1, sizes[n]) for n in shapes}
    if rule == "er":
        return {n: Fraction(s[0] + s[1], s[0] * s[1]) for n, s in shapes.items()}
    return {n: Fraction(sum(s), math.prod(s)) for n, s in shapes.items()}


shape = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)),
)
nets = st.lists(shape, min_size=1, max_size=8).map(lambda shapes: {f"l{i}": s for i, s in enumerate(shapes)})
budgets = st.floats(0.0005, 1.0)


@quick
@given(nets, budgets, st.sampled_from(["uniform", "balanced", "er", "erk"]))
def test_water_filling_equals_moving_the_greediest_to_dense(shapes, density, rule):
    expected = moved_to_dense(raw_of(rule, shapes), sizes_of(shapes), Fraction(density))
    found = densities(rule, shapes, density)
    assert found == pytest.approx({name: float(share) for name, share in expected.items()}, rel=1e-9)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("rule", ["balanced", "erk"])
def test_water_filling_equals_moving_the_greediest_to_dense_on_real_nets(net, rule):
    shapes = NETS[net]
    for density in DENSITIES:
        expected = moved_to_dense(raw_of(rule, shapes), sizes_of(shapes), Fraction(density))
        assert densities(rule, shapes, density) == pytest.approx(
            {n: float(s) for n, s in expected.items()}, rel=1e-12
        )


@quick
@given(nets, budgets)
def test_pyramidal_is_the_root_of_its_polynomial(shapes, density):
    """Bisection in exact arithmetic; scipy's and numpy's roots are ill-conditioned at depth 50."""
    sizes = list(sizes_of(shapes).values())
    low, high, budget = Fraction(0), Fraction(1), Fraction(density) * sum(sizes)
    for _ in range(40):
        middle = (low + high) / 2
        below = sum(n * middle**level for level, n in enumerate(sizes, 1)) < budget
        low, high = (middle, high) if below else (low, middle)
    assert next(iter(densities("pyramidal", shapes, density).values())) == pytest.approx(
        float(high), rel=1e-8
    )


@pytest.mark.parametrize(
    ("rule", "density", "realised"),
    [("erk", 0.1, 0.092), ("erk", 0.5, 0.389), ("balanced", 0.1, 0.079), ("balanced", 0.5, 0.266)],
)
def test_clamping_without_redistribution_would_miss_the_budget(rule, density, realised):
    """What the published clamping variants realise on ResNet-18: the reason for redistributing."""
    shapes, raw = NETS["resnet18"], raw_of(rule, NETS["resnet18"])
    sizes, total = sizes_of(shapes), total_of(shapes)
    scale = density * total / float(sum(raw[n] * sizes[n] for n in sizes))
    clamped = sum(sizes[n] * min(1.0, scale * float(raw[n])) for n in sizes) / total
    assert clamped == pytest.approx(realised, abs=5e-4)
    assert sum(allocate(rule, shapes, density).values()) == round(density * total)


# -- properties --------------------------------------------------------------------------------------------------


def checked(distribution, shapes, density, capacity=None):
    """Both functions agree with each other and with the budget, or both refuse; the counts, or None.

    Real densities add up to the real budget, or to a capacity that is exactly the rounded one.
    """
    sizes = sizes_of(shapes)
    try:
        real = densities(distribution, shapes, density, capacity=capacity)
    except ValueError:
        with pytest.raises(ValueError):
            allocate(distribution, shapes, density, capacity=capacity)
        return None
    counts = allocate(distribution, shapes, density, capacity=capacity)
    room = capacity or sizes
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(0 <= counts[n] <= room[n] for n in sizes)
    assert all(isinstance(count, int) for count in counts.values())
    assert all(0 <= share <= 1 + 1e-12 for share in real.values())
    budget, shared = density * sum(sizes.values()), sum(real[n] * sizes[n] for n in sizes)
    full = sum(room.values()) == round(budget)
    off = (
        len(sizes) / 2 if distribution in HOLD else 1e-6
    )  # a density that is held is not rounded, a count is
    assert shared == pytest.approx(budget, rel=1e-8) or (full and abs(shared - round(budget)) <= off)
    return counts


@quick
@given(nets, budgets, st.sampled_from(RULES))
def test_any_net_gets_its_exact_budget(shapes, density, rule):
    counts = checked(rule, shapes, density)
    if counts is None:
        assert held(rule, shapes, density) >= density * total_of(shapes) * (1 - 1e-6)


@quick
@given(nets, budgets, st.sampled_from(RULES), st.data())
def test_no_layer_gets_more_than_its_capacity(shapes, density, rule, data):
    capacity = {n: data.draw(st.integers(0, size)) for n, size in sizes_of(shapes).items()}
    counts = checked(rule, shapes, density, capacity)
    if density * total_of(shapes) > sum(capacity.values()) + 0.5:
        assert counts is None
    elif density * total_of(shapes) <= sum(capacity.values()) and rule not in HOLD:
        assert counts is not None


@quick
@given(nets, budgets, st.sampled_from(["balanced", "erk", "uniform"]), st.data())
def test_explicit_densities_are_kept_and_the_rest_follows_the_rule(shapes, density, rule, data):
    chosen = data.draw(st.lists(st.sampled_from(sorted(shapes)), unique=True, max_size=len(shapes) - 1))
    explicit = {name: data.draw(st.floats(0, 1)) for name in chosen}
    assume(len(explicit) < len(shapes))
    counts = checked(explicit | {"*": rule}, shapes, density)
    sizes, total = sizes_of(shapes), total_of(shapes)
    left = density * total - sum(share * sizes[n] for n, share in explicit.items())
    rest = {n: s for n, s in shapes.items() if n not in explicit}
    if counts is None:
        assert left <= 1e-8 * total or left > total_of(rest) * (1 - 1e-8)
        return
    real = densities(explicit | {"*": rule}, shapes, density)
    assert {n: real[n] for n in explicit} == pytest.approx(explicit, abs=1e-9)
    assert all(abs(counts[n] - explicit[n] * sizes[n]) < 1 + 1e-6 for n in explicit)
    if 1e-6 < left / total_of(rest) < 1:
        alone = densities(rule, rest, left / total_of(rest))
        assert {n: real[n] for n in rest} == pytest.approx(alone, rel=1e-6, abs=1e-9)


@quick
@given(
    nets, budgets, st.sampled_from(["balanced", "er", "erk", "uniform"]), st.randoms(use_true_random=False)
)
def test_the_order_of_layers_does_not_matter(shapes, density, rule, random):
    names = list(shapes)
    random.shuffle(names)
    shuffled = densities(rule, {n: shapes[n] for n in names}, density)
    assert shuffled == pytest.approx(densities(rule, shapes, density), rel=1e-12)


@quick
@given(nets, st.floats(0.001, 0.5), st.floats(1.0, 2.0), st.sampled_from(["balanced", "erk", "pyramidal"]))
def test_a_larger_budget_takes_from_nobody(shapes, density, factor, rule):
    less, more = densities(rule, shapes, density), densities(rule, shapes, min(1.0, density * factor))
    assert all(more[n] >= less[n] - 1e-9 for n in shapes)


@quick
@given(nets, budgets, st.floats(1e-3, 1e3))
def test_scaled_generalises_the_rules_and_ignores_the_scale(shapes, density, scale):
    base = {n: scale * float(raw) for n, raw in raw_of("erk", shapes).items()}
    assert densities(Scaled(base), shapes, density) == pytest.approx(
        densities("erk", shapes, density), rel=1e-9
    )


# -- by hand -----------------------------------------------------------------------------------------------------

TWO = {"a.weight": (10, 10), "b.weight": (10, 90)}


def test_largest_remainders_by_hand():
    """0.5 of 3 x 5 = 7.5 weights, rounded to the even 8: remainders tie, the earlier layers win."""
    shapes = {"a": (1, 5), "b": (1, 5), "c": (1, 5)}
    assert allocate("uniform", shapes, 0.5) == {"a": 3, "b": 3, "c": 2}


def test_uniform_plus_by_hand():
    shapes = {"conv": (10, 1, 3, 3), "mid": (100, 10), "fc": (10, 10)}
    counts = allocate("uniform+", shapes, 0.15)  # 178.5 of 1190: conv 90, fc 20, mid the other 68
    assert counts == {"conv": 90, "mid": 68, "fc": 20}
    shapes = {"first": (100, 10), "mid": (100, 10), "fc": (10, 10)}  # a Linear at the front is not kept dense
    assert densities("uniform+", shapes, 0.1) == pytest.approx(
        {"first": 0.095, "mid": 0.095, "fc": 0.2}, rel=1e-12
    )


def test_erk_plus_keeps_the_last_layer_dense():
    found = densities("erk+", NETS["resnet18"], 0.1)
    assert found["linear"] == 1.0
    rest = {n: s for n, s in NETS["resnet18"].items() if n != "linear"}
    share = (0.1 * 11_164_352 - 5120) / total_of(rest)
    assert {n: found[n] for n in rest} == pytest.approx(densities("erk", rest, share), rel=1e-9)


def test_mappings_take_globs_module_names_and_rules():
    shapes = {"a.weight": (10, 10), "b.weight": (10, 90), "c.weight": (10, 100)}
    assert allocate({"a": 1.0, "*": "uniform"}, shapes, 0.1)["a.weight"] == 100
    assert allocate({"[ab].weight": 0.05, "*": "uniform"}, shapes, 0.1)["b.weight"] == 45
    assert allocate({"a": 0.2, "*": 0.05}, TWO, 0.065) == {
        "a.weight": 20,
        "b.weight": 45,
    }  # the first match counts
    assert allocate({"a": 0.2, "b": 0.05}, TWO, 0.065) == {"a.weight": 20, "b.weight": 45}
    assert allocate({"a": 0.0, "*": "erk"}, TWO, 0.1) == {"a.weight": 0, "b.weight": 100}


def test_a_capacity_moves_weights_to_the_layers_with_room():
    assert allocate("uniform", TWO, 0.1, capacity={"a.weight": 3, "b.weight": 900}) == {
        "a.weight": 3,
        "b.weight": 97,
    }


def test_a_capacity_of_exactly_the_rounded_budget_is_enough():
    """0.3 of 21 weights is 6.3: a source of that density holds 6, and a mask of that density wants 6."""
    assert allocate("erk", {"w": (3, 7)}, 0.3, capacity={"w": 6}) == {"w": 6}


@pytest.mark.parametrize(
    ("distribution", "density", "message"),
    [
        ("erk", 0.0, "density must be in"),
        ("erk", -0.1, "density must be in"),
        ("erk", 1.01, "density must be in"),
        ("erk", math.nan, "density must be in"),
        ("balancd", 0.1, "unknown distribution 'balancd': did you mean 'balanced'"),
        ({"c": 0.1}, 0.1, "'c' matches no layer: .*known: a.weight, b.weight"),
        ({"a": 1.5}, 0.1, "density of 'a' must be in"),
        ({"a": -0.5}, 0.1, "density of 'a' must be in"),
        ({"a": math.nan}, 0.1, "density of 'a' must be in"),
        ({"a": "ekr", "b": 0.1}, 0.1, "unknown distribution 'ekr'"),
        ({"b": 1.0}, 0.1, "density 0.1 allows 100 weights.*already need 900 .b.weight."),
        ({"a": 1.0}, 0.1, "hold fewer layers"),  # nothing would be left for b
        ({"a": 0.1, "b": 0.1}, 0.2, "names a density for every layer and they hold 100"),
        (Scaled({"a.weight": 1.0}), 0.1, "no base density for b.weight"),
        (Scaled({"a.weight": 1.0, "b.weight": 0.0}), 0.5, "want none"),
    ],
)
def test_impossible_wishes_are_refused(distribution, density, message):
    for function in (densities, allocate):
        with pytest.raises(ValueError, match=message):
            function(distribution, TWO, density)


def test_a_source_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"hold only 50; limited by the source: a\.weight, b\.weight"):
        allocate("erk", TWO, 0.1, capacity={"a.weight": 20, "b.weight": 30})


def test_the_names_are_those_of_the_rules_tested_here():
    assert distributions.names() == sorted(RULES)


def test_densities_of_all_layers_that_agree_but_for_rounding():
    shapes = {"a": (100,), "b": (100,)}
    assert allocate({"a": 0.333, "b": 0.333}, shapes, 0.3333) == {"a": 34, "b": 33}
    assert allocate({"a": 0.3334, "b": 0.3334}, shapes, 0.333) == {"a": 34, "b": 33}
    with pytest.raises(ValueError, match="asks for 70 weights"):
        allocate({"a": 0.333, "b": 0.333}, shapes, 0.35)
    with pytest.raises(ValueError, match="already need 67"):
        allocate({"a": 0.333, "b": 0.333}, shapes, 0.3)
