"""Training loops as people write them: none of them has to know that the net is sparse."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import startsparse as ss

from .invariants import check, moved, net, rigl, train


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def test_accumulation_is_the_whole_batch():
    torch.manual_seed(0)
    data = [torch.randn(12, 6) for _ in range(7)]
    results = []
    for parts in (1, 2, 3):
        model = net().double()
        optimizer = sgd(model, momentum=0.9)
        sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
        for x in data:
            for part in x.double().chunk(parts):
                (model(part).square().mean() / parts).backward()
                check(sparse)
            optimizer.step()
            optimizer.zero_grad()
            check(sparse)
        assert moved(sparse) > 0 and sparse.step == len(data)
        results.append((sparse.masks, list(model.parameters())))
    for masks, parameters in results[1:]:
        assert all(torch.equal(m, masks[n]) for n, m in results[0][0].items())
        torch.testing.assert_close(parameters, results[0][1])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_either_way(set_to_none):
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(update_interval=1), total_steps=100)
    masks = []
    for _ in range(5):
        torch.manual_seed(sparse.step)
        x = torch.randn(8, 6)
        optimizer.zero_grad(set_to_none=set_to_none)
        for part in x.chunk(2):
            model(part).square().sum().backward()
        expected = copy.deepcopy(model)
        expected.zero_grad()
        expected(x).square().sum().backward()
        if sparse.step:  # updates are due from step 1 on: the dense gradient of the whole batch is at hand
            for name, gradient in sparse.state_dict()["gradients"].items():
                torch.testing.assert_close(
                    gradient["dense"] if isinstance(gradient, dict) else gradient,
                    dict(expected.named_parameters())[name].grad,
                )
        optimizer.step()
        masks.append({n: m.clone() for n, m in sparse.masks.items()})
    assert moved(sparse) > 0


def test_clipping_sees_the_norm_of_the_sparse_gradient():
    torch.manual_seed(0)
    model = nn.Linear(200, 100, bias=False)
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(0.01, update_interval=1), total_steps=100)
    for _ in range(4):
        x = torch.randn(16, 200)
        twin = copy.deepcopy(model)
        twin(x).square().mean().backward()
        dense = twin.weight.grad
        model(x).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        expected = dense[sparse.masks["weight"]].norm()
        torch.testing.assert_close(norm, expected)
        assert norm < 0.5 * dense.norm()
        optimizer.step()
        optimizer.zero_grad()
    assert moved(sparse) > 0


def test_clipping_does_not_change_where_rigl_grows():
    grown = []
    for clip in (False, True):
        model = net()
        optimizer = sgd(model, lr=0.0)
        sparse = ss.attach(model, optimizer, rigl(update_begin=0), total_steps=100)
        torch.manual_seed(0)
        model(torch.randn(8, 6)).square().mean().backward()
        if clip:
            nn.utils.clip_grad_value_(model.parameters(), 1e-9)
        optimizer.step()
        grown.append(sparse.masks)
    assert all(torch.equal(m, grown[1][n]) for n, m in grown[0].items())


def test_parameter_groups_and_one_that_joins_later():
    model = net()
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 0.01, "weight_decay": 0.5}, {"params": [model[2].weight]}]
    )
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    optimizer.add_param_group({"params": [model[2].bias], "lr": 0.1})
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 5)
    assert moved(sparse) > 0


def test_learning_rate_schedulers():
    model = net()
    optimizer = sgd(model)
    early = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    late = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(8):
        train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 1)
        early.step()
        late.step()
    assert sparse.step == 8 and moved(sparse) > 0
    assert optimizer.param_groups[0]["lr"] < 0.1


def test_closures():
    results = []
    for closure in (False, True):
        model = net()
        optimizer = sgd(model, momentum=0.9)
        sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
        for step in range(8):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))

            def backward(model=model, optimizer=optimizer, x=x):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                return loss

            if closure:
                optimizer.step(closure=backward)
            else:
                backward()
                optimizer.step()
            check(sparse)
        results.append((sparse.masks, list(model.parameters()), moved(sparse)))
    assert results[0][2] == results[1][2] > 0
    assert all(torch.equal(m, results[1][0][n]) for n, m in results[0][0].items())
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_lbfgs_learns():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    sparse = ss.attach(model, optimizer, rigl(0.5), total_steps=100)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    y = net(seed=9)(x).detach()
    losses = []

    def backward():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(8):
        losses.append(optimizer.step(backward).item())
        check(sparse)
    assert losses[-1] < 0.5 * losses[0] and moved(sparse) > 0


def test_snip_scores_untouched_weights_with_their_own_gradient_under_lbfgs():
    masks = []
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    for build in (lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=8), lambda p: torch.optim.SGD(p, lr=0.1)):
        model = net()
        optimizer = build(model.parameters())
        sparse = ss.attach(model, optimizer, ss.SNIP(0.3))

        def backward(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(backward)
        masks.append(sparse.masks)
    assert all(torch.equal(m, masks[1][n]) for n, m in masks[0].items())


def test_muon_moves_zeros_and_they_are_put_back():
    model = net()
    matrices = torch.optim.Muon([model[0].weight, model[2].weight], lr=0.05, weight_decay=0.1)
    rest = torch.optim.AdamW([model[0].bias, model[2].bias], lr=0.01)
    sparse = ss.attach(model, [matrices, rest], rigl(), total_steps=100)
    for _ in range(8):
        model(torch.randn(8, 6)).square().mean().backward()
        for optimizer in (matrices, rest):
            optimizer.step()
            check(sparse)
            optimizer.zero_grad()
    assert sparse.step == 8 and moved(sparse) > 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_optimizers_the_first_is_the_clock(order):
    model = net()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(model[2].parameters(), lr=0.01),
    ]
    sparse = ss.attach(model, optimizers, rigl(), total_steps=100)
    for step in range(8):
        model(torch.randn(8, 6)).square().mean().backward()
        for index in order:
            optimizers[index].step()
            check(sparse)
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert sparse.step == step + 1
    assert moved(sparse) > 0


def test_two_optimizers_one_of_them_seldom():
    model = net()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=0.1),
        torch.optim.Adam(model[2].parameters(), lr=0.01),
    ]
    sparse = ss.attach(model, optimizers, rigl(), total_steps=100)
    for step in range(9):
        model(torch.randn(8, 6)).square().mean().backward()
        optimizers[0].step()
        if step % 3 == 2:
            optimizers[1].step()
            optimizers[1].zero_grad()
        optimizers[0].zero_grad()
        check(sparse)
    assert sparse.step == 9 and moved(sparse) > 0


def test_skip_step_on_update_holds_for_both_optimizers():
    model = net()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    sparse = ss.attach(model, optimizers, rigl(update_begin=0, skip_step_on_update=True), total_steps=100)
    for step in range(6):
        before = [model[i].bias.detach().clone() for i in (0, 2)]
        model(torch.randn(8, 6)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        skipped = [torch.equal(b, model[i].bias) for b, i in zip(before, (0, 2), strict=True)]
        assert skipped == [step % 2 == 0] * 2
    assert sparse.step == 6


def test_snip_does_not_depend_on_the_order_of_two_optimizers():
    masks = []
    for order in ((0, 1), (1, 0)):
        model = net()
        optimizers = [torch.optim.SGD(model[i].parameters(), lr=10.0) for i in (0, 2)]
        sparse = ss.attach(model, optimizers, ss.SNIP(0.3))
        model(torch.ones(8, 6)).square().mean().backward()
        for index in order:
            optimizers[index].step()
        masks.append(sparse.masks)
    assert all(torch.equal(m, masks[1][n]) for n, m in masks[0].items())


def test_a_batch_without_a_step_does_not_move_the_clock():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(update_interval=1, update_begin=0), total_steps=100)
    for batch in range(9):
        model(torch.randn(8, 6)).square().mean().backward()
        if batch % 3:
            optimizer.zero_grad()  # the user does not like this one
            continue
        optimizer.step()
        optimizer.zero_grad()
        check(sparse)
    assert sparse.step == 3 and moved(sparse) > 0


def test_a_step_without_a_gradient():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    for _ in range(5):
        optimizer.step()
        check(sparse)
    assert sparse.step == 5


def test_a_layer_without_a_gradient_keeps_its_count():
    model = net()
    model.append(nn.Linear(4, 4))  # not used
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    train(sparse, optimizer, lambda: model[:3](torch.randn(8, 6)).square().mean(), 8)
    assert int(sparse.masks["3.weight"].sum()) > 0


@pytest.mark.parametrize("where", ["0.weight", "2.weight"])
def test_nan_gradients_at_an_update_are_named_and_the_topology_stays(where):
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 2)
    masks = {name: mask.clone() for name, mask in sparse.masks.items()}
    handle = dict(model.named_parameters())[where].register_hook(lambda g: torch.full_like(g, torch.nan))
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().mean().backward()
    handle.remove()
    nn.utils.clip_grad_value_(model.parameters(), 1.0)
    for parameter in model.parameters():
        _ = parameter.grad.nan_to_num_(0.0)  # the user's own remedy for the step
    with pytest.warns(UserWarning, match=rf"rigl: the dense gradient of {where} is not finite at step 2"):
        optimizer.step()
    assert all(torch.equal(m, masks[n]) for n, m in sparse.masks.items())
    check(sparse)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 4)
    assert moved(sparse) > 0


def test_infinite_gradients_of_dead_weights_do_not_reach_the_optimizer():
    model = net()
    optimizer = sgd(model, momentum=0.9)
    sparse = ss.attach(model, optimizer, ss.Static(0.25))
    dead = ~sparse.masks["0.weight"]

    def spoil(gradient):
        return gradient.masked_fill(dead, torch.nan)

    model[0].weight.register_hook(spoil)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    assert bool(model[0].weight.isfinite().all())


def test_evaluation_changes_nothing():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    with torch.no_grad():
        first = model(torch.ones(2, 6))
    with torch.inference_mode():
        second = model(torch.ones(2, 6))
    assert torch.equal(first, second)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    results = []
    for checkpointed in (False, True):
        model = net()
        optimizer = sgd(model)
        sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
        for step in range(6):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).requires_grad_()
            out = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
            out.square().mean().backward()
            check(sparse)
            optimizer.step()
            optimizer.zero_grad()
        assert moved(sparse) > 0
        results.append((sparse.masks, list(model.parameters())))
    assert all(torch.equal(m, results[1][0][n]) for n, m in results[0][0].items())
    torch.testing.assert_close(results[0][1], results[1][1])


def test_double_backward_by_autograd_grad():
    model = net()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)

    def loss():
        x = torch.randn(8, 6, requires_grad=True)
        out = model(x).square().mean()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        return out + slope.square().sum()

    train(sparse, optimizer, loss)
    assert moved(sparse) > 0


def penalised(model, x):
    """Back-propagate a loss and then the square of its gradient; the way torch advises against."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        model(x).square().mean().backward(create_graph=True)
    sum(p.grad.square().sum() for p in model.parameters()).backward()


