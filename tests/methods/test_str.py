"""STR by hand, and beside autograd through the soft threshold."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import masks as mask_rules

from .family import updated, view


# Kusupati et al. 2020, equation 1: sign(w) relu(abs(w) - threshold). With equal thresholds the largest of all layers
# live; a layer of twice the sigmoid has twice the threshold, so its weights count for half.
@pytest.mark.parametrize(
    ("logits", "target", "first", "second", "thresholds"),
    [
        ((0.0, 0.0), 8, "1 1 1 1", "1 1 1 1", (0.0, 0.0)),
        ((0.0, 0.0), 3, "1 1 0 0", "1 0 0 0", (2.0, 2.0)),  # b's 2 is the largest that does not live
        ((0.0, 10.0), 3, "1 1 1 0", "0 0 0 0", (1.5, 3.0)),  # b's 3 counts for 1.5
        ((0.0, -10.0), 3, "1 0 0 0", "1 1 0 0", (4.0, 0.0)),  # b's weights count for very much
    ],
)
def test_str_by_hand(logits, target, first, second, thresholds):
    views = {}
    for name, weights, value in zip(
        "ab", ([-5.0, 4.0, 1.6, 0.1], [3.0, -2.0, 0.2, 0.0]), logits, strict=True
    ):
        memory = {"logit": torch.tensor(value, dtype=torch.float64)}
        views[name] = view(weights, "1 1 1 1", name=name, memory=memory)
    if logits[1] == -10.0:
        views["b"].weight[0, 2] = 0.0  # of b nothing else competes
    method = ss.STR(0.375, update_begin=0, update_end=50)
    assert updated(method, views, 60, target) == {"a": first, "b": second}
    found = method.update(views, 60, target, 100)
    for name, expected in zip("ab", thresholds, strict=True):
        assert float(found[name].memory["threshold"]) == pytest.approx(expected, abs=1e-2)


def test_under_a_distribution_every_layer_keeps_its_share():
    views = {
        name: view(weights, "1 1 1 1", name=name)
        for name, weights in (("a", [-5.0, 4.0, 1.6, 0.1]), ("b", [0.3, -0.2, 0.1, 0.0]))
    }
    method = ss.STR(0.5, "uniform", update_begin=0, update_end=50)
    assert updated(method, views, 60, 4) == {"a": "1 1 0 0", "b": "1 1 0 0"}
    found = method.update(views, 60, 4, 100)
    assert [float(found[name].memory["threshold"]) for name in "ab"] == pytest.approx([1.6, 0.1])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10, bias=False), nn.Tanh(), nn.Linear(10, 8, bias=False))


def test_str_is_training_through_the_soft_threshold():
    model, lr = net(), 0.3
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    method = ss.STR(0.3, update_begin=0, update_end=10, update_interval=2)
    sparse = ss.attach(model, optimizer, method, total_steps=30)
    theta = [p.detach().clone() for p in model.parameters()]
    live = [
        torch.ones_like(t) for t in theta
    ]  # the largest weight that does not live is at its threshold, to rounding
    s, tau = [torch.zeros((), dtype=torch.float64) for _ in theta], [torch.zeros(()) for _ in theta]
    for step in range(30):
        x = torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
        leaves = [t.clone().requires_grad_() for t in theta]
        logits = [v.clone().requires_grad_() for v in s]
        c = [t / torch.sigmoid(v).float() for t, v in zip(tau, s, strict=True)]
        weights = [
            w.sign() * torch.relu(w.abs() - k * torch.sigmoid(v).float()) * above
            for w, k, v, above in zip(leaves, c, logits, live, strict=True)
        ]
        for p, w in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(p.detach(), w.detach(), rtol=1e-4, atol=1e-6)
        hidden = torch.tanh(nn.functional.linear(x, weights[0]))
        (nn.functional.linear(hidden, weights[1]) - 1).square().mean().backward()
        theta = [w.detach() - lr * w.grad for w in leaves]
        s = [v.detach() - lr * v.grad for v in logits]
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        for i, site in enumerate(sparse._sites.values()):
            assert float(site.memory["logit"]) == pytest.approx(float(s[i]), rel=1e-3, abs=1e-6)
        score = torch.cat([(t.abs() / torch.sigmoid(v)).reshape(-1) for t, v in zip(theta, s, strict=True)])
        ordered = score.sort(descending=True).values
        count = sparse.target_count
        cut = float(ordered[count]) if count < len(ordered) else 0.0
        live = [(t.abs() / torch.sigmoid(v) > cut).float() for t, v in zip(theta, s, strict=True)]
        tau = [(cut * torch.sigmoid(v)).float() for v in s]
        assert mask_rules.num_active(sparse.masks) == count
    assert count == 60 and abs(float(s[0]) - float(s[1])) > 0.005, (
        "the layers have learnt different thresholds"
    )


def test_a_run_goes_on_bit_for_bit():
    def job():
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        return model, optimizer, ss.attach(model, optimizer, ss.STR(0.3), total_steps=30)

    def run(model, optimizer, start, stop):
        for step in range(start, stop):
            optimizer.zero_grad()
            x = torch.randn(6, 12, generator=torch.Generator().manual_seed(step))
            (model(x) - 1).square().mean().backward()
            optimizer.step()

    whole = job()
    run(*whole[:2], 0, 14)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    again = job()
    file.seek(0)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*whole[:2], 14, 30)
    run(*again[:2], 14, 30)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold_rate": -1}, "threshold_rate must be a number >= 0"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.STR(0.1, **given)
