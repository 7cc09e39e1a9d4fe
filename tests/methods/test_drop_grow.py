"""SET and RigL: hand-made tables from the papers' rules, schedules, policies of grown weights, parity options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.draw import Permutation
from startsparse.methods import DenseView

from .tables import attach_with_mask, bits, give_gradient, layer, written

# Eight weights, four of them live. Their order by magnitude: positions 3, 2, 1, 0 are dropped in this order. The
# order of the dense gradient by magnitude: 2 (live), 6, 4, 5, 3 (live), 7.
WEIGHTS = [4.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0]
GRADIENT = [0.0, 0.0, 9.0, 1.0, -5.0, 2.0, 7.0, -0.5]
MASK = "1 1 1 1 0 0 0 0"


def updated(method: ss.methods.Method, step: int = 1, total_steps: int = 100, source: str | None = None):
    """The mask after one update of the table, and the change."""
    view = DenseView(
        "fc.weight",
        torch.tensor([WEIGHTS]),
        bits(MASK).view(1, -1),
        None if source is None else bits(source),
        torch.tensor([GRADIENT]),
    )
    change = method.update({"fc.weight": view}, step, 4, total_steps)["fc.weight"]
    mask = bits(MASK)
    assert bool(mask[change.dropped].all()) and not bool(mask[change.grown].any())
    mask[change.dropped] = False
    mask[change.grown] = True
    return written(mask), change


def moving(kind, **options):
    return kind(density=0.5, drop_schedule="constant", **options)


# Evci et al. 2020, algorithm 1: drop the share of smallest magnitude, grow the same number of largest abs(gradient)
# among the positions that are not kept; a just-dropped weight may come back.
@pytest.mark.parametrize(
    ("fraction", "exclude", "source", "expected"),
    [
        (0.0, False, None, "1 1 1 1 0 0 0 0"),
        (0.24, False, None, "1 1 1 1 0 0 0 0"),  # less than one weight: none
        (0.25, False, None, "1 1 1 0 0 0 1 0"),  # 3 goes, 6 comes
        (0.3, False, None, "1 1 1 0 0 0 1 0"),  # floor(0.3 * 4) = 1
        (0.5, False, None, "1 1 1 0 0 0 1 0"),  # 2 and 3 go, 2 comes back at once, and 6
        (0.5, True, None, "1 1 0 0 1 0 1 0"),  # 2 and 3 must stay away: 6 and 4
        (0.75, False, None, "1 0 1 0 1 0 1 0"),  # 1, 2, 3 go; 2, 6, 4 come
        (0.75, True, None, "1 0 0 0 1 1 1 0"),
        (1.0, False, None, "0 0 1 0 1 1 1 0"),  # the four largest gradients of all
        (1.0, True, None, "0 0 0 0 1 1 1 1"),
        (0.25, False, "1 1 1 1 1 1 0 1", "1 1 1 0 1 0 0 0"),  # 6 is not in the source: 4
        (0.5, True, "1 1 1 1 0 0 0 1", "1 1 1 0 0 0 0 1"),  # only 7 may grow: only one is dropped
        (0.5, True, "1 1 1 1 0 0 0 0", "1 1 1 1 0 0 0 0"),  # nothing may grow: nothing is dropped
        (
            1.0,
            False,
            "1 1 1 1 0 0 0 1",
            "1 0 1 1 0 0 0 1",
        ),  # 2, 3, 7, then of the tie 0 and 1 the lower index
    ],
)
def test_rigl_by_hand(fraction, exclude, source, expected):
    rigl = moving(ss.RigL, drop_fraction=fraction, exclude_dropped=exclude)
    assert updated(rigl, source=source)[0] == expected


def test_rigl_by_hand_what_comes_back_is_no_change():
    _, change = updated(moving(ss.RigL, drop_fraction=0.5))
    assert (change.dropped.tolist(), change.grown.tolist()) == ([3], [6])


# Mocanu et al. 2018: drop the smallest, grow anywhere at random. Where as many positions are free as must grow, the
# result has no choice left.
@pytest.mark.parametrize(
    ("fraction", "source", "expected"),
    [
        (0.0, None, "1 1 1 1 0 0 0 0"),
        (0.25, "1 1 1 1 0 0 1 0", "1 1 1 0 0 0 1 0"),
        (0.5, "1 1 1 1 0 1 0 1", "1 1 0 0 0 1 0 1"),
        (0.75, "1 1 1 1 0 1 1 1", "1 0 0 0 0 1 1 1"),
        (1.0, None, "0 0 0 0 1 1 1 1"),
        (0.75, "1 1 1 1 0 1 0 0", "1 1 1 0 0 1 0 0"),
    ],
)
def test_set_by_hand(fraction, source, expected):
    method = moving(ss.SET, drop_fraction=fraction, exclude_dropped=True)
    assert updated(method, source=source)[0] == expected


# Mocanu et al. 2018, section "Methods": the same fraction of the smallest positive and of the largest negative weights.
@pytest.mark.parametrize(
    ("fraction", "dropped"),
    [
        (0.0, []),
        (1 / 6, [5]),  # both signs lose half a weight: of the tie the positive ones keep theirs
        (
            2 / 6,
            [3, 5],
        ),  # one of the three positive (0.2), one of the three negative (-0.5), though 0.4 is smaller
        (4 / 6, [1, 2, 3, 5]),
        (1.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_set_by_hand_signs_apart(fraction, dropped):
    weights = torch.tensor([[4.0, 0.4, -3.0, 0.2, -5.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    view = DenseView("fc.weight", weights, bits("1 1 1 1 1 1 0 0 0 0 0 0").view(1, -1))
    method = moving(ss.SET, drop_fraction=fraction, exclude_dropped=True, drop_rule="signs")
    assert method.update({"fc.weight": view}, 1, 6, 100)["fc.weight"].dropped.tolist() == dropped


def test_set_with_signs_counts_fresh_zeros_as_positive():
    view = DenseView("w", torch.tensor([[-1.0, 0.0, 2.0, 0.0]]), bits("1 1 1 0").view(1, -1))
    change = moving(ss.SET, drop_fraction=0.4, exclude_dropped=True, drop_rule="signs").update(
        {"w": view}, 1, 3, 9
    )
    assert change["w"].dropped.tolist() == [1]


def test_set_grows_the_first_free_positions_of_the_drawn_order():
    mask, _ = updated(moving(ss.SET, drop_fraction=0.5, seed=7), step=30)
    order = Permutation(8, "grow:30", 7, "fc.weight").positions(0, 8).tolist()
    grown = [position for position in order if position not in (0, 1)][
        :2
    ]  # 2 and 3 were dropped, and may return
    assert mask == written(torch.tensor([i in (0, 1) or i in grown for i in range(8)]))


def test_set_grows_everywhere_alike():
    times = torch.zeros(8)
    for step in range(600):
        _, change = updated(moving(ss.SET, drop_fraction=0.25, exclude_dropped=True), step, total_steps=1000)
        times[change.grown] += 1
    assert times[:4].sum() == 0
    assert bool(((times[4:] - 150).abs() < 40).all()), times  # 150 expected, sd 10.6


def test_gradients_of_the_past_do_not_matter_to_set():
    assert not ss.SET(density=0.1, update_interval=1).wants_gradient(1, 10)
    assert ss.RigL(density=0.1, update_interval=1).wants_gradient(1, 10)


# -- counts and schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 0, 0.4),
        ("cosine", 25, 0.2 * (1 + math.cos(math.pi / 4))),
        ("cosine", 50, 0.2),
        ("linear", 25, 0.3),
        ("linear", 50, 0.2),
        ("constant", 75, 0.4),
    ],
)
def test_the_share_that_moves_follows_its_schedule(schedule, step, expected):
    weights = torch.arange(1.0, 1001.0).view(1, -1) * bits(" ".join(["1 0"] * 500))
    view = DenseView("w", weights, weights != 0, None, torch.rand(1, 1000))
    rigl = ss.RigL(
        density=0.5, drop_fraction=0.4, drop_schedule=schedule, update_end=100, exclude_dropped=True
    )
    change = rigl.update({"w": view}, step, 500, None)["w"]
    assert len(change.dropped) == len(change.grown) == int(expected * 500)
    assert change.dropped.tolist() == list(range(0, 2 * len(change.dropped), 2)), "the smallest go"


@pytest.mark.parametrize(
    ("options", "total_steps", "expected"),
    [
        ({}, 1000, [100, 200, 300, 400, 500, 600, 700]),
        ({"update_end": 1.0, "update_interval": 300}, 1000, [300, 600, 900]),
        ({"update_begin": 0, "update_interval": 250}, 1000, [0, 250, 500]),
        ({"update_begin": 0.5, "update_interval": 100}, 1000, [500, 600, 700]),
        ({"update_begin": 150, "update_end": 301}, None, [200, 300]),
        ({"update_begin": 150, "update_end": 300}, None, [200]),
    ],
)
@pytest.mark.parametrize("kind", [ss.SET, ss.RigL])
def test_updates_are_multiples_of_the_interval_from_begin_to_before_end(kind, options, total_steps, expected):
    method = kind(density=0.1, **options)
    assert [step for step in range(1200) if method.due(step, total_steps)] == expected
    assert method.phase(expected[-1], total_steps) == "exploring"
    assert method.phase(expected[-1] + 1, total_steps) == "fixed"


# -- through the optimizer -----------------------------------------------------------------------------------------


def test_drop_sees_the_weights_after_the_step_and_grow_the_gradient_of_the_step():
    model = layer([4.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rigl = moving(ss.RigL, drop_fraction=0.25, update_interval=1, update_begin=0)
    sparse = attach_with_mask(model, optimizer, rigl, MASK)
    give_gradient(model, [7.0, 0.0, 0.0, 1.0, -5.0, 2.0, 3.0, -0.5])
    optimizer.step()  # live weights are 0.5, -3, 0.2, -0.6 now: the smallest is position 2
    assert written(sparse.masks["fc.weight"]) == "1 1 0 1 1 0 0 0"
    assert model.fc.weight.tolist() == [[0.5, -3.0, 0.0, pytest.approx(-0.6), 0.0, 0.0, 0.0, 0.0]]


def test_a_weight_that_is_dropped_and_grows_back_keeps_its_value_and_its_state():
    model = layer(WEIGHTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    rigl = moving(ss.RigL, drop_fraction=0.5, update_interval=1, update_begin=0)
    sparse = attach_with_mask(model, optimizer, rigl, MASK)
    give_gradient(model, GRADIENT)
    optimizer.step()
    assert written(sparse.masks["fc.weight"]) == "1 1 1 0 0 0 1 0"
    momentum = optimizer.state[model.fc.weight]["momentum_buffer"]
    assert model.fc.weight[0, 2].item() == pytest.approx(0.2 - 9e-3)
    assert momentum.tolist() == [[0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert model.fc.weight.grad.tolist() == [[0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


def test_skip_step_on_update_replaces_the_step():
    """The reference code of RigL: an update step moves masks and nothing else, and looks at the weights before it."""
    model = layer([1.0, -3.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0])
    model.append(nn.Linear(1, 1))
    fc = model.fc
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    rigl = moving(ss.RigL, drop_fraction=0.5, update_interval=2, update_begin=0, skip_step_on_update=True)
    sparse = ss.attach(model, optimizer, rigl, layers=["fc"], total_steps=100)
    for step in range(6):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        mask = sparse.masks["fc.weight"].clone()
        give_gradient(model, [0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0])
        gradients = [parameter.grad for parameter in model.parameters()]
        optimizer.step()
        assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True)), (
            "gradients are back"
        )
        kept = mask & sparse.masks["fc.weight"]
        same = [torch.equal(a, b) for a, b in zip(before[1:], list(model.parameters())[1:], strict=True)]
        assert same == [step % 2 == 0] * 2
        assert torch.equal(before[0][kept], fc.weight[kept]) is (step % 2 == 0)
        assert len(optimizer.state) == (0 if step == 0 else 3)
        optimizer.zero_grad()
    assert sparse.step == 6
    assert {int(s["step"]) for s in optimizer.state.values()} == {3}, "skipped steps are none of Adam's"
    assert int(sparse.masks["fc.weight"].sum()) == 4


def test_skip_step_on_update_refuses_a_closure():
    model = layer(WEIGHTS)
    optimizer = torch.optim.LBFGS(model.parameters())
    rigl = moving(ss.RigL, update_interval=1, update_begin=0, skip_step_on_update=True)
    sparse = ss.attach(model, optimizer, rigl, total_steps=10)
    with pytest.raises(RuntimeError, match=r"skip_step_on_update.*closure"):
        optimizer.step(lambda: torch.tensor(0.0))
    assert sparse.step == 0


# -- values and states of grown weights ----------------------------------------------------------------------------


def grow_two(value: str = "zero", state: str = "reset", kind=ss.RigL, seed: int = 0):
    """One update in which 2 and 3 go, 4 and 6 come; Adam's second moments are 1, 4, 9, 16, 25, ... before."""
    model = layer([4.0, -2.0, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.5, 1 - 1e-12))
    method = moving(
        kind,
        drop_fraction=0.5,
        exclude_dropped=True,
        update_interval=1,
        update_begin=0,
        update_end=1,
        grown_value=value,
        grown_state=state,
        seed=seed,
    )
    source = "1 1 1 1 1 0 1 0"
    sparse = attach_with_mask(model, optimizer, method, MASK, source=source)
    squares = torch.arange(1.0, 9.0).view(1, -1) ** 2
    optimizer.state[model.fc.weight] = {
        "step": torch.tensor(5.0),
        "exp_avg": squares.clone(),
        "exp_avg_sq": squares.clone(),
    }
    give_gradient(model, [0.0, 0.0, 9.0, 1.0, -5.0, 2.0, 7.0, -0.5])
    optimizer.step()
    assert written(sparse.masks["fc.weight"]) == "1 1 0 0 1 0 1 0"
    return model.fc.weight.detach()[0], optimizer.state[model.fc.weight]["exp_avg_sq"][0], sparse


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("reset", [1, 4, 0, 0, 0, 36, 0, 64]),  # only what moved; dead positions are nobody's business
        ("keep", [1, 4, 9, 16, 25, 36, 49, 64]),
        ("mean", [1, 4, 0, 0, 7.5, 36, 7.5, 64]),  # mean of the live entries 1, 4, 9, 16
    ],
)
def test_state_policies_of_grown_weights(policy, expected):
    _, second_moment, _ = grow_two(state=policy)
    assert second_moment.tolist() == pytest.approx(expected, abs=1e-4)


