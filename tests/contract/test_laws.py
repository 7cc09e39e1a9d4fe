"""Every law of the house over every registered method, every kind of source and very different optimizers."""

from __future__ import annotations

import copy
import io
import itertools
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

import startsparse as ss
from startsparse import masks as mask_rules

from .settings import (
    DENSITY,
    OPTIMIZERS,
    SETTINGS,
    SOURCES,
    TOTAL_STEPS,
    WEIGHTS,
    batches,
    given,
    loss_of,
    make,
    tiny,
)

METHODS = ss.methods.names("attach")
pytestmark = pytest.mark.filterwarnings("ignore:rst. weights outside the ticket shrink by")
MOVING = [name for name in METHODS if "drop_fraction" in {f.name for f in fields(ss.methods.get(name))}]
DATA = batches(2 * TOTAL_STEPS)

EXECUTIONS = ["masked", "sparse"]

State = dict[str, dict[str, Tensor]]


def law(name: str):
    """Parametrise a law over all methods; a row's xfail reasons are honoured."""
    rows = [
        pytest.param(
            method,
            marks=[pytest.mark.xfail(strict=True, reason=SETTINGS[method].xfail[name])]
            if name in SETTINGS[method].xfail
            else [],
        )
        for method in METHODS
    ]
    return pytest.mark.parametrize("method", rows)


@pytest.fixture(autouse=True)
def _runs_sparse_if_it_can(request):
    """Methods that run masked only, and say so by name, have nothing to show under sparse execution."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    asked = given.get("execution") == "sparse" or "under_sparse_execution" in request.node.name
    if asked and ss.methods.get(given["method"]).masked_only:
        pytest.skip(f"{given['method']} runs masked only")


def snapshot(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in masks.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Parameter name -> state key -> copy of each tensor of the parameter's shape."""
    return {
        name: {
            key: value.clone()
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }
        for name, parameter in model.named_parameters()
    }


def step(model, optimizer, batch, closure: bool, masks=None) -> None:
    """One optimizer step; with ``masks``, gradients are put on them by hand (the twin has no sparsifier)."""

    def backward():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        for name, parameter in model.named_parameters():
            if masks is not None and name in masks:
                parameter.grad.masked_fill_(~masks[name], 0)
        return loss

    if closure:
        optimizer.step(backward)
    else:
        backward()
        optimizer.step()


# -- one run, many laws --------------------------------------------------------------------------------------------


class Trial:
    """A run beside its twin: before every step the model and the optimizer are copied, and the copy, which no
    sparsifier knows, makes the same step. What differs afterwards is what the sparsifier did."""

    def __init__(self, method: str, source: str, optimizer: str, **changes):
        self.stepping = OPTIMIZERS[optimizer]
        self.model = tiny(source)
        self.optimizer = self.stepping.build(self.model.parameters())
        self.where = SOURCES[source]()
        how = make(method, **changes)
        self.sparse = ss.attach(
            self.model, self.optimizer, how, source=self.where, total_steps=TOTAL_STEPS, **given(how)
        )

    def __iter__(self):
        """Yields (step, masks before, the twin after its own step, the twin's optimizer state) after each step."""
        for index, batch in enumerate(DATA[:TOTAL_STEPS]):
            before = snapshot(self.sparse.masks)
            model = copy.deepcopy(self.model)
            optimizer = self.stepping.build(model.parameters())
            optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            step(model, optimizer, batch, self.stepping.closure, before)
            step(self.model, self.optimizer, batch, self.stepping.closure)
            yield index, before, model, states(model, optimizer)


EVERYWHERE = (
    "static",
    "snip",
    "gmp",
    "rigl",
)  # one that never changes, prunes once, prunes often, drops and grows
COMBINATIONS = [  # of the others every source and every optimizer, in turn
    (method, source, optimizer)
    for at, (method, (number, optimizer)) in enumerate(itertools.product(METHODS, enumerate(OPTIMIZERS)))
    for source in (SOURCES if method in EVERYWHERE else [list(SOURCES)[(at + number) % len(SOURCES)]])
]


