"""Sparse modules as modules: copies, files, loading, going back; and a run's state in every order."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.hooks import collect_garbage
from startsparse.execution.modules import SparseConv2d, SparseLinear

from .twins import (
    OPTIMIZERS,
    SOURCES,
    Run,
    assert_close,
    assert_same_masks,
    batch,
    convolutional,
    method,
    pair,
    perceptron,
    seeded,
    synchronise,
)

METHODS = [n for n in ss.methods.names("attach") if not ss.methods.get(n).masked_only]
ORDERS = list(itertools.permutations(["model", "optimizer", "sparse"]))


def trained(build=perceptron, name: str = "rigl", steps: int = 7, optimizer: str = "adamw", **more) -> Run:
    shape = (6, 12) if build is perceptron else (4, 4, 9, 9)
    run = Run(seeded(build), method(name, 0.3), OPTIMIZERS[optimizer], steps=30, **more)
    for step in range(steps):
        run.step(batch(step, *shape))
    return run


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_a_file(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=not isinstance(what, nn.Module))


# -- what they are -------------------------------------------------------------------------------------------------


def test_modules_are_turned_in_place():
    model = convolutional()
    before = dict(model.named_modules())
    names = [name for name, _ in model.named_parameters()]
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    run = Run(model, method("static", 0.3))
    assert all(module is before[name] for name, module in model.named_modules())
    assert [name for name, _ in model.named_parameters()] == names
    assert isinstance(model[0], SparseConv2d) and isinstance(model[9], SparseLinear)
    assert not isinstance(model[0], nn.Conv2d)
    run.step(batch(0, 2, 4, 9, 9))
    assert seen == [1]
    live = int(run.sparse.masks["0.weight"].sum())
    assert repr(model[0]) == f"SparseConv2d(4, 8, kernel_size=(3, 3), live={live} of 288)"
    assert "in_features=150, out_features=10, live=" in repr(model[9])
    assert model[0].num_weights == 288


def test_nothing_is_stored_for_weights_that_do_not_live():
    run = Run(nn.Linear(500, 400), method("static", 0.01), OPTIMIZERS["adam"])
    run.step(batch(0, 3, 500))
    weight = run.model.weight
    assert weight.shape == weight.grad.shape == (2000,)
    assert all(value.shape in ((2000,), ()) for value in run.optimizer.state[weight].values())
    assert run.model.pattern.numel() < 12 * 2000  # bytes, of 800,000 of the dense weight
    saved = run.sparse.state_dict()
    assert (
        sum(t.numel() * t.element_size() for t in saved["masks"]["layers"].values() if torch.is_tensor(t))
        == 0
    )


def test_values_are_those_of_the_dense_weight():
    dense = seeded(perceptron)
    run = Run(seeded(perceptron), method("static", 0.4))
    for name in ("0.weight", "3.weight", "5.weight"):
        mask, weight = run.sparse.masks[name], dense.get_parameter(name)
        assert torch.equal(run.sparse.dense_state_dict()[name], weight * mask)
    assert same(
        {n: v for n, v in run.sparse.dense_state_dict().items() if "weight" not in n},
        {n: v for n, v in dense.state_dict().items() if "weight" not in n},
    )
    assert run.sparse.dense_state_dict().keys() == dense.state_dict().keys()


# -- copies and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [perceptron, convolutional])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_computes_the_same_and_is_free(build, copied):
    run = trained(build)
    other = copied(run.model)
    x = batch(50, *((6, 12) if build is perceptron else (4, 4, 9, 9)))
    run.model.eval(), other.eval()
    assert torch.equal(run.model(x), other(x))
    assert same(run.model.state_dict(), other.state_dict())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    kept = {name: value.clone() for name, value in run.model.state_dict().items()}
    other.train()
    for _ in range(8):
        other(x).square().mean().backward()
        optimizer.step()
    assert same(kept, run.model.state_dict()), "the copy is another model"
    assert not torch.equal(other(x), run.model(x))
    assert torch.equal(other[0].live().positions(), run.model[0].live().positions())


def test_a_copy_in_mid_accumulation_keeps_nothing_of_the_sparsifier():
    run = Run(seeded(perceptron), method("rigl", update_interval=1, update_begin=0), steps=30)
    run.model(batch(0, 6, 12)).square().mean().backward()
    other = copy.deepcopy(run.model)
    other(batch(1, 6, 12)).square().mean().backward()
    twin = Run(seeded(perceptron), method("rigl", update_interval=1, update_begin=0), steps=30)
    twin.model(batch(0, 6, 12)).square().mean().backward()
    for each in (run, twin):
        each.optimizer.step()
    assert same(dict(run.sparse.masks), dict(twin.sparse.masks))


def test_functional_calls():
    run = trained()
    parameters = {name: 2 * value.detach() for name, value in run.model.named_parameters()}
    expected = copy.deepcopy(run.model)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.mul_(2)
    x = batch(0, 6, 12)
    assert torch.equal(torch.func.functional_call(run.model, parameters, (x,)), expected(x))


# -- state_dict ----------------------------------------------------------------------------------------------------


def test_a_state_dict_has_values_in_row_major_order_and_their_positions():
    run = trained()
    state, dense = run.model.state_dict(), run.sparse.dense_state_dict()
    assert sorted(state) == [
        "0.bias", "0.positions", "0.weight", "1.bias", "1.weight", "3.positions", "3.weight",
        "5.bias", "5.positions", "5.weight",
    ]  # fmt: skip
    for name in ("0.weight", "3.weight", "5.weight"):
        where = state[name.replace("weight", "positions")]
        assert where.dtype == torch.int32 and bool((where.diff() > 0).all())
        assert torch.equal(state[name], dense[name].reshape(-1)[where.long()])
        assert torch.equal(where.long(), run.sparse.masks[name].reshape(-1).nonzero().squeeze(1))


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_strict_loading_of_a_sparse_state(build):
    run, other = trained(build), trained(build, steps=0)
    found = other.model.load_state_dict(through_a_file(run.model.state_dict()), strict=True)
    assert not found.missing_keys and not found.unexpected_keys
    assert same(run.model.state_dict(), other.model.state_dict())
    x = batch(3, *((6, 12) if build is perceptron else (4, 4, 9, 9)))
    run.model.eval(), other.model.eval()
    assert torch.equal(run.model(x), other.model(x))


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_strict_loading_of_a_dense_state(build):
    run, dense = trained(build, steps=3), seeded(build, 9)
    masks = {name: mask.clone() for name, mask in run.sparse.masks.items()}
    found = run.model.load_state_dict(dense.state_dict(), strict=True)
    assert not found.missing_keys and not found.unexpected_keys
    for name, value in run.sparse.dense_state_dict().items():
        wanted = dense.state_dict()[name]
        assert torch.equal(value, wanted * masks[name] if name in masks else wanted)
    assert same(masks, dict(run.sparse.masks))
    run.step(batch(0, *((6, 12) if build is perceptron else (4, 4, 9, 9))))
    assert not any("loaded_dense" in vars(module) for module in run.model.modules())


def test_the_dense_state_loads_into_a_plain_model_strictly():
    run, plain = trained(convolutional), seeded(convolutional, 9)
    plain.load_state_dict(run.sparse.dense_state_dict(), strict=True)
    run.model.eval(), plain.eval()
    x = batch(3, 4, 4, 9, 9)
    torch.testing.assert_close(run.model(x), plain(x), rtol=1e-5, atol=1e-5)


def spoil_shape(state):
    state["0.weight"] = torch.zeros(12, 16)
    del state["0.positions"]


def spoil_count(state):
    state["0.weight"] = state["0.weight"][1:]


def spoil_order(state):
    state["0.positions"] = state["0.positions"].flip(0)


def spoil_range(state):
    state["0.positions"] = state["0.positions"].clone()
    state["0.positions"][-1] = 16 * 12


def spoil_type(state):
    state["0.positions"] = state["0.positions"].float()


@pytest.mark.parametrize("spoil", [spoil_shape, spoil_count, spoil_order, spoil_range, spoil_type])
def test_wrong_states_are_errors_that_name_the_weight(spoil):
    run, other = trained(), trained(steps=1)
    state = dict(run.model.state_dict())
    spoil(state)
    before = other.model[0].live().positions()
    with pytest.raises(RuntimeError, match=r"0\.weight: "):
        other.model.load_state_dict(state)
    assert torch.equal(before, other.model[0].live().positions())
    other.step(batch(0, 6, 12))


def test_missing_and_unexpected_keys_are_named():
    run = trained(steps=1)
    state = dict(run.model.state_dict())
    del state["3.weight"], state["3.positions"]
    state["3.bias"] = torch.zeros(16)
    with pytest.raises(
        RuntimeError, match=r"(?s)Missing key.*3\.weight.*Unexpected key.*3\.bias|3\.bias.*3\.weight"
    ):
        run.model.load_state_dict(state)
    found = run.model.load_state_dict(state, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["3.weight"], ["3.bias"])


def test_loading_by_assignment():
    run, other = trained(steps=5), trained(steps=5)
    other.model.load_state_dict({n: v.clone() for n, v in run.model.state_dict().items()}, assign=True)
    held = {id(p) for group in other.optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in other.model.parameters())
    for each in (run, other):
        each.step(batch(9, 6, 12))
    assert same(dict(run.sparse.masks), dict(other.sparse.masks))


# -- resume --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_resume_is_bit_for_bit_in_every_order(name):
    def fresh(seed):
        return Run(
            seeded(perceptron, seed),
            method(name, 0.3),
            OPTIMIZERS["adamw"],
            source=SOURCES["exact"](),
            steps=20,
        )

    whole, saved = fresh(0), []
    for step in range(20):
        if step in (0, 1, 6, 7, 12):
            saved.append((step, through_a_file({p: getattr(whole, p).state_dict() for p in ORDERS[0]})))
        whole.step(batch(step, 6, 12))
    for (at, parts), order in zip(saved * 2, ORDERS * 2, strict=False):
        resumed = fresh(at + 7)
        if at % 2:
            resumed.step(batch(3, 6, 12))  # it had lived before
        for part in order:
            getattr(resumed, part).load_state_dict(copy.deepcopy(parts[part]))
        for step in range(at, 20):
            resumed.step(batch(step, 6, 12))
        assert same(whole.model.state_dict(), resumed.model.state_dict()), (at, order)
        assert same(dict(whole.sparse.masks), dict(resumed.sparse.masks)), (at, order)
        for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert same(whole.optimizer.state[a], resumed.optimizer.state[b]), (at, order)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("direction", ["masked to sparse", "sparse to masked"])
def test_a_run_goes_on_in_the_other_execution(name, direction):
    """The states cross by ``sparse.state_dict()`` and ``dense_state_dict()``, in both directions."""
    first, second = pair(perceptron, method(name, 0.3), source=SOURCES["exact"](), steps=20)
    if direction == "sparse to masked":
        first, second = second, first
    for step in range(7):
        first.step(batch(step, 6, 12))
    state, dense = through_a_file(first.sparse.state_dict()), through_a_file(first.sparse.dense_state_dict())
    for order in ("model first", "sparsifier first"):
        if order == "model first":
            second.model.load_state_dict(dense)
        second.sparse.load_state_dict(copy.deepcopy(state))
        if order == "sparsifier first":
            second.model.load_state_dict(dense)
        assert second.sparse.step == 7 and second.sparse.target_count == first.sparse.target_count
        assert_same_masks(first, second)
        assert same(second.sparse.dense_state_dict(), dense)
        assert same(second.sparse.source_masks, first.sparse.source_masks)
        for run in (first, second):
            run.optimizer.state.clear()
        for step in range(7, 12):
            run_both = [run.step(batch(step, 6, 12)) for run in (first, second)]
            torch.testing.assert_close(*run_both, rtol=1e-4, atol=1e-5)
        assert_same_masks(first, second)
        first.sparse.load_state_dict(copy.deepcopy(state))
        first.model.load_state_dict(dense)


def test_a_state_that_was_overtaken_does_not_come_back():
    """A dense state that was loaded before is not what the sparsifier's state belongs to."""
    run, other = trained(steps=7), trained(steps=2)
    other.model.load_state_dict(seeded(perceptron, 9).state_dict())
    other.model.load_state_dict(run.model.state_dict())
    other.sparse.load_state_dict(run.sparse.state_dict())
    assert same(run.model.state_dict(), other.model.state_dict())


