"""Strong tickets: nothing but a mask, within the tolerance, for every input of the box."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse import theory
from startsparse.theory.frozen import Frozen
from startsparse.theory.ticket_source import tolerances

from .nets import make, mlp


def net_of(maker, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return maker().eval()


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def worst(net: nn.Module, ticket: theory.Ticket, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((copy.deepcopy(net).double()(x) - ticket.model(x)).abs().max())


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, theory.Ticket]:
    net = net_of(lambda: mlp(4, 6, 2))
    return net, theory.strong_ticket(net, density=0.5, eps=0.3)


@pytest.mark.parametrize(
    ("maker", "shape", "box"),
    [
        (lambda: mlp(4, 6, 2), (4,), (-1.0, 1.0)),
        (lambda: mlp(3, 4, 3, 2), (3,), (-2.0, 0.5)),
        (lambda: mlp(3, 4, 2), (3,), (0.0, 1.0)),
        (lambda: mlp(3, 2), (3,), (-1.0, 1.0)),
        (conv_net, (1, 8, 8), (-1.0, 1.0)),
    ],
)
def test_within_eps_everywhere_in_the_box(maker, shape, box):
    net = net_of(maker)
    ticket = theory.strong_ticket(net, density=0.5, eps=0.3, box=box, seed=1)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, *shape, generator=generator, dtype=torch.float64) * (box[1] - box[0]) + box[0]
    corners = torch.where(x > (box[0] + box[1]) / 2, box[1], box[0]).double()
    said = ticket.certificate
    assert max(worst(net, ticket, x), worst(net, ticket, corners)) <= said.error_bounded <= said.eps == 0.3
    assert len(ticket.verify(net)) == 3


def test_nothing_but_a_mask(small):
    """Every weight used is the source's own at an active position; every bias its own, or masked."""
    _, ticket = small
    for name, kept in (("0", ticket.model.layer("0")), ("2", ticket.model.layer("2"))):
        layer = ticket.source.layers[name]
        units = kept.units.numpy()
        own = Frozen(layer, ticket.certificate.scales[name]).rows(units)[..., 0] * layer.rows(units)[..., 0]
        held = ticket.model.held[theory.trace(small[0]).nodes[name].reads[0]]
        dense = torch.sparse_csr_tensor(
            kept.crow, kept.columns, kept.values, (len(units), len(held))
        ).to_dense()
        used = dense.numpy() != 0
        assert (dense.numpy()[used] == own[:, held][used]).all()
        bias = kept.bias.numpy()
        assert ((bias == 0) | (bias == Frozen(layer, 1.0).biases()[units])).all()
    assert ticket.certificate.solved["problems"] > 500


def test_frozen_weights_are_uniform_and_repeatable():
    layer = theory.random_source(theory.trace(mlp(50, 40)), 0.5, seed=3).layers["0"]
    rows = Frozen(layer, 2.0).rows(np.arange(layer.outputs))
    assert (rows == Frozen(layer, 2.0).rows(np.arange(layer.outputs))).all()
    assert (Frozen(layer, 2.0).rows(np.array([7])) == rows[7:8]).all()
    assert abs(rows).max() <= 2 and abs(rows.mean()) < 4 * 2 / np.sqrt(3 * rows.size)
    assert rows.var() == pytest.approx(4 / 3, rel=0.05)


def test_success_and_bounds_over_seeds():
    wins, trials = 0, 10
    for seed in range(trials):
        net = net_of(lambda: mlp(3, 3, 1), seed)
        try:
            ticket = theory.strong_ticket(net, density=0.4, eps=0.3, seed=seed)
        except theory.SourceTooNarrow:
            continue
        wins += 1
        assert ticket.certificate.error_measured <= ticket.certificate.error_bounded
    assert wins >= 0.9 * trials


def test_tolerances_by_hand():
    """One layer of 2 outputs reading B = 3: eps / (2 * 1) / ((1 + 3) (1 + eps))."""
    target = theory.trace(mlp(3, 2))
    assert tolerances(target, np.ones(3), 0.5)["0"] == pytest.approx(0.5 / 2 / (4 * 1.5))


def test_unsolved_sums_are_counted(small):
    said = small[1].certificate.solved
    assert set(said) == {"problems", "widened", "dropped"}
    assert 0 <= said["widened"] < said["problems"]


