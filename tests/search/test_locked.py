"""Sources that lock weights in: always active, never moved, counted."""

from __future__ import annotations

import pytest
import torch

import startsparse as ss
from startsparse.layers import find
from startsparse.sources import LockedSource, MaskSource, RandomSource, Support, describe

from .nets import TOTAL_STEPS, make, net

RANKED = ("edge-popup", "edge-popup-annealed", "hydra", "jackpot", "jackpot-2021", "movement-frozen")
COMPUTED = ("biprop", "continuous-sparsification", "maskllm", "piggyback", "probmask", "supermask")


def source(share=0.2, **changes):
    return LockedSource(**({"density": 0.5, "distribution": "uniform", "seed": 3, "share": share} | changes))


def supports(where, model=None):
    layers = find(model or net())
    return {name: (found.mask(), found.locked) for name, found in where.supports(layers).items()}


def search_of(model, method, where):
    return ss.search(model, method, source=where, total_steps=TOTAL_STEPS)


def train(model, search, optimizer, steps=TOTAL_STEPS, seen=lambda: None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        seen()


def test_what_is_locked_in_is_drawn_from_what_a_random_source_removes():
    searched = {
        name: found.mask() for name, found in RandomSource(0.5, "uniform", 3).supports(find(net())).items()
    }
    for name, (mask, locked) in supports(source()).items():
        assert not (locked & searched[name]).any() and torch.equal(mask, locked | searched[name])
        removed = mask.numel() - int(searched[name].sum())
        assert int(locked.sum()) == round(0.2 * removed)


def test_shares_of_none_and_all():
    for (mask, locked), found in zip(
        supports(source(0.0)).values(),
        RandomSource(0.5, "uniform", 3).supports(find(net())).values(),
        strict=True,
    ):
        assert not locked.any() and torch.equal(mask, found.mask())
    assert all(mask.all() for mask, _ in supports(source(1.0)).values())


def test_a_bernoulli_draw_locks_positions_in_one_by_one():
    layer = find(torch.nn.Linear(200, 200))
    found = source(0.2, draw="bernoulli").supports(layer)["weight"]
    searched = RandomSource(0.5, "uniform", 3, draw="bernoulli").supports(layer)["weight"].mask()
    assert torch.equal(found.mask() & ~found.locked, searched)
    assert abs(int(found.locked.sum()) - 4000) < 4 * (40000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_locked_weights_are_in_every_mask_and_never_move(name, scope):
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    search = search_of(model, make(name, density=0.3, scope=scope), source())
    where = supports(source())
    searched = list(search.masks)

    def check():
        for key in searched:
            mask, (inside, locked) = search.masks[key].view(-1), where[key]
            assert not (locked & ~mask).any() and not (mask & ~inside).any()
            now = model.get_parameter(key).detach().view(-1)
            assert torch.equal(now[locked], before[key].view(-1)[locked])
        assert search.num_active == search.target_count

    check()
    train(
        model, search, torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9, weight_decay=1e-2), seen=check
    )
    assert search.num_swaps > 0
    masks = search.finish()
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * total)
    for key, mask in masks.items():
        assert torch.equal(model.get_parameter(key) != 0, mask)


def test_a_ticket_may_be_denser_than_what_is_searched():
    """A random source of density 0.2 holds no ticket of density 0.5; with weights locked in it does."""
    with pytest.raises(ValueError, match="source allows"):
        _ = search_of(net(), ss.EdgePopup(0.5), RandomSource(0.2, "uniform"))
    search = search_of(net(), ss.EdgePopup(0.5), source(0.5, density=0.2))
    assert search.num_active == round(0.5 * (288 + 576 + 320))


@pytest.mark.parametrize("restriction", ["quartic", 0.3])
@pytest.mark.parametrize("order", ["gap", "curvature", "random"])
def test_restricted_swaps_leave_them_alone(restriction, order):
    model = net()
    search = search_of(
        model, ss.Jackpot(0.3, restriction=restriction, order=order, classifier="include"), source()
    )
    where = supports(source())

    def check():
        for key, mask in search.masks.items():
            assert not (where[key][1] & ~mask.view(-1)).any()

    train(model, search, torch.optim.SGD(search.scores(), lr=50.0), seen=check)