def test_value_policies_of_grown_weights():
    live = torch.tensor([4.0, -2.0, 0.2, -0.1])
    spread = live.std(unbiased=False).item()
    zero, _, _ = grow_two("zero")
    assert zero.tolist() == [4.0, -2.0, 0, 0, 0, 0, 0, 0]
    sign, _, _ = grow_two("gradient_sign")
    assert sign.tolist() == pytest.approx(
        [4.0, -2.0, 0, 0, spread, 0, -spread, 0]
    )  # downhill: against -5 and 7
    sign, _, sparse = grow_two("gradient_sign", kind=ss.SET)
    assert sign.tolist() == pytest.approx([4.0, -2.0, 0, 0, spread, 0, -spread, 0])
    assert sparse.method.wants_gradient(0, 100) and not sparse.method.wants_gradient(1, 100)
    normal, _, _ = grow_two("normal")
    again, _, _ = grow_two("normal")
    other, _, _ = grow_two("normal", seed=1)
    assert torch.equal(normal, again) and not torch.equal(normal, other)
    assert bool((normal[[4, 6]] != 0).all()) and normal[[2, 3, 5, 7]].tolist() == [0, 0, 0, 0]


def test_normal_values_have_the_spread_of_the_live_weights():
    torch.manual_seed(0)
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = ss.SET(
        density=0.3,
        drop_fraction=1.0,
        exclude_dropped=True,
        update_interval=1,
        update_begin=0,
        grown_value="normal",
    )
    sparse = ss.attach(model, optimizer, method, total_steps=10)
    spread = model.weight[sparse.masks["weight"]].std().item()
    model(torch.randn(2, 100)).sum().backward()
    optimizer.step()
    grown = model.weight[sparse.masks["weight"]]
    assert grown.std().item() == pytest.approx(spread, rel=0.05)
    assert abs(grown.mean().item()) < 0.1 * spread


