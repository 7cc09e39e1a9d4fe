"""Searches against tables worked out by hand and against twins that know nothing of the engine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import startsparse as ss
from startsparse.layouts import parse
from startsparse.methods.search import Scored
from startsparse.methods.search_scopes import grouped, ungrouped

from .nets import TOTAL_STEPS, advance, batch, loss_of, make, net, same_bits

WEIGHT = torch.tensor([[4.0, -3.0, 2.0, 1.0], [0.5, -0.4, 0.3, 0.2]])


class Row(nn.Module):
    """A weight whose gradient the test chooses."""

    def __init__(self, weight=WEIGHT):
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.fc.weight.copy_(weight)

    def forward(self, gradient):
        return (self.fc.weight * gradient).sum()


def begun(method, weight=WEIGHT, **arguments):
    model = Row(weight)
    search = ss.search(model, method, layers="fc.weight", **arguments)
    return search, torch.optim.SGD(search.scores(), lr=1.0)


def one_step(search, optimizer, gradient):
    optimizer.zero_grad()
    search.model(torch.as_tensor(gradient)).backward()
    optimizer.step()
    return search.masks["fc.weight"].int().tolist()


def test_jackpot_by_hand():
    """Two of eight: 4 and -3 at first. A gradient pushes 2 up and -3 down; then the swap is made, and undone."""
    search, optimizer = begun(ss.JackpotReleased(0.25))
    assert search.masks["fc.weight"].int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert search.scores()[0].detach().tolist() == [
        [1, 1, *[pytest.approx(0.99)] * 2],
        [pytest.approx(0.99)] * 4,
    ]
    g = [[0.0, -0.1, -0.01, 0.0], [0.0] * 4]  # score gradients: 0, +0.3, -0.02
    assert one_step(search, optimizer, g) == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert search.scores()[0].detach()[0].tolist() == pytest.approx([1.0, 0.7, 1.01, 0.99])
    assert search.model.fc.weight.tolist()[0] == [4.0, 0.0, 2.0, 0.0]
    g = [[0.0, 0.1, 0.0, 0.0], [0.0] * 4]  # an inactive weight gets its gradient too: -0.3
    assert one_step(search, optimizer, g) == [
        [1, 0, 1, 0],
        [0, 0, 0, 0],
    ]  # 1.0 against 1.0 and 1.01: a tie stays
    assert one_step(search, optimizer, [[0.01, 0.0, 0.0, 0.0], [0.0] * 4]) == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert (search.num_updates, search.num_swaps) == (2, 2)


def test_the_generation_of_2021_by_hand():
    """Absolute scores: the gradient turns around with the sign of the score, and a negative one can win."""
    search, optimizer = begun(ss.Jackpot2021(0.25))
    assert search.scores()[0].detach()[1].tolist() == pytest.approx([0.95] * 4)
    g = [[0.0, 0.0, 1.5, 0.0], [0.0] * 4]  # score gradient 3.0: 0.95 -> -2.05
    assert one_step(search, optimizer, g) == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert search.scores()[0].detach()[0, 2] == pytest.approx(-2.05)
    assert one_step(search, optimizer, g) == [[1, 1, 0, 0], [0, 0, 0, 0]]  # 3.0 * sign(-2.05): -2.05 -> 0.95
    assert search.scores()[0].detach()[0, 2] == pytest.approx(0.95)


def test_generations_differ_by_rank_and_gap_alone():
    """With positive scores and one gap the two generations are one search."""
    raw, first = begun(ss.JackpotReleased(0.25, gap=0.05))
    absolute, second = begun(ss.Jackpot2021(0.25))
    for step in range(6):
        g = torch.randn(2, 4, generator=torch.Generator().manual_seed(step)) * 0.02
        assert one_step(raw, first, g) == one_step(absolute, second, g)
    assert same_bits(raw.scores()[0].detach(), absolute.scores()[0].detach())


def test_n_of_m_by_hand():
    search, optimizer = begun(ss.JackpotNM(restriction="none"))
    assert search.masks["fc.weight"].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    g = [[0.0, 0.0, -1.0, -2.0], [0.0, 0.0, 0.0, 0.0]]  # row 0: 2 and 1 rise by 2 each and push both out
    assert one_step(search, optimizer, g) == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_single_swap_takes_the_widest_gap_of_all_groups():
    search, optimizer = begun(ss.JackpotNM(restriction="single"), total_steps=5)
    g = [[0.0, 0.0, -1.0, -3.0], [0.0, 0.0, -5.0, 0.0]]  # 2 + 3 in row 0, 1.5 in row 1
    assert one_step(search, optimizer, g) == [[0, 1, 0, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("name", ["jackpot-2023-released", "jackpot-2021", "edge-popup", "hydra", "biprop"])
def test_rate_one_is_top_k_at_every_step(name):
    """Bit for bit a twin that recomputes the mask from sorted scores and takes the gradient by autograd."""
    model, twin = net(), net()
    search = ss.search(model, make(name), total_steps=TOTAL_STEPS)
    absolute = search.method.rank == "absolute"
    weights = {n: w.clone() for n, w in search.weights.items()}
    scores = {n: s.detach().clone().requires_grad_() for n, s in search.named_scores().items()}
    counts = {n: int(mask.sum()) for n, mask in search.masks.items()}
    stepper = torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9, weight_decay=1e-2)
    other = torch.optim.SGD(scores.values(), lr=0.5, momentum=0.9, weight_decay=1e-2)
    for step in range(TOTAL_STEPS):
        effective = {}
        for n, score in scores.items():
            key = (score.abs() if absolute else score).detach().flatten()
            kept = torch.sort(key, descending=True, stable=True).indices[: counts[n]]
            mask = torch.zeros(key.numel()).scatter_(0, kept, 1.0).view(score.shape).bool()
            if len(key.unique()) == len(key):
                assert torch.equal(mask, search.masks[n])
            mask = search.masks[n]  # the same when scores differ; ties go to what is active
            assert set(key[mask.flatten()].tolist()) >= set(key[kept].tolist()) - {float(key[kept].min())}
            values = torch.where(mask, weights[n], 0)
            if name == "biprop":
                values = torch.where(mask, weights[n].sign() * weights[n].abs()[mask].mean(), 0)
            effective[n] = values.requires_grad_()
        inputs, labels = batch(step)
        loss = nn.functional.cross_entropy(functional_call(twin, effective, (inputs,)), labels)
        loss.backward()
        for n, score in scores.items():
            gradient = effective[n].grad * weights[n]
            score.grad = gradient * score.detach().sign() if absolute else gradient
        other.step()
        advance(search, stepper, range(step, step + 1))
        assert all(same_bits(search.named_scores()[n].detach(), s.detach()) for n, s in scores.items())
        twin.load_state_dict(
            {n: v for n, v in model.state_dict().items() if "running" in n or "num" in n}, strict=False
        )


def test_restriction_of_one_is_none():
    runs = []
    for restriction in ("none", 1.0):
        search = ss.search(net(), ss.Jackpot(0.2, restriction=restriction), total_steps=TOTAL_STEPS)
        advance(search, torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9), range(TOTAL_STEPS))
        runs.append(search)
    assert all(
        same_bits(a.detach(), b.detach()) for a, b in zip(runs[0].scores(), runs[1].scores(), strict=True)
    )
    assert runs[0].num_swaps == runs[1].num_swaps > 0


@pytest.mark.parametrize("order", ["gap", "curvature", "random"])
@pytest.mark.parametrize("scope", ["layer", "row", "global", "2:4", "block:2x2", "channel"])
def test_single_swaps_keep_counts_in_every_scope(scope, order):
    density = 0.5
    method = ss.Jackpot(density, scope=scope, order=order, restriction="single", init="random")
    search = ss.search(net(), method, total_steps=TOTAL_STEPS)
    optimizer = torch.optim.SGD(search.scores(), lr=2.0, momentum=0.9)
    for step in range(TOTAL_STEPS):
        before = {n: mask.clone() for n, mask in search.masks.items()}
        advance(search, optimizer, range(step, step + 1))
        assert search.num_active == search.target_count
        arrived = {n: int((search.masks[n] & ~mask).sum()) for n, mask in before.items()}
        size = {"block:2x2": 4, "channel": None}.get(scope, 1)
        limit = {n: size or mask[0].numel() for n, mask in before.items()}
        if scope == "global":
            assert sum(arrived.values()) <= 1
        else:
            assert all(arrived[n] <= limit[n] for n in before)
        for mask in search.masks.values():
            if scope in ("2:4", "block:2x2", "channel"):
                assert parse(scope).legal(mask)
            if scope == "row":
                assert len(set(mask.flatten(1).sum(1).tolist())) == 1
    assert search.num_swaps


def test_global_scope_moves_budgets():
    search = ss.search(net(), ss.JackpotReleased(0.3, scope="global", init="neutral"))
    first = {n: int(m.sum()) for n, m in search.masks.items()}
    advance(search, torch.optim.SGD(search.scores(), lr=2.0, momentum=0.9), range(5))
    assert {n: int(m.sum()) for n, m in search.masks.items()} != first
    assert search.num_active == search.target_count == sum(first.values())


def test_curvature_prefers_small_predicted_losses():
    """Two arrivals of one gap: the one whose gradient is quiet goes first."""
    method = ss.Jackpot(0.25, order="curvature", restriction="single", samples=10)
    layer = Scored("w", torch.ones(1, 8), score=torch.tensor([[0.0, 0.0, 0, 0, 2.0, 2.0, 0, 0]]))
    layer.mask = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    layer.count = 2
    mean = torch.tensor([[0.1, 0.1, 0, 0, -1.0, -1.0, 0, 0]])
    square = mean.square() + torch.tensor([[0.0, 0.01, 0, 0, 0.5, 0.0, 0, 0]])
    layer.moments = {"mean": mean, "square": square}
    after = method.choose({"w": layer}, 1, 10)["w"]
    assert after.int().tolist() == [
        [0, 1, 0, 0, 0, 1, 0, 0]
    ]  # 5 is quiet; 0 goes, whose loss is better known


def test_budgets_by_hand():
    """Global magnitude: the eight largest of both layers; uniform and ERK share by rule."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(WEIGHT)
        model[1].weight.copy_(torch.tensor([[2.5, 0.1], [0.1, 0.6], [0.1, 0.1], [0.1, 0.1]]))
    search = ss.search(model, ss.Jackpot(0.375, classifier="include"), total_steps=1)
    assert {n: int(m.sum()) for n, m in search.masks.items()} == {"0.weight": 4, "1.weight": 2}
    for distribution, counts in (("uniform", [3, 3]), ("balanced", [3, 3]), ({"0.weight": 0.5}, [4, 2])):
        search.restore()
        method = ss.Jackpot(0.375, classifier="include", distribution=distribution)
        search = ss.search(model, method, total_steps=1)
        assert [int(m.sum()) for m in search.masks.values()] == counts


