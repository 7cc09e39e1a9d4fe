"""Models on the meta device: sparse from nothing, and nothing dense in between."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

import startsparse as ss
from startsparse.execution.modules import SparseConv2d, SparseLinear

from .twins import OPTIMIZERS, Run, batch, checkpoint, loss_of, method, perceptron

METHODS = ["static", "set", "rigl"]  # those that start from a random mask


def on_meta(build) -> nn.Module:
    with torch.device("meta"):
        return build()


def mixed() -> nn.Module:
    """Linear, Conv2d, norms with and without running statistics, an embedding."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, groups=4, bias=False),
        nn.GroupNorm(4, 16),
        nn.Flatten(),
        nn.Linear(16 * 16, 32),
        nn.LayerNorm(32),
        nn.PReLU(),
        nn.Linear(32, 10),
    )


def attached(build, how=None, **more) -> Run:
    return Run(on_meta(build), how or method("static", 0.2), execution="sparse", **more)


def test_a_model_on_meta_becomes_sparse_and_trains():
    run = attached(mixed, method("rigl", 0.2, update_interval=2), steps=20)
    model = run.model
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert [type(model[i]) for i in (0, 3, 6, 9)] == [SparseConv2d, SparseConv2d, SparseLinear, SparseLinear]
    total = 16 * 27 + 16 * 36 + 32 * 256 + 320
    assert (
        run.sparse.target_count == round(0.2 * total) == sum(int(m.sum()) for m in run.sparse.masks.values())
    )
    assert bool((model[1].weight == 1).all()) and not bool(model[1].bias.any())
    assert bool((model[1].running_var == 1).all()) and int(model[1].num_batches_tracked) == 0
    assert bool((model[8].weight == 0.25).all())
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    losses = []
    for step in range(20):
        out = run.step(batch(step % 2, 8, 3, 10, 10))
        losses.append(float(loss_of(out)))
    assert losses[-1] < 0.7 * losses[0] and run.sparse.report().num_moved > 0
    plain = mixed()
    plain.load_state_dict(run.sparse.dense_state_dict())
    model.eval(), plain.eval()
    x = batch(7, 2, 3, 10, 10)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    assert "on_meta" not in str(run.sparse.report())


@pytest.mark.parametrize("build", [mixed, perceptron])
def test_all_of_it_within_the_meta_device(build):
    """As in ``with torch.device("meta"): model = ...; sparse = ss.attach(model, ...)``."""
    wanted = attached(build).sparse.dense_state_dict()
    with torch.device("meta"):
        run = attached(build)
    assert run.sparse.dense_state_dict().keys() == wanted.keys()
    for name, value in run.sparse.dense_state_dict().items():
        assert torch.equal(value, wanted[name]), name
    run.step(batch(0, 2, 3, 9, 9) if build is mixed else batch(0, 4, 12))


def test_what_could_never_be_held_dense():
    """2 layers of 2^36 weights would need 550 GB."""
    run = attached(
        lambda: nn.Sequential(
            nn.Linear(2**18, 2**18, bias=False), nn.Tanh(), nn.Linear(2**18, 2**18, bias=False)
        ),
        method("static", 1e-7, distribution="uniform"),
    )
    assert run.sparse.target_count == round(1e-7 * 2**37) == sum(p.numel() for p in run.model.parameters())
    assert run.sparse.density == pytest.approx(1e-7)
    run.model(torch.ones(1, 2**18)).sum().backward()
    run.optimizer.step()
    assert run.sparse.step == 1


@pytest.mark.parametrize(
    ("build", "name", "fan_in"),
    [
        (lambda: nn.Sequential(nn.Linear(100, 400)), "0", 100),
        (lambda: nn.Sequential(nn.Conv2d(16, 64, 3)), "0", 16 * 9),
        (lambda: nn.Sequential(nn.Conv2d(32, 64, 3, groups=4)), "0", 8 * 9),
    ],
    ids=["linear", "conv", "grouped"],
)
def test_values_follow_the_law_of_the_layer(build, name, fan_in):
    run = attached(build, method("static", 0.25))
    module = run.model.get_submodule(name)
    bound = 1 / math.sqrt(fan_in)
    law = stats.uniform(-bound, 2 * bound)
    values = module.weight.detach().double().numpy()
    assert abs(values).max() <= bound
    assert stats.kstest(values, law.cdf).pvalue > 0.01
    bias = module.bias.detach().double().numpy()
    assert abs(bias).max() <= bound and stats.kstest(bias, law.cdf).pvalue > 0.01
    plain = build().get_submodule(name)
    assert stats.ks_2samp(values, plain.weight.detach().double().reshape(-1).numpy()).pvalue > 0.01
    assert stats.spearmanr(values[:-1], values[1:]).pvalue > 0.01