# -- bad hyper-parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rigl", "set"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"density": "5%"}, r"density must be in \(0, 1\], got '5%'"),
        ({"density": True}, "density must be"),
        ({"density": float("nan")}, "density must be"),
        ({}, "needs a density"),
        ({"density": 0.1, "distribution": "erkk"}, "distribution 'erkk': did you mean 'erk'"),
        ({"density": 0.1, "distribution": "global"}, "ranks no weights.*'global'"),
        ({"density": 0.1, "distribution": 0.3}, "distribution must be"),
        ({"density": 0.1, "seed": 1.5}, "seed must be an int, got 1.5"),
        ({"density": 0.1, "drop_fraction": 1.2}, r"drop_fraction must be in \[0, 1\], got 1.2"),
        ({"density": 0.1, "drop_fraction": float("nan")}, "drop_fraction must be"),
        ({"density": 0.1, "drop_rule": "sign"}, "rule 'sign'|no hyper-parameter 'drop_rule'"),
        ({"density": 0.1, "drop_schedule": "cosin"}, "drop_schedule 'cosin': did you mean 'cosine'"),
        ({"density": 0.1, "update_interval": 0}, "update_interval must be an int >= 1, got 0"),
        ({"density": 0.1, "update_interval": 2.0}, "update_interval must be an int >= 1, got 2.0"),
        ({"density": 0.1, "grown_value": "zeros"}, "grown_value 'zeros': did you mean 'zero'"),
        ({"density": 0.1, "grown_state": "rest"}, "grown_state 'rest': did you mean 'reset'"),
        ({"density": 0.1, "draw": "exakt"}, "draw 'exakt': did you mean 'exact'"),
        ({"density": 0.1, "flow": "ad"}, "flow 'ad': did you mean 'add'"),
        ({"density": 0.1, "drop_fracton": 0.3}, "'drop_fracton': did you mean 'drop_fraction'"),
    ],
)
def test_bad_hyper_parameters_are_named(name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        ss.methods.make(name, **given)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"drop_fraction": "0.3"},
        {"update_end": 2.0},
        {"update_begin": -1},
        {"exclude_dropped": "no"},
    ],
)
def test_bad_hyper_parameters_are_seen_at_once(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        ss.RigL(density=0.1, **given)


@pytest.mark.parametrize(
    ("given", "total_steps", "message"),
    [
        ({}, None, "update_end=0.75 is a fraction of the run: give total_steps="),
        ({"update_end": 1.5}, 100, "update_end=1.5 is not a fraction"),
        ({"update_end": -1}, 100, "update_end must be a step"),
        ({"update_begin": "now"}, 100, "update_begin must be a step"),
    ],
)
def test_bad_update_ranges_are_refused_before_the_model_is_touched(given, total_steps, message):
    model = layer(WEIGHTS)
    before = model.fc.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        ss.attach(model, optimizer, ss.RigL(density=0.5, **given), total_steps=total_steps)
    assert torch.equal(model.fc.weight, before)


def test_a_run_too_short_for_any_update_is_said_aloud():
    model = layer(WEIGHTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="update_interval"):
        ss.attach(model, optimizer, ss.RigL(density=0.5, update_interval=100), total_steps=100)
