"""Random sparse transformation: the pull worked out by hand, its schedule, the ticket, and the limits it must meet."""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import draw
from startsparse.layers import find
from startsparse.methods.rst import RST

from .tables import bits, give_gradient, layer, written

pytestmark = pytest.mark.filterwarnings("ignore:rst. weights outside the ticket shrink by")

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=1e-2),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=1e-2, fused=True),
}


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 10))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 8, generator=generator), torch.randn(6, 10, generator=generator)


def backward(model, optimizer, step):
    optimizer.zero_grad()
    x, y = batch(step)
    nn.functional.mse_loss(model(x), y).backward()


def train(model, optimizer, first, last):
    for step in range(first, last):
        backward(model, optimizer, step)
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def masks(text: str) -> dict[str, torch.Tensor]:
    return {"fc.weight": bits(text).view(1, -1)}


# Bai et al. 2022: gradient of the loss + lambda * (1 - m) * w, here with lr 0.5, loss gradient 1 for every weight, and
# lambda = 0.5, 1, 1 before the ticket 1 0 1 0 is masked:
#   w1: 2 -> 2 - .5 (1 + .5 * 2) = 1 -> 1 - .5 (1 + 1) = 0 -> 0 - .5 (1 + 0) = -.5 -> masked
#   w3: -4 -> -4 - .5 (1 - 2) = -3.5 -> -3.5 - .5 (1 - 3.5) = -2.25 -> -2.25 - .5 (1 - 2.25) = -1.625 -> masked
def test_rst_by_hand():
    model = layer([1.0, 2.0, 3.0, -4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method = RST(density=0.5, ticket=masks("1 0 1 0"), ramp_steps=2, stabilise_steps=1)
    sparse = ss.attach(model, optimizer, method)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        give_gradient(model, [1.0] * 4)
        optimizer.step()
        seen.append(
            (model.fc.weight.detach().view(-1).tolist(), written(sparse.masks["fc.weight"]), sparse.phase)
        )
        assert written(sparse.target_masks["fc.weight"]) == "1 0 1 0"
    assert seen == [
        ([0.5, 1.0, 2.5, -3.5], "1 1 1 1", "transforming"),
        ([0.0, 0.0, 2.0, -2.25], "1 1 1 1", "transforming"),
        ([-0.5, 0.0, 1.5, 0.0], "1 0 1 0", "fine-tuning"),
        ([-1.0, 0.0, 1.0, 0.0], "1 0 1 0", "fine-tuning"),
    ]


def test_rst_by_hand_decoupled_shrinks_after_the_step():
    model = layer([1.0, 2.0, 3.0, -4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method = RST(density=0.5, ticket=masks("1 0 1 0"), ramp_steps=2, stabilise_steps=9, penalty="decoupled")
    _ = ss.attach(model, optimizer, method)
    give_gradient(model, [1.0] * 4)
    optimizer.step()  # the step takes .5 from each; then a quarter (lr .5 * lambda .5) of what leaves is gone
    assert model.fc.weight.detach().view(-1).tolist() == [0.5, 1.5 * 0.75, 2.5, -4.5 * 0.75]


# -- the pull ------------------------------------------------------------------------------------------------------


def test_the_edit_is_the_gradient_of_the_penalty():
    model, twin = net(), net()
    method = RST(density=0.2, bound=3.0, ramp_steps=4, stabilise_steps=9, seed=4)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparse = ss.attach(model, optimizer, method)
    grown = []
    optimizer.register_step_pre_hook(
        lambda *_: grown.append({n: p.grad.clone() for n, p in model.named_parameters()})
    )
    backward(model, optimizer, 0)
    optimizer.step()
    x, y = batch(0)
    tickets = sparse.target_masks
    penalty = sum((p[~tickets[n]] ** 2).sum() for n, p in twin.named_parameters() if n in tickets)
    (nn.functional.mse_loss(twin(x), y) + method.strength(0, None) / 2 * penalty).backward()
    assert method.strength(0, None) == 0.75
    for name, parameter in twin.named_parameters():
        assert torch.allclose(grown[0][name], parameter.grad, rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_in_the_ticket_steps_as_without_a_pull(optimizer):
    model = net()
    made = OPTIMIZERS[optimizer](model.parameters())
    sparse = ss.attach(model, made, RST(density=0.2, ramp_steps=9, stabilise_steps=9))
    for step in range(6):
        twin = copy.deepcopy(model)
        shadow = OPTIMIZERS[optimizer](twin.parameters())
        shadow.load_state_dict(copy.deepcopy(made.state_dict()))
        backward(model, made, step)
        backward(twin, shadow, step)
        made.step()
        shadow.step()
        for name, parameter in model.named_parameters():
            other = twin.get_parameter(name)
            ticket = sparse.target_masks.get(name, torch.ones(parameter.shape, dtype=torch.bool))
            assert torch.equal(parameter[ticket], other[ticket]), name
            strength, rate = sparse.method.strength(step, None), made.param_groups[0]["lr"]
            if optimizer != "sgd" and not bool(ticket.all()):
                assert torch.allclose(parameter[~ticket], other[~ticket] * (1 - rate * strength), atol=1e-7)


def test_scaled_gradients_of_a_fused_optimizer_are_pulled_in_scale():
    model = layer([1.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=True)
    method = RST(density=0.5, ticket=masks("1 0"), ramp="constant", ramp_steps=9, stabilise_steps=0)
    _ = ss.attach(model, optimizer, method)
    optimizer.grad_scale, optimizer.found_inf = (
        torch.tensor(8.0),
        torch.tensor(0.0),
    )  # as a gradient scaler sets them
    give_gradient(model, [8.0, 0.0])
    optimizer.step()
    assert model.fc.weight.tolist() == [[0.5, 1.0]]
    optimizer.found_inf = torch.tensor(1.0)
    give_gradient(model, [8.0, 0.0])
    optimizer.step()
    assert model.fc.weight.tolist() == [[0.5, 1.0]], "a step that is skipped pulls nothing"


def test_a_step_with_a_closure_is_pulled_after_it():
    model = layer([1.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    _ = ss.attach(
        model,
        optimizer,
        RST(density=0.5, ticket=masks("1 0"), ramp="constant", ramp_steps=9, stabilise_steps=0),
    )

    def closure():
        optimizer.zero_grad()
        give_gradient(model, [1.0, 1.0])

    optimizer.step(closure)
    assert model.fc.weight.tolist() == [[0.5, 1.5 * 0.5]]


def test_accumulation_pulls_once_a_step():
    model = layer([0.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    _ = ss.attach(
        model,
        optimizer,
        RST(density=0.5, ticket=masks("1 0"), ramp="constant", ramp_steps=9, stabilise_steps=0),
    )
    for _ in range(3):
        give_gradient(model, [0.0, 0.0])
    optimizer.step()
    assert model.fc.weight.tolist() == [[0.0, 1.0]]


# -- when ----------------------------------------------------------------------------------------------------------


def test_the_trace_of_the_authors_constants():
    rst = RST.authors(0.3)
    trace = [rst.strength(step, None) for step in range(90_000)]
    assert trace[:6] == pytest.approx([1e-4] * 5 + [2e-4])
    rises = [step for step in range(1, 90_000) if trace[step] > trace[step - 1]]
    assert 1 + len(rises) == 10_000 and rises[0] == 5 and rises[-1] == 49_995
    assert max(abs(trace[t] - 1e-4 * (t // 5 + 1)) for t in range(49_996)) < 1e-12
    assert set(trace[49_995:89_996]) == {1.0} and trace[89_996] == 0.0
    assert rst.masks_at(None) == 89_995 and rst.due(89_995, None) and not rst.due(89_994, None)
    assert (rst.distribution, rst.dense_ends) == ("uniform", True)


def test_the_trace_of_the_authors_five_cycles():
    rst = RST.authors(0.3, cycles=5)
    trace = [rst.strength(step, None) for step in range(100_001)]
    assert [trace[20_000 * cycle] for cycle in range(5)] == pytest.approx([1e-4] * 5), "each ramp is fresh"
    assert [trace[20_000 * cycle + 9_999] for cycle in range(5)] == [1.0] * 5
    assert (rst.masks_at(None), trace[99_999], trace[100_000]) == (99_999, 1.0, 0.0)
    assert [step for step in range(100_001) if rst.due(step, None)] == [
        19_999,
        39_999,
        59_999,
        79_999,
        99_999,
    ]
    assert rst.counts(1000, 1000) == [786, 618, 486, 382, 300]


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ("linear", [0.5, 1.0, 1.5, 2.0]),
        ("square", [0.125, 0.5, 1.125, 2.0]),
        ("cube", [0.03125, 0.25, 0.84375, 2.0]),
        ("constant", [2.0] * 4),
        ("cosine", [2 * (1 - math.cos(math.pi * p / 4)) / 2 for p in (1, 2, 3, 4)]),
    ],
)
def test_ramps(ramp, expected):
    rst = RST(density=0.5, ramp=ramp, bound=2.0, ramp_steps=8, interval=2, stabilise_steps=3)
    trace = [rst.strength(step, None) for step in range(11)]
    assert [trace[step] for step in (0, 2, 4, 6)] == pytest.approx(expected)
    assert [trace[step] for step in (1, 3, 5)] == pytest.approx(expected[:3])
    assert trace[6:10] == [2.0] * 4 and trace[10] == 0.0


def test_fractions_are_of_the_run():
    rst = RST(density=0.1)
    assert rst.masks_at(1000) == 539
    assert [rst.phase(step, 1000) for step in (0, 539, 540, 999)] == ["transforming"] * 2 + [
        "fine-tuning"
    ] * 2
    assert rst.strength(299, 1000) == 1.0 and rst.strength(0, 1000) == pytest.approx(1 / 300)


# -- the limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bound_zero_is_dense_training_bit_for_bit(optimizer):
    model, twin = net(), net()
    made, shadow = OPTIMIZERS[optimizer](model.parameters()), OPTIMIZERS[optimizer](twin.parameters())
    sparse = ss.attach(model, made, RST(density=0.2, bound=0, ramp_steps=4, stabilise_steps=5))
    train(model, made, 0, 8)
    train(twin, shadow, 0, 8)
    assert same(model, twin) and sparse.density == 1.0
    train(model, made, 8, 9)
    assert sparse.density == 58 / 288 and not same(model, twin)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("source", [None, ss.RandomSource(0.5, seed=3)])
def test_an_infinite_bound_is_training_the_masked_net_bit_for_bit(optimizer, source):
    model, twin = net(), net()
    made, shadow = OPTIMIZERS[optimizer](model.parameters()), OPTIMIZERS[optimizer](twin.parameters())
    sparse = ss.attach(model, made, RST(density=0.2, bound=math.inf, seed=7), source=source, total_steps=8)
    other = ss.attach(twin, shadow, ss.Static(density=0.2, seed=7), source=source)
    train(model, made, 0, 8)
    train(twin, shadow, 0, 8)
    assert same(model, twin) and sparse.phase == "fine-tuning"
    assert all(torch.equal(sparse.masks[n], other.masks[n]) for n in sparse.masks)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cycles", [1, 2])
def test_masked_weights_are_exactly_zero_after_each_fine_tuning_step(optimizer, cycles):
    model = net()
    made = OPTIMIZERS[optimizer](model.parameters())
    sparse = ss.attach(model, made, RST(density=0.2, ramp_steps=4, stabilise_steps=2, cycles=cycles))
    tickets = []
    for step in range(12):
        tickets.append({n: m.clone() for n, m in sparse.target_masks.items()})
        train(model, made, step, step + 1)
        live = sum(int(m.sum()) for m in sparse.masks.values())
        assert live == sparse.target_count == (288 if step < sparse.method.masks_at(None) else 58)
        for name, mask in sparse.masks.items():
            assert not bool(model.get_parameter(name).detach()[~mask].view(torch.int32).any())
    last = sparse.method.masks_at(None)
    assert all(torch.equal(sparse.masks[n], tickets[last][n]) for n in sparse.masks)
    assert ss.masks.num_active(tickets[0]) == (58 if cycles == 1 else 129)
    assert ss.masks.is_subset(tickets[last], tickets[0]), "cycles are nested"


def test_the_pull_empties_what_will_be_masked():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparse = ss.attach(model, optimizer, RST(density=0.2, ramp_steps=120, stabilise_steps=60))
    train(model, optimizer, 0, 179)
    ticket = sparse.target_masks["0.weight"]
    weight = model[0].weight.detach().abs()
    assert sparse.density == 1.0 and weight[~ticket].mean() < 0.05 * weight[ticket].mean()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_at_masking_the_optimizer_begins_anew_and_the_rate_is_untouched(optimizer):
    model = net()
    made = OPTIMIZERS[optimizer](model.parameters())
    _ = ss.attach(model, made, RST(density=0.2, ramp_steps=2, stabilise_steps=1))
    for step in range(3):
        made.param_groups[0]["lr"] = 0.01 / (step + 1)
        train(model, made, step, step + 1)
        assert bool(made.state) == (step < 2)
    assert made.param_groups[0]["lr"] == 0.01 / 3
    twin = copy.deepcopy(model)
    fresh = type(made)(
        twin.parameters(),
        **{k: v for k, v in made.param_groups[0].items() if k in ("lr", "momentum", "weight_decay")},
    )
    masks_ = {n: p != 0 for n, p in twin.named_parameters()}
    backward(model, made, 9)
    made.step()
    backward(twin, fresh, 9)
    for name, parameter in twin.named_parameters():
        parameter.grad.mul_(masks_[name])
    fresh.step()
    assert same(model, twin)


# -- the ticket ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.013, 0.1, 1 / 3, 0.999, 1.0])
@pytest.mark.parametrize("distribution", ["uniform", "erk", "balanced", "global"])
@pytest.mark.parametrize("ticket", ["random", "magnitude"])
@pytest.mark.filterwarnings("ignore:.* no live weight left")
def test_counts_are_exact_in_every_cycle(density, distribution, ticket):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = RST(density, distribution, ticket=ticket, ramp_steps=3, stabilise_steps=0, cycles=3)
    sparse = ss.attach(model, optimizer, method)
    seen = []
    for step in range(4):
        seen.append({n: m.clone() for n, m in sparse.target_masks.items()})
        train(model, optimizer, step, step + 1)
    counts = [ss.masks.num_active(t) for t in seen]
    assert counts == [*method.counts(288, 288), round(density * 288)]
    assert all(ss.masks.is_subset(after, before) for before, after in itertools.pairwise(seen))


def test_layer_counts_are_those_of_the_rule():
    model = net()
    sparse = ss.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), RST(0.25, "uniform"), total_steps=100
    )
    assert ss.masks.counts(sparse.target_masks) == {"0.weight": 32, "3.weight": 40}
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    sparse = ss.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        RST.authors(40 / 62, ramp_steps=5, stabilise_steps=5),
    )
    assert ss.masks.counts(sparse.target_masks) == {"0.weight": 20, "1.weight": 8, "2.weight": 12}


def test_a_random_ticket_is_a_function_of_its_seed():
    def ticket(seed, distribution="uniform"):
        model = net(seed)
        how = RST(0.2, distribution, seed=seed % 2)
        sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), how, total_steps=100)
        return sparse.target_masks["0.weight"]

    for distribution in ("uniform", "global"):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        assert torch.equal(ticket(0, distribution), ticket(2, distribution))
        assert not torch.equal(ticket(0, distribution), ticket(1, distribution))
        assert torch.equal(state, torch.get_rng_state())


def test_a_magnitude_ticket_is_that_of_the_first_weights():
    model = net()
    weights = {n: p.detach().abs().clone() for n, p in model.named_parameters()}
    sparse = ss.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        RST(0.25, "uniform", ticket="magnitude"),
        total_steps=100,
    )
    for name, mask in sparse.target_masks.items():
        assert weights[name][mask].min() > weights[name][~mask].max()


@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_a_ticket_is_drawn_inside_the_source(distribution):
    source = ss.RandomSource(0.5, "balanced", seed=5)
    model = net()
    inside = {n: s.mask().view(model.get_parameter(n).shape) for n, s in source.supports(find(model)).items()}
    sparse = ss.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        RST(0.1, distribution),
        source=source,
        total_steps=50,
    )
    assert sparse.density == 0.5
    assert ss.masks.is_subset(sparse.target_masks, inside) and ss.masks.num_active(sparse.target_masks) == 29


def test_a_given_ticket_is_kept_through_cycles():
    given = {n: torch.rand(p.shape) < 0.3 for n, p in net().named_parameters() if p.dim() > 1}
    density = ss.masks.density(given)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(
        model, optimizer, RST(density, ticket=given, ramp_steps=2, stabilise_steps=2, cycles=2)
    )
    first = {n: m.clone() for n, m in sparse.target_masks.items()}
    assert ss.masks.is_subset(given, first) and ss.masks.num_active(first) > ss.masks.num_active(given)
    train(model, optimizer, 0, 4)
    assert all(torch.equal(sparse.masks[n], given[n]) for n in given)
    assert sparse.describe()["method"]["ticket"].startswith("masks ")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("source", [None, ss.RandomSource(0.5, seed=3)])
def test_sparse_execution_trains_the_same_net(optimizer, source):
    ends = []
    for execution in ("masked", "sparse"):
        model = net()
        made = OPTIMIZERS[optimizer](model.parameters())
        how = RST(0.1, ramp_steps=6, stabilise_steps=2, cycles=2)
        sparse = ss.attach(model, made, how, source=source, execution=execution)
        train(model, made, 0, 12)
        ends.append((sparse.dense_state_dict(), {n: m.clone() for n, m in sparse.masks.items()}))
    assert all(torch.equal(ends[0][1][n], ends[1][1][n]) for n in ends[0][1])
    assert all(torch.allclose(ends[0][0][n], ends[1][0][n], atol=1e-5) for n in ends[0][0])


# -- state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_resumed_run_keeps_its_ticket_even_if_it_would_be_drawn_otherwise(execution, monkeypatch):
    def begin(seed):
        model = net(seed)
        made = OPTIMIZERS["sgd"](model.parameters())
        how = RST(0.2, ramp_steps=6, stabilise_steps=2, cycles=2)
        return model, made, ss.attach(model, made, how, execution=execution)

    model, made, sparse = begin(0)
    train(model, made, 0, 2)
    file = io.BytesIO()
    torch.save([sparse.state_dict(), model.state_dict(), made.state_dict()], file)
    before = {n: m.clone() for n, m in sparse.target_masks.items()}
    train(model, made, 2, 12)
    real = draw.key
    monkeypatch.setattr(draw, "key", lambda rule, seed, name: real(rule, seed + 1, name))
    again, remade, resumed = begin(1)
    assert not torch.equal(resumed.target_masks["0.weight"], before["0.weight"])
    parts = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.load_state_dict(parts[0])
    again.load_state_dict(parts[1])
    remade.load_state_dict(parts[2])
    assert all(torch.equal(resumed.target_masks[n], before[n]) for n in before)
    monkeypatch.setattr(draw, "key", real)
    train(again, remade, 2, 12)
    assert all(
        torch.equal(a, b)
        for a, b in zip(sparse.dense_state_dict().values(), resumed.dense_state_dict().values(), strict=True)
    )


# -- what cannot work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        ({"ramp": "linera"}, "unknown ramp 'linera'.*'linear'"),
        ({"bound": -1}, "bound must be >= 0"),
        ({"bound": math.nan}, "bound must be >= 0"),
        ({"interval": 0}, "interval must be an int >= 1"),
        ({"cycles": 0}, "cycles must be an int >= 1"),
        ({"ramp_steps": 1.5}, "ramp_steps=1.5 is not a fraction"),
        ({"ticket": "randm"}, "unknown ticket 'randm'.*'random'"),
        ({"penalty": "l2"}, "unknown penalty"),
        ({"dense_ends": True, "distribution": "global"}, "dense_ends needs a rule"),
        ({"dense_ends": 1}, "dense_ends must be True or False"),
    ],
)
def test_bad_values_are_named(hyper, says):
    with pytest.raises(ValueError, match=says):
        RST(density=0.1, **hyper)


def refuse(method, says, model=None, **options):
    model = net() if model is None else model
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=says):
        ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, **options)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_what_cannot_work_is_named_and_the_model_is_untouched():
    refuse(RST(0.1), r"ramp_steps=0\.3 is a fraction of the run: give total_steps=")
    refuse(
        RST(0.1, ramp_steps=80, stabilise_steps=30),
        "after step 109, and the run has 100 steps",
        total_steps=100,
    )
    refuse(
        RST(0.6),
        "asks for 173 weights, but the source holds only 144",
        source=ss.RandomSource(0.5),
        total_steps=100,
    )
    foreign = {"0.weight": torch.ones(16, 8, dtype=torch.bool)}
    refuse(RST(0.1, ticket=foreign), r"of another architecture: no mask for '3\.weight'", total_steps=100)
    turned = {"0.weight": torch.ones(8, 16).bool(), "3.weight": torch.ones(10, 16).bool()}
    refuse(
        RST(1.0, ticket=turned),
        r"of another architecture: the mask of '0\.weight' has shape \(8, 16\)",
        total_steps=100,
    )
    whole = {"0.weight": torch.ones(16, 8).bool(), "3.weight": torch.zeros(10, 16).bool()}
    refuse(
        RST(0.1, ticket=whole),
        r"has 128 of 288 weights, density 0\.1 says 29: give density=0\.444444",
        total_steps=100,
    )
    refuse(
        RST(128 / 288, ticket=whole),
        r"weights of 0\.weight outside the source",
        source=ss.RandomSource(0.6),
        total_steps=100,
    )
    frozen = net()
    frozen[0].weight.requires_grad_(False)
    refuse(RST(0.1), r"0\.weight never changes", frozen, total_steps=100)


