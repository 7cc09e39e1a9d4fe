"""Top-KAST by hand, and beside a plain dense simulation of the paper's update."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import after, view


# Jayakumar et al. 2020, section 2.1: the top D by magnitude of all values are live, the top D + M are reached.
@pytest.mark.parametrize(
    ("hidden", "source", "expected", "reached"),
    [
        ([0.0] * 8, None, "1 1 0 0 0 0 0 0", [2, 3]),
        ([0, 0, 0.9, 0.1, 0, 0, 0.5, 0.2], None, "1 1 0 0 0 0 0 0", [2, 6]),
        ([0, 0, 2.0, 0.1, 0, 0, -5.0, 0.2], None, "0 0 1 0 0 0 1 0", [0, 1]),
        ([0, 0, 2.0, 0.1, 0, 0, -5.0, 0.2], "1 1 1 1 1 1 0 1", "1 0 1 0 0 0 0 0", [1, 7]),
        ([0, 0, 1.0, 0, 0, 0, 0, 0], None, "1 1 0 0 0 0 0 0", [2, 3]),  # of the tie, what lives stays
    ],
)
def test_topkast_by_hand(hidden, source, expected, reached):
    more = {} if source is None else {"source": source}
    layer = view(
        [-1.5, 1.0, 0, 0, 0, 0, 0, 0], "1 1 0 0 0 0 0 0", memory={"hidden": torch.tensor(hidden)}, **more
    )
    change = ss.TopKAST(0.25, backward_density=0.5).update({"fc.weight": layer}, 100, 2, 1000)["fc.weight"]
    assert after(layer.mask, change) == expected
    assert change.memory["reached"].tolist() == reached


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10, bias=False), nn.Tanh(), nn.Linear(10, 8, bias=False))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_topkast_is_the_papers_update(optimizer):
    method = ss.TopKAST(0.2, "uniform", backward_density=0.6, exploration=0.05, update_interval=4)
    model, plain = net(), net()
    ours, theirs = OPTIMIZERS[optimizer](model.parameters()), OPTIMIZERS[optimizer](plain.parameters())
    sparse = ss.attach(model, ours, method, total_steps=20)
    theta = [p.detach().clone() for p in plain.parameters()]
    live, wide = choose(theta)
    for step in range(20):
        x = torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
        for p, value, a in zip(plain.parameters(), theta, live, strict=True):
            p.data = value * a  # the forward pass sees the top D
        theirs.zero_grad()
        (plain(x) - 1).square().mean().backward()
        for p, value, a, b in zip(plain.parameters(), theta, live, wide, strict=True):
            p.data = value * b
            p.grad = p.grad * b + 0.05 / 0.2 * value * (b & ~a)
        theirs.step()
        for i, p in enumerate(plain.parameters()):
            theta[i] = torch.where(wide[i], p.detach(), theta[i])
        if step and step % 4 == 0:
            live, wide = choose(theta)
        ours.zero_grad()
        (model(x) - 1).square().mean().backward()
        for p, b in zip(model.parameters(), wide_before(sparse), strict=True):
            assert not bool(p.grad[~b].any()), "no gradient where nothing is reached"
        ours.step()
        for name, p, value, a in zip(sparse.masks, model.parameters(), theta, live, strict=True):
            assert torch.equal(sparse.masks[name], a)
            torch.testing.assert_close(p.detach(), value * a, rtol=1e-5, atol=1e-7)
            hidden = sparse._sites[name].memory["hidden"]
            torch.testing.assert_close(hidden, value * ~a, rtol=1e-5, atol=1e-7)
        assert mask_rules.num_active(sparse.masks) == 40


def choose(theta):
    def top(value, count):
        mask = torch.zeros(value.numel(), dtype=torch.bool)
        mask[value.abs().reshape(-1).sort(descending=True, stable=True).indices[:count]] = True
        return mask.view(value.shape)

    return [top(t, round(0.2 * t.numel())) for t in theta], [top(t, round(0.6 * t.numel())) for t in theta]


def wide_before(sparse):
    for site in sparse._sites.values():
        wide = site.mask.clone().view(-1)
        wide[site.memory["reached"]] = True
        yield wide.view(site.mask.shape)


def test_the_shadow_is_saved_and_a_run_goes_on_bit_for_bit():
    def job():
        model = net()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        method = ss.TopKAST(0.2, update_interval=3)
        return model, optimizer, ss.attach(model, optimizer, method, total_steps=20)

    def run(model, optimizer, start, stop):
        for step in range(start, stop):
            optimizer.zero_grad()
            x = torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
            (model(x) - 1).square().mean().backward()
            optimizer.step()

    whole = job()
    run(*whole[:2], 0, 8)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    run(*whole[:2], 8, 20)
    again = job()
    file.seek(0)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*again[:2], 8, 20)
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for name, site in whole[2]._sites.items():
        assert torch.equal(site.memory["hidden"], again[2]._sites[name].memory["hidden"])


def test_a_skipped_step_leaves_everything_as_it_is():
    """A fused optimizer runs its hooks on a step that the scaler skips."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    sparse = ss.attach(model, optimizer, ss.TopKAST(0.2, update_interval=3), total_steps=20)
    for factor, moves in ((1.0, True), (torch.inf, False), (1.0, True)):
        hidden = {name: site.memory["hidden"].clone() for name, site in sparse._sites.items()}
        optimizer.zero_grad()
        scaler.scale(factor * (model(torch.ones(6, 12)) - 1).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(hidden[n], s.memory["hidden"]) for n, s in sparse._sites.items())
        assert same is not moves
        assert all(not bool(p[~sparse.masks[n]].any()) for n, p in model.named_parameters())
    assert sparse.step == 2


def test_closures_and_sparse_execution_are_refused_by_name():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    sparse = ss.attach(model, optimizer, ss.TopKAST(0.2), total_steps=20)
    with pytest.raises(RuntimeError, match=r"topkast trains values behind zeros.*closure"):
        optimizer.step(lambda: (model(torch.ones(1, 12)) - 1).square().mean())
    _ = sparse.detach()
    other = net()
    with pytest.raises(
        ValueError, match="topkast runs under execution='masked' only: it keeps values behind"
    ):
        _ = ss.attach(
            other,
            torch.optim.SGD(other.parameters(), lr=0.1),
            ss.TopKAST(0.2),
            total_steps=20,
            execution="sparse",
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backward_density": 0.05}, r"backward_density must be in \[0.1, 1\], got 0.05"),
        ({"exploration": -1}, "exploration must be a number >= 0"),
        ({"update_interval": 0}, "update_interval must be"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.TopKAST(0.1, **given)
