"""Masks by threshold, by chance and by degrees: values by hand, gradients against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.methods.search import Scored, uniform

from .nets import advance, make, net

SHAPE = (2, 8)
NAME = "w"


def layer_of(method, score=None, total_steps=10):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    layer = Scored(NAME, weight)
    layers = {NAME: layer}
    method.check(layers, total_steps)
    method.begin(layers, {}, total_steps)
    if score is not None:
        layer.score = score(layer.score)
    return layer


def autograd_of(values, layer, signal):
    """dL/dscore when dL/dvalues = signal, by autograd."""
    score = layer.score.detach().clone().requires_grad_()
    values(score).backward(signal)
    return score.grad


def test_piggyback_by_hand():
    layer = layer_of(ss.Piggyback())
    assert bool(layer.mask.all())
    layer.score = torch.tensor([[0.0051, 0.005, 0.0, -1.0, 1.0, 0.0049, 0.01, 0.006]] * 2)
    mask = ss.Piggyback().choose({NAME: layer}, 1, None)[NAME]
    assert mask[0].int().tolist() == [1, 0, 0, 0, 1, 0, 1, 1]


def test_piggyback_trains_a_classifier_beside_the_scores():
    model = net()
    search = ss.search(model, ss.Piggyback())
    head = model[-1].requires_grad_(True)
    optimizer = torch.optim.Adam(
        [{"params": search.scores()}, {"params": head.parameters(), "lr": 1e-2}], lr=2e-3
    )
    before = head.weight.detach().clone()
    advance(search, optimizer, range(12))
    assert not torch.equal(head.weight, before)
    assert search.density < 1
    masks = search.finish()
    assert set(masks) == {"0.weight", "3.weight"}


def test_supermask_draws_by_probability():
    weight = torch.ones(200, 200)
    layer = Scored(NAME, weight)
    method = ss.Supermask(signed_constant=False)
    method.begin({NAME: layer}, {}, 10)
    layer.score = torch.full((200, 200), math.log(3.0))  # probability 3 / 4
    masks = [method.choose({NAME: layer}, step, 10)[NAME] for step in (1, 2)]
    assert float(masks[0].float().mean()) == pytest.approx(0.75, abs=0.01)
    assert float((masks[0] & masks[1]).float().mean()) == pytest.approx(0.75**2, abs=0.015)  # drawn anew
    layer.mask = masks[0]
    assert float(method.values(layer, 1, 10).mean()) == pytest.approx(1.0, rel=1e-5)  # rescaled


def test_supermask_gradient():
    """Straight through the draw: the slope of the sigmoid, times the constant the layer computes with."""
    method = ss.Supermask()
    layer = layer_of(method, lambda s: s + torch.linspace(-2, 2, 16).view(SHAPE))
    signed = layer.weight.sign() * layer.weight.std() * (16 / int(layer.mask.sum()))
    assert torch.allclose(method.base(layer), signed)
    upstream = torch.randn(SHAPE)
    expected = autograd_of(lambda s: s.sigmoid() * signed, layer, upstream)
    assert torch.allclose(
        method.score_gradient(layer, upstream * method.base(layer), 0, 10), expected, atol=1e-6
    )
    final = method.final({NAME: layer}, 10, 10)[NAME]
    assert torch.equal(final, layer.score > 0)


@pytest.mark.parametrize("first_score", [0.0, -0.1, 0.1])
def test_continuous_sparsification(first_score):
    method = ss.ContinuousSparsification(first_score=first_score, penalty_weight=0.5)
    layer = layer_of(method, lambda s: s + torch.linspace(-1, 1, 16).view(SHAPE))
    assert torch.allclose(
        method.soft_mask(Scored(NAME, layer.weight, score=torch.tensor([first_score])), 0, 10), torch.ones(1)
    )
    for step in (0, 5):
        beta = 200 ** (step / 10)

        def soft(score, beta=beta):
            return (beta * score).sigmoid() / torch.tensor(first_score).sigmoid()

        assert torch.allclose(method.values(layer, step, 10), soft(layer.score) * layer.weight)
        upstream = torch.randn(SHAPE)
        expected = autograd_of(lambda s, soft=soft: soft(s) * layer.weight, layer, upstream)
        got = method.score_gradient(layer, upstream * layer.weight, step, 10)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)
        expected = autograd_of(soft, layer, torch.full(SHAPE, 0.5))
        assert torch.allclose(method.penalty(layer, step, 10), expected, rtol=1e-4, atol=1e-6)
    ends = method.values(layer, 10, 10)  # sharp: what is handed over
    layer.mask = method.choose({NAME: layer}, 10, 10)[NAME]
    far = layer.score.abs() > 0.06
    assert torch.allclose(method.final_values(layer)[far], ends[far], rtol=1e-4, atol=1e-4)


def test_probmask_gradient_is_autograds():
    method = ss.ProbMask(density=0.25, seed=3)
    layer = layer_of(method, lambda s: torch.linspace(0.05, 0.95, 16).view(SHAPE))
    drawn = uniform(SHAPE, 3, "mask 4", NAME).float()
    sharp = 1 / (0.97 * 0.6 + 0.03)
    upstream = torch.randn(SHAPE)
    expected = autograd_of(
        lambda s: ((s.logit() + drawn.logit()) * sharp).sigmoid() * layer.weight, layer, upstream
    )
    got = method.score_gradient(layer, upstream * layer.weight, 4, 10)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_probmask_projects_onto_the_budget():
    """Everything is lowered by one number and cut to [0, 1]; a sum that is small enough is left alone."""
    method = ss.ProbMask(density=0.25, update_begin=0, update_end=1)
    layer = layer_of(method, lambda s: torch.linspace(-0.5, 1.5, 16).view(SHAPE))
    given = layer.score.clone()
    method.project({NAME: layer}, 10, 10)
    assert float(layer.score.sum()) == pytest.approx(4.0, abs=1e-4)
    inner = (layer.score > 0) & (layer.score < 1)
    lowered = (given - layer.score)[inner]
    assert torch.allclose(lowered, lowered[0].expand_as(lowered), atol=1e-5)
    method.project({NAME: layer}, 10, 10)
    assert float(layer.score.sum()) == pytest.approx(4.0, abs=1e-4)
    layer.score = torch.full(SHAPE, 0.01)
    method.project({NAME: layer}, 10, 10)
    assert torch.equal(layer.score, torch.full(SHAPE, 0.01))


def test_maskllm_by_autograd():
    method = ss.MaskLLM(seed=2)
    layer = layer_of(method)
    assert layer.score.shape == (4, 6)
    best = layer.weight.abs().view(4, 4).topk(2).indices.sort(1).values
    assert torch.equal(layer.mask.view(4, 4).nonzero()[:, 1].view(4, 2), best)  # the prior decides at first
    step, total = 3, 10
    scale, temperature = 100 + 0.3 * 400, 4 - 0.3 * 3.95
    gumbel = -(-uniform((4, 6), 2, f"mask {step}", NAME).log()).log()

    def values(score):
        likely = ((score * scale + gumbel.float()) / temperature).softmax(1)
        return (likely @ method.patterns()).view(SHAPE) * layer.weight

    assert torch.allclose(method.values(layer, step, total), values(layer.score), atol=1e-6)
    upstream = torch.randn(SHAPE)
    expected = autograd_of(values, layer, upstream)
    got = method.score_gradient(layer, upstream * layer.weight, step, total)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5)
    kept = autograd_of(lambda s: values(s).square().sum() * (-1e-5 * 0.7), layer, torch.tensor(1.0))
    assert torch.allclose(method.penalty(layer, step, total), kept, rtol=1e-3, atol=1e-8)


def test_maskllm_may_favour_another_mask_at_first():
    """Weights 4, 3, 2, 1 under inputs of norms 1, 1, 4, 9: Wanda keeps the last two, magnitude the first two."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, -3.0, 2.0, -1.0]]))
    inputs = torch.diag(torch.tensor([1.0, 1.0, 4.0, 9.0]))
    kept = {}
    for init, data in (("magnitude", None), ("wanda", [inputs])):
        method = ss.MaskLLM(init=init, std=1e-9, prior=1e9)
        search = ss.search(model, method, total_steps=3, data=data, layers="weight")
        kept[init] = search.masks["weight"].int().tolist()[0]
        search.restore()
    assert kept == {"magnitude": [1, 1, 0, 0], "wanda": [0, 0, 1, 1]}
    with pytest.raises(ValueError, match="init='wanda' needs data="):
        ss.search(model, ss.MaskLLM(init="wanda"), total_steps=3, layers="weight")