def test_double_backward_by_create_graph():
    model = net().double()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, ss.Static(0.25))
    for step in range(3):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
        twin = copy.deepcopy(model)
        loss = twin(x).square().mean()
        gradients = torch.autograd.grad(loss, list(twin.parameters()), create_graph=True)
        masks = {0: sparse.masks["0.weight"], 2: sparse.masks["2.weight"]}
        penalty = sum((g * masks.get(i, 1)).square().sum() for i, g in enumerate(gradients))
        wanted = torch.autograd.grad(loss + penalty, list(twin.parameters()))
        penalised(model, x)
        check(sparse)
        for i, (parameter, expected) in enumerate(zip(model.parameters(), wanted, strict=True)):
            torch.testing.assert_close(parameter.grad.detach(), expected * masks.get(i, 1))
        optimizer.step()
        check(sparse)
        for parameter in model.parameters():
            parameter.grad = None


def test_dense_gradient_over_create_graph_micro_batches():
    model = net().double()
    optimizer = sgd(model)
    sparse = ss.attach(model, optimizer, rigl(update_begin=0), total_steps=100)
    twin = copy.deepcopy(model)
    parts = [torch.randn(8, 6).double() for _ in range(2)]
    sum(twin(x).square().mean() for x in parts).backward()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
        for x in parts:
            model(x).square().mean().backward(create_graph=True)
    dense = {name: site._dense_gradient for name, site in sparse._sites.items()}
    for parameter in model.parameters():
        parameter.grad = None
    torch.testing.assert_close(dense["0.weight"], twin[0].weight.grad)


def test_gradients_set_by_hand_are_masked_at_the_step():
    model = net()
    optimizer = sgd(model, momentum=0.9)
    sparse = ss.attach(model, optimizer, rigl(), total_steps=100)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        for name, mask in sparse.masks.items():
            assert not bool(dict(model.named_parameters())[name].detach()[~mask].any())
