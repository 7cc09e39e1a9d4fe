"""Errors along a line between two nets, with batch norms as the net on the line would have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from startsparse.tickets import connect, reestimate


def test_the_barrier_is_the_highest_error_less_the_mean_of_the_ends():
    net = nn.Linear(1, 1, bias=False)
    a, b = {"weight": torch.tensor([[0.0]])}, {"weight": torch.tensor([[4.0]])}

    def error(model):  # 0.1, 0.5, 0.9, 0.5, 0.3 at weights 0, 1, 2, 3, 4
        return {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.5, 4: 0.3}[round(float(model.weight.detach()))]

    line = connect(net, a, b, error, positions=5)
    assert line.positions == (0, 0.25, 0.5, 0.75, 1)
    assert line.errors == (0.1, 0.5, 0.9, 0.5, 0.3)
    assert line.barrier == pytest.approx(0.7)
    assert (
        connect(net, a, b, lambda m: -float((m.weight.detach() - 2).abs()) * 0, positions=[0, 1]).barrier
        == 0.0
    )


def test_running_statistics_are_taken_anew_on_the_line_and_the_model_is_left_alone():
    torch.manual_seed(0)
    data = torch.randn(64, 4)

    def net(scale):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        with torch.no_grad():
            model[0].weight.mul_(scale)
        reestimate(model, [data])
        return model

    a, b = net(1.0), net(20.0)
    before = {n: t.clone() for n, t in a.state_dict().items()}
    seen = []

    def error(model):
        assert not model.training
        seen.append(float(model(data).detach().var(0, unbiased=False).mean()))
        return 0.0

    line = connect(a, a.state_dict(), b.state_dict(), error, positions=3, batches=[data])
    assert len(line.errors) == 3
    assert seen == pytest.approx([64 / 63] * 3, rel=0.05), "normalised by its own statistics everywhere"
    assert all(torch.equal(before[n], t) for n, t in a.state_dict().items())
    with pytest.raises(ValueError, match="give batches="):
        connect(a, a.state_dict(), b.state_dict(), error)


def test_reestimated_statistics_are_the_mean_over_the_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    batches = [torch.randn(8, 3) * 3 + 1 for _ in range(4)]
    reestimate(model, batches)
    assert torch.allclose(model[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(model[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0), atol=1e-5)
    assert model.training and model[1].training and model[0].momentum == 0.1


@pytest.mark.parametrize("positions", [1, [0.0], [0.0, 0.5], [0.5, 1.0], [0.0, 0.7, 0.3, 1.0]])
def test_positions_that_are_no_line_are_refused(positions):
    net = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="rising from 0 to 1"):
        connect(net, net.state_dict(), net.state_dict(), lambda m: 0.0, positions=positions)


def test_a_state_of_another_net_is_named():
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"the second state is of another architecture.*weight"):
        connect(net, net.state_dict(), nn.Linear(3, 1).state_dict(), lambda m: 0.0)
