from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import startsparse as ss
from startsparse import state
from startsparse.draw import Drawn, exact
from startsparse.masks import fingerprint

quick = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = {"conv.weight": (4, 3, 3, 3), "fc.weight": (30, 40)}
DRAWN = {"fc.weight": Drawn("exact", 5, "fc.weight", 1200, count=60)}


def positions_of(mask):
    return mask.reshape(-1).nonzero().squeeze(1)


def some_positions():
    return {
        "conv.weight": torch.arange(0, 108, 3),
        "fc.weight": positions_of(torch.from_numpy(exact(1200, 60, 5, "fc.weight"))),
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_a_file(data):
    """As torch.save and torch.load(weights_only=True) give it back."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    _ = buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_masks_come_back_as_positions_and_draws():
    packed = through_a_file(state.pack_masks(some_positions(), DRAWN, SHAPES))
    positions, drawn = state.unpack_masks(packed, SHAPES)
    assert same(positions, some_positions())
    assert drawn == DRAWN
    assert packed["layers"]["fc.weight"] == DRAWN["fc.weight"].as_dict(), "a draw costs its seed"


def test_the_hash_is_the_fingerprint_of_the_masks():
    masks = {}
    for name, where in some_positions().items():
        mask = torch.zeros(math.prod(SHAPES[name]), dtype=torch.bool)
        mask[where] = True
        masks[name] = mask.view(SHAPES[name])
    assert state.pack_masks(some_positions(), DRAWN, SHAPES)["sha256"] == fingerprint(masks)
    assert state.pack_masks(some_positions(), {}, SHAPES)["sha256"] == fingerprint(masks)


@quick
@given(st.integers(1, 500), st.data())
def test_any_mask_comes_back_and_takes_a_bit_a_weight_at_most(size, data):
    count = data.draw(st.integers(0, size))
    where = {"w": torch.from_numpy(exact(size, count, 0, "w")).nonzero().squeeze(1)}
    packed = state.pack_masks(where, {}, {"w": (size,)})
    assert same(state.unpack_masks(through_a_file(packed), {"w": (size,)})[0], where)
    stored = packed["layers"]["w"]
    assert stored.numel() * stored.element_size() <= (size + 7) // 8


def test_few_positions_cost_less_than_bits():
    where = {"w": torch.tensor([3, 999_999])}
    packed = state.pack_masks(where, {}, {"w": (1000, 1000)})
    assert packed["layers"]["w"].numel() * packed["layers"]["w"].element_size() <= 16
    assert same(state.unpack_masks(packed, {"w": (1000, 1000)})[0], where)


def flip_a_bit(packed):
    packed["layers"]["conv.weight"][3] ^= 16


def another_seed(packed):
    packed["layers"]["fc.weight"]["seed"] += 1


def another_count(packed):
    packed["layers"]["fc.weight"]["count"] -= 1


def another_hash(packed):
    packed["sha256"] = "0" * 64


def too_few_bytes(packed):
    packed["layers"]["conv.weight"] = packed["layers"]["conv.weight"][:-1]


@pytest.mark.parametrize("damage", [flip_a_bit, another_seed, another_count, another_hash, too_few_bytes])
def test_damaged_masks_are_refused(damage):
    packed = state.pack_masks(some_positions(), DRAWN, SHAPES)
    assert packed["layers"]["conv.weight"].dtype == torch.uint8
    damage(packed)
    with pytest.raises(ValueError, match=r"damaged|cannot hold"):
        state.unpack_masks(packed, SHAPES)


@pytest.mark.parametrize(
    "value",
    [
        {**DRAWN["fc.weight"].as_dict(), "bogus": 1},
        {**DRAWN["fc.weight"].as_dict(), "size": 1201},
        torch.tensor([1, 1, 1], dtype=torch.int32),
        torch.cat([some_positions()["fc.weight"], torch.tensor([5000])]).int(),
    ],
    ids=["unknown field", "another size", "repeated positions", "outside"],
)
def test_lying_masks_are_refused(value):
    packed = state.pack_masks(some_positions(), {}, SHAPES)
    packed["layers"]["fc.weight"] = value
    with pytest.raises(ValueError):
        state.unpack_masks(packed, SHAPES)


def test_sources_come_back():
    drawn = {
        "c": Drawn("exact", 5, "c", 1200, count=300),
        "d": Drawn("bernoulli", 1, "d", 90, density=0.4),
    }
    sources = {
        "a": None,
        "b": torch.arange(60) % 7 == 0,
        "c": drawn["c"],
        "d": torch.from_numpy(drawn["d"].mask()),
    }
    packed = through_a_file(state.pack_sources(sources, drawn))
    assert packed["c"] == drawn["c"].as_dict()
    back = state.unpack_sources(packed, {"a": (3,), "b": (6, 10), "c": (30, 40), "d": (9, 10)})
    assert back.pop("a") is None
    assert torch.equal(back.pop("b"), sources["b"])
    assert back == drawn, "as a seed, not as a mask"
    assert all(np.array_equal(back[name].mask(), drawn[name].mask()) for name in drawn)


# -- the whole state ---------------------------------------------------------------------------------------------


def attached(method=None, source=None, layers=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = method or ss.RigL(0.2, update_interval=2, update_end=50)
    return ss.attach(model, optimizer, method, source=source, layers=layers)


def run(sparse, steps):
    optimizer = sparse._optimizers[0]
    for _ in range(steps):
        sparse.model(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


SOURCE = ss.RandomSource(0.5, "balanced", seed=2)


@pytest.mark.parametrize("source", [None, SOURCE], ids=["dense", "random"])
def test_a_sparsifier_comes_back_through_a_file(source):
    sparse = attached(source=source)
    run(sparse, 5)
    saved = through_a_file(sparse.state_dict())
    other = attached(source=source)
    other.load_state_dict(saved)
    assert same(other.masks, sparse.masks) and same(other.source_masks, sparse.source_masks)
    assert (other.step, other.target_count) == (5, sparse.target_count)
    assert fingerprint(other.masks) == saved["masks"]["sha256"]


def edited(path, value):
    def edit(saved):
        *parents, last = path
        for key in parents:
            saved = saved[key]
        saved[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(["format"], 2), "of format 2; this version reads format 1"),
        (lambda saved: saved.pop("format"), "not the state of a sparsifier"),
        (edited(["describe", "method", "name"], "set"), "method.name is 'set', the sparsifier's is 'rigl'"),
        (edited(["describe", "method", "density"], 0.3), "method.density is 0.3, the sparsifier's is 0.2"),
        (edited(["describe", "method", "new"], 1), "method.new is 1, the sparsifier's is None"),
        (edited(["describe", "source", "seed"], 3), "source.seed is 3, the sparsifier's is 2"),
        (lambda saved: saved["masks"]["layers"].pop("0.weight"), r"missing \['0.weight'\]"),
        (edited(["masks", "layers", "4.weight"], torch.zeros(1)), r"unknown \['4.weight'\]"),
        (edited(["masks", "sha256"], "f" * 64), "the state is damaged"),
    ],
)
def test_a_state_of_something_else_is_refused_and_nothing_has_changed(edit, message):
    saved = copy.deepcopy(attached(source=SOURCE).state_dict())
    _ = edit(saved)
    sparse = attached(source=SOURCE)
    run(sparse, 3)
    masks = {name: mask.clone() for name, mask in sparse.masks.items()}
    weights = {name: value.clone() for name, value in sparse.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        sparse.load_state_dict(saved)
    assert same(sparse.masks, masks)
    assert same(dict(sparse.model.state_dict()), weights)
    assert sparse.step == 3
    run(sparse, 3)
    assert sum(int(mask.sum()) for mask in sparse.masks.values()) == sparse.target_count


@pytest.mark.parametrize("saved", [None, 3, [], {}, {"state": {}}], ids=str)
def test_what_is_no_state_at_all_is_refused(saved):
    with pytest.raises(ValueError, match="not the state of a sparsifier"):
        attached().load_state_dict(saved)


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match=r"unknown \['2.weight'\]"):
        attached(layers="0").load_state_dict(attached().state_dict())