def test_stop_save_load_go_on_is_never_stopped():
    def begin():
        model = net()
        search = search_of(model, ss.EdgePopup(0.3), source())
        return model, search, torch.optim.Adam(search.scores(), lr=0.05)

    model, search, optimizer = begin()
    train(model, search, optimizer, 4)
    saved = [part.state_dict() for part in (model, search, optimizer)]
    saved = torch.load(_written(saved), weights_only=True)
    train(model, search, optimizer, 4)
    again = begin()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    train(again[0], again[1], again[2], 4)
    assert all(torch.equal(a, again[1].masks[key]) for key, a in search.masks.items())
    other = search_of(net(), ss.EdgePopup(0.3), source(0.1))
    with pytest.raises(ValueError, match="share"):
        other.load_state_dict(saved[1])


def test_a_state_brings_what_it_locked_in():
    """A source of the user's own may lock in something else the next time; the run that was saved goes on as it was."""

    class Mine(MaskSource):
        seed = 0

        def supports(self, layers):
            found = {}
            for name, layer in layers.items():
                generator = torch.Generator().manual_seed(self.seed)
                found[name] = Support(locked=torch.rand(layer.shape, generator=generator).view(-1) < 0.1)
            return found

    def begin(seed):
        model, where = net(), Mine({})
        object.__setattr__(where, "seed", seed)
        search = search_of(model, ss.EdgePopup(0.3), where)
        return model, search, torch.optim.SGD(search.scores(), lr=2.0, momentum=0.9)

    model, search, optimizer = begin(1)
    train(model, search, optimizer, 4)
    saved = torch.load(
        _written([part.state_dict() for part in (model, search, optimizer)]), weights_only=True
    )
    train(model, search, optimizer, 4)
    again = begin(2)
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    train(*again, 4)
    assert all(torch.equal(mask, again[1].masks[name]) for name, mask in search.masks.items())
    before = begin(1)
    del saved[1]["locked"]  # as it was written before
    before[1].load_state_dict(saved[1])


def _written(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    _ = buffer.seek(0)
    return buffer


def test_the_report_counts_them():
    report = search_of(net(), ss.EdgePopup(0.3), source()).report()
    expected = {name: int(locked.sum()) for name, (_, locked) in supports(source()).items()}
    assert {row.name: row.num_locked for row in report.layers} == expected
    assert (
        f"{sum(expected.values())} weights are locked in, {(288 + 576 + 320) // 2} positions are searched"
        in str(report)
    )


def test_described_and_made_again():
    assert describe(source()) == {
        "name": "locked", "density": 0.5, "distribution": "uniform", "seed": 3, "draw": "exact", "flow": "none",
        "layout": "unstructured", "share": 0.2,
    }  # fmt: skip
    assert ss.sources.make(**describe(source())) == source()


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"share": 1.1}, {"share": True}, {"share": "half"}, {"flow": "add"}, {"layout": "fan_in"}]
)
def test_bad_sources(changes):
    with pytest.raises(
        ValueError, match=r"LockedSource: (share must be in \[0, 1\]|.*leave flow and layout)"
    ):
        _ = source(**({"share": 0.2} | changes))


@pytest.mark.parametrize("name", COMPUTED)
def test_methods_that_compute_with_something_else(name):
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{name} does not compute with the weights"):
        _ = search_of(model, make(name), source())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_more_locked_in_than_a_layer_may_hold():
    with pytest.raises(
        ValueError, match=r"0.weight is given \d+ active weights, and the source locks in \d+ of it"
    ):
        _ = search_of(net(), ss.EdgePopup(0.1), source(0.5))


def test_scopes_of_groups():
    with pytest.raises(ValueError, match="scope 'row'"):
        _ = search_of(net(), ss.EdgePopup(0.5, scope="row"), source())


def test_training_refuses_them_and_says_what_does():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    remedy = r"ss.RandomSource\(density=0.5, distribution='uniform', seed=3\)"
    for begin in (
        lambda: ss.attach(model, optimizer, ss.Static(0.3), source=source()),
        lambda: ss.plan(model, ss.Static(0.3), source=source()),
        lambda: ss.lottery(model, ss.IMP(0.3), source=source()),
    ):
        with pytest.raises(ValueError, match=f"for ss.search.*{remedy}"):
            _ = begin()
