"""Levels of a lottery: exact counts, weights that are where they should be, hooks that leave nothing behind."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution import every_step
from startsparse.execution.hooks import collect_garbage
from startsparse.layers import find
from startsparse.methods.iterative import IMP, EarlyBird
from startsparse.tickets import Ticket, lottery

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=1e-2),
}


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 8, generator=generator), torch.randn(12, 4, generator=generator)


def train(model, optimizer, steps, first=0, watch=lambda: None):
    for step in range(first, steps):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        watch()


def run(levels, optimizer="sgd", steps=6, attach=None):
    """Train all levels; returns masks and first weights of each, and the model's weights at its end."""
    seen = []
    for level in levels:
        masks = {name: mask.clone() for name, mask in level.masks.items()}
        begin = {n: t.clone() for n, t in level.model.state_dict().items()}
        made = OPTIMIZERS[optimizer](level.model.parameters())
        if attach is not None:
            _ = level.attach(made, execution=attach)
        train(level.model, made, steps, level.start_step)
        seen.append((masks, begin, level))
    return seen


def test_levels_meet_their_counts_and_rewind_to_the_step_bit_for_bit():
    model, twin = net(), net()
    method = IMP(density=0.25, levels=3, rewind_step=2)
    found = lottery(model, method)
    assert (found.num_levels, len(found)) == (4, 4)
    seen = run(found)
    assert (
        [sum(int(m.sum()) for m in masks.values()) for masks, _, _ in seen]
        == found.counts
        == [192, 121, 76, 48]
    )
    train(twin, OPTIMIZERS["sgd"](twin.parameters()), 2)
    at_two = twin.state_dict()
    for masks, begin, level in seen[1:]:
        assert level.start_step == 2
        for name, tensor in begin.items():
            mask = masks.get(name)
            expected = at_two[name] if mask is None else at_two[name] * mask
            assert torch.equal(tensor, expected), name
    train(twin, OPTIMIZERS["sgd"](twin.parameters()), 6, 2)
    for (before, _, _), (after, _, _) in itertools.pairwise(seen):
        assert ss.masks.is_subset(after, before)
    assert [t.steps for t in found.trained] == [6, 4, 4, 4]


@pytest.mark.parametrize("rewind", ["lr", "none"])
def test_weights_are_kept_and_the_schedule_goes_where_it_should(rewind):
    ends = []
    for level in lottery(net(), IMP(density=0.25, levels=2, rewind=rewind)):
        if ends:
            for name, mask in level.masks.items():
                assert torch.equal(level.model.state_dict()[name], ends[-1][name] * mask)
        assert level.start_step == (0 if rewind == "lr" or level.index == 0 else 3)
        train(level.model, OPTIMIZERS["sgd"](level.model.parameters()), 3)
        ends.append({n: t.clone() for n, t in level.model.state_dict().items()})
    assert len(ends) == 3


def test_level_by_level_pruning_keeps_the_ratios_and_one_shot_is_one_level():
    seen = run(lottery(net(), IMP(density=0.25, distribution="uniform", levels=2)))
    assert [{n: int(m.sum()) for n, m in masks.items()} for masks, _, _ in seen] == [
        {"0.weight": 128, "3.weight": 64},
        {"0.weight": 64, "3.weight": 32},
        {"0.weight": 32, "3.weight": 16},
    ]
    dense_last = lottery(net(), IMP(density=0.5, distribution={"3": 1.0}, levels=1))
    assert [len(run(dense_last)), dense_last.ticket.masks["3.weight"].sum()] == [2, 64]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("attach", [None, "masked"])
def test_pruned_weights_are_exactly_zero_after_every_step(optimizer, attach):
    for level in lottery(net(), IMP(density=0.2, levels=1)):
        made = OPTIMIZERS[optimizer](level.model.parameters())
        if attach:
            assert level.attach(made) is level.sparsifier

        def check(level=level):
            for name, mask in level.masks.items():
                weight = level.model.get_parameter(name)
                assert not bool(weight.detach()[~mask].view(torch.int32).any()), "zero, and not minus zero"
                assert not bool(weight.grad[~mask].any()), "gradients are sparse when they arrive"

        train(level.model, made, 4, watch=check)
        assert level.step == 4


