"""Sparse execution computes what masked execution does: step by step, and over whole runs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .twins import (
    OPTIMIZERS,
    SOURCES,
    Run,
    assert_close,
    assert_same_masks,
    batch,
    convolutional,
    loss_of,
    method,
    near,
    pair,
    perceptron,
    seeded,
    synchronise,
)

pytestmark = pytest.mark.filterwarnings("ignore:ggr. .* got no growth")
METHODS = [n for n in ss.methods.names("attach") if not ss.methods.get(n).masked_only]
STEPS = 100


def beside(
    masked: Run, sparse: Run, steps: int, *shape: int, parts: int = 1, clip: float | None = None, **close
):
    """Step by step from an identical state: outputs, gradients, weights, states and masks agree."""
    for step in range(steps):
        assert_same_masks(masked, sparse)
        synchronise(masked, sparse)
        inputs = batch(step, *shape).chunk(parts)
        outputs = [run.step(*inputs, clip=clip) for run in (masked, sparse)]
        near(outputs[1], outputs[0], "output")
        assert sparse.sparse.target_count == masked.sparse.target_count
        assert sparse.sparse.density == masked.sparse.density
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse, **close)
    assert masked.sparse.report().num_moved == sparse.sparse.report().num_moved


# Every method in every source, and every optimizer; three of them over a longer run.
COMBINATIONS = [
    (name, source, list(OPTIMIZERS)[index % len(OPTIMIZERS)], 40)
    for index, (name, source) in enumerate(itertools.product(METHODS, SOURCES))
] + [("rigl", "exact", optimizer, 100 if index < 3 else 40) for index, optimizer in enumerate(OPTIMIZERS)]


@pytest.mark.parametrize(("name", "source", "optimizer", "steps"), COMBINATIONS)
def test_every_step_from_an_identical_state(name, source, optimizer, steps):
    masked, sparse = pair(
        perceptron, method(name), OPTIMIZERS[optimizer], source=SOURCES[source](), steps=steps
    )
    assert {choice.execution for choice in sparse.sparse.execution.values()} == {"sparse"}
    beside(masked, sparse, steps, 8, 12)
    assert masked.sparse.report().num_updates > 0 or name == "static"


@pytest.mark.parametrize("name", METHODS)
def test_every_step_of_convolutions(name):
    masked, sparse = pair(convolutional, method(name, 0.4), source=ss.RandomSource(0.6, "balanced"), steps=30)
    assert [sparse.sparse.execution[key].execution for key in sparse.sparse.masks] == ["sparse"] * 5
    beside(masked, sparse, 30, 6, 4, 9, 9)


@pytest.mark.parametrize("name", ["rigl", "snip", "gmp"])
def test_every_step_of_accumulated_micro_batches_and_clipped_gradients(name):
    masked, sparse = pair(perceptron, method(name), OPTIMIZERS["adamw"], steps=30)
    beside(masked, sparse, 30, 12, 12, parts=3, clip=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"grown_state": "mean"},
        {"grown_value": "normal"},
        {"grown_value": "gradient_sign"},
        {"exclude_dropped": True},
    ],
    ids=str,
)
def test_every_step_of_the_policies_of_grown_weights(options):
    masked, sparse = pair(perceptron, method("rigl", **options), OPTIMIZERS["adamw"], steps=30)
    beside(masked, sparse, 30, 8, 12)


def test_a_kept_state_of_grown_weights_has_nothing_to_keep():
    """Sparse execution stores no state where nothing lives: "keep" begins afresh there."""
    run = Run(perceptron(), method("set", grown_state="keep"), OPTIMIZERS["adamw"])
    for step in range(5):
        run.step(batch(step, 8, 12))
    before = {name: mask.clone() for name, mask in run.sparse.masks.items()}
    run.step(batch(5, 8, 12))
    grown = run.sparse.masks["0.weight"] & ~before["0.weight"]
    module = run.model[0]
    moments = module.live().dense(run.optimizer.state[module.weight]["exp_avg"], (16, 12))
    assert bool(grown.any()) and not bool(moments[grown].any())


# -- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("rigl", "sgd"), ("set", "adamw"), ("gmp", "rmsprop"), ("snip", "nesterov"), ("static", "adam")],
)
def test_free_runs_drift_by_rounding_alone(name, optimizer):
    masked, sparse = pair(perceptron, method(name), OPTIMIZERS[optimizer], steps=60)
    for step in range(60):
        outputs = [run.step(batch(step, 8, 12)) for run in (masked, sparse)]
    assert mask_rules.distance(masked.sparse.masks, sparse.sparse.masks) <= 0.01
    assert float(loss_of(outputs[1])) == pytest.approx(float(loss_of(outputs[0])), rel=0.01)


def test_skipped_steps_leave_no_dense_gradient_behind():
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), steps=20)
    for step in range(20):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            loss_of(run.model(100 * batch(-step, 8, 12))).backward()  # nobody wants this one
            run.optimizer.zero_grad(set_to_none=step % 4 == 0)
            run.step(batch(step, 8, 12))
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse)
    assert sparse.sparse.step == 20 and sparse.sparse.report().num_moved > 0


def test_steps_that_a_gradient_scaler_skips():
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), OPTIMIZERS["adam"], steps=20)
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000) for _ in range(2)]
    for step in range(12):
        synchronise(masked, sparse)
        for run, scaler in zip((masked, sparse), scalers, strict=True):
            run.optimizer.zero_grad()
            loss = loss_of(run.model(batch(step, 8, 12)))
            scaler.scale(loss * (torch.inf if step % 3 == 0 else 1)).backward()
            scaler.step(run.optimizer)
            scaler.update()
        assert sparse.sparse.step == masked.sparse.step
        assert_same_masks(masked, sparse)
    assert sparse.sparse.step == 8 and sparse.sparse.report().num_moved > 0


def test_a_batch_whose_gradient_is_not_finite_is_named_and_the_topology_stays():
    run = Run(perceptron(), method("rigl", update_interval=2), steps=20)
    for step in range(2):
        run.step(batch(step, 8, 12))
    before = {name: mask.clone() for name, mask in run.sparse.masks.items()}
    x = batch(2, 8, 12)
    x[0, 0] = torch.inf
    loss_of(run.model(x)).backward()
    for parameter in run.model.parameters():
        _ = parameter.grad.nan_to_num_(0.0)
    with pytest.warns(UserWarning, match=r"rigl: the dense gradient of 0\.weight.* is not finite at step 2"):
        run.optimizer.step()
    assert all(torch.equal(mask, before[name]) for name, mask in run.sparse.masks.items())


@pytest.mark.parametrize("name", ["gmp", "snip"])
def test_a_loss_that_is_held_across_a_change_of_size(name):
    masked, sparse = pair(perceptron, method(name), steps=20)
    for run in (masked, sparse):
        losses = []
        for step in range(20):
            run.optimizer.zero_grad()
            losses.append(loss_of(run.model(batch(step, 8, 12))))
            losses[-1].backward()
            run.optimizer.step()
        run.losses = torch.stack(losses).detach()
    torch.testing.assert_close(sparse.losses, masked.losses, rtol=1e-3, atol=1e-5)
    assert sparse.model[0].weight.numel() < 16 * 12


def test_a_graph_of_the_old_size_cannot_be_run_backwards_again():
    """Weights that are gone have no gradient: an error, not a wrong one."""
    run = Run(perceptron(), method("gmp", update_interval=1, update_begin=0), steps=4)
    loss = loss_of(run.model(batch(0, 8, 12)))
    loss.backward(retain_graph=True)
    run.optimizer.step()
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|invalid gradient"):
        loss.backward()


class Shared(nn.Module):
    """One layer, used twice in one graph."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_module_used_twice_in_one_graph(parts):
    masked, sparse = pair(Shared, method("rigl"), steps=20)
    beside(masked, sparse, 20, 8, 12, parts=parts)