def forged(small, key: str, change) -> tuple[theory.TicketCertificate, dict]:
    net, ticket = small
    tensors = {name: tensor.clone() for name, tensor in ticket.model.state_dict().items()}
    tensors[key] = change(tensors[key])
    model = theory.SubNetwork(theory.trace(net), {}, tensors)
    return dataclasses.replace(ticket.certificate, model=model.digest()), tensors


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("layers.0.values", lambda t: t * (1 + 2.0**-50), "layer 0: a weight is not the source's frozen one"),
        ("layers.1.bias", lambda t: t + 0.1, "layer 2: a bias is neither"),
        ("layers.0.columns", lambda t: t.roll(1), r"not active|position is used twice|frozen one"),
        ("layers.0.units", lambda t: t + 1, r"not active|not units|frozen one"),
        ("layers.0.serves", lambda t: t.roll(1), r"error bound|constant unit"),
        ("layers.0.serves", lambda t: t + 6, "serve neurons the target does not have"),
        ("layers.1.serves", lambda t: t.flip(0), "outputs are not those"),
        ("entrance.weight", lambda t: t * 0.5, "keeps a weight that is not the source's"),
        ("entrance.reads", lambda t: t + 4, "inputs the target does not have"),
        ("entrance.bias", lambda t: t - 5, "a bias is neither"),
        ("layers.0.crow", lambda t: t.flip(0), "not sound"),
    ],
)  # fmt: skip
def test_a_forger_is_found_out(small, key, change, message):
    claim, tensors = forged(small, key, change)
    with pytest.raises(theory.CertificateError, match=message):
        theory.verify_ticket(claim, small[0], tensors)


def test_altered_claims_are_refused(small):
    net, ticket = small
    text = ticket.certificate.as_json()
    theory.verify_ticket(text, net, ticket.model.state_dict())
    assert json.loads(text)["construction"].startswith("strong ticket")
    with pytest.raises(theory.CertificateError, match="altered"):
        theory.verify_ticket(text.replace('"eps": 0.3', '"eps": 0.2'), net, ticket.model)
    for claims, message in (
        ({"eps": 1e-6}, "above eps"),
        ({"error_bounded": 0.0}, "error bound differs"),
        ({"edges": 1}, "number of edges"),
        ({"error_measured": 9.0}, "certified as measured"),
        ({"scales": ticket.certificate.scales | {"0": 9.0}}, "not the source's frozen one"),
    ):
        with pytest.raises(theory.CertificateError, match=message):
            theory.verify_ticket(dataclasses.replace(ticket.certificate, **claims), net, ticket.model)
    with pytest.raises(theory.CertificateError, match="target's weights"):
        ticket.verify(net_of(lambda: mlp(4, 6, 2), 9))


def huge() -> nn.Module:
    net = mlp(2, 2)
    net[0].weight.data[0, 0] = 1e12
    return net


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.strong_ticket(mlp(2, 2), density=0), "density must be in"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, eps=0), "eps must be a positive number"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, eps=float("inf")), "eps must be a positive number"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, delta=1), "delta must be in"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, box=(1, 1)), "box must be"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, seed="a"), "seed must be an int"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, eps=1e-14), "below what float64 resolves"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, eps=1e-12), "below what 40 numbers sum up to"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=ss.LockedSource(0.5)), r"ss.search\(model"),
        (lambda: theory.strong_ticket(mlp(2, 2), source=ss.RandomSource(0.5)), "not a RandomSource"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=0.5, source=mlp(2, 9, 2)), "not a Sequential"),
        (lambda: theory.strong_ticket(mlp(2, 2), density=mlp(2, 9, 2)), "not a Sequential"),
        (lambda: theory.strong_ticket(mlp(2, 2)), "takes the density"),
        (lambda: theory.strong_ticket(huge(), density=0.5, eps=1e-3), "below what float64 resolves"),
        (lambda: theory.strong_ticket(make("forked"), density=0.5), "plain chains"),
        (lambda: theory.strong_ticket(make("depthwise"), density=0.5), "without groups"),
        (lambda: theory.strong_ticket(make("tanh"), density=0.5), "does not pass it unchanged"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_within_the_tolerance_need_no_edges():
    net = mlp(2, 3, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e-6)
    ticket = theory.strong_ticket(net, density=0.5, eps=0.1)
    assert ticket.certificate.edges == 0
    assert len(ticket.verify(net)) == 3