def test_a_hand_written_loop_that_masks_gives_the_same_weights():
    model = net()
    seen = run(lottery(model, IMP(density=0.25, levels=1)), optimizer="adam")
    twin = net()
    masks = seen[1][0]
    optimizer = OPTIMIZERS["adam"](twin.parameters())
    for name, mask in masks.items():
        twin.get_parameter(name).data.mul_(mask)
    for step in range(6):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        for name, mask in masks.items():
            twin.get_parameter(name).grad.mul_(mask)
        optimizer.step()
        for name, mask in masks.items():
            twin.get_parameter(name).data.mul_(mask)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_an_optimizer_of_another_level_begins_anew():
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    ends = []
    for fresh in (True, False):
        model.load_state_dict(net().state_dict())
        for level in lottery(model, IMP(density=0.5, levels=1)):
            made = OPTIMIZERS["adam"](model.parameters()) if fresh else optimizer
            train(level.model, made, 3)
        ends.append({n: t.clone() for n, t in model.state_dict().items()})
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_a_frozen_first_layer_is_masked_and_the_others_keep_the_clock():
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    steps = []
    for level in lottery(model, IMP(density=0.7, levels=2, rewind_step=1)):
        train(level.model, OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad]), 3)
        assert torch.equal(model[0].weight, before * level.masks["0.weight"])
        steps.append(level.step)
    assert steps == [3, 3, 3]


def test_two_optimizers_count_each_step_once():
    for level in lottery(net(), IMP(density=0.5, levels=1, rewind_step=1)):
        parts = [torch.optim.SGD(level.model[i].parameters(), lr=0.1) for i in (3, 0)]
        for step in range(3):
            x, y = batch(step)
            nn.functional.mse_loss(level.model(x), y).backward()
            for part in parts:
                part.step()
                part.zero_grad()
        assert level.step == 3


@pytest.mark.filterwarnings("ignore:3.weight has no live weight left")
@pytest.mark.parametrize("distribution", ["global", "balanced"])
def test_inside_a_random_source_nothing_leaves_it_and_no_level_is_dense(distribution):
    source = ss.RandomSource(0.5, seed=3)
    found = lottery(
        net(), IMP(density=0.1, distribution=distribution, levels=2), source=source, example_input=batch(0)[0]
    )
    inside = {n: s.mask().view(found.ticket.masks[n].shape) for n, s in source.supports(find(net())).items()}
    seen = run(found)
    assert seen[0][2].density == 0.5
    assert all(ss.masks.is_subset(masks, inside) for masks, _, _ in seen)
    assert found.budget.dense_samples == 0 and found.budget.sparse_samples == 3 * 6 * 12


def test_costs_are_those_of_the_live_weights():
    x = batch(0)[0]
    found = lottery(net(), IMP(density=0.25, levels=2), example_input=x)
    _ = run(found, steps=5)
    assert found.budget.flops == sum(5 * 12 * 6 * count for count in found.counts)
    assert found.budget.dense_flops == 3 * 5 * 12 * 6 * 192
    assert (found.budget.dense_samples, found.budget.sparse_samples, found.budget.samples) == (60, 120, 180)
    assert 0 < found.budget.seconds < 60
    without = lottery(net(), IMP(density=0.25, levels=1))
    _ = run(without)
    assert without.budget.flops is None and without.budget.samples == 2 * 6 * 12


def test_evaluation_costs_nothing():
    for level in lottery(net(), IMP(density=0.5, levels=1)):
        with torch.no_grad():
            level.model(batch(0)[0])
        level.model.eval()(batch(0)[0])
        level.model.train()
        assert level.budget.samples == 0
        train(level.model, OPTIMIZERS["sgd"](level.model.parameters()), 1)
        assert level.budget.samples == 12


