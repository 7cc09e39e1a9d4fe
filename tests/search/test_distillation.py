"""The dense net as its sub-network's teacher: the loss by hand, a teacher that stays what it was, and what it is good for."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import startsparse as ss

from .nets import OPTIMIZERS, TOTAL_STEPS, advance, batch, copies, make, net, same_bits


def start(**changes):
    search = ss.search(net(), make("jackpot", **changes), total_steps=TOTAL_STEPS)
    return search, OPTIMIZERS["sgd"](search.scores())


def test_by_hand():
    """Two classes at temperature 2: p = 3/4 against q = 1/2."""
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    outputs = torch.zeros(1, 2, requires_grad=True)
    loss = ss.distillation_loss(outputs, teacher, temperature=2.0)
    assert loss.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    loss.backward()
    assert outputs.grad.tolist()[0] == pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)])
    assert ss.distillation_loss(teacher, teacher).item() == 0


def test_tokens_are_averaged_like_examples():
    outputs, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    flat = ss.distillation_loss(outputs.view(10, 7), teacher.view(10, 7))
    assert torch.allclose(ss.distillation_loss(outputs, teacher), flat)


def test_the_teacher_stays_the_net_that_was_given():
    """Its weights and its batch-norm statistics, whatever the search does; and the search does not notice it."""
    with torch.no_grad():
        inputs, _ = batch(99)
        expected = net().eval()(inputs)
    search, optimizer = start()
    plain, stepper = start()
    distill = ss.Distillation(search)
    for step in range(4):
        modes = [module.training for module in search.model.modules()]
        before, buffers = copies(search.model), {n: b.clone() for n, b in search.model.named_buffers()}
        assert torch.equal(distill.teach(inputs), expected)
        assert not distill.teach(inputs).requires_grad
        assert modes == [module.training for module in search.model.modules()]
        assert all(same_bits(p.detach(), before[n]) for n, p in search.model.named_parameters())
        assert all(torch.equal(b, buffers[n]) for n, b in search.model.named_buffers())
        for run, steps in ((search, optimizer), (plain, stepper)):
            advance(run, steps, range(step, step + 1))
    assert all(torch.equal(search.masks[n], plain.masks[n]) for n in search.masks)
    search.finish()
    with pytest.raises(RuntimeError, match="finished"):
        distill.teach(inputs)


def test_it_draws_the_sub_network_to_the_dense_net():
    search = ss.search(net(), make("jackpot-2023-released", density=0.5), total_steps=40)
    optimizer = torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9)
    distill = ss.Distillation(search, share=1.0, temperature=1.0)
    losses = []
    for _ in range(40):
        inputs, labels = batch(0, size=64)
        outputs = search.model(inputs)
        loss = distill(nn.functional.cross_entropy(outputs, labels), outputs, inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_shares_and_logits():
    search, _ = start()
    inputs, labels = batch(1)
    outputs = search.model.eval()(inputs)
    loss = nn.functional.cross_entropy(outputs, labels)
    wanted = ss.distillation_loss(outputs, ss.Distillation(search).teach(inputs))
    assert ss.Distillation(search, share=0)(loss, outputs, inputs) is loss
    mixed = ss.Distillation(search, share=0.25)(loss, SimpleNamespace(logits=outputs), inputs)
    assert torch.allclose(mixed, 0.75 * loss + 0.25 * wanted)


def test_a_resumed_search_has_the_same_teacher():
    search, optimizer = start()
    advance(search, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": search.model.state_dict(), "search": search.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = ss.search(net(seed=3), make("jackpot"), total_steps=TOTAL_STEPS)
    again.model.load_state_dict(state["model"])
    again.load_state_dict(state["search"])
    inputs, _ = batch(5)
    assert torch.equal(ss.Distillation(again).teach(inputs), ss.Distillation(search).teach(inputs))
    state["search"]["buffers"].popitem()
    with pytest.raises(ValueError, match=r"buffers are those of another model: 4\.num_batches_tracked"):
        again.load_state_dict(state["search"])


@pytest.mark.parametrize(
    "wrong", [{"share": 1.5}, {"share": True}, {"temperature": 0}, {"temperature": torch.inf}]
)
def test_bad_values(wrong):
    search, _ = start()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ss.Distillation(search, **wrong)


def test_bad_outputs():
    with pytest.raises(ValueError, match=r"outputs are \(2, 3\), the teacher's \(2, 4\)"):
        ss.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature must be positive"):
        ss.distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)


def test_a_module_that_is_listed_twice_keeps_its_weight():
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), layer, torch.nn.Linear(4, 3))
    search = ss.search(model, ss.JackpotReleased(0.5))
    x, y, before = torch.randn(8, 4), torch.randint(3, (8,)), layer.weight
    outputs = model(x)
    ss.Distillation(search)(torch.nn.functional.cross_entropy(outputs, y), outputs, x).backward()
    assert layer.weight is before and search.scores()[0].grad is not None
    _ = search.restore()
