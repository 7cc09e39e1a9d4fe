"""States that come back: whatever is wrong with one is said by name, and nothing has changed then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import startsparse as ss

from .contract.settings import make
from .damage import MISSING, damaged, paths_and_damage, same

STEPS = 10
SOURCE = ss.RandomSource(0.5)
X = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def attached(name, execution="masked", source=SOURCE, optimizer=torch.optim.SGD, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 4)
    )
    method = make(name, **changes)
    return ss.attach(
        model,
        optimizer(model.parameters(), lr=0.1),
        method,
        source=source,
        total_steps=STEPS,
        execution=execution,
    )


def run(sparse, steps, last_is_begun=False):
    optimizer = sparse._optimizers[0]
    for step in range(steps + last_is_begun):
        for _ in sparse.probes():
            sparse.model(X).square().mean().backward()
        sparse.model(X).square().mean().backward()
        if step < steps:
            optimizer.step()
            optimizer.zero_grad()


CASES = {
    "static": ("static", {}),
    "rigl, sparse": ("rigl", {"execution": "sparse"}),
    "ggr": ("ggr", {"probes": 2}),
    "rst": ("rst", {}),
    "str": ("str", {"source": None}),
    "deepr": ("deepr", {}),
    "dst_ee": ("dst_ee", {}),
    "young": ("set", {"grown_state": "warmup", "optimizer": torch.optim.Adam}),
}


@pytest.mark.filterwarnings("ignore:.*no live weight")
@pytest.mark.parametrize("case", CASES)
def test_whatever_is_wrong_is_refused_in_words_or_harmless(case):
    name, options = CASES[case]
    saved = attached(name, **options)
    run(saved, 3, last_is_begun=True)
    good, weights = saved.state_dict(), saved.model.state_dict()
    target = attached(name, **options)
    before = copy.deepcopy((target.state_dict(), target.dense_state_dict()))
    refused = 0
    for path, damage in paths_and_damage(good):
        try:
            target.load_state_dict(damaged(good, path, damage))
        except ValueError as error:
            assert "state" in str(error), (path, damage)
            refused += 1
        else:
            target.model.load_state_dict(weights)
            run(target, STEPS - 4)
            _ = target.report(), target.dynamics()
            target = attached(name, **options)
        if len(path) < 3:
            assert same((target.state_dict(), target.dense_state_dict()), before), path
    assert same((target.state_dict(), target.dense_state_dict()), before)
    assert refused > 300


@pytest.mark.parametrize(
    ("path", "damage", "message"),
    [
        (["sources"], None, r"state's sources must be a dict, not None"),
        (["gradients"], None, r"state's gradients must be a dict, not None"),
        (["memory"], [], r"state's memory must be a dict, not a list"),
        (["describe"], MISSING, r"lacks describe"),
        (["describe", "method"], 3, r"describe\.method must be a dict, not 3"),
        (["masks", "layers"], None, r"masks must be a dict, not None"),
        (["gradients", "0.weight"], torch.zeros(3), r"gradient of '0.weight' must be None or .*\(4, 2, 3, 3\), not .*\(3,\)"),
        (["memory", "0.weight", "leaving"], MISSING, r"memory 'leaving' of '0.weight' must be a tensor, not None"),
        (["memory", "0.weight", "leaving"], torch.zeros(3), r"'leaving' of '0.weight' must be bools of the weight's shape"),
        (["dynamics"], 3, r"dynamics must be a dict, not 3"),
        (["dynamics", "steps"], MISSING, r"dynamics\.steps must be a list of ints, not None"),
        (["start_count"], 3, r"start_count must be that of a run in which 156 of 312 weights live now, not 3"),
        (["sources", "0.weight", "seed"], 9, r"source of '0.weight' must be the draw that attach\(\) made, .*seed=0"),
        (["sources", "0.weight", "count"], "x", r"draw of '0.weight' is not one this version knows"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_would_be_right(path, damage, message):
    sparse = attached("rst")
    bad = damaged(sparse.state_dict(), path, damage)
    with pytest.raises(ValueError, match=message):
        sparse.load_state_dict(bad)


def test_a_state_of_before_has_no_dynamics():
    sparse = attached("rigl")
    run(sparse, 5)
    state = sparse.state_dict()
    del state["dynamics"]
    other = attached("rigl")
    other.load_state_dict(state)
    assert (other.step, other.dynamics().steps) == (5, [])


@pytest.mark.parametrize("way", [("sparse", "masked"), ("masked", "sparse")], ids="to".join)
def test_kept_gradients_of_convolutions_go_on_under_another_execution(way):
    first, second = (attached("snfs", execution, momentum=0.5) for execution in way)
    run(first, 3)
    assert "gradient" in first.state_dict()["memory"]["0.weight"]
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict() if way[1] == "sparse" else first.dense_state_dict())
    run(first, 4)
    run(second, 4)
    assert first.report().num_moved == second.report().num_moved > 0
    assert all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())