def test_hydra_by_hand():
    search, _ = begun(ss.Hydra(0.25))
    assert torch.allclose(search.scores()[0], math.sqrt(6 / 4) * WEIGHT / 4)
    assert search.masks["fc.weight"].int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_edge_popup_scores_follow_their_law():
    model = nn.Linear(100, 50)
    scores = ss.search(model, ss.EdgePopup(0.5, seed=1)).scores()[0].detach()
    assert float(scores.abs().max()) <= 0.1  # 1 / sqrt(fan_in)
    assert float(scores.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.03)
    assert abs(float(scores.mean())) < 0.003


@pytest.mark.parametrize("init", ["snip", "taylor", "grasp", "wanda", "ria"])
def test_measured_first_masks(init):
    """Against the criterion written out with autograd on the whole batch."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss_fn = nn.functional.cross_entropy
    gradient = torch.autograd.grad(loss_fn(model(x), y), model[0].weight)[0]
    weight = model[0].weight.detach()
    norm = x.norm(dim=0)
    share = weight.abs() / weight.abs().sum(0) + weight.abs() / weight.abs().sum(1, keepdim=True)
    expected = {
        "snip": (weight * gradient).abs(),
        "taylor": (weight * gradient) ** 2,
        "wanda": weight.abs() * norm,
        "ria": share * norm.sqrt(),
    }
    needed = {"data": [(x, y)]} | ({} if init in ("wanda", "ria") else {"loss_fn": loss_fn})
    search = ss.search(model, ss.JackpotReleased(0.25, init=init), **needed)
    mask = search.masks["0.weight"]
    assert int(mask.sum()) == 12
    assert set(search.scores()[0].detach()[mask].tolist()) == {1.0}
    if init in expected:
        kept, gone = expected[init][mask], expected[init][~mask]
        assert float(kept.min()) >= float(gone.max())
    search.restore()
    assert all(torch.equal(p.detach(), before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_grasp_keeps_what_the_gradient_flow_needs():
    """A quadratic loss, whose Hessian is known: scores are weight * (Hessian @ gradient)."""
    curvature = torch.tensor([1.0, -2.0, 3.0])

    def loss_fn(output, target):
        return 0.5 * (curvature * output**2).sum()

    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 1, bias=False)
            self.last = nn.Linear(1, 1)

        def forward(self, x):
            return self.fc.weight[0] + 0 * x.sum()

    model = Identity()
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
    # gradient c * w, Hessian diag(c): scores w * c * c * w = 1, 4, 9
    method = ss.JackpotReleased(1 / 3, init="grasp")
    search = ss.search(
        model, method, layers="fc.weight", data=[(torch.zeros(4, 2), torch.zeros(4))], loss_fn=loss_fn
    )
    assert search.masks["fc.weight"].tolist() == [[False, False, True]]


@pytest.mark.parametrize("scope", ["2:4", "block:2x4", "row", "channel", "layer"])
@pytest.mark.parametrize("shape", [(4, 8), (6, 4, 3, 3), (2, 4, 2)])
def test_groups_are_those_of_the_layout(scope, shape):
    layout = parse({"row": "fan_in", "layer": "unstructured"}.get(scope, scope))
    values = torch.arange(math.prod(shape)).view(shape)
    groups = grouped(values, layout)
    assert torch.equal(groups, layout.arrange(shape))
    assert torch.equal(ungrouped(groups, layout, shape), values)


def test_a_score_a_block():
    """Block and channel scopes train one score a group, with the sum of its weights' gradients."""
    search, optimizer = begun(ss.JackpotReleased(0.5, scope="channel"))
    assert search.scores()[0].shape == (2,)
    assert search.masks["fc.weight"].int().tolist() == [[1] * 4, [0] * 4]
    one_step(search, optimizer, [[0.1] * 4, [-1.0] * 4])  # sums: +0.4, -0.6
    assert search.scores()[0].detach().tolist() == pytest.approx([0.6, 1.59])
    assert search.masks["fc.weight"].int().tolist() == [[0] * 4, [1] * 4]


def test_accumulation_is_one_large_batch():
    runs = []
    for parts in (1, 3):
        model = net().eval()  # batch norm by running statistics, so that a batch is the mean of its parts
        search = ss.search(model, ss.JackpotReleased(0.2))
        optimizer = torch.optim.SGD(search.scores(), lr=0.5)
        inputs, labels = batch(0)
        for x, y in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
            (nn.functional.cross_entropy(model(x), y) / parts).backward()
        optimizer.step()
        assert search.step == 1
        runs.append(search.scores())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*runs, strict=True))


def test_loss_goes_down():
    """The search learns: on one batch, from random scores."""
    torch.manual_seed(0)
    model = net()
    search = ss.search(
        model, ss.JackpotReleased(0.4, init="random", classifier="include", distribution="uniform")
    )
    optimizer = torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = loss_of(model, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
