"""What cannot work is refused by name, before anything is touched; budgets at their edges work."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import startsparse as ss

from ..damage import damaged, paths_and_damage, same
from .nets import TOTAL_STEPS, advance, copies, loss_of, make, net, same_bits


def untouched(model, before):
    return all(same_bits(p.detach(), before[n]) and p.requires_grad for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (ss.Jackpot(0.1), {"layers": "conv9"}, r"layers: 'conv9' matches no parameter"),
        (ss.Jackpot(1e-9), {}, r"density 1e-09 asks for 0 weights"),
        (
            ss.Jackpot(0.5),
            {"source": ss.RandomSource(0.3)},
            r"asks for 432 weights of the \d+ that the source allows",
        ),
        (ss.Jackpot(0.1), {"total_steps": 0}, r"total_steps must be an int >= 1"),
        (ss.JackpotNM(), {"layers": "8"}, None),
        (
            ss.JackpotNM(density=0.2, scope="1:5"),
            {},
            r"0.weight of shape \(8, 4, 3, 3\), 3.weight of shape \(8, 8, 3, 3\).* do not divide into 1:5",
        ),
        (
            ss.JackpotNM(),
            {"source": ss.RandomSource(0.25, layout="1:4")},
            r"0.weight: scope 2:4 keeps 2 weights of every group, .* leaves one of them only 1: .*layout='2:4' or a denser",
        ),
        (
            ss.Jackpot(0.3, scope="row"),
            {"source": ss.RandomSource(0.3)},
            r"jackpot: 0.weight: scope row keeps \d+ weights of every group, and the source leaves one of them only \d+",
        ),
        (
            ss.Jackpot(0.5, scope="channel"),
            {"source": ss.RandomSource(0.9)},
            r"scope channel moves whole groups",
        ),
        (ss.Jackpot(0.1, init="snip"), {}, r"init='snip' needs data="),
        (
            ss.Jackpot(0.1, init="grasp"),
            {"data": [(torch.zeros(4, 4, 6, 6), torch.zeros(4).long())]},
            r"needs loss_fn=",
        ),
        (ss.Jackpot(0.1, init="wanda"), {"data": []}, r"data= has no batch"),
        (ss.MovementFrozen(0.1), {"total_steps": None}, r"give total_steps="),
        (ss.MovementFrozen(0.1, update_begin=5, update_end=5), {}, r"update_end=5 \(step 5\) is not after"),
        (ss.RigL(0.1), {}, r"method must be a search such as"),
        (ss.Jackpot(0.1, distribution={"nothing": 0.5}), {}, r"'nothing' matches no layer"),
    ],
)
def test_refused_before_anything_is_touched(method, arguments, message):
    model = net()
    before = copies(model)
    if message is None:
        assert ss.search(model, method, **({"total_steps": 3} | arguments)).num_active == 160
        return
    error = TypeError if isinstance(method, ss.RigL) else ValueError
    with pytest.raises(error, match=message):
        ss.search(model, method, **({"total_steps": 3} | arguments))
    assert untouched(model, before)
    model(torch.randn(4, 4, 6, 6)).sum().backward()  # no hook was left
    assert model[0].weight.grad is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ss.Jackpot(0.0), r"jackpot: density must be in \(0, 1\], got 0.0"),
        (lambda: ss.Jackpot(1.5), r"density must be in"),
        (lambda: ss.Jackpot(True), r"density must be in"),
        (lambda: ss.Jackpot(0.1, init="magnitud"), r"unknown init 'magnitud': did you mean 'magnitude'"),
        (lambda: ss.Jackpot(0.1, restriction="quartc"), r"did you mean 'quartic'"),
        (lambda: ss.Jackpot(0.1, restriction=0.0), r"restriction must be in"),
        (lambda: ss.Jackpot(0.1, scope="3:2"), r"unknown layout '3:2'"),
        (lambda: ss.Jackpot(0.1, scope="layers"), r"unknown scope 'layers'"),
        (lambda: ss.Jackpot(0.1, scope="2:4"), r"scope 2:4 has density 0.5, got density=0.1"),
        (lambda: ss.Jackpot(0.1, distribution="erkk"), r"did you mean 'erk'"),
        (lambda: ss.Jackpot(0.1, batch_norm="frozen"), r"unknown batch_norm 'frozen'"),
        (lambda: ss.Jackpot(0.1, order="widest"), r"unknown order 'widest'"),
        (lambda: ss.Jackpot(0.1, gap=-1.0), r"gap must be in"),
        (lambda: ss.Jackpot(0.5, scope="channel", init="proportional"), r"scores single weights"),
        (lambda: ss.JackpotNM(density=0.1, scope="layer"), r"scope must be an N:M pattern"),
        (lambda: ss.EdgePopupAnnealed(0.5, start_density=0.4), r"start_density 0.4 is below density 0.5"),
        (lambda: ss.EdgePopupAnnealed(0.5, scope="row"), r"needs scope 'layer' or 'global'"),
        (lambda: ss.MaskLLM(density=0.4), r"scope must be an N:M pattern of density N / M"),
        (lambda: ss.ContinuousSparsification(beta_end=0.5), r"beta_end must be in"),
        (lambda: ss.methods.make("jackpot"), r"jackpot needs a density"),
        (
            lambda: ss.methods.make("jackpot", density=0.1, gapp=1),
            r"no hyper-parameter 'gapp': did you mean 'gap'",
        ),
        (lambda: ss.methods.make("jackpott", density=0.1), r"did you mean 'jackpot'"),
    ],
)
def test_hyper_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["jackpot", "jackpot-2021", "edge-popup", "hydra", "biprop"])
@pytest.mark.parametrize(("density", "expected"), [(1.0, 864), (863.4 / 864, 863), (1 / 864, 1)])
@pytest.mark.filterwarnings("ignore:.* keeps no weight at all")
def test_budgets_at_their_edges(name, density, expected):
    """All weights, all but one, one alone (the other layer has none): exact at every step."""
    search = ss.search(net(), make(name, density=density, classifier="exclude"), total_steps=TOTAL_STEPS)
    optimizer = torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9)
    for step in range(4):
        assert search.num_active == search.target_count == expected
        advance(search, optimizer, range(step, step + 1))
    search.finish()


def test_an_empty_layer_is_said_aloud():
    with pytest.warns(UserWarning, match=r"3.weight keeps no weight at all"):
        ss.search(net(), ss.Jackpot(0.2, distribution={"3.weight": 0.0, "*": "uniform"}), total_steps=3)


def test_a_schedule_without_a_length_is_said_once():
    with pytest.warns(UserWarning, match=r"schedule \(restriction\) and no total_steps") as caught:
        search = ss.search(net(), ss.Jackpot(0.2))
    assert len(caught) == 1
    advance(search, torch.optim.SGD(search.scores(), lr=0.5), range(3))
    assert search.num_active == search.target_count


def test_the_classifier_is_left_out_and_said():
    search = ss.search(net(), ss.JackpotReleased(0.2))
    assert list(search.masks) == ["0.weight", "3.weight"]
    report = search.report()
    assert report.excluded == {"8.weight": ("the classifier", 320)}
    assert "8.weight is not searched (the classifier): 320 weights" in str(report)
    assert report.density == pytest.approx(173 / 864)
    assert report.weights_density == pytest.approx((173 + 320) / (864 + 320))
    with pytest.raises(ValueError, match=r"the only layer: name it with layers='weight'"):
        ss.search(nn.Linear(4, 4), ss.JackpotReleased(0.2))
    assert ss.search(nn.Linear(4, 4), ss.JackpotReleased(0.25), layers="weight").num_active == 4
    both = ss.search(net(), ss.JackpotReleased(0.2), layers=["0", "8"])
    assert list(both.masks) == ["0.weight", "8.weight"]


def test_an_attached_model_is_refused_and_the_other_way_round():
    model = net()
    sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.5))
    with pytest.raises(ValueError, match="attached to a sparsifier or searched already"):
        ss.search(model, ss.JackpotReleased(0.2))
    sparse.detach()
    search = ss.search(model, ss.JackpotReleased(0.2))
    with pytest.raises(ValueError, match=r"0.weight is being searched: finish\(\) or restore\(\)"):
        ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.5))
    with pytest.raises(ValueError, match="searched already"):
        ss.search(model, ss.JackpotReleased(0.2))
    search.restore()


def test_a_wrapped_model_is_refused():
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(ValueError, match=r"call ss.search first, then wrap the model"):
        ss.search(Wrapped(net()), ss.JackpotReleased(0.2))


def test_damaged_weights_are_refused():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0.weight holds weights that are not finite"):
        ss.search(model, ss.JackpotReleased(0.2))


def test_scores_of_some_layers_alone_are_refused():
    search = ss.search(net(), ss.JackpotReleased(0.2))
    optimizer = torch.optim.SGD(search.scores()[:1], lr=0.1)
    loss_of(search.model, 0).backward()
    with pytest.raises(RuntimeError, match=r"no scores of 3.weight"):
        optimizer.step()


def test_a_search_that_saw_no_step():
    search = ss.search(net(), ss.JackpotReleased(0.2))
    advance(search, torch.optim.SGD(net(1).parameters(), lr=0.1), range(2))
    with pytest.raises(RuntimeError, match=r"no optimizer step was seen"):
        search.finish()
    search.restore()
    for call in (search.finish, search.restore, search.preview().__enter__):
        with pytest.raises(RuntimeError, match="finished"):
            call()


def test_a_changed_weight_is_found():
    for index, name in ((0, "0.weight"), (1, "1.bias")):
        search = ss.search(net(), ss.JackpotReleased(0.2))
        advance(search, torch.optim.SGD(search.scores(), lr=0.1), range(2))
        search.check_frozen()
        with torch.no_grad():
            module = search.model[index]
            (module.weight if index == 0 else module.bias).flatten()[3] += 1e-6 + 1
        with pytest.raises(RuntimeError, match=rf"{name} changed during the search"):
            search.finish()


def test_other_weights_loaded_during_the_search():
    search = ss.search(net(), ss.JackpotReleased(0.2))
    optimizer = torch.optim.SGD(search.scores(), lr=0.1)
    advance(search, optimizer, range(1))
    search.model.load_state_dict(net(seed=4).state_dict())
    with pytest.raises(RuntimeError, match=r"other weights were loaded into \d.weight"):
        advance(search, optimizer, range(1))


def test_nan_scores_name_the_layer():
    search = ss.search(net(), ss.JackpotReleased(0.2))
    optimizer = torch.optim.SGD(search.scores(), lr=0.1)
    loss_of(search.model, 0).backward()
    search.scores()[1].grad[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"cannot choose masks after step 0: 3.weight: 72 of 576 scores are NaN"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("scores"), "not the state of a search"),
        (lambda s: s.pop("weights"), "lacks weights"),
        (lambda s: s.update(step=-1), "step=-1"),
        (lambda s: s["describe"].update(total_steps=9), "total_steps=9"),
        (lambda s: s["describe"]["method"].update(density=0.3), "method.density is 0.3"),
        (lambda s: s["scores"].pop("0.weight"), r"missing \['0.weight'\]"),
        (
            lambda s: s["scores"].update({"0.weight": torch.zeros(3)}),
            r"scores of '0.weight' must be of shape \(8, 4, 3, 3\), not torch.float32 of shape \(3,\)",
        ),
        (lambda s: s["masks"].update(sha256="0"), "do not match their hash"),
    ],
)
def test_damaged_states(change, message):
    search = ss.search(net(), ss.Jackpot(0.2), total_steps=4)
    before = [score.detach().clone() for score in search.scores()]
    state = search.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        search.load_state_dict(state)
    assert all(torch.equal(a.detach(), b) for a, b in zip(search.scores(), before, strict=True))


@pytest.mark.parametrize("name", ["jackpot", "jackpot-2023-released", "movement-frozen", "maskllm"])
def test_whatever_is_wrong_with_a_state_is_refused_in_words_or_harmless(name):
    def begun(steps):
        search = ss.search(net(), make(name), total_steps=TOTAL_STEPS, source=source)
        optimizer = torch.optim.SGD(search.scores(), lr=0.1)
        advance(search, optimizer, range(steps))
        return search, optimizer

    source = ss.LockedSource(0.6, share=0.1) if name == "jackpot" else None
    good = copy.deepcopy(begun(3)[0].state_dict())
    search, optimizer = begun(0)
    before = copy.deepcopy(search.state_dict())
    refused = 0
    for path, damage in paths_and_damage(good):
        try:
            search.load_state_dict(damaged(good, path, damage))
        except ValueError as error:
            assert "state" in str(error), (path, damage)
            refused += 1
        else:
            advance(search, optimizer, range(3, 5))
            search, optimizer = begun(0)
        if len(path) < 3:
            assert same(search.state_dict(), before), path
    assert same(search.state_dict(), before)
    assert refused > 300


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_search_is_not_copied(copied):
    search = ss.search(net(), ss.Jackpot(0.2), total_steps=4)
    with pytest.raises(
        TypeError, match=r"neither copied nor pickled: keep state_dict\(\), and search a copy"
    ):
        copied(search)
    again = ss.search(copy.deepcopy(search.model), ss.Jackpot(0.2), total_steps=4)
    again.load_state_dict(copy.deepcopy(search.state_dict()))


def test_a_step_without_gradients_is_refused():
    """Nothing was learned: the loss was of a copy, or there was no backward pass."""
    search = ss.search(net(), ss.Jackpot(0.2), total_steps=4)
    optimizer = torch.optim.SGD(search.scores(), lr=0.1)
    with pytest.raises(RuntimeError, match="no gradient has reached a score"):
        optimizer.step()
    loss_of(copy.deepcopy(search.model), 0).backward()
    with pytest.raises(RuntimeError, match="not of a copy"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="no gradient has reached a score"):
        optimizer.step(lambda: 0.0)
    assert search.step == 0
    loss_of(search.model, 0).backward()
    optimizer.step()
    assert search.step == 1 and "step 1 of 4" in repr(search)


def test_closures():
    """As a plain loop, where nothing has to be seen before the step; refused by name elsewhere."""
    plain = ss.search(net(), ss.JackpotReleased(0.2), total_steps=4)
    closed = ss.search(net(), ss.JackpotReleased(0.2), total_steps=4)
    first, second = (torch.optim.SGD(search.scores(), lr=0.5) for search in (plain, closed))
    for step in range(4):
        first.zero_grad()
        loss_of(plain.model, step).backward()
        first.step()

        def closure(step=step):
            second.zero_grad()
            loss = loss_of(closed.model, step)
            loss.backward()
            return loss

        second.step(closure)
    assert plain.num_swaps > 0
    assert all(torch.equal(mask, closed.masks[name]) for name, mask in plain.masks.items())
    for method in (ss.Jackpot(0.2, order="curvature"), ss.MaskLLM()):
        search = ss.search(net(), method, total_steps=4)
        optimizer = torch.optim.SGD(search.scores(), lr=0.5)
        with pytest.raises(
            RuntimeError, match=rf"{method.name} works on the scores' gradients before a step"
        ):
            optimizer.step(lambda: None)


def test_a_search_that_changed_nothing_says_so():
    search = ss.search(net(), ss.Jackpot(0.2, gap=100.0), total_steps=4)
    assert "no mask has changed" not in str(search.report())
    optimizer = torch.optim.SGD(search.scores(), lr=0.1)
    loss_of(search.model, 0).backward()
    optimizer.step()
    assert "no mask has changed so far" in str(search.report())