def test_a_sparsifier_state_alone_moves_the_optimizer_state_with_the_weights():
    """As under masked execution, where state is addressed by position."""
    masked, sparse = pair(perceptron, method("rigl", 0.3), OPTIMIZERS["adamw"], steps=30)
    state = copy.deepcopy(sparse.sparse.state_dict())
    for step in range(12):
        synchronise(masked, sparse)
        for run in (masked, sparse):
            run.step(batch(step, 6, 12))
    for run in (masked, sparse):
        run.sparse.load_state_dict(copy.deepcopy(state))
        assert run.sparse.step == 0
    kept = masked.optimizer.state[masked.model[0].weight]["exp_avg"]
    found = sparse.model[0].live().dense(sparse.optimizer.state[sparse.model[0].weight]["exp_avg"], (16, 12))
    both = (found != 0) & (kept != 0)
    torch.testing.assert_close(found[both], kept[both], rtol=1e-3, atol=1e-6)


# -- going back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [perceptron, convolutional])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_detach_leaves_plain_modules_and_the_optimizer_state(build, optimizer):
    run = trained(build, optimizer=optimizer)
    shape = (6, 12) if build is perceptron else (4, 4, 9, 9)
    dense = {name: value.clone() for name, value in run.sparse.dense_state_dict().items()}
    masks = {name: mask.clone() for name, mask in run.sparse.masks.items()}
    moments = {
        name: {
            key: value.clone() for key, value in run.optimizer.state[run.model.get_parameter(name)].items()
        }
        for name in masks
    }
    patterns = {name: run.model.get_submodule(name.removesuffix(".weight")).live() for name in masks}
    assert run.sparse.detach() is run.model
    plain = seeded(build)
    assert [type(m) for m in run.model.modules()] == [type(m) for m in plain.modules()]
    assert [list(vars(m)) for m in run.model.modules()] == [list(vars(m)) for m in plain.modules()]
    assert same(dense, run.model.state_dict())
    for name in masks:
        weight = run.model.get_parameter(name)
        assert not bool(weight.detach()[~masks[name]].any())
        for key, value in moments[name].items():
            wanted = patterns[name].dense(value, weight.shape) if value.dim() else value
            assert torch.equal(run.optimizer.state[weight][key], wanted)
    held = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, run.model.parameters(), strict=True))
    run.model(batch(0, *shape)).square().mean().backward()
    run.optimizer.step()
    assert bool(run.model.get_parameter("0.weight").detach()[~masks["0.weight"]].any())
    run.sparse = ss.attach(run.model, run.optimizer, method("static", 0.5), execution="sparse")
    run.step(batch(0, *shape))


