"""attach, detach, reading and state of a sparsifier: what is refused, and that nothing has changed then."""

from __future__ import annotations

import copy
import io
import warnings
import weakref

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.hooks import collect_garbage


def net(seed: int = 0) -> nn.Module:
    """Two sparse layers: 48 + 32 = 80 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model, *optimizers, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        model(torch.randn(4, 6, generator=generator)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


RIGL = ss.RigL(0.25, update_interval=2)


# -- attach --------------------------------------------------------------------------------------------------------


def hooks(model: nn.Module, *optimizers: torch.optim.Optimizer) -> int:
    """How many hooks there are anywhere."""
    found = sum(len(p._post_accumulate_grad_hooks or {}) for p in model.parameters())
    found += sum(len(m._load_state_dict_post_hooks) for m in model.modules())
    return found + sum(
        len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers
    )


BAD = {
    "no fraction of nothing": (lambda m, o: ss.attach(m, o, RIGL), ValueError, "give total_steps="),
    "total_steps": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=0),
        ValueError,
        "total_steps must be an int >= 1",
    ),
    "float steps": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=1e3),
        ValueError,
        "total_steps must be .*1000.0",
    ),
    "true steps": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=True),
        ValueError,
        "total_steps must be .*True",
    ),
    "execution": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=9, execution="maskd"),
        ValueError,
        "unknown execution 'maskd': did you mean 'masked'",
    ),
    "glob": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=9, layers=["fc*"]),
        ValueError,
        r"'fc\*' matches no parameter.*0\.weight, 2\.weight",
    ),
    "exclusion": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=9, layers="!3"),
        ValueError,
        "'!3' matches no parameter",
    ),
    "vector": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=9, layers="0.bias"),
        ValueError,
        r"only matches vectors \(0\.bias\)",
    ),
    "nothing left": (
        lambda m, o: ss.attach(m, o, RIGL, total_steps=9, layers="!*"),
        ValueError,
        "no layer is left",
    ),
    "method by name": (lambda m, o: ss.attach(m, o, "rigl"), TypeError, r"such as ss\.RigL\(density=0\.05\)"),
    "method class": (lambda m, o: ss.attach(m, o, ss.RigL), TypeError, "method must be"),
    "no optimizer": (lambda m, o: ss.attach(m, [], RIGL, total_steps=9), ValueError, "no optimizer"),
    "parameters": (
        lambda m, o: ss.attach(m, m.parameters(), RIGL, total_steps=9),
        TypeError,
        r"must be a torch\.optim\.Optimizer.*generator",
    ),
    "lost parameter": (
        lambda m, o: ss.attach(m, torch.optim.SGD(m[0].parameters()), RIGL, total_steps=9),
        ValueError,
        r"no optimizer updates 2\.weight.*freeze.*layers=\['!name'\]",
    ),
    "other model's optimizer": (
        lambda m, o: ss.attach(m, sgd(net()), RIGL, total_steps=9),
        ValueError,
        r"no optimizer updates 0\.weight, 2\.weight",
    ),
    "held too dense": (
        lambda m, o: ss.attach(m, o, ss.Static(0.2, {"0": 0.9})),
        ValueError,
        r"density 0\.2 allows 16 weights, .*already need 43 \(0\.weight\)",
    ),
    "unknown layer": (
        lambda m, o: ss.attach(m, o, ss.Static(0.2, {"1": 0.9})),
        ValueError,
        "'1' matches no layer",
    ),
    "small source": (
        lambda m, o: ss.attach(m, o, ss.Static(0.5), source=ss.RandomSource(0.3)),
        ValueError,
        "asks for 40 weights, but the layers can hold only 24.*enlarge the source",
    ),
    "source of another model": (
        lambda m, o: ss.attach(m, o, ss.Static(0.5), source=ss.MaskSource({"fc": torch.ones(2, 2).bool()})),
        ValueError,
        "MaskSource: 'fc' is not a sparse layer",
    ),
    "source shape": (
        lambda m, o: ss.attach(
            m, o, ss.Static(0.5), source=ss.MaskSource({"0.weight": torch.ones(2, 2).bool()})
        ),
        ValueError,
        r"'0\.weight' has shape \(2, 2\)",
    ),
    "float mask": (
        lambda m, o: ss.attach(m, o, ss.Static(0.5), source=ss.MaskSource({"0.weight": torch.ones(8, 6)})),
        ValueError,
        r"'0\.weight' is torch\.float32, it must be torch\.bool",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_refused_and_nothing_has_changed(case):
    call, error, message = BAD[case]
    model, plain = net(), net()
    optimizer = sgd(model)
    with pytest.raises(error, match=message):
        call(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert hooks(model, optimizer) == 0
    sparse = ss.attach(model, optimizer, ss.Static(0.5))
    assert sparse.density == 0.5


def test_nan_weights_cannot_be_ranked_and_stay_as_they_are():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    before = model[2].weight.detach().clone()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"0\.weight: 1 of 48 scores are NaN"):
        ss.attach(model, optimizer, ss.Magnitude(0.5))
    assert torch.equal(before, model[2].weight) and hooks(model, optimizer) == 0


@pytest.mark.parametrize("method", [ss.Static(0.05, {"2": 0.0}), ss.Magnitude(0.05)])
def test_an_empty_layer_is_said_aloud(method):
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"2\.weight has no live weight left \(density 0\.05\)") as caught:
        sparse = ss.attach(model, sgd(model), method)
    assert sparse.target_count == 4 and len(caught) == 1


def test_the_warning_of_an_empty_layer_points_at_the_caller():
    model = net()
    with pytest.warns(UserWarning, match="no live weight left") as caught:
        ss.attach(model, sgd(model), ss.Static(0.05, {"2": 0.0}))
    assert caught[0].filename == __file__


def test_an_empty_layer_under_warnings_as_errors_leaves_the_model_alone():
    model = net()
    optimizer = sgd(model)
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        ss.attach(model, optimizer, ss.Magnitude(0.05))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model, optimizer) == 0


def test_unused_arguments_are_named():
    model = net()
    with pytest.warns(UserWarning, match="static makes no passes that need it: loss_fn= is not used"):
        ss.attach(model, sgd(model), ss.Static(0.5), loss_fn=nn.functional.mse_loss)


def test_layers_by_name_module_and_glob():
    model = nn.ModuleDict({"body": net(), "head": nn.Linear(4, 2), "words": nn.Embedding(5, 4)})

    def names(layers):
        sparse = ss.attach(model, sgd(model), ss.Static(0.5), layers=layers)
        found = list(sparse.masks)
        sparse.detach()
        return found

    everything = ["body.0.weight", "body.2.weight", "head.weight"]
    assert names(None) == everything
    assert names("body.*") == everything[:2]
    assert names(["head"]) == ["head.weight"]
    assert names("module.head.weight") == ["head.weight"]
    assert names(["!head"]) == everything[:2]
    assert names(["*", "!body.0"]) == [*everything[1:], "words.weight"]
    assert names(["words", "head"]) == ["head.weight", "words.weight"]


# -- reading -------------------------------------------------------------------------------------------------------


def test_what_can_be_read():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, RIGL, source=ss.RandomSource(0.5, "uniform", seed=1), total_steps=8)
    assert sparse.model is model and sparse.method == RIGL and sparse.step == 0
    assert {n: int(m.sum()) for n, m in sparse.source_masks.items()} == {"0.weight": 24, "2.weight": 16}
    assert (sparse.target_count, sparse.density, sparse.phase) == (20, 0.25, "exploring")
    train(model, optimizer, steps=8)
    assert (sparse.step, sparse.target_count, sparse.phase) == (8, 20, "fixed")
    report = sparse.report()
    assert (report.num_updates, report.density, report.step) == (2, 0.25, 8)
    assert report.model_density == (20 + 12) / (80 + 12)
    assert sum(row.num_active for row in report.layers) == 20
    assert sum(row.num_source for row in report.layers) == 40
    assert all(row.num_nonzero <= row.num_active for row in report.layers)
    assert "rigl in random source, step 8, fixed" in str(report)
    assert report.as_dict()["layers"][0]["name"] == "0.weight"
    assert sparse.describe()["source"] == {"name": "random"} | {
        "density": 0.5,
        "distribution": "uniform",
        "seed": 1,
        "draw": "exact",
        "flow": "none",
        "layout": "unstructured",
    }


def test_masks_that_are_draws_are_known_as_such():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, RIGL, total_steps=10)
    for name, drawn in sparse.drawn.items():
        assert torch.equal(torch.from_numpy(drawn.mask()).view(sparse.masks[name].shape), sparse.masks[name])
    assert set(sparse.drawn) == set(sparse.masks)
    assert all(isinstance(mask, dict) for mask in sparse.state_dict()["masks"]["layers"].values())
    train(model, optimizer, steps=4)
    moved = [n for n in sparse.masks if n not in sparse.drawn]
    assert moved
    for name, drawn in sparse.drawn.items():
        assert torch.equal(torch.from_numpy(drawn.mask()).view(sparse.masks[name].shape), sparse.masks[name])


# -- detach, garbage, twice ----------------------------------------------------------------------------------------


def test_attaching_twice_is_refused():
    model = net()
    optimizer = sgd(model)
    first = ss.attach(model, optimizer, RIGL, total_steps=10)
    for other in (optimizer, sgd(model)):
        with pytest.raises(
            ValueError, match=r"0\.weight is attached to a sparsifier already: call detach\(\)"
        ):
            ss.attach(model, other, ss.Static(0.5))
    train(model, optimizer)
    assert first.step == 5 and first.density == 0.25


def test_disjoint_layers_may_have_a_sparsifier_each():
    model = net()
    optimizer = sgd(model)
    first = ss.attach(model, optimizer, RIGL, total_steps=10, layers="0")
    second = ss.attach(model, optimizer, ss.Static(0.5), layers="2")
    train(model, optimizer)
    assert (first.step, second.step) == (5, 5)
    assert (first.density, second.density) == (0.25, 0.5)
    assert not bool(model[0].weight[~first.masks["0.weight"]].any())
    assert not bool(model[2].weight[~second.masks["2.weight"]].any())


def test_attach_again_after_detach():
    model = net()
    optimizer = sgd(model)
    first = ss.attach(model, optimizer, ss.Static(0.5))
    assert first.detach() is model
    second = ss.attach(model, optimizer, ss.Static(0.25), source=ss.ZerosSource())
    first.detach()  # once more: nothing of the second is touched
    with pytest.raises(ValueError, match="attached to a sparsifier already"):
        ss.attach(model, optimizer, ss.Static(0.1))
    train(model, optimizer)
    assert (first.step, second.step) == (0, 5)
    assert int((model[0].weight != 0).sum() + (model[2].weight != 0).sum()) <= 20


def test_the_hooks_keep_a_sparsifier_alive_while_its_optimizer_lives():
    model = net()
    optimizer = sgd(model)
    ss.attach(model, optimizer, RIGL, total_steps=10)  # nobody keeps what is returned
    collect_garbage()
    train(model, optimizer)
    assert int((model[0].weight != 0).sum() + (model[2].weight != 0).sum()) <= 20
    with pytest.raises(ValueError, match="attached"):
        ss.attach(model, optimizer, RIGL, total_steps=10)


def test_attach_again_when_the_first_is_garbage():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, RIGL, total_steps=10)
    dead = weakref.ref(sparse)
    del sparse, optimizer
    optimizer = sgd(model)
    again = ss.attach(model, optimizer, ss.Static(0.5))
    assert dead() is None
    assert hooks(model, optimizer) == 2 + 2 + 2
    train(model, optimizer)
    assert again.density == 0.5


def test_nothing_keeps_a_model_alive():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, RIGL, total_steps=10)
    train(model, optimizer)
    gone = [weakref.ref(model), weakref.ref(sparse), weakref.ref(model[0].weight)]
    del model, optimizer, sparse
    collect_garbage()
    assert [ref() for ref in gone] == [None, None, None]


# -- state ---------------------------------------------------------------------------------------------------------


def run(method=RIGL, steps: int = 3, source=None):
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, method, source=source, total_steps=10)
    train(model, optimizer, steps=steps)
    return sparse, model, optimizer


def test_state_is_small_where_masks_are_draws():
    def size(sparse):
        file = io.BytesIO()
        torch.save(sparse.state_dict(), file)
        return file.tell()

    big = nn.Linear(1000, 1000)
    assert size(ss.attach(big, sgd(big), ss.Static(0.1))) < 5_000
    big = nn.Linear(1000, 1000)
    assert 125_000 < size(ss.attach(big, sgd(big), ss.Magnitude(0.1))) < 130_000


@pytest.mark.parametrize(
    ("method", "source", "message"),
    [
        (ss.RigL(0.25, update_interval=3), None, r"method\.update_interval is 2, the sparsifier's is 3"),
        (ss.RigL(0.5, update_interval=2), None, r"method\.density is 0\.25, the sparsifier's is 0\.5"),
        (ss.SET(0.25, update_interval=2), None, r"method\.name is 'rigl', the sparsifier's is 'set'"),
        (RIGL, ss.RandomSource(0.5), r"source\.name is 'dense', the sparsifier's is 'random'"),
    ],
)
def test_the_state_of_another_run_is_refused_and_nothing_has_changed(method, source, message):
    sparse, _, _ = run()
    other, model, _ = run(method, source=source)
    before = copy.deepcopy((model.state_dict(), other.state_dict()["masks"]["sha256"], other.step))
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(sparse.state_dict())
    assert all(torch.equal(v, before[0][n]) for n, v in model.state_dict().items())
    assert (other.state_dict()["masks"]["sha256"], other.step) == before[1:]


def test_the_state_of_other_layers_is_refused():
    sparse, _, _ = run()
    model = net()
    other = ss.attach(model, sgd(model), RIGL, total_steps=10, layers="!2")
    with pytest.raises(
        ValueError, match=r"layers differ: missing \[\], unknown \['2\.weight'\].*same layers="
    ):
        other.load_state_dict(sparse.state_dict())


def test_a_state_of_the_future_and_what_is_no_state():
    sparse, _, _ = run()
    with pytest.raises(ValueError, match="format 99; this version reads format 1"):
        sparse.load_state_dict(sparse.state_dict() | {"format": 99})
    for wrong in ({}, {"model": 1}, [], None):
        with pytest.raises(ValueError, match="not the state of a sparsifier"):
            sparse.load_state_dict(wrong)


def test_a_damaged_mask_is_found_by_its_hash():
    sparse, _, _ = run()
    before = {name: mask.clone() for name, mask in sparse.masks.items()}
    state = copy.deepcopy(sparse.state_dict())
    packed = state["masks"]["layers"]["0.weight"]
    packed[0] ^= 4
    with pytest.raises(ValueError, match="do not match their hash"):
        sparse.load_state_dict(state)
    assert all(torch.equal(mask, before[name]) for name, mask in sparse.masks.items())


@pytest.mark.parametrize(
    "key", ["describe", "step", "start_count", "num_updates", "num_moved", "masks", "sources", "gradients"]
)
def test_a_state_without_a_part_is_named_and_nothing_has_changed(key):
    sparse, _, _ = run(steps=4)
    other, _, _ = run(steps=1)
    state = sparse.state_dict()
    del state[key]
    before = other.state_dict()["masks"]["sha256"]
    try:
        with pytest.raises(ValueError, match=key):
            other.load_state_dict(state)
    finally:
        assert (other.step, other.state_dict()["masks"]["sha256"]) == (1, before)


def _no_source(state):
    del state["sources"]["2.weight"]


def _unknown_field(state):
    state["sources"]["2.weight"] = state["sources"]["2.weight"] | {"bogus": 1}


def _another_size(state):
    state["sources"]["2.weight"] = state["sources"]["2.weight"] | {"size": 7}


def _another_gradient(state):
    state["gradients"]["2.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    "damage",
    [
        _no_source,
        _unknown_field,
        _another_size,
        _another_gradient,
    ],
)
def test_a_damaged_source_or_gradient_is_named_and_nothing_has_changed(damage):
    runs = []
    for steps in (4, 1):
        model = net()
        optimizer = sgd(model)
        runs.append(ss.attach(model, optimizer, RIGL, source=ss.RandomSource(0.6), total_steps=10))
        train(model, optimizer, steps=steps)
    state = copy.deepcopy(runs[0].state_dict())
    damage(state)
    before = runs[1].state_dict()["masks"]["sha256"]
    try:
        with pytest.raises(ValueError, match=r"2\.weight"):
            runs[1].load_state_dict(state)
    finally:
        assert (runs[1].step, runs[1].state_dict()["masks"]["sha256"]) == (1, before)


def test_a_state_of_a_run_of_another_length_is_refused():
    sparse, _, _ = run()
    model = net()
    other = ss.attach(model, sgd(model), RIGL, total_steps=20)
    with pytest.raises(ValueError, match="total_steps"):
        other.load_state_dict(sparse.state_dict())


def test_a_state_is_a_copy():
    sparse, model, optimizer = run()
    state = sparse.state_dict()
    before = copy.deepcopy(state)
    train(model, optimizer, steps=4)
    assert state["masks"]["sha256"] == before["masks"]["sha256"] != sparse.state_dict()["masks"]["sha256"]
    other, _, _ = run(steps=0)
    other.load_state_dict(state)
    assert other.step == 3


@pytest.mark.parametrize(
    "hold", [lambda tensor: [tensor], lambda tensor: {"a": (tensor, 1)}, lambda tensor: ({"b": [tensor]},)]
)
def test_optimizer_state_follows_into_nested_containers(hold):
    """A tensor of the weight's shape belongs to the weights, also in a list within the state."""

    class Nested(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if "past" not in state:
                        kept.append(torch.ones_like(parameter))
                        state["past"] = hold(kept[-1])
                    parameter.sub_(parameter.grad, alpha=0.1)

    kept: list[torch.Tensor] = []
    model = net()
    optimizer = Nested(model.parameters())
    sparse = ss.attach(model, optimizer, ss.SET(0.25, update_interval=1), total_steps=10)
    train(model, optimizer, steps=1)
    before = sparse.masks["0.weight"].clone()
    train(model, optimizer, steps=1)
    moved = before ^ sparse.masks["0.weight"]
    assert bool(moved.any())
    assert not bool(kept[0][moved].any())
    assert bool(kept[0].any())


def test_what_is_no_model_or_no_name_of_a_layer():
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in (None, model.forward, nn.Linear):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got "):
            _ = ss.attach(wrong, optimizer, ss.Static(0.5))
    with pytest.raises(TypeError, match=r"layers must be names or globs such as 'fc\*', got \[0\]"):
        _ = ss.attach(model, optimizer, ss.Static(0.5), layers=[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": ss.RandomSource}, r"source must be a source such as ss\.RandomSource\(0\.3\), or None, got <class"),
        ({"method": ss.GraSP(0.3), "data": 3, "loss_fn": nn.functional.mse_loss}, r"data must give batches .*, got 3"),
        ({"method": ss.GraSP(0.3), "data": [], "loss_fn": "mse"}, r"loss_fn must be a function, .*, got 'mse'"),
    ],
    ids=["source", "data", "loss_fn"],
)  # fmt: skip
def test_arguments_of_another_kind_are_named(given, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = given.pop("method", ss.Static(0.5))
    with pytest.raises(TypeError, match=message):
        _ = ss.attach(model, optimizer, method, **given)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got NoneType"):
        ss.attach(model, optimizer, ss.Static(0.5)).apply_to(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "steps"), [(None, [1, 2, 3]), (1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (5, [1, 2, 3])]
)
def test_the_newest_updates(last, steps):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, ss.SET(0.4, update_interval=1), total_steps=8)
    for _ in range(4):
        model(torch.randn(5, 6)).square().mean().backward()
        optimizer.step()
    assert sparse.dynamics(last=last).steps == steps
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="last must be a number of updates, an int >= 1"):
            sparse.dynamics(last=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "use",
    [
        lambda model: ss.plan(model, ss.Static(0.1)),
        lambda model: ss.search(model, ss.Jackpot(0.1)),
        lambda model: next(iter(ss.lottery(model, ss.IMP(0.1)))),
    ],
    ids=["plan", "search", "lottery"],
)
def test_a_model_that_runs_sparse_is_not_taken_for_one_without_layers(use):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    _kept = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.5), execution="sparse")
    with pytest.raises(ValueError, match=r"0\.weight runs sparse already: .*densify_execution"):
        use(model)
