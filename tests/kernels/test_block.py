"""Blocks of convolutions and batch norms against torch's own layers, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from startsparse import kernels
from startsparse.kernels import block

pytestmark = pytest.mark.skipif(not block.available(), reason="no compiler on this machine")

EPS = 1e-5


class Pair:
    """A convolution with its norm: dense in float64, and as the kernels want it."""

    def __init__(
        self, inputs, outputs, kernel=(3, 3), stride=(1, 1), padding=(1, 1), groups=1, affine=True, bias=False
    ):
        mask = torch.rand(outputs, inputs // groups, *kernel) < 0.4
        pattern = kernels.Pattern.from_mask(mask, groups)
        weight = torch.randn(mask.shape) * mask
        self.pattern, self.shape = pattern, mask.shape
        self.leaves = [pattern.take_from(weight), torch.randn(outputs) if bias else None]
        self.leaves += [1 + 0.3 * torch.randn(outputs), torch.randn(outputs)] if affine else [None, None]
        self.exact = [weight.double(), *(None if t is None else t.double() for t in self.leaves[1:])]
        for tensor in (*self.leaves, *self.exact):
            if tensor is not None:
                tensor.requires_grad_()
        self.geometry = kernel, stride, padding, (1, 1), groups

    def link(self, running=None):
        values, bias, *affine = self.leaves
        out = self.shape[0]
        return block.ConvNorm(values, self.pattern.blob, out, *self.geometry, bias, EPS, *affine, running)

    def dense(self, x, running=(None, None)):
        weight, bias, *affine = self.exact
        _, stride, padding, _, groups = self.geometry
        y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
        return F.batch_norm(y, *running, *affine, training=running[0] is None, eps=EPS)


def dense_chain(x, pairs, around, relu, running=None):
    for i, pair in enumerate(pairs):
        x = pair.dense(x, *([] if running is None else [running[i]]))
        if i + 1 < len(pairs):
            x = x.relu()
    x = x if around is None else x + around
    return x.relu() if relu else x


def close(found, wanted, within=2e-5):
    scale = wanted.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(found.double() / scale, wanted / scale, rtol=0, atol=within)


CASES = {
    "residual": lambda: ([Pair(4, 6), Pair(6, 4)], "x", True),
    "one, without a relu": lambda: ([Pair(3, 5, (1, 1), (2, 2), (0, 0))], None, False),
    "biases, no weights of norms": lambda: ([Pair(4, 5, bias=True), Pair(5, 6, affine=False)], None, True),
    "another way around": lambda: ([Pair(4, 8, stride=(2, 2)), Pair(8, 8)], "other", True),
    "three, in groups": lambda: (
        [Pair(4, 6, groups=2), Pair(6, 6, (1, 3), padding=(0, 1)), Pair(6, 4)],
        None,
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [16, 21])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_chain_is_its_layers(case, batch, threads, monkeypatch):
    monkeypatch.setattr("startsparse.kernels.norms.threads", lambda: threads)
    monkeypatch.setattr("startsparse.kernels.norms._FEW", 0)
    torch.manual_seed(1)
    pairs, way, relu = CASES[case]()
    x = torch.randn(batch, pairs[0].shape[1] * pairs[0].geometry[-1], 8, 8, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    inside = kernels.to_blocked(x, 16)
    other = torch.randn(batch, 8, 4, 4, requires_grad=True) if way == "other" else None
    exact_other = None if other is None else other.detach().double().requires_grad_()
    around = inside if way == "x" else None if other is None else kernels.to_blocked(other, 16)
    y, norms = block.run_block(inside, batch, [pair.link() for pair in pairs], around, relu)
    y = kernels.from_blocked(y, batch)
    wanted = dense_chain(exact, pairs, exact if way == "x" else exact_other, relu)
    close(y, wanted)
    dy = torch.randn_like(y)
    dy[wanted.abs() < 1e-4] = 0  # where rounding decides what a ReLU lets through
    y.backward(dy)
    wanted.backward(dy.double())
    close(x.grad, exact.grad)
    if other is not None:
        close(other.grad, exact_other.grad)
    for pair in pairs:
        close(pair.leaves[0].grad, pair.pattern.take_from(pair.exact[0].grad), 3e-4)  # sums that cancel
        for ours, theirs in zip(pair.leaves[2:], pair.exact[2:], strict=True):
            if ours is not None:
                close(ours.grad, theirs.grad)
        if pair.leaves[1] is not None:  # nothing but rounding
            assert pair.leaves[1].grad.abs().max() < 1e-3
    first = F.conv2d(exact, *pairs[0].exact[:2], *pairs[0].geometry[1:])
    close(norms[0].pre[2], first.mean((0, 2, 3)))
    close(norms[0].more[1], first.var((0, 2, 3)))


@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (3, 1), (20, 16), (16, 16)])
@pytest.mark.parametrize("case", CASES)
def test_with_running_statistics(case, batch, lanes):
    torch.manual_seed(2)
    pairs, way, relu = CASES[case]()
    running = [(torch.randn(p.shape[0]), torch.rand(p.shape[0]) + 0.5) for p in pairs]
    x = torch.randn(batch, pairs[0].shape[1] * pairs[0].geometry[-1], 9, 7)
    with torch.no_grad():
        inside = x.unsqueeze(-1) if lanes == 1 else kernels.to_blocked(x, lanes)
        other = torch.randn(batch, 8, 5, 4) if way == "other" else None
        around = inside if way == "x" else other
        if other is not None:
            around = other.unsqueeze(-1) if lanes == 1 else kernels.to_blocked(other, lanes)
        links = [pair.link(known) for pair, known in zip(pairs, running, strict=True)]
        y, _ = block.run_block(inside, batch, links, around, relu)
        y = y.squeeze(-1) if lanes == 1 else kernels.from_blocked(y, batch)
        doubles = [tuple(t.double() for t in known) for known in running]
        way_around = x.double() if way == "x" else None if other is None else other.double()
        close(y, dense_chain(x.double(), pairs, way_around, relu, doubles))


def test_nan_goes_through_and_dead_lanes_stay_apart():
    pair = Pair(2, 3)
    x = torch.randn(17, 2, 5, 5)
    blocked = kernels.to_blocked(x, 16)
    blocked[1, ..., 1:] = torch.nan  # beyond the batch
    y, norms = block.run_block(blocked, 17, [pair.link(), Pair(3, 2).link()])
    assert kernels.from_blocked(y, 17).isfinite().all() and norms[1].pre.isfinite().all()
    blocked[0, 0, 2, 2, 3] = torch.nan
    y, _ = block.run_block(blocked, 17, [pair.link()])
    assert kernels.from_blocked(y, 17).isnan().any()


def test_a_second_derivative_is_refused():
    pair, x = Pair(2, 2), kernels.to_blocked(torch.randn(16, 2, 4, 4), 16).requires_grad_()
    y, _ = block.run_block(x, 16, [pair.link()])
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_what_does_not_fit_is_named():
    pair, x = Pair(4, 4), torch.randn(1, 4, 6, 6, 16)
    with pytest.raises(ValueError, match=r"another shape|groups"):
        block.run_block(x[:, :3], 16, [pair.link()])
    with pytest.raises(ValueError, match="goes around"):
        block.run_block(x, 16, [pair.link()], x[..., :3, :])
    with pytest.raises(ValueError, match="larger than the padded"):
        block.run_block(x, 16, [Pair(4, 4, (9, 9)).link()])


def test_watchers_see_what_each_convolution_saw():
    torch.manual_seed(3)
    pairs = [Pair(3, 4), Pair(4, 3)]
    x = torch.randn(18, 3, 6, 6)
    seen = {}
    watches = [
        kernels.watch(p.pattern.blob, lambda x, dy, i=i: seen.update({i: (x, dy)}))
        for i, p in enumerate(pairs)
    ]
    y, _ = block.run_block(kernels.to_blocked(x, 16), 18, [p.link() for p in pairs])
    y.square().sum().backward()
    for watch in watches:
        watch.remove()
    for i, pair in enumerate(pairs):
        blocks = list(kernels.dense_gradient(*seen[i], kernel_size=(3, 3), padding=(1, 1)))
        dense = torch.cat([block for _, block in blocks]).view(pair.shape)
        close(pair.leaves[0].grad, pair.pattern.take_from(dense).double(), 3e-4)