def test_detach_in_the_middle_of_a_step():
    run = Run(seeded(perceptron), method("rigl", 0.3, update_interval=1, update_begin=0), steps=30)
    run.step(batch(0, 6, 12))
    run.optimizer.zero_grad()
    run.model(batch(1, 6, 12)).square().mean().backward()
    _ = run.sparse.detach()
    run.optimizer.step()
    assert type(run.model[0]) is nn.Linear


def test_what_a_detached_sparsifier_still_says():
    for run in pair(perceptron, method("rigl", 0.3)):
        masks = {name: mask.clone() for name, mask in run.sparse.masks.items()}
        _ = run.sparse.detach()
        assert run.sparse.detach() is run.model, "twice is as good as once"
        assert same(masks, dict(run.sparse.masks))
        assert run.sparse.density == pytest.approx(0.3, abs=0.01)
        assert "rigl" in str(run.sparse.report())


def test_a_sparsifier_nobody_holds_any_more_keeps_nothing_alive():
    import weakref

    run = Run(seeded(perceptron), method("rigl", 0.3, update_interval=1, update_begin=0), steps=30)
    run.step(batch(0, 6, 12))
    run.model(batch(0, 6, 12)).square().mean().backward()  # something is kept for the update
    watched = [weakref.ref(thing) for thing in (run.model, run.sparse, run.model[0].weight)]
    del run
    collect_garbage()
    assert [ref() for ref in watched] == [None] * 3