class Recurrent(nn.Module):
    """A module under two names, and a layer over a sequence."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.first(x)))).mean(1)


def test_a_module_under_two_names_and_inputs_of_three_dimensions():
    masked, sparse = pair(Recurrent, method("rigl"), steps=20)
    assert type(sparse.model.again) is type(sparse.model.first) is not nn.Linear
    beside(masked, sparse, 20, 8, 5, 12)


@pytest.mark.parametrize("name", ["rigl", "set", "static", "magnitude"])
def test_a_layer_left_with_no_weights(name):
    options = (
        {"distribution": {"3": 0.0}} if name != "magnitude" else {"distribution": {"3": 0.0, "*": "uniform"}}
    )
    runs = []
    for execution in ("masked", "sparse"):
        with pytest.warns(UserWarning, match=r"3\.weight has no live weight left"):
            runs.append(pair_of_one(execution, method(name, **options)))
    beside(*runs, 20, 8, 12)
    assert runs[1].model[3].weight.shape == (0,)
    assert int(runs[1].sparse.masks["3.weight"].sum()) == 0


def pair_of_one(execution, how):
    return Run(seeded(perceptron), how, execution=execution, steps=20)


@pytest.mark.parametrize("size", [0, 1])
def test_batches_of_one_and_of_none(size):
    masked, sparse = pair(nn_without_norm, method("rigl", update_interval=2), steps=20)
    for step in range(8):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad()
            run.model(batch(step, size, 12)).square().sum().backward()
            run.optimizer.step()
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse)
    for run in (masked, sparse):
        assert run.model(torch.zeros(0, 12)).shape == (0, 10)
        assert run.model(torch.zeros(12)).shape == (10,)
        assert run.model(torch.zeros(2, 0, 12)).shape == (2, 0, 10)


def nn_without_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10, bias=False))


@pytest.mark.parametrize("shape", [(4, 9, 9), (0, 4, 9, 9), (1, 4, 9, 9)], ids=str)
def test_convolutions_of_unbatched_and_empty_inputs(shape):
    def build():
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 2, bias=False)
        )

    masked, sparse = pair(build, method("rigl", 0.4, update_interval=2), steps=20)
    for step in range(6):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad()
            run.model(batch(step, *shape)).square().sum().backward()
            run.optimizer.step()
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse)
    assert sparse.model(batch(0, *shape)).shape == masked.model(batch(0, *shape)).shape


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (1, 5), "padding": (0, 2), "dilation": (1, 1)},
        {"kernel_size": 3, "dilation": 2, "padding": 2},
        {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 3), "padding": (1, 2)},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "groups": 4, "padding": 1},
        {"kernel_size": 1, "stride": 3},
        {"kernel_size": 3, "bias": False},
    ],
    ids=str,
)
def test_every_step_of_one_convolution(options):
    def build():
        return nn.Sequential(nn.Conv2d(4, 8, **options))

    masked, sparse = pair(build, method("rigl", 0.3, update_interval=3), steps=12)
    beside(masked, sparse, 12, 3, 4, 10, 9, parts=3)


# -- loops ---------------------------------------------------------------------------------------------------------


def test_a_step_with_a_closure():
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), steps=20)
    for step in range(10):
        synchronise(masked, sparse)
        for run in (masked, sparse):

            def closure(run=run, step=step):
                run.optimizer.zero_grad()
                loss = loss_of(run.model(batch(step, 8, 12)))
                loss.backward()
                return loss

            run.optimizer.step(closure)
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse)
    assert sparse.sparse.report().num_moved > 0


def test_snip_with_a_closure():
    masked, sparse = pair(perceptron, method("snip"), steps=20)
    for run in (masked, sparse):

        def closure(run=run):
            run.optimizer.zero_grad()
            loss = loss_of(run.model(batch(0, 8, 12)))
            loss.backward()
            return loss

        run.optimizer.step(closure)
    assert_same_masks(masked, sparse)


@pytest.mark.parametrize("zero", ["none", "zeros"])
def test_an_update_that_replaces_the_step(zero):
    masked, sparse = pair(perceptron, method("rigl", update_interval=2, skip_step_on_update=True), steps=20)
    for step in range(8):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad(set_to_none=zero == "none")
            loss_of(run.model(batch(step, 8, 12))).backward()
            run.optimizer.step()
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse, gradients=False)


def test_two_optimizers():
    runs = []
    for execution in ("masked", "sparse"):
        torch.manual_seed(0)
        model = perceptron()
        optimizers = [
            torch.optim.SGD(model[:3].parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam(model[3:].parameters(), lr=0.01),
        ]
        sparse = ss.attach(
            model, optimizers, method("rigl", update_interval=2), total_steps=20, execution=execution
        )
        for step in range(10):
            loss_of(model(batch(step, 8, 12))).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        runs.append(sparse)
    assert mask_rules.distance(runs[0].masks, runs[1].masks) <= 0.01
    for name, value in runs[0].dense_state_dict().items():
        torch.testing.assert_close(value, runs[1].dense_state_dict()[name], rtol=1e-3, atol=1e-4)


def test_frozen_layers_are_sparse_and_stand_still():
    model = perceptron()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    run = Run(
        model,
        method("rigl", update_interval=2),
        lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.1),
    )
    mask = run.sparse.masks["0.weight"].clone()
    for step in range(6):
        run.step(batch(step, 8, 12))
    assert not run.model[0].weight.requires_grad
    assert torch.equal(run.sparse.masks["0.weight"], mask)
    assert torch.equal(run.sparse.dense_state_dict()["0.weight"], before * mask)
    assert not torch.equal(
        run.sparse.masks["3.weight"], Run(perceptron(), method("rigl")).sparse.masks["3.weight"]
    )


def test_autocast_computes_in_float32():
    run = Run(perceptron(), method("rigl", update_interval=2), steps=20)
    for step in range(6):
        run.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = run.model(batch(step, 8, 12))
        assert out.dtype == torch.float32
        loss_of(out).backward()
        run.optimizer.step()
    assert run.sparse.report().num_moved > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    masked, sparse = pair(Shared, method("rigl", update_interval=2), steps=20)
    for step in range(8):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad()
            for part in batch(step, 8, 12).chunk(2):
                loss_of(checkpoint(run.model, part.requires_grad_(), use_reentrant=reentrant)).backward()
            run.optimizer.step()
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse)


def test_a_static_input_buffer_that_is_filled_anew():
    """The dense gradient of accumulated micro-batches is that of their inputs, not of what the buffer holds last."""
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), steps=20)
    for run in (masked, sparse):
        buffer = torch.empty(4, 12)
        for step in range(5):
            for part in batch(step, 8, 12).chunk(2):
                buffer.copy_(part)
                loss_of(run.model(buffer)).backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
    assert_same_masks(masked, sparse)


def test_second_derivatives_are_refused():
    run = Run(perceptron(), method("static"))
    x = batch(0, 8, 12).requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(run.model(x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.square().sum().backward()


def test_gradients_that_are_only_asked_for_are_not_part_of_the_dense_gradient():
    """``torch.autograd.grad`` accumulates nothing: saliency maps or attacks between micro-batches do not count."""
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), steps=20)
    for step in range(6):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad()
            loss_of(run.model(batch(step, 8, 12))).backward()
            x = 10 * batch(-step, 8, 12).requires_grad_()
            _ = torch.autograd.grad(run.model(x).square().sum(), x)
            run.optimizer.step()
        assert_same_masks(masked, sparse)


def test_a_graph_that_is_run_backwards_twice():
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), steps=20)
    for step in range(6):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad()
            loss = loss_of(run.model(batch(step, 8, 12)))
            loss.backward(retain_graph=True)
            (0.5 * loss).backward()
            run.optimizer.step()
        assert_same_masks(masked, sparse)
        assert_close(masked, sparse)


@pytest.mark.parametrize("layer", [0, 5])
def test_only_some_inputs_are_asked_for(layer):
    """``backward(inputs=...)`` leaves the other layers without a gradient."""
    masked, sparse = pair(perceptron, method("rigl", update_interval=2), steps=20)
    for step in range(6):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.optimizer.zero_grad()
            loss_of(run.model(batch(step, 8, 12))).backward(inputs=[run.model[layer].weight])
            run.optimizer.step()
        assert_same_masks(masked, sparse)


def test_a_gradient_penalty_is_refused_aloud():
    run = Run(perceptron(), method("static"))
    loss = loss_of(run.model(batch(0, 8, 12)))
    gradients = torch.autograd.grad(loss, list(run.model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="use the masked execution"):
        sum(g.square().sum() for g in gradients).backward()


class Unused(nn.Module):
    """A layer that no signal passes."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(40, 50), nn.Linear(40, 50)

    def forward(self, x):
        return self.used(x)