def test_values_are_a_function_of_seed_name_and_position():
    first = attached(perceptron, method("static", 0.3, seed=4))
    torch.manual_seed(99)
    torch.rand(7)
    again = attached(perceptron, method("static", 0.3, seed=4))
    other = attached(perceptron, method("static", 0.3, seed=5))
    fuller = attached(perceptron, method("static", 0.6, seed=4, distribution="uniform"))
    for name, value in first.sparse.dense_state_dict().items():
        assert torch.equal(value, again.sparse.dense_state_dict()[name])
    weights = [run.sparse.dense_state_dict() for run in (first, other, fuller)]
    assert not torch.equal(weights[0]["0.weight"], weights[1]["0.weight"])
    assert not torch.equal(weights[0]["0.bias"], weights[1]["0.bias"])
    both = first.sparse.masks["0.weight"] & fuller.sparse.masks["0.weight"]
    assert bool(both.any()) and torch.equal(weights[0]["0.weight"][both], weights[2]["0.weight"][both])
    assert not torch.equal(weights[0]["3.weight"], weights[0]["5.weight"])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    _ = attached(perceptron)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "source", [None, ss.RandomSource(0.5, "balanced", seed=3), ss.RandomSource(0.3, seed=0)], ids=str
)
def test_a_materialised_model_takes_the_same_way(name, source):
    """The same masks at attachment; and, from the same weights, after every update."""
    how = method(name, 0.25, update_interval=2) if name != "static" else method(name, 0.25)
    meta = attached(perceptron, how, source=source, steps=30)
    for execution in ("sparse", "masked"):
        plain = perceptron()
        run = Run(plain, how, source=source, execution=execution, steps=30)
        assert all(torch.equal(mask, meta.sparse.masks[n]) for n, mask in run.sparse.masks.items())
        assert all(
            torch.equal(mask, meta.sparse.source_masks[n]) for n, mask in run.sparse.source_masks.items()
        )
        assert run.sparse.drawn == meta.sparse.drawn
        fresh = attached(perceptron, how, source=source, steps=30)
        run.model.load_state_dict(fresh.sparse.dense_state_dict())
        for step in range(9):
            for each in (run, fresh):
                each.step(batch(step, 6, 12))
            for key, mask in run.sparse.masks.items():
                assert torch.equal(mask, fresh.sparse.masks[key]), (execution, step, key)
                assert not bool((mask & ~fresh.sparse.source_masks[key]).any())
        assert (run.sparse.report().num_moved > 0) is (name != "static")


def test_a_run_on_meta_is_resumed():
    how = method("rigl", 0.25, update_interval=2)
    whole = attached(perceptron, how, source=ss.RandomSource(0.5), steps=30)
    for step in range(5):
        whole.step(batch(step, 6, 12))
    parts = checkpoint(whole)
    resumed = attached(
        perceptron, method("rigl", 0.25, update_interval=2), source=ss.RandomSource(0.5), steps=30
    )
    for part in ("sparse", "optimizer", "model"):
        getattr(resumed, part).load_state_dict(parts[part])
    for step in range(5, 12):
        for run in (whole, resumed):
            run.step(batch(step, 6, 12))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_the_source_of_a_resumed_run_is_still_a_draw():
    """Or a layer that could never be held dense has a dense source after its first checkpoint."""
    from startsparse.draw import Drawn

    run = attached(perceptron, source=ss.RandomSource(0.5))
    assert all(isinstance(site.source, Drawn) for site in run.sparse._sites.values())
    run.sparse.load_state_dict(run.sparse.state_dict())
    assert all(isinstance(site.source, Drawn) for site in run.sparse._sites.values())