def test_sparse_execution_finds_the_same_tickets():
    masked = run(lottery(net(), IMP(density=0.25, levels=2, rewind_step=1)), attach="masked")
    sparse = run(lottery(net(), IMP(density=0.25, levels=2, rewind_step=1)), attach="sparse")
    for (a, begin_a, _), (b, begin_b, _) in zip(masked, sparse, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert all(torch.allclose(begin_a[n], begin_b[n], atol=1e-5) for n in begin_a)
    model = sparse[-1][2].model
    assert type(model[0]) is nn.Linear and isinstance(model[0].weight, nn.Parameter)
    assert int((model[0].weight != 0).sum() + (model[3].weight != 0).sum()) == 48


def test_the_early_bird_says_when_its_ticket_settles():
    def answers(rate):
        found = lottery(net(), EarlyBird(density=0.25, window=2, tolerance=0.1))
        level = next(found)
        optimizer = torch.optim.SGD(level.model.parameters(), lr=rate)
        said = []
        for epoch in range(5):
            train(level.model, optimizer, epoch + 1, epoch)
            said.append(level.settled())
        second = next(found)
        with pytest.raises(ValueError, match="only level 0"):
            second.settled()
        return said

    assert answers(0.0) == [False, False, True, True, True]
    assert answers(3.0)[2] is False


def test_optimal_brain_damage_ranks_by_squared_weight_times_squared_gradient():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    found = lottery(model, IMP(density=0.5, levels=1, criterion="obd"))
    _ = next(found)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for scale in (1.0, -2.0):
        optimizer.zero_grad()
        model(
            scale * torch.tensor([[5.0, 2.0, 1.0, 0.1]])
        ).sum().backward()  # w * rms: 5 4 3 0.4, times one factor
        optimizer.step()
    assert next(found).masks["weight"].tolist() == [[True, True, False, False]]


# -- state ---------------------------------------------------------------------------------------------------------


def stored(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def test_a_lottery_goes_on_as_if_never_stopped():
    method, source = IMP(density=0.1, levels=3, rewind_step=2), ss.RandomSource(0.5, seed=1)
    model = net()
    whole = lottery(model, method, source=source)
    saved = []
    for level in whole:
        saved.append(stored(whole.state_dict()))
        train(level.model, OPTIMIZERS["adamw"](level.model.parameters()), 5, level.start_step)
    for index, state in enumerate(saved):
        other = net(seed=9)  # other weights: all that matters is in the state
        resumed = lottery(other, method, source=source)
        resumed.load_state_dict(state)
        assert len(resumed) == 4 - index
        for level in resumed:
            train(level.model, OPTIMIZERS["adamw"](level.model.parameters()), 5, level.start_step)
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )
        assert all(torch.equal(resumed.ticket.masks[n], m) for n, m in whole.ticket.masks.items())


def test_a_level_goes_on_from_within():
    method = IMP(density=0.2, levels=1, rewind_step=2)

    def go(stop_at):
        model = net()
        found = lottery(model, method)
        level = next(found)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        train(model, optimizer, stop_at)
        parts = stored([found.state_dict(), level.state_dict(), model.state_dict(), optimizer.state_dict()])
        model = net(seed=5)
        found = lottery(model, method)
        found.load_state_dict(parts[0])
        level = next(found)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        level.load_state_dict(parts[1])
        model.load_state_dict(parts[2])
        optimizer.load_state_dict(parts[3])
        train(model, optimizer, 4, stop_at)
        level = next(found)
        train(model, OPTIMIZERS["adam"](model.parameters()), 4, level.start_step)
        assert next(found, None) is None
        return model.state_dict()

    ends = [go(stop_at) for stop_at in (1, 2, 3)]
    assert all(torch.equal(ends[0][n], end[n]) for end in ends[1:] for n in end)


def test_a_random_source_is_never_drawn_again(monkeypatch):
    found = lottery(net(), IMP(density=0.1, levels=1), source=ss.RandomSource(0.5, seed=1))
    masks = {n: m.clone() for n, m in found.ticket.masks.items()}
    state = stored(found.state_dict())
    from startsparse import draw

    real = draw.key
    monkeypatch.setattr(draw, "key", lambda rule, seed, name: real(rule, seed + 1, name))
    resumed = lottery(net(), IMP(density=0.1, levels=1), source=ss.RandomSource(0.5, seed=1))
    assert not torch.equal(resumed.ticket.masks["0.weight"], masks["0.weight"]), (
        "another library would draw others"
    )
    resumed.load_state_dict(state)
    assert all(torch.equal(next(iter([resumed.ticket.masks[n]])), m) for n, m in masks.items())
    assert all(torch.equal(resumed.ticket.sources[n], m) for n, m in masks.items())


def test_a_state_of_another_lottery_is_refused_and_the_difference_named():
    state = lottery(net(), IMP(density=0.2)).state_dict()
    with pytest.raises(ValueError, match=r"method\.density is 0\.2, the lottery's is 0\.3"):
        lottery(net(), IMP(density=0.3)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"source\.name is 'dense', the lottery's is 'random'"):
        lottery(net(), IMP(density=0.2), source=ss.RandomSource(0.5)).load_state_dict(state)
    with pytest.raises(ValueError, match="another architecture"):
        lottery(nn.Linear(8, 16), IMP(density=0.2)).load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a lottery"):
        lottery(net(), IMP(density=0.2)).load_state_dict({"masks": {}})


# -- what cannot work ----------------------------------------------------------------------------------------------


def test_a_rewind_step_after_the_end_is_named():
    found = lottery(net(), IMP(density=0.2, rewind_step=9))
    train(net(), OPTIMIZERS["sgd"](next(found).model.parameters()), 0)
    level_model = found.model
    train(level_model, OPTIMIZERS["sgd"](level_model.parameters()), 6)
    with pytest.raises(ValueError, match=r"rewind_step=9 was never reached: level 0 ended after 6 steps"):
        next(found)


def test_a_level_without_a_step_is_named():
    found = lottery(net(), IMP(density=0.2))
    level = next(found)
    train(copy.deepcopy(level.model), OPTIMIZERS["sgd"](net().parameters()), 2)  # somebody else's weights
    with pytest.raises(ValueError, match="level 0 saw no optimizer step"):
        next(found)


def test_weights_off_the_mask_are_named():
    found = lottery(net(), IMP(density=0.2, distribution="uniform", levels=1))
    train(next(found).model, OPTIMIZERS["sgd"](found.model.parameters()), 2)
    level = next(found)
    train(level.model, OPTIMIZERS["sgd"](level.model.parameters()), 2)
    level.model.load_state_dict(net().state_dict())
    with pytest.raises(ValueError, match=r"0\.weight has \d+ weights off the mask of level 1"):
        next(found)


def test_a_replaced_parameter_is_named():
    found = lottery(net(), IMP(density=0.2, levels=1))
    level = next(found)
    train(level.model, OPTIMIZERS["sgd"](level.model.parameters()), 2)
    level.model.load_state_dict(net().state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"0\.weight was replaced.*assign=True"):
        next(found)


def test_a_ticket_for_another_architecture_is_named():
    ticket = Ticket.of(lottery(net(), IMP(density=0.2)).state_dict()["ticket"])
    with pytest.raises(ValueError, match=r"another architecture: its 0\.weight is"):
        ticket.put(nn.Sequential(nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)))
    with pytest.raises(ValueError, match=r"another architecture: it lacks .*5\.weight"):
        ticket.put(nn.Sequential(*net(), nn.ReLU(), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="not the state of a ticket"):
        Ticket.of({"masks": {}})


def test_a_lottery_is_not_attached_and_other_methods_hold_no_lottery():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"imp.*ss\.lottery"):
        ss.attach(model, optimizer, IMP(density=0.2))
    with pytest.raises(TypeError, match="lottery"):
        lottery(model, ss.Static(density=0.2))
    sparse = ss.attach(model, optimizer, ss.Static(density=0.2))
    with pytest.raises(ValueError, match=r"0\.weight is attached"):
        next(lottery(model, IMP(density=0.2)))
    assert sparse.density


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"0\.weight is on the meta device"):
        _ = lottery(model, IMP(density=0.2))


