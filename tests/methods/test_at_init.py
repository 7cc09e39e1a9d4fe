"""GraSP and SynFlow: tables worked out by hand, exact counts, and what passes leave behind."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import startsparse as ss


def attached(model, method, **given):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ss.attach(model, optimizer, method, **given)


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def test_grasp_by_hand():
    """Loss 1/2 (w.x - t)^2 at x = (1, 2, 0, 1), t = 0, both samples alike: g = (w.x) x, H = x x^T, Hg = (w.x)|x|^2 x.

    With w = (1, 1, 5, -0.5): w.x = 2.5, |x|^2 = 6, so Hg = 15 x a half and w (Hg) = 15 (1, 2, 0, -0.5): of two kept
    weights these are 1 and 0. The gradient of both halves is summed: every score four times as large, the same order.
    """
    model = linear([1.0, 1.0, 5.0, -0.5])
    x = torch.tensor([[1.0, 2.0, 0.0, 1.0]]).repeat(2, 1)
    sparse = attached(
        model,
        ss.GraSP(density=0.5, temperature=1.0),
        data=[(x, torch.zeros(2, 1))],
        loss_fn=lambda y, t: 0.5 * ((y - t) ** 2).mean(),
    )
    assert sparse.masks["weight"].tolist() == [[True, True, False, False]]
    three = attached(
        linear([1.0, 1.0, 5.0, -0.5]),
        ss.GraSP(density=0.75, temperature=1.0),
        data=(x, torch.zeros(2, 1)),
        loss_fn=lambda y, t: 0.5 * ((y - t) ** 2).mean(),
    )
    assert three.masks["weight"].tolist() == [[True, True, True, False]]  # the one of negative score goes


def test_grasp_removes_what_lowers_the_norm_of_the_gradient_least():
    """The sign, against finite differences of the squared norm of the gradient."""
    _ = torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(8, 5).double(), torch.randint(3, (8,))

    def norm():
        loss = nn.functional.cross_entropy(model(x[:4]), y[:4]) + nn.functional.cross_entropy(
            model(x[4:]), y[4:]
        )
        return sum((g**2).sum() for g in torch.autograd.grad(loss, [model[0].weight, model[2].weight]))

    layers = ss.layers.find(model)
    ones = {name: torch.ones(layer.shape, dtype=torch.bool) for name, layer in layers.items()}
    passes = ss.passes.Passes(model, layers, [(x, y)], nn.functional.cross_entropy)
    product = passes.hessian_gradients(ones, passes.batches(1), 1.0)
    for name, layer in layers.items():
        for at in [(0, 0), (2, 4)]:
            with torch.no_grad():
                before, weight = norm_of(norm), layer.parameter[at].item()
                layer.parameter[at] = weight * (1 - 1e-6)
                after = norm_of(norm)
                layer.parameter[at] = weight
            assert (after - before) / 1e-6 == pytest.approx(-2 * weight * product[name][at].item(), rel=1e-3)


def norm_of(norm):
    with torch.enable_grad():
        return float(norm())


def test_synflow_by_hand():
    """Two layers without biases: R = 1 |W2| |W1| 1. A weight's score is its size times the flow behind and before it.

    W1 = [[1, 2], [3, 0.5]], W2 = [[1, 4]]: scores of W1 are [[1, 2], [12, 2]], of W2 [[3, 14]]. One round to half of
    six weights keeps 14, 12, 3. In two rounds the first, to round(6 sqrt(1/2)) = 4, keeps 14, 12, 3 and the first 2;
    the flow through unit 0 is then 2, so W1 scores 2 and 12, W2 2 and 12: the ties at 2 go to the earlier layer.
    """
    w1, w2 = [[1.0, -2.0], [3.0, 0.5]], [[-1.0, 4.0]]
    example = torch.randn(7, 2)
    one = attached(
        nn.Sequential(linear(*w1), nn.ReLU(), linear(*w2)),
        ss.SynFlow(density=0.5, rounds=1),
        example_input=example,
    )
    assert one.masks["0.weight"].tolist() == [[False, False], [True, False]]
    assert one.masks["2.weight"].tolist() == [[True, True]]
    two = attached(
        nn.Sequential(linear(*w1), nn.ReLU(), linear(*w2)),
        ss.SynFlow(density=0.5, rounds=2),
        example_input=example,
    )
    assert two.masks["0.weight"].tolist() == [[False, True], [True, False]]
    assert two.masks["2.weight"].tolist() == [[False, True]]


@pytest.mark.parametrize("seed", range(3))
def test_synflow_leaves_no_layer_of_a_deep_net_empty_at_one_weight_in_a_thousand(seed):
    _ = torch.manual_seed(seed)
    sizes = [64, 300, 10, 200, 64, 10]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers)
    sparse = attached(model, ss.SynFlow(density=0.001), example_input=torch.randn(1, 64))
    counts = {name: int(mask.sum()) for name, mask in sparse.masks.items()}
    assert sum(counts.values()) == round(0.001 * sum(m.numel() for m in sparse.masks.values()))
    assert min(counts.values()) >= 1
    x = torch.ones(1, 64)
    for mask in sparse.masks.values():  # a path is left from input to output
        x = x @ mask.float().T
    assert float(x.sum()) > 0


def test_layer_counts_of_a_distribution():
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4))
    sparse = attached(
        model, ss.SynFlow(density=0.25, distribution="uniform"), example_input=torch.randn(2, 8)
    )
    assert [int(mask.sum()) for mask in sparse.masks.values()] == [40, 20]


def test_passes_leave_the_model_and_the_generators_alone():
    _ = torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 3)
    )
    _ = model[1].eval()
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    layers = ss.layers.find(model)
    ones = {name: torch.ones(layer.shape, dtype=torch.bool) for name, layer in layers.items()}
    passes = ss.passes.Passes(model, layers, (x, y), nn.functional.cross_entropy, x)
    _ = passes.gradients(ones, passes.batches(1))
    _ = passes.hessian_gradients(ones, passes.batches(1), 200.0)
    _ = passes.synaptic_flow(ones)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in vars(model[3])


@pytest.mark.parametrize("method", [ss.SynFlow(0.5), ss.GraSP(0.5), ss.SNIP(0.5, batches=1)])
def test_a_module_that_is_listed_twice_keeps_its_parameters(method):
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.BatchNorm1d(4))
    before = dict(model.named_parameters(remove_duplicate=False))
    data, loss = [(torch.randn(6, 4), torch.zeros(6, 4))], nn.functional.mse_loss
    given = (
        {"example_input": data[0][0]}
        if method.needs == ("example_input",)
        else {"data": data, "loss_fn": loss}
    )
    _ = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method, **given)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert layer.weight.dtype == torch.float32 and int(layer.weight.count_nonzero()) == 8


def test_snip_over_batches_is_snip_of_their_summed_loss():
    _ = torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(3)]
    loss = sum(nn.functional.cross_entropy(model(x), y) for x, y in batches)
    gradients = torch.autograd.grad(loss, [model[0].weight, model[2].weight])
    scores = [(w * g).abs() for w, g in zip([model[0].weight, model[2].weight], gradients, strict=True)]
    least = torch.cat([score.flatten() for score in scores]).sort(descending=True).values[21]
    method = ss.SNIP(density=0.3, batches=3)
    sparse = attached(model, method, data=iter(batches), loss_fn=nn.functional.cross_entropy)
    for mask, score in zip(sparse.masks.values(), scores, strict=True):
        assert torch.equal(mask, score >= least)
    assert sparse.phase == "static"


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (ss.GraSP(0.5), {}, "grasp scores the weights by passes of its own: attach.. needs data=, loss_fn="),
        (ss.SynFlow(0.5), {}, "attach.. needs example_input="),
        (ss.SNIP(0.5, batches=2), {"data": []}, "attach.. needs loss_fn="),
        (ss.GraSP(0.5, batches=2), {"data": [(1, 2)]}, "data= holds 1 batches, 2 are needed"),
        (ss.GraSP(0.5), {"data": [torch.zeros(4, 6)]}, "batches .inputs, target., got Tensor of 4"),
        (ss.GraSP(0.5), {"data": (torch.zeros(1, 6), torch.zeros(1).long())}, "two samples or more"),
        (
            ss.SNIP(0.5, batches=1),
            {"data": (torch.zeros(1, 6), torch.zeros(1)), "loss_fn": lambda y, t: y},
            "scalar",
        ),
    ],
)
def test_what_is_missing_is_named(method, given, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    if "data" in given and isinstance(method, ss.GraSP):
        given = {"loss_fn": nn.functional.cross_entropy} | given
    with pytest.raises(ValueError, match=message):
        _ = attached(model, method, **given)
    assert all(bool((parameter != 0).all()) for parameter in model.parameters() if parameter.dim() > 1)


def test_weights_that_are_not_there_yet_are_not_scored():
    with torch.device("meta"):
        model = nn.Linear(6, 8)
    with pytest.raises(ValueError, match="meta"):
        _ = ss.attach(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            ss.SynFlow(0.5),
            example_input=torch.randn(1, 6),
            execution="sparse",
        )