@pytest.mark.parametrize(
    ("optimizer", "enough"),
    [
        (
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
            310,
        ),  # .1 a step at strength 1: .1 (T/2 + .5 + 45)
        (lambda p: torch.optim.SGD(p, lr=0.1), 310),
        (lambda p: torch.optim.AdamW(p, lr=0.1), 310),
    ],
)
def test_too_weak_a_pull_is_said(optimizer, enough, recwarn):
    for steps, said in ((enough, 0), (enough - 20, 1)):
        model = net()
        _ = ss.attach(model, optimizer(model.parameters()), RST(0.1, ramp_steps=steps, stabilise_steps=45))
        found = [w for w in recwarn if "e-folds" in str(w.message)]
        assert len(found) == said
    assert "rst: weights outside the ticket shrink by 19" in str(found[0].message)


def test_no_pull_at_all_is_meant(recwarn):
    for bound in (0, math.inf):
        model = net()
        _ = ss.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), RST(0.1, bound=bound), total_steps=10
        )
    assert not recwarn.list


def test_a_plan_knows_the_ticket_and_counts_the_steps_before_masking():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    how = RST(40 / 62, "uniform", dense_ends=True, ramp_steps=30, stabilise_steps=20)
    plan = ss.plan(model, how, total_steps=100, example_input=torch.zeros(2, 4))
    assert [row.num_final for row in plan.layers] == [20, 8, 12] and plan.num_start == 62
    assert plan.flops is not None and plan.flops.inference == 2 * 40
    assert plan.flops.training == pytest.approx(6 * (0.5 * 62 + 0.5 * 40))