def test_attaching_late_is_refused():
    level = next(lottery(net(), IMP(density=0.2)))
    optimizer = OPTIMIZERS["sgd"](level.model.parameters())
    train(level.model, optimizer, 1)
    with pytest.raises(ValueError, match="has made 1 steps already"):
        level.attach(optimizer)


# -- what is left behind -------------------------------------------------------------------------------------------


def num_hooks():
    """Who listens to all optimizers."""
    return len(every_step._LISTENERS)


def test_a_level_lives_as_long_as_its_model():
    """Whoever keeps the model alone, as in ``train(level.branch(...).model)``, must not train it densely."""
    collect_garbage()
    before = num_hooks()
    model = net()
    for level in lottery(model, IMP(density=0.2, levels=1, distribution="uniform")):
        train(level.model, OPTIMIZERS["sgd"](level.model.parameters()), 2)
        if level.index:
            branched = level.branch("shuffle").model
            break
    del level
    collect_garbage()
    for alone in (model, branched):
        train(alone, OPTIMIZERS["adamw"](alone.parameters()), 3)
        assert sum(int((alone[i].weight != 0).sum()) for i in (0, 3)) == 38
    del model, branched, alone
    collect_garbage()
    assert num_hooks() == before


def test_no_hook_is_left_behind_whether_the_loop_ends_or_breaks():
    collect_garbage()
    before = num_hooks()
    model = net()
    _ = run(lottery(model, IMP(density=0.2, levels=1)))
    assert num_hooks() == before and not model._forward_pre_hooks
    level = next(lottery(model, IMP(density=0.2, levels=1)))
    assert num_hooks() == before + 1
    train(model, OPTIMIZERS["sgd"](model.parameters()), 1)
    _ = level.close()
    assert num_hooks() == before and not model._forward_pre_hooks
    train(model, OPTIMIZERS["sgd"](model.parameters()), 1)
    live = sum(int((model[i].weight != 0).sum()) for i in (0, 3))
    assert live > 38, "nothing masks any more"


