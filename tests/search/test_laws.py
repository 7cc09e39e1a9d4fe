"""What every search keeps: frozen means frozen, exact counts at every step, nothing outside the source."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import startsparse as ss

from .nets import OPTIMIZERS, PRESETS, TOTAL_STEPS, advance, copies, loss_of, make, net, same_bits

SOURCES = {
    "dense": lambda: None,
    "random": lambda: ss.RandomSource(0.7, "uniform", seed=2),
    "n:m": lambda: ss.RandomSource(0.75, layout="3:4", seed=3),
}
SOFT = ("biprop", "continuous-sparsification", "maskllm", "probmask", "supermask")
HANDED_OVER_AS_THEY_ARE = [
    name for name in PRESETS if name not in ("biprop", "continuous-sparsification", "supermask")
]


def start(
    name: str, source: str = "dense", optimizer: str = "sgd", model: nn.Module | None = None, **changes
):
    model = model or net()
    search = ss.search(model, make(name, **changes), source=SOURCES[source](), total_steps=TOTAL_STEPS)
    return search, OPTIMIZERS[optimizer](search.scores())


def sources_for(name: str) -> list[str]:
    return ["dense", "n:m"] if name in ("jackpot-nm", "maskllm") else ["dense", "random"]


CASES = [(name, source) for name in PRESETS for source in sources_for(name)]


def test_presets_are_those_registered():
    assert sorted(PRESETS) == ss.methods.names("search")
    assert ss.methods.make("jackpot-2023-intended", density=0.1) == ss.Jackpot(0.1)


@pytest.mark.parametrize(("name", "source"), CASES)
def test_every_step(name, source):
    model = net()
    before = copies(model)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    generator = torch.get_rng_state()
    search, optimizer = start(name, source, model=model)
    support = {n: mask.clone() for n, mask in search.source_masks.items()}
    method, changed = search.method, 0
    for step in range(TOTAL_STEPS):
        masks = {n: mask.clone() for n, mask in search.masks.items()}
        if method.exact:
            assert search.num_active == search.target_count
            for layer in search._layers.values():
                live = method.live(layer, step, TOTAL_STEPS) if hasattr(method, "live") else layer.count
                assert int(layer.mask.sum()) == live
        for n, parameter in model.named_parameters():
            if n not in masks:
                assert same_bits(parameter, before[n])
                assert not parameter.requires_grad
                continue
            assert not bool((masks[n] & ~support[n]).any())
            assert not bool(parameter.detach()[~support[n]].view(torch.int32).any())
            if name not in SOFT:
                assert same_bits(parameter.detach(), torch.where(masks[n], before[n], 0))
        assert torch.equal(torch.get_rng_state(), generator)
        advance(search, optimizer, range(step, step + 1))
        generator = torch.get_rng_state()
        changed += any(not torch.equal(masks[n], search.masks[n]) for n in masks)
    assert search.step == TOTAL_STEPS
    assert changed or name in ("piggyback", "maskllm")
    frozen = {n: weight.clone() for n, weight in search.weights.items()}
    masks = search.finish()
    for n, parameter in model.named_parameters():
        assert parameter.requires_grad == wanted[n]
        if n not in masks:
            assert same_bits(parameter, before[n])
            continue
        assert same_bits(frozen[n], before[n])
        assert not bool((masks[n] & ~support[n]).any())
        if name in HANDED_OVER_AS_THEY_ARE:
            assert same_bits(parameter.detach(), torch.where(masks[n], before[n], 0))
        assert not bool(parameter.detach()[~masks[n]].view(torch.int32).any())
    if "density" in PRESETS[name]:
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == round(PRESETS[name]["density"] * total)
    loss_of(model, 0).backward()  # a plain model again
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_zero_gradients_and_ties(name):
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.sign() * 0.25)  # all magnitudes tied
                parameter[0] = 0  # and a dead filter
    changes = {"distribution": "uniform"} if "distribution" in set(make(name).hyper_parameters()) else {}
    search, optimizer = start(name, model=model, **changes)
    for step in range(4):
        (loss_of(model, step) * 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        if search.method.exact:
            assert search.num_active == search.target_count
    search.check_frozen()
    assert search.finish()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", PRESETS)
def test_resume(name, optimizer):
    """Stop, save, load, go on is never stopped, bit for bit, in either order of loading."""
    search, stepper = start(name, optimizer=optimizer)
    advance(search, stepper, range(4))
    state = {
        "model": search.model.state_dict(),
        "search": search.state_dict(),
        "optimizer": stepper.state_dict(),
    }
    file = io.BytesIO()
    torch.save(state, file)
    advance(search, stepper, range(4, TOTAL_STEPS))
    scores = [score.detach().clone() for score in search.scores()]
    finals = search.finish()
    for model_first in (True, False):
        file.seek(0)
        state = torch.load(file, weights_only=True)
        again, stepper = start(name, optimizer=optimizer, model=net(seed=5))
        order = ["model", "search"] if model_first else ["search", "model"]
        for part in order:
            {"model": again.model, "search": again}[part].load_state_dict(state[part])
        stepper.load_state_dict(state["optimizer"])
        assert again.step == 4
        advance(again, stepper, range(4, TOTAL_STEPS))
        assert all(same_bits(a.detach(), b) for a, b in zip(again.scores(), scores, strict=True))
        masks = again.finish()
        assert all(torch.equal(masks[n], finals[n]) for n in finals)
        assert all(
            same_bits(a, b) for a, b in zip(again.model.parameters(), search.model.parameters(), strict=True)
        )
        assert all(
            torch.equal(a, b) for a, b in zip(again.model.buffers(), search.model.buffers(), strict=True)
        )


@pytest.mark.parametrize("name", ["jackpot", "edge-popup", "jackpot-nm", "probmask"])
def test_channels_last_weights(name):
    """Memory order changes nothing but rounding: the same first masks, exact counts, and weights that stay."""
    plain, _ = start(name)
    model = net().to(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    before = copies(model)
    search, optimizer = start(name, model=model)
    assert all(torch.equal(plain.masks[n], search.masks[n]) for n in search.masks)
    first = {n: mask.clone() for n, mask in search.masks.items()}
    advance(search, optimizer, range(TOTAL_STEPS))
    assert any(not torch.equal(first[n], search.masks[n]) for n in first)
    masks = search.finish()
    for n, mask in masks.items():
        weight = dict(model.named_parameters())[n].detach()
        assert torch.equal(weight, torch.where(mask, before[n], 0))


def test_channels_last_weights_of_one_pixel():
    """A 1x1 kernel is contiguous in either order, whatever its strides say."""
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)).to(memory_format=torch.channels_last)
    search = ss.search(model, ss.JackpotReleased(0.5))
    optimizer = torch.optim.SGD(search.scores(), lr=1.0)
    model(torch.randn(2, 4, 3, 3)).square().mean().backward()
    optimizer.step()
    _ = model.load_state_dict(model.state_dict())
    assert {name: int(mask.sum()) for name, mask in search.finish().items()} == {"0.weight": 12}


def test_nothing_is_left_to_tune():
    model = net()
    search = ss.search(model, ss.Piggyback(), total_steps=4)
    optimizer = torch.optim.SGD(search.scores(), lr=1.0)
    for score in search.scores():
        score.grad = torch.ones_like(score)
    optimizer.step()
    _ = search.finish()
    with pytest.raises(RuntimeError, match=r"the search \(piggyback\) left no weight active"):
        _ = search.attach(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("name", PRESETS)
def test_restore(name):
    model = net()
    before = copies(model)
    search, optimizer = start(name, model=model)
    advance(search, optimizer, range(3))
    assert search.restore() is model
    assert all(same_bits(p.detach(), before[n]) and p.requires_grad for n, p in model.named_parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_preview_is_what_finish_leaves(name):
    search, optimizer = start(name)
    advance(search, optimizer, range(4))
    during = copies(search.model)
    with search.preview() as model:
        previewed = copies(model)
    assert all(same_bits(a, b) for a, b in zip(copies(search.model).values(), during.values(), strict=True))
    with search.dense() as model:
        assert all(same_bits(copies(model)[n], weight) for n, weight in search.weights.items())
    search.finish()
    final = copies(search.model)
    assert all(same_bits(final[n], previewed[n]) for n in final)


@pytest.mark.parametrize("name", PRESETS)
def test_half_precision(name):
    """Weights in bfloat16, scores in float32."""
    model = net().bfloat16()
    before = copies(model)
    search = ss.search(model, make(name), total_steps=TOTAL_STEPS)
    assert all(score.dtype == torch.float32 for score in search.scores())
    optimizer = OPTIMIZERS["sgd"](search.scores())
    for _ in range(2):
        loss = model(torch.randn(4, 4, 6, 6).bfloat16()).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not search.method.exact or search.num_active == search.target_count
    search.finish()
    assert all(torch.equal(search.weights[n], before[n]) for n in search.weights)
