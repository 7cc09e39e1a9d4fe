from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import methods
from startsparse.planning import Flops

from .contract.settings import given, quick

TOTAL_STEPS = 12
DISTRIBUTIONS = ["erk", "balanced", "uniform", {"4": 0.9, "*": "erk"}]
SOURCES = {
    "dense": None,
    "random": ss.RandomSource(0.5, "balanced", seed=3),
    "repaired": ss.RandomSource(0.4, "erk", seed=3, draw="bernoulli", flow="add"),
}


class Net(nn.Module):
    """A convolution with stride and groups, a transposed one, a Linear; a norm and an unused embedding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(6 * 25, 10)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.fc(self.drop(self.up(x)).flatten(1))


EXAMPLE = torch.zeros(3, 4, 8, 8)
SIZES = {"conv.weight": 8 * 2 * 9, "up.weight": 8 * 3 * 4, "fc.weight": 1500}
POSITIONS = {"conv.weight": 16, "up.weight": 16, "fc.weight": 1}


def perceptron():
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 25), nn.ReLU(), nn.Linear(25, 10))


def counts_of(sparse):
    return {name: int(mask.sum()) for name, mask in sparse.masks.items()}


def trained(method, source, build=perceptron, shape=(8, 30)):
    """What really happens: live weights at the start and at the end."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    needed = given(method, torch.randn(shape))
    sparse = ss.attach(model, optimizer, method, source=source, total_steps=TOTAL_STEPS, **needed)
    start = counts_of(sparse)
    for _ in range(TOTAL_STEPS):
        model(torch.randn(shape)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return start, counts_of(sparse), sparse


def planned(method, source, build=perceptron, **more):
    torch.manual_seed(0)
    return ss.plan(build(), method, source=source, total_steps=TOTAL_STEPS, **more)


def compare(method, source, build=perceptron, shape=(8, 30)):
    plan = planned(method, source, build)
    start, final, sparse = trained(method, source, build, shape)
    rows = {row.name: row for row in plan.layers}
    assert {name: row.num_final for name, row in rows.items() if row.num_final is not None} == {
        name: count for name, count in final.items() if rows[name].num_final is not None
    }
    assert plan.num_final == sum(final.values()) == sparse.target_count
    assert plan.density == sparse.density
    assert {name: row.num_source for name, row in rows.items()} == {
        name: int(mask.sum()) for name, mask in sparse.source_masks.items()
    }
    return plan, rows, start


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", methods.names("attach"))
def test_a_plan_is_what_happens(name, source):
    method = methods.make(name, density=0.2, **quick(name))
    plan, rows, start = compare(method, SOURCES[source])
    if not method.due(-1, TOTAL_STEPS):  # others change before the first step
        assert plan.num_start == sum(start.values())
        assert {row.name: row.num_start for row in rows.values()} == start


@pytest.mark.parametrize(
    ("name", "distribution"),
    [(name, distribution) for name in methods.names("attach") for distribution in DISTRIBUTIONS],
    ids=str,
)
def test_a_plan_is_what_happens_under_every_distribution(name, distribution):
    method = methods.make(name, density=0.2, distribution=distribution, **quick(name))
    plan, rows, _ = compare(method, None)
    assert all(row.num_final is not None for row in rows.values()) or method.moves_across_layers
    assert plan.num_final == round(0.2 * plan.num_weights)


@pytest.mark.filterwarnings("ignore:.*does not keep its budget")
@pytest.mark.parametrize("name", ["static", "set", "rigl"])
@pytest.mark.parametrize("flow", ["none", "add", "keep_budget"])
@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_a_plan_counts_what_a_draw_and_a_repair_give(name, draw, flow):
    method = methods.make(name, density=0.05, draw=draw, flow=flow, **quick(name))
    for source in (None, ss.RandomSource(0.4, seed=7)):
        plan, _, start = compare(method, source)
        assert plan.num_start == sum(start.values())
        if flow == "add":
            assert plan.num_start > round(0.05 * plan.num_weights)


# srigl refuses the transposed convolution, by name
@pytest.mark.parametrize("name", [name for name in methods.names("attach") if name != "srigl"])
def test_a_plan_of_convolutions(name):
    method = methods.make(name, density=0.25, distribution="erk", **quick(name))
    plan, rows, _ = compare(method, None, Net, (4, 4, 8, 8))
    assert {n: row.num_weights for n, row in rows.items()} == SIZES
    assert plan.num_parameters == sum(p.numel() for p in Net().parameters())


def test_planning_leaves_no_trace():
    model = Net()
    _ = model.fc.eval()
    optimizer = torch.optim.Adam(model.parameters())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    for name in methods.names("attach"):
        method = methods.make(name, density=0.2, **quick(name))
        plan = ss.plan(
            model, method, optimizer=optimizer, example_input=EXAMPLE, total_steps=TOTAL_STEPS, layers="!up"
        )
        assert plan.flops.inference > 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert model.training and model.conv.training and not model.fc.training
    assert not optimizer.state
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._load_state_dict_post_hooks
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not parameter._backward_hooks
        assert not parameter._post_accumulate_grad_hooks
    sparse = ss.attach(model, optimizer, ss.Static(0.2), layers="!up")  # nobody holds the model yet
    assert sparse.density == pytest.approx(0.2, abs=1e-3)


# -- costs by hand -----------------------------------------------------------------------------------------------


def test_flops_of_a_perceptron_by_hand():
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    plan = ss.plan(model, ss.Static(0.1, "uniform"), example_input=torch.zeros(7, 20), total_steps=10)
    assert [row.num_final for row in plan.layers] == [20, 5]
    assert [row.inference_flops for row in plan.layers] == [40, 10]
    assert plan.flops == Flops(
        inference=50,
        training=150,
        dense_inference=500,
        dense_training=1500,
        dense_gradient_steps=0,
        batch=7,
    )


def test_flops_of_strided_grouped_and_transposed_convolutions_by_hand():
    plan = ss.plan(Net(), ss.Static(0.25, "uniform"), example_input=EXAMPLE, total_steps=10)
    assert plan.flops.dense_inference == sum(2 * SIZES[n] * POSITIONS[n] for n in SIZES)
    rows = {row.name: row for row in plan.layers}
    assert {n: row.num_final for n, row in rows.items()} == {n: SIZES[n] // 4 for n in SIZES}
    assert {n: row.inference_flops for n, row in rows.items()} == {
        n: 2 * (SIZES[n] // 4) * POSITIONS[n] for n in SIZES
    }
    assert plan.flops.inference == sum(row.inference_flops for row in plan.layers)
    assert plan.flops.batch == 3


def test_dense_gradient_steps_of_rigl_are_counted():
    method = ss.RigL(0.1, "uniform", update_interval=10, update_end=50)
    plan = ss.plan(nn.Linear(20, 10), method, example_input=torch.zeros(1, 20), total_steps=100)
    assert plan.flops.dense_gradient_steps == 4  # after steps 10, 20, 30, 40
    assert plan.flops.training == pytest.approx(3 * 40 + 0.04 * (400 - 40))
    inside = ss.plan(
        nn.Linear(20, 10),
        method,
        source=ss.RandomSource(0.5, "uniform"),
        example_input=torch.zeros(1, 20),
        total_steps=100,
    )
    assert inside.flops.training == plan.flops.training  # the whole layer's gradient is computed there, too


def test_gradual_pruning_is_averaged_over_the_run():
    method = ss.GMP(0.1, "uniform", update_interval=10, update_begin=0, update_end=100)
    plan = ss.plan(nn.Linear(20, 10), method, example_input=torch.zeros(1, 20), total_steps=200)
    live = [method.target(step - 1, 200, 200, 200) for step in range(200)]
    assert live[0] == 200 and live[-1] == 20
    assert plan.num_start == 200
    assert plan.flops.inference == 2 * 20
    assert plan.flops.training == pytest.approx(3 * 2 * sum(live) / 200)


def test_without_an_example_nothing_is_claimed():
    plan = ss.plan(perceptron(), ss.Static(0.1))
    assert plan.flops is None
    assert all(row.inference_flops is None for row in plan.layers)
    assert "FLOPs: give example_input= to count them" in str(plan)


class Invented(torch.optim.Optimizer):
    """An optimizer of the user's: one state of the weight's shape, one scalar."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state.setdefault("velocity", torch.zeros_like(parameter)).add_(parameter.grad)
                    state["calls"] = torch.tensor(1)


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), 0),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.1), 2),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True), 3),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.1), 1),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.1), 1),
    "invented": (lambda p: Invented(p), 1),
    "adafactor": (lambda p: torch.optim.Adafactor(p, lr=0.1), 0),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1), 2),
    "lbfgs": (lambda p: torch.optim.LBFGS(p, lr=0.1), 0),
    "two": (lambda p: [torch.optim.SGD(p, lr=0.1, momentum=0.9)], 1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_memory_column_counts_optimizer_states(name):
    build, states = OPTIMIZERS[name]
    model = nn.Linear(20, 10)
    plan = ss.plan(model, ss.Static(0.1), optimizer=build(list(model.parameters())))
    assert plan.layers[0].training_bytes == 200 * (4 * (3 + states) + 1)


def test_the_memory_column_counts_a_source():
    model = nn.Linear(20, 10).double()
    plan = ss.plan(model, ss.Static(0.1), source=ss.RandomSource(0.5))
    assert plan.layers[0].training_bytes == 200 * (8 * 3 + 2)


# -- warnings, errors, text --------------------------------------------------------------------------------------


def noted(model, method, **more):
    return ss.plan(model, method, **more).warnings


def test_nothing_to_warn_of():
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 30))
    assert noted(model, ss.Static(0.1), example_input=torch.zeros(1, 50)) == []


def test_what_is_left_dense_is_named():
    model = nn.Sequential(nn.Linear(50, 40), nn.Embedding(7, 9), nn.Linear(40, 30))
    assert noted(model, ss.Static(0.1), layers="!2") == [
        "left dense, 1,263 weights: 1.weight (63), 2.weight (1,200); name them in layers= to make them sparse"
    ]


def test_layers_that_end_empty_or_full_are_named():
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 30), nn.Linear(30, 2))
    method = ss.Static(0.1, {"1": 0.0, "2": 1.0, "*": "erk"})
    assert noted(model, method) == [
        "1.weight will have no live weight: no signal passes it",
        "2.weight stays dense under this distribution",
    ]


def test_layers_that_the_forward_pass_does_not_see_are_named():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.unused = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, x):
            return self.fc(x)

    assert noted(Partly(), ss.Static(0.1), example_input=torch.zeros(1, 20)) == [
        "not seen in the forward pass, FLOPs counted as 0: unused.weight"
    ]


def test_a_method_that_never_updates_is_named():
    model = nn.Linear(50, 40)
    assert noted(model, ss.SET(0.1, update_interval=100), total_steps=50) == [
        "set will never update: no multiple of update_interval=100 lies in [1, 38)"
    ]


def test_a_plan_without_a_length_takes_one_and_says_so():
    model = nn.Linear(50, 40)
    found = ss.plan(model, ss.GGR(density=0.1), example_input=torch.zeros(1, 50))
    assert found.warnings == ["planned as for a run of 10,000 steps: give total_steps= for yours"]
    same = ss.plan(model, ss.GGR(density=0.1), example_input=torch.zeros(1, 50), total_steps=10_000)
    assert found.flops == same.flops
    assert found.layers == same.layers
    assert ss.plan(model, ss.GGR(density=0.1, update_end=1000)).warnings == []
    with pytest.raises(ValueError, match="give total_steps="):
        ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.GGR(density=0.1))


def test_any_integer_is_a_length():
    model = nn.Linear(50, 40)
    sparse = ss.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.1), total_steps=np.int64(20)
    )
    assert type(sparse.total_steps) is int
    assert sparse.total_steps == 20


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        (ss.Static(0.1), {"layers": "head"}, "'head' matches no parameter"),
        (ss.SET(0.1), {"total_steps": 0}, "total_steps must be an int >= 1 or None, got 0"),
        (ss.GMP(0.1, update_begin=1), {"total_steps": 10}, "density 0.1 would never be reached"),
        (ss.Static(0.5), {"source": ss.RandomSource(0.2)}, "limited by the source"),
        (ss.Magnitude(0.5), {"source": ss.RandomSource(0.2)}, "the source holds only"),
        (ss.Static(0.1, {"0": 1.0}), {}, "hold fewer layers"),
    ],
)
def test_a_plan_refuses_what_attach_refuses(method, more, message):
    model = perceptron()
    with pytest.raises(ValueError, match=message):
        ss.plan(model, method, **more)
    with pytest.raises(ValueError, match=message):
        ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, **more)


def test_plans_work_on_frozen_and_wrapped_models():
    model = perceptron()
    model[0].weight.requires_grad_(False)
    wrapped = nn.ModuleDict({"module": model})
    assert [row.name for row in ss.plan(wrapped, ss.Static(0.1)).layers] == [
        "0.weight",
        "2.weight",
        "4.weight",
    ]


def test_the_printed_plan_says_it_all():
    text = str(
        ss.plan(Net(), ss.RigL(0.1, update_interval=2), example_input=EXAMPLE, total_steps=TOTAL_STEPS)
    )
    assert text.startswith("rigl in dense source\nlayer ")
    for part in (
        "conv.weight",
        "8x2x3x3",
        "1,500",
        "4 steps of the run with a dense gradient",
        "of dense",
        "counted",
    ):
        assert part in text, part
    assert f"density of the sparse layers {100 * 174 / 1740:.3g}%" in text
    assert "by ranking" not in str(planned(ss.Magnitude(0.1), None))
    assert "by ranking" in str(planned(ss.SNIP(0.1), None))


def test_a_plan_as_plain_data():
    plan = ss.plan(Net(), ss.Static(0.1), example_input=EXAMPLE)
    data = plan.as_dict()
    assert (
        data["model_density"]
        == plan.model_density
        == (plan.num_parameters - 1740 + 174) / plan.num_parameters
    )
    assert data["flops"]["inference"] == plan.flops.inference
    assert data["density"] == plan.density == plan.num_final / plan.num_weights
    assert data["layers"][0] == {
        "name": "conv.weight",
        "shape": (8, 2, 3, 3),
        "num_weights": 144,
        "num_source": 144,
        "num_start": plan.layers[0].num_start,
        "num_final": plan.layers[0].num_final,
        "training_bytes": 144 * 13,
        "inference_flops": 2.0 * 16 * plan.layers[0].num_final,
        "execution": "masked",
    }
    assert math.fsum(row["num_final"] for row in data["layers"]) == data["num_final"]


def test_layers_that_multiply_nothing_can_be_planned():
    plan = ss.plan(
        nn.Embedding(10, 20), ss.Static(0.1), layers="*", example_input=torch.zeros(2, dtype=torch.long)
    )
    assert plan.flops.dense_inference == 0
    assert "weight" in str(plan)


def test_planning_warns_in_its_list_and_nowhere_else():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ss.plan(nn.Linear(50, 40), ss.Static(1e-9)).warnings != []


def test_a_search_is_sent_to_its_own_function():
    model = perceptron()
    with pytest.raises(TypeError, match=r"jackpot searches a mask .* use ss.search"):
        ss.plan(model, ss.Jackpot(density=0.5))
    with pytest.raises(TypeError, match=r"jackpot searches a mask .* use ss.search"):
        ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Jackpot(density=0.5))


def test_the_memory_column_counts_values_behind_zeros_and_roots():
    model = nn.Linear(20, 10)
    plain, shadow = (
        ss.plan(model, method, total_steps=1000).layers[0].training_bytes
        for method in (ss.RigL(0.1), ss.SoftGMP(0.1))
    )
    assert shadow - plain == 200 * 4, "the values that inactive weights keep"
    roots = ss.plan(model, ss.Static(0.1), power=2.0).layers[0].training_bytes
    assert roots - plain == 200 * 4, "gradients of weights, put aside while those of roots stand in for them"
    thin = [ss.plan(model, ss.Static(0.1), power=p, execution="sparse").layers[0] for p in (1.0, 2.0)]
    assert thin[1].training_bytes - thin[0].training_bytes == 20 * 4
    with pytest.raises(ValueError, match=r"rigl grows weights at zero, where powerpropagation \(power=2\)"):
        ss.plan(model, ss.RigL(0.1), power=2.0)


@pytest.mark.parametrize(("given", "error"), [(3, TypeError), ([], ValueError), ([3], TypeError)])
def test_an_optimizer_of_another_kind_is_refused_as_attach_does(given, error):
    with pytest.raises(error, match="optimizer"):
        _ = ss.plan(torch.nn.Linear(4, 4), ss.Static(0.5), optimizer=given)