@pytest.mark.parametrize(("method", "source", "optimizer"), COMBINATIONS)
def test_every_step(method, source, optimizer):
    trial = Trial(method, source, optimizer)
    behind = any("reached" in site.memory for site in trial.sparse._sites.values())
    if trial.stepping.closure and (behind or trial.sparse.method.shrinks):
        with pytest.raises(RuntimeError, match="closure"):
            _ = list(trial)
        return
    sparse, parameters = trial.sparse, dict(trial.model.named_parameters())
    assert list(sparse.masks) == ["0.weight", "3.weight"]
    decides_early = sparse.method.needs_step_gradient
    total = sum(mask.numel() for mask in sparse.masks.values())
    support, tickets = snapshot(sparse.source_masks), snapshot(sparse.target_masks)
    changed = []
    check_place(sparse, parameters, support)
    for index, before, twin, twin_states in trial:
        assert sparse.step == index + 1
        after = sparse.masks
        check_place(sparse, parameters, support)
        assert equal(sparse.source_masks, support)
        changed += [index] if not equal(before, after) else []
        shadow = dict(twin.named_parameters())
        ours = states(trial.model, trial.optimizer)
        early = decides_early and index == 0  # changed before the step: there is no state yet
        comparable = trial.stepping.elementwise or not early
        anew = sparse.method.begins_anew(index, TOTAL_STEPS)
        assert not anew or not any(t.any() for s in ours.values() for t in s.values()), "it begins anew"
        for name, parameter in parameters.items():
            if name not in after:
                assert not comparable or torch.equal(parameter, shadow[name]), name
                continue
            kept, grown, dropped = (
                before[name] & after[name],
                after[name] & ~before[name],
                before[name] & ~after[name],
            )
            if sparse.method.shrinks:
                continue  # the model sees less than the optimizer
            kept &= tickets[name]  # what is outside a ticket may be pulled to zero
            assert not comparable or torch.equal(parameter[kept], shadow[name][kept]), name
            if sparse.method.hides:
                continue  # grown weights come back with their values, and reached ones have moving state
            assert not bool(parameter[grown].any()), f"{name}: grown weights start at zero"
            if anew:
                continue  # nothing is left of its state
            assert ours[name].keys() == twin_states[name].keys()
            for key, value in ours[name].items():
                moved = grown | dropped
                assert early or not bool(value[moved].any()), f"{name}.{key}: fresh state for what moved"
                same = ~moved & (tickets[name] | ~before[name])
                assert not comparable or torch.equal(value[same], twin_states[name][key][same]), (name, key)
        tickets = snapshot(sparse.target_masks)
    expected = SETTINGS[method].changes
    assert expected is None or changed == list(expected)
    final = mask_rules.num_active(sparse.masks)
    assert final == sparse.target_count == round(DENSITY * total)
    assert sparse.density == final / total


def check_place(sparse, parameters, support) -> None:
    """Counts are exact, masks inside the source, inactive weights exactly zero (and not minus zero)."""
    assert mask_rules.num_active(sparse.masks) == sparse.target_count
    assert mask_rules.is_subset(sparse.masks, support)
    for name, mask in sparse.masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[name].shape
        assert not bool(parameters[name].detach()[~mask].view(torch.int32).any())


@law("gradients")
def test_gradients_are_sparse_when_they_arrive(method):
    trial = Trial(method, "exact", "sgd")
    for batch in DATA[:TOTAL_STEPS]:
        loss_of(trial.model, batch).backward()
        for name, parameter in trial.model.named_parameters():
            if name in trial.sparse.masks:
                assert not bool(parameter.grad[~trial.sparse.masks[name]].any())
        trial.optimizer.step()
        trial.optimizer.zero_grad(set_to_none=False)


# -- counts and ties -----------------------------------------------------------------------------------------------


@law("density")
@pytest.mark.filterwarnings("ignore:.* no live weight left")
@pytest.mark.parametrize("density", [0.013, 0.1, 1 / 3, 0.5, 0.999, 1.0, 1])
def test_counts_are_exact_at_any_density(method, density):
    trial = Trial(method, "dense", "sgd", density=density)
    for _ in trial:
        assert mask_rules.num_active(trial.sparse.masks) == trial.sparse.target_count
    assert trial.sparse.target_count == round(density * WEIGHTS)