def test_maskllm_stays_inside_the_source():
    model = net()
    source = ss.RandomSource(0.75, layout="3:4", seed=1)
    search = ss.search(model, ss.MaskLLM(), source=source, total_steps=4)
    advance(search, torch.optim.Adam(search.scores(), lr=0.1), range(4))
    for name, mask in search.finish().items():
        assert not bool((mask & ~search.source_masks[name]).any())
        assert int(mask.sum()) * 2 == mask.numel()
    with pytest.raises(ValueError, match=r"source of 0.weight leaves groups without a 2:4 pattern"):
        ss.search(net(), ss.MaskLLM(), source=ss.RandomSource(0.25, layout="1:4"), total_steps=4)


@pytest.mark.parametrize("name", ["continuous-sparsification", "probmask", "maskllm"])
def test_soft_masks_need_the_length_of_the_run(name):
    with pytest.raises(ValueError, match=r"give total_steps="):
        ss.search(net(), make(name))


@pytest.mark.parametrize("name", ["supermask", "probmask", "maskllm"])
def test_same_seed_same_draws(name):
    def final(seed):
        search = ss.search(net(), make(name, seed=seed), total_steps=4)
        advance(search, torch.optim.Adam(search.scores(), lr=0.05), range(4))
        return [score.detach() for score in search.scores()]

    first, again, other = final(0), final(0), final(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_gradient_of_the_whole_model_by_autograd():
    """The engine delivers what autograd through the soft mask would: one step, all layers of a net."""
    model, twin = net().eval(), net().eval()
    method = ss.ContinuousSparsification(first_score=0.1, penalty_weight=0.0)
    search = ss.search(model, method, total_steps=10)
    inputs, labels = torch.randn(6, 4, 6, 6), torch.randint(10, (6,))
    nn.functional.cross_entropy(model(inputs), labels).backward()
    scores = {n: torch.full_like(s, 0.1).requires_grad_() for n, s in search.named_scores().items()}
    effective = {n: s.sigmoid() / torch.tensor(0.1).sigmoid() * search.weights[n] for n, s in scores.items()}
    output = torch.func.functional_call(twin, effective, (inputs,))
    nn.functional.cross_entropy(output, labels).backward()
    for n, score in search.named_scores().items():
        assert torch.allclose(score.grad, scores[n].grad, rtol=1e-3, atol=1e-7)