def test_frozen_parameters_stay_frozen():
    def build():
        model = perceptron()
        model[0].weight.requires_grad_(False)
        model[3].weight.requires_grad_(True)
        model[5].bias.requires_grad_(False)
        return model

    model = on_meta(build)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparse = ss.attach(
        model, optimizer, method("set", 0.25, update_interval=1), total_steps=20, execution="sparse"
    )
    before = {name: value.clone() for name, value in sparse.dense_state_dict().items()}
    assert [p.requires_grad for p in (model[0].weight, model[3].weight, model[5].bias)] == [
        False,
        True,
        False,
    ]
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model(batch(step, 6, 12))).backward()
        optimizer.step()
    after = sparse.dense_state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"]) and torch.equal(
        before["5.bias"], after["5.bias"]
    )
    assert not torch.equal(before["3.weight"], after["3.weight"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_takes_over_the_new_parameters(optimizer):
    run = Run(on_meta(perceptron), method("rigl", 0.25, update_interval=2), OPTIMIZERS[optimizer], steps=20)
    before = {name: value.clone() for name, value in run.sparse.dense_state_dict().items()}
    for step in range(4):
        run.step(batch(step, 6, 12))
    for name, value in run.sparse.dense_state_dict().items():
        assert not torch.equal(value, before[name]), name


# -- what cannot be made up ----------------------------------------------------------------------------------------

REFUSED = {
    "masked": (perceptron, {"execution": "masked"}, r"0\.weight, .* a model on the meta device needs execution='sparse'"),
    "auto": (perceptron, {"execution": "auto"}, "needs execution='sparse'"),
    "magnitude": (perceptron, {"method": "magnitude"}, r"0\.weight is on the meta device"),
    "snip": (perceptron, {"method": "snip"}, "meta device"),
    "gmp": (perceptron, {"method": "gmp"}, "meta device"),
    "flow": (perceptron, {"options": {"flow": "add"}}, "meta device"),
    "bernoulli": (perceptron, {"options": {"draw": "bernoulli"}}, "must be an exact random draw"),
    "bernoulli source": (perceptron, {"source": ss.RandomSource(0.5, draw="bernoulli")}, "RandomSource.draw='exact'"),
    "n:m source": (perceptron, {"source": ss.RandomSource(0.5, layout="2:4")}, "RandomSource.draw='exact'"),
    "flow source": (perceptron, {"source": ss.RandomSource(0.5, flow="add")}, "RandomSource.draw='exact'"),
    "zeros": (perceptron, {"source": ss.ZerosSource()}, "meta device"),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(8, 2)), {}, "every layer must run sparse.*Conv1d"),
    "attention": (lambda: nn.MultiheadAttention(12, 2), {}, "every layer must run sparse.*MultiheadAttention"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_values_is_refused_in_words_and_nothing_has_changed(case):
    build, given, message = REFUSED[case]
    model = on_meta(build)
    how = method(given.get("method", "static"), 0.25, **given.get("options", {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(model.parameters())
    with pytest.raises(ValueError, match=message):
        ss.attach(
            model,
            optimizer,
            how,
            source=given.get("source"),
            total_steps=20,
            execution=given.get("execution", "sparse"),
        )
    assert all(a is b and a.is_meta for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer._optimizer_step_pre_hooks


class Scaled(nn.Module):
    """A module of the user's own whose tensors nobody can make up."""

    def __init__(self, as_buffer: bool = False):
        super().__init__()
        if as_buffer:
            self.register_buffer("table", torch.ones(12))
        else:
            self.table = nn.Parameter(torch.ones(12))

    def forward(self, x):
        return x * self.table


@pytest.mark.parametrize("as_buffer", [False, True])
def test_a_module_without_reset_parameters_is_named_and_nothing_has_changed(as_buffer):
    model = on_meta(lambda: nn.Sequential(nn.Linear(12, 12), nn.ModuleDict({"own": Scaled(as_buffer)})))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"1\.own has tensors on the meta device and no reset_parameters"):
        ss.attach(model, optimizer, method("static"), execution="sparse")
    assert all(p.is_meta for p in model.parameters())
    assert type(model[0]) is nn.Linear
    assert not optimizer._optimizer_step_pre_hooks


def test_a_module_of_the_users_own_with_reset_parameters():
    class Resetting(Scaled):
        def reset_parameters(self):
            nn.init.constant_(self.table, 3.0)

    run = Run(on_meta(lambda: nn.Sequential(nn.Linear(12, 12), Resetting())), method("static"))
    assert bool((run.model[1].table == 3).all())


def test_only_one_part_is_on_meta():
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), on_meta(lambda: nn.Linear(16, 10)))
    before = model[0].weight.detach().clone()
    run = Run(model, method("static", 0.4))
    assert torch.equal(run.sparse.dense_state_dict()["0.weight"], before * run.sparse.masks["0.weight"])
    run.step(batch(0, 4, 12))


def test_an_excluded_layer_on_meta_is_made_by_its_own_reset():
    run = attached(perceptron, layers=["!0"])
    assert type(run.model[0]) is nn.Linear and not run.model[0].weight.is_meta
    assert 0 < float(run.model[0].weight.detach().abs().max()) <= 1 / math.sqrt(12)
    run.step(batch(0, 4, 12))


def test_a_parameter_that_two_modules_share_stays_shared():
    def build():
        model = perceptron().append(nn.Linear(10, 10))
        model[6].bias = model[5].bias
        return model

    model = on_meta(build)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _kept = ss.attach(model, optimizer, method("static"), execution="sparse")
    assert model[6].bias is model[5].bias
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_a_plan_of_a_model_on_meta():
    model = on_meta(mixed)
    plan = ss.plan(model, ss.Static(0.2), execution="sparse")
    run = Run(model, ss.Static(0.2))
    assert plan.num_final == run.sparse.target_count
    assert {row.name: row.num_final for row in plan.layers} == {
        n: int(m.sum()) for n, m in run.sparse.masks.items()
    }
    assert {row.execution for row in plan.layers} == {"sparse"}