def test_an_average_of_the_weights():
    """Values have no positions of their own: what is averaged is the dense state."""
    run, dense = trained(steps=5), seeded(perceptron)
    average = torch.optim.swa_utils.AveragedModel(dense)
    for step in range(5, 14):
        run.step(batch(step, 6, 12))
        dense.load_state_dict(run.sparse.dense_state_dict())
        average.update_parameters(dense)
    masked, _ = pair(perceptron, method("rigl", 0.3), OPTIMIZERS["adamw"], steps=30)
    for step in range(5):
        masked.step(batch(step, 6, 12))
    wanted = torch.optim.swa_utils.AveragedModel(masked.model)
    for step in range(5, 14):
        masked.step(batch(step, 6, 12))
        wanted.update_parameters(masked.model)
    x = batch(0, 6, 12)
    torch.testing.assert_close(average(x), wanted(x), rtol=1e-3, atol=1e-3)
    run.sparse.apply_to(average)
    masked.sparse.apply_to(wanted)
    torch.testing.assert_close(average(x), wanted(x), rtol=1e-3, atol=1e-3)
    for name, mask in run.sparse.masks.items():
        assert not bool(average.module.get_parameter(name)[~mask].any())


def test_a_sparse_copy_is_refused_where_an_average_is_masked():
    """Its values belong to the positions of the day it was made, which nobody knows any more."""
    run = trained(steps=5)
    average = torch.optim.swa_utils.AveragedModel(run.model)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    for given in (average, copy.deepcopy(run.model)):
        with pytest.raises(ValueError, match=r"0\.weight of the copy is sparse.*dense_state_dict\(\)"):
            run.sparse.apply_to(given)
    assert same(before, average.state_dict())