def test_a_layer_without_a_gradient_in_a_thin_source():
    how, source = method("rigl", 0.05, update_interval=1), ss.RandomSource(0.1, "uniform")
    masked, sparse = pair(Unused, how, source=source)
    for step in range(4):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.step(batch(step, 8, 40))
        assert_same_masks(masked, sparse)


def test_a_layer_without_a_gradient_that_has_nothing_to_grow():
    how = method("rigl", 0.05, update_interval=1, drop_fraction=0.0)
    masked, sparse = pair(Unused, how)
    for step in range(4):
        for run in (masked, sparse):
            run.step(batch(step, 8, 40))
    assert_same_masks(masked, sparse)


def test_steps_without_a_backward_pass():
    masked, sparse = pair(perceptron, method("rigl", update_interval=1), steps=20)
    for _ in range(3):
        for run in (masked, sparse):
            run.optimizer.step()
        assert_same_masks(masked, sparse)
    assert sparse.sparse.step == 3


def test_what_is_kept_of_many_micro_batches_is_no_larger_than_the_weight():
    run = Run(nn.Sequential(nn.Linear(50, 50)), method("rigl", update_interval=1, update_begin=0))
    for step in range(20):
        loss_of(run.model(batch(step, 20, 50))).backward()
    site = run.sparse._sites["0.weight"]
    assert sum(x.numel() + dy.numel() for x, dy in site._batches) <= 50 * 50
