"""Mixed precision: a step that the gradient scaler skips is none, for any kind of optimizer."""

from __future__ import annotations

import copy

import pytest
import torch

import startsparse as ss

from .invariants import check, moved, net, rigl

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    # no momentum: torch's fused SGD leaves its buffer uninitialised when the very first step is skipped
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
}


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)


def run(optimizer: str, method, bad: set[int], unscale: bool, steps: int = 9):
    """Train; at the calls in ``bad`` one gradient is infinite."""
    model = net()
    optim = OPTIMIZERS[optimizer](model.parameters())
    sparse = ss.attach(model, optim, method, total_steps=100)
    scale = scaler()
    generator = torch.Generator().manual_seed(1)
    clock, masks = [], []
    for call in range(steps):
        x = torch.full((8, 6), torch.inf) if call in bad else torch.randn(8, 6, generator=generator)
        loss = model[2](torch.tanh(model[0](x.clamp(-1e30, 1e30)))).square().mean()
        if call in bad:
            loss = loss * torch.inf
        scale.scale(loss).backward()
        if unscale:
            scale.unscale_(optim)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        before = copy.deepcopy(model.state_dict()), {n: m.clone() for n, m in sparse.masks.items()}
        scale.step(optim)
        scale.update()
        optim.zero_grad()
        check(sparse)
        clock.append(sparse.step)
        masks.append({n: m.clone() for n, m in sparse.masks.items()})
        if call in bad:
            assert all(torch.equal(v, before[0][n]) for n, v in model.state_dict().items())
            assert all(torch.equal(m, before[1][n]) for n, m in sparse.masks.items())
    return sparse, model, clock


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_is_no_step(optimizer, unscale):
    bad = {0, 2, 3, 6}  # 2 and 6 meet steps at which an update is due
    sparse, model, clock = run(optimizer, rigl(update_begin=0, update_interval=1), bad, unscale)
    assert clock == [0, 1, 1, 1, 2, 3, 3, 4, 5]
    assert sparse.report().num_updates == 5 and moved(sparse) > 0
    if not unscale:
        _, good, _ = run(optimizer, rigl(update_begin=0, update_interval=1), set(), unscale, steps=5)
        for ours, theirs in zip(model.parameters(), good.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_snip_scores_the_first_step_that_is_made(optimizer):
    method = ss.SNIP(0.25)
    sparse, _, clock = run(optimizer, method, {0, 1}, unscale=False, steps=4)
    assert clock == [0, 0, 1, 2]
    plain, _, _ = run(optimizer, method, set(), unscale=False, steps=2)
    assert all(torch.equal(m, plain.masks[n]) for n, m in sparse.masks.items())


def test_micro_batches_of_a_skipped_step_do_not_leak_into_the_next():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = ss.attach(model, optimizer, rigl(update_begin=0, drop_fraction=0.5), total_steps=100)
    twin = net()
    optimizer2 = torch.optim.SGD(twin.parameters(), lr=0.0)
    other = ss.attach(twin, optimizer2, rigl(update_begin=0, drop_fraction=0.5), total_steps=100)
    scale = scaler()
    torch.manual_seed(0)
    first, second = torch.randn(8, 6), torch.randn(8, 6)
    for x in (first * 1e3, torch.full((8, 6), torch.nan)):
        scale.scale(model(x).square().sum()).backward()
    scale.step(optimizer)
    scale.update()
    optimizer.zero_grad()
    assert sparse.step == 0
    for x in (first, second):
        model(x).square().sum().backward()
        twin(x).square().sum().backward()
    optimizer.step()
    optimizer2.step()
    assert all(torch.equal(m, other.masks[n]) for n, m in sparse.masks.items())
    assert moved(sparse) > 0


def test_bfloat16_autocast():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    for _ in range(7):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        check(sparse)
        optimizer.step()
        optimizer.zero_grad()
        check(sparse)
    assert moved(sparse) > 0


WINDOW = {"update_interval": 4, "update_begin": 0, "drop_fraction": 0.5}
SCALED = {
    "window": lambda: ss.GGR(0.3, gradient_window=4, **WINDOW),
    "window and probes": lambda: ss.GGR(0.3, gradient_window=3, probes=2, **WINDOW),
    "one step": lambda: ss.GGR(0.3, **WINDOW),
    "moving average": lambda: ss.SNFS(0.3, **WINDOW),
    "against magnitudes": lambda: ss.MEST(0.3, gradient_weight=0.1, **WINDOW),
    "against counts": lambda: ss.DSTEE(0.3, exploration=0.01, **WINDOW),
}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd-foreach", "adamw-fused"])
@pytest.mark.parametrize("name", SCALED)
def test_a_scale_that_moves_changes_no_mask(name, optimizer, clip):
    """Doubled at every step, the scale is a power of two: all must be as without it, bit for bit."""

    def train(scale):
        model = net()
        optim = OPTIMIZERS[optimizer](model.parameters())
        sparse = ss.attach(model, optim, SCALED[name](), total_steps=100)
        generator = torch.Generator().manual_seed(1)
        for _ in range(9):
            for _ in sparse.probes():
                scale.scale(model(torch.randn(8, 6, generator=generator)).square().mean()).backward()
            for _ in range(2):
                scale.scale(model(torch.randn(8, 6, generator=generator)).square().mean()).backward()
            if clip:
                scale.unscale_(optim)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01, foreach=False)
            scale.step(optim)
            scale.update()
            optim.zero_grad()
        assert sparse.report().num_updates == 3 and moved(sparse) > 0
        return sparse

    growing = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=1)
    scaled, plain = train(growing), train(torch.amp.GradScaler("cpu", enabled=False))
    assert growing.get_scale() == 2.0**13
    for name_, mask in scaled.masks.items():
        assert torch.equal(mask, plain.masks[name_]), name_