# -- attaching once more, without a method -------------------------------------------------------------------------


def test_execution_of_a_finished_model():
    masked, _ = pair(convolutional, method("magnitude", 0.1, distribution="uniform"))
    model = copy.deepcopy(masked.sparse.detach()).eval()
    chosen = ss.sparsify_execution(model, layers=["0", "9"])
    assert {name: choice.execution for name, choice in chosen.items()} == {
        "0.weight": "sparse",
        "9.weight": "sparse",
    }
    x = batch(0, 4, 4, 9, 9)
    torch.testing.assert_close(model(x), masked.model.eval()(x), rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(x).square().mean().backward()
    optimizer.step()


def test_assert_close_would_see_a_difference():
    """The comparison of this folder is not blind."""
    masked, sparse = pair(perceptron, method("static"))
    synchronise(masked, sparse)
    with torch.no_grad():
        sparse.model[3].weight[7] += 1e-3
    with pytest.raises(AssertionError, match=r"weight of 3\.weight"):
        assert_close(masked, sparse)


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first

    def forward(self, x):
        return self.again(torch.tanh(self.first(x)))


def test_the_dense_state_of_a_module_under_two_names():
    run, plain = Run(Twice(), method("static", 0.3)), Twice()
    assert run.sparse.dense_state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(run.sparse.dense_state_dict())
    x = batch(0, 4, 12)
    torch.testing.assert_close(plain(x), run.model(x))


def test_a_sparse_state_of_a_module_under_two_names():
    run, other = Run(Twice(), method("static", 0.3)), Run(Twice(), method("static", 0.3, seed=1))
    other.model.load_state_dict(run.model.state_dict())
    assert same(run.model.state_dict(), other.model.state_dict())


def finished() -> nn.Module:
    model = seeded(perceptron)
    with torch.no_grad():
        for index in (0, 3, 5):
            model[index].weight.masked_fill_(torch.rand(model[index].weight.shape) < 0.9, 0)
    _ = ss.sparsify_execution(model)
    return model


def test_a_finished_model_is_not_turned_again():
    model = finished()
    with pytest.raises(
        ValueError, match=r"no layer is left.*; 0, 3, 5 run sparse already: .*densify_execution"
    ):
        _ = ss.sparsify_execution(model)


def test_a_dense_state_that_was_loaded_is_not_kept():
    model = finished()
    dense = {key: value for key, value in model.state_dict().items() if not key.endswith("positions")}
    for name, module in model.named_modules():
        if hasattr(module, "dense_weight"):
            dense[f"{name}.weight"] = module.dense_weight()
    model.load_state_dict(dense, strict=False)
    assert not any("loaded_dense" in vars(module) for module in model.modules())


def test_a_dense_state_with_other_zeros_is_not_silently_cut():
    model = finished()
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        model.load_state_dict(seeded(perceptron, 9).state_dict())


def test_a_finished_model_is_trained_on():
    model = finished()
    with pytest.raises(ValueError, match=r"0\.weight runs sparse already: .*densify_execution"):
        ss.attach(model, OPTIMIZERS["sgd"](model.parameters()), ss.SET(0.1), total_steps=200)
    ss.densify_execution(model)
    sparse = ss.attach(
        model, OPTIMIZERS["sgd"](model.parameters()), ss.SET(0.1, update_interval=2), total_steps=9
    )
    assert list(sparse.masks) == ["0.weight", "3.weight", "5.weight"]