@law("ties")
@pytest.mark.filterwarnings("ignore:.* no live weight left")
@pytest.mark.parametrize("source", ["dense", "exact"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_ties_do_not_change_the_counts(method, source, execution):
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)  # equal scores, and no gradient at all passes the norm of equal units
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(
        model,
        optimizer,
        make(method),
        source=SOURCES[source](),
        total_steps=TOTAL_STEPS,
        execution=execution,
        **given(make(method)),
    )
    for batch in DATA[:TOTAL_STEPS]:
        step(model, optimizer, batch, closure=False)
        assert mask_rules.num_active(sparse.masks) == sparse.target_count
        assert mask_rules.is_subset(sparse.masks, sparse.source_masks)
    assert sparse.target_count == round(DENSITY * WEIGHTS)


@law("density")
@pytest.mark.filterwarnings("ignore:.* no live weight left", "ignore:.* can move no weight")
@pytest.mark.parametrize("density", [0.013, 1 / 3, 1.0])
@pytest.mark.parametrize("source", ["dense", "exact"])
def test_counts_are_exact_under_sparse_execution(method, density, source):
    how = make(method, density=density if source == "dense" else density / 2)
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    sparse = ss.attach(
        model,
        optimizer,
        how,
        source=SOURCES[source](),
        total_steps=TOTAL_STEPS,
        execution="sparse",
        **given(how),
    )
    for batch in DATA[:TOTAL_STEPS]:
        assert mask_rules.num_active(sparse.masks) == sparse.target_count
        assert mask_rules.is_subset(sparse.masks, sparse.source_masks)
        assert model[0].weight.numel() + model[3].weight.numel() == sparse.target_count
        step(model, optimizer, batch, closure=False)
    assert sparse.target_count == round(how.density * WEIGHTS)


# -- drop fraction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MOVING)
def test_drop_fraction_zero_changes_nothing(method):
    trial = Trial(method, "exact", "adam", drop_fraction=0.0)
    start = snapshot(trial.sparse.masks)
    for _ in trial:
        assert equal(trial.sparse.masks, start)


@pytest.mark.filterwarnings("ignore:.* no live weight left")
@pytest.mark.parametrize("method", MOVING)
def test_drop_fraction_one_decides_every_weight_anew(method):
    trial = Trial(method, "dense", "adam", drop_fraction=1.0, drop_schedule="constant", exclude_dropped=True)
    updates = 0
    for _, before, _, _ in trial:
        if not equal(before, trial.sparse.masks):
            updates += 1
            assert not bool((before["0.weight"] & trial.sparse.masks["0.weight"]).any())
    assert updates == len(SETTINGS[method].changes)


# -- seeds ---------------------------------------------------------------------------------------------------------


def masks_of_run(method: str, source, execution: str = "masked", **changes) -> list[dict[str, Tensor]]:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    how = make(method, **changes)
    sparse = ss.attach(
        model, optimizer, how, source=source, total_steps=TOTAL_STEPS, execution=execution, **given(how)
    )
    seen = [snapshot(sparse.masks)]
    for batch in DATA[:TOTAL_STEPS]:
        step(model, optimizer, batch, closure=False)
        seen.append(snapshot(sparse.masks))
    return seen


@law("seed")
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_same_seed_same_masks(method, execution):
    source = ss.RandomSource(0.5, seed=1)
    first = masks_of_run(method, source, execution, seed=5)
    torch.manual_seed(987)  # the method's randomness is its own
    torch.rand(11)
    assert all(
        equal(a, b) for a, b in zip(first, masks_of_run(method, source, execution, seed=5), strict=True)
    )
    other = masks_of_run(method, source, execution, seed=6)
    assert equal(first[-1], other[-1]) is not SETTINGS[method].random
    assert not equal(first[-1], masks_of_run(method, ss.RandomSource(0.5, seed=2), execution, seed=5)[-1])


@law("global rng")
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_global_generator_is_left_alone(method, execution):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    masks_of_run(method, ss.RandomSource(0.5), execution)
    assert torch.equal(before, torch.get_rng_state())


# -- resume --------------------------------------------------------------------------------------------------------

ORDERS = list(itertools.permutations(["model", "optimizer", "sparse"]))


class Job:
    """A run with accumulation over two micro-batches, that can be saved and restored between any two of them."""

    def __init__(self, method: str, source: str, optimizer: str, seed: int = 0, execution: str = "masked"):
        self.model = tiny(source, seed)
        self.optimizer = OPTIMIZERS[optimizer].build(self.model.parameters())
        self.sparse = ss.attach(
            self.model,
            self.optimizer,
            make(method),
            source=SOURCES[source](),
            total_steps=TOTAL_STEPS,
            execution=execution,
            **given(make(method)),
        )

    def micro_step(self, index: int) -> None:
        (loss_of(self.model, DATA[index]) / 2).backward()
        if index % 2:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self) -> bytes:
        file = io.BytesIO()
        parts = {part: getattr(self, part).state_dict() for part in ("model", "optimizer", "sparse")}
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        torch.save(parts | {"gradients": gradients}, file)
        return file.getvalue()

    def restore(self, saved: bytes, order) -> None:
        parts = torch.load(io.BytesIO(saved), weights_only=True)
        for part in order:
            getattr(self, part).load_state_dict(parts[part])
        for name, parameter in self.model.named_parameters():
            parameter.grad = parts["gradients"].get(name)

    def end(self) -> dict[str, Tensor]:
        return (
            {f"weight {n}": p.detach() for n, p in self.model.named_parameters()}
            | {f"mask {n}": m for n, m in self.sparse.masks.items()}
            | {
                f"state {n} {k}": t
                for n, s in states(self.model, self.optimizer).items()
                for k, t in s.items()
            }
        )