def test_a_level_can_be_copied_and_pickled_with_its_model():
    level = next(lottery(net(), IMP(density=0.2, levels=1)))
    clone = copy.deepcopy(level.model)
    clone(batch(0)[0])
    torch.save(level.model, io.BytesIO())
    assert level.budget.samples == 0


def test_torch_generators_are_left_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    found = lottery(net(), IMP(density=0.2, levels=1), source=ss.RandomSource(0.5), example_input=batch(0)[0])
    for level in found:
        for kind in ("reinit", "shuffle", "random"):
            _ = level.branch(kind)
        train(level.model, OPTIMIZERS["sgd"](level.model.parameters()), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_an_emptied_layer_is_said():
    model = net()
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    found = lottery(model, IMP(density=0.1, levels=1))
    train(next(found).model, torch.optim.SGD(model.parameters(), lr=0.0), 1)
    with pytest.warns(UserWarning, match=r"3\.weight has no live weight left in level 1"):
        _ = next(found)


def test_a_density_of_everything_is_one_level():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run(lottery(net(), IMP(density=1.0)))) == 1


def test_squares_are_of_each_optimizers_own_steps():
    """Two optimizers over a net see each gradient once; a step that a scaler skips is not seen, a scale taken out."""
    from startsparse.tickets.squares import MEMORY, Squares

    model = net()
    layers = find(model)
    squares, gradient = Squares(), torch.full((16, 8), 3.0)
    first, last = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 3))
    model[0].weight.grad = gradient.clone()
    for optimizer in (first, last):
        squares.watch(layers, optimizer)
    expected = (1 - MEMORY) * 9
    assert list(squares.means) == ["0.weight"] and squares.root("3.weight") is None
    torch.testing.assert_close(squares.means["0.weight"], torch.full((16, 8), expected))
    first.found_inf = torch.tensor(1.0)
    squares.watch(layers, first)
    torch.testing.assert_close(squares.means["0.weight"], torch.full((16, 8), expected))
    first.found_inf, first.grad_scale = torch.tensor(0.0), torch.tensor(2.0)
    model[0].weight.grad = 2 * gradient
    squares.watch(layers, first)
    again = MEMORY * expected + (1 - MEMORY) * 9
    torch.testing.assert_close(squares.root("0.weight"), torch.full((16, 8), again**0.5))


@pytest.mark.parametrize("attach", [None, "masked"])
def test_a_lottery_that_was_broken_off_leaves_no_hook_to_the_next(attach):
    model = net()
    broken = lottery(model, IMP(density=0.25, levels=1, distribution="uniform"))
    for level in broken:
        made = OPTIMIZERS["sgd"](model.parameters())
        if attach is not None:
            _ = level.attach(made, execution=attach)
        train(model, made, 2)
        if level.index == 1:
            break
    again = lottery(model, IMP(density=0.5, levels=1, distribution="uniform"))
    first = next(again)
    model.load_state_dict(net().state_dict())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 2)
    assert all(bool((model.get_parameter(n) != 0).all()) for n in first.masks), "level 0 is dense"
    twin = net()
    train(twin, OPTIMIZERS["sgd"](twin.parameters()), 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="another level has begun on the weights of level 1, which it ended"):
        next(broken)
    assert next(again).index == 1


def test_what_is_no_source_is_named():
    with pytest.raises(TypeError, match=r"a source such as ss.RandomSource\(0.3\), or None, got 0.3"):
        lottery(net(), IMP(density=0.2), source=0.3)
    model = net()
    with pytest.raises(TypeError, match="got 'random'"):
        ss.attach(model, OPTIMIZERS["sgd"](model.parameters()), ss.Static(density=0.5), source="random")