RESUMED = [
    ("dense", "sgd", "masked"),
    ("bernoulli", "adamw-fused", "masked"),
    ("zeros", "drifting", "masked"),
    ("dense", "adamw-fused", "sparse"),
    ("exact", "sgd", "sparse"),
]


@pytest.mark.parametrize(("source", "optimizer", "execution"), RESUMED)
@law("resume")
def test_resume_is_bit_for_bit(method, source, optimizer, execution):
    whole = Job(method, source, optimizer, execution=execution)
    saved = [whole.save()]
    for index in range(2 * TOTAL_STEPS):
        whole.micro_step(index)
        saved.append(whole.save())
    silent = Job(method, source, optimizer, execution=execution)
    for index in range(2 * TOTAL_STEPS):
        silent.micro_step(index)
    assert equal(whole.end(), silent.end()), "saving changed the run"
    failed = []
    for at, state in enumerate(saved):
        resumed = Job(method, source, optimizer, seed=100 + at, execution=execution)
        resumed.restore(state, ORDERS[at % len(ORDERS)])
        assert resumed.save() == state or equal(
            torch.load(io.BytesIO(resumed.save()), weights_only=True)["model"],
            torch.load(io.BytesIO(state), weights_only=True)["model"],
        )
        for index in range(at, 2 * TOTAL_STEPS):
            resumed.micro_step(index)
        failed += [] if equal(whole.end(), resumed.end()) else [at]
    assert failed == []


# -- layers, signals -----------------------------------------------------------------------------------------------


@law("excluded")
def test_excluded_layers_are_untouched_and_the_budget_is_met_by_the_rest(method):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    excluded = model[0].weight.detach().clone()
    how = make(method)
    sparse = ss.attach(model, optimizer, how, layers=["!0"], total_steps=TOTAL_STEPS, **given(how))
    assert torch.equal(model[0].weight, excluded)
    for batch in DATA[:TOTAL_STEPS]:
        twin, other = copy.deepcopy((model, optimizer))
        step(twin, other, batch, closure=False, masks=snapshot(sparse.masks))
        step(model, optimizer, batch, closure=False)
        assert torch.equal(model[0].weight, twin[0].weight)
        assert torch.equal(model[0].weight.grad, twin[0].weight.grad)
    assert list(sparse.masks) == ["3.weight"]
    assert mask_rules.num_active(sparse.masks) == round(DENSITY * 80)


@law("signals")
def test_unknown_signals_change_nothing_but_are_named(method):
    model = tiny()
    plain = masks_of_run(method, None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    how = make(method)
    unused = "example_input" if "data" in how.needs else "data"
    with pytest.warns(UserWarning, match=f"{method}.*{unused}= is not used"):
        sparse = ss.attach(
            model, optimizer, how, total_steps=TOTAL_STEPS, **({unused: DATA[0][0]} | given(how))
        )
    for batch in DATA[:TOTAL_STEPS]:
        step(model, optimizer, batch, closure=False)
    assert equal(sparse.masks, plain[-1])


@law("plain data")
def test_a_method_is_its_plain_data(method):
    made = make(method)
    again = ss.methods.make(method, **made.hyper_parameters())
    assert again == made
    assert made.kind == "attach"
    assert made.name == method
    assert made.paper and made.summary and not made.summary.endswith(".")
    with pytest.raises(AttributeError):
        made.density = 0.5
    job = Job(method, "dense", "sgd")
    assert job.sparse.describe()["method"] == {"name": method} | made.hyper_parameters()
    assert job.sparse.phase in {
        "static",
        "scoring",
        "pruning",
        "exploring",
        "fixed",
        "dense",
        "sparse",
        "transforming",
    }
    assert method in str(job.sparse.report())


def held(sparse) -> bool:
    return any(gradient is not None for gradient in sparse.state_dict()["gradients"].values())


@law("dense gradient")
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_dense_gradients_are_only_taken_when_they_are_needed(method, execution):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    how = make(method)
    sparse = ss.attach(model, optimizer, how, total_steps=TOTAL_STEPS, execution=execution, **given(how))
    taken = 0
    for batch in DATA[:TOTAL_STEPS]:
        loss_of(model, batch).backward()
        taken += held(sparse)
        optimizer.step()
        optimizer.zero_grad()
        assert not held(sparse)
    assert taken == sparse.method.dense_gradient_steps(TOTAL_STEPS)
    row = SETTINGS[method]
    assert taken in ((0, len(row.changes or ())) if row.gradients is None else (row.gradients,))
