"""Chains of linear layers: the same layers one by one, wherever that may be compared; and where they step aside."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from startsparse import kernels
from startsparse.kernels import library
from startsparse.kernels.fallback import TorchBackend

WIDTHS = (13, 40, 37, 10)
RELU = (True, False, False)


pytestmark = pytest.mark.usefixtures("native")


def layers(bias=True, density=0.3) -> list[kernels.Link]:
    links = []
    for inputs, outputs, relu in zip(WIDTHS, WIDTHS[1:], RELU, strict=False):
        pattern = kernels.Pattern.from_mask(torch.rand(outputs, inputs) < density)
        values = torch.randn(pattern.nnz, requires_grad=True)
        one = torch.randn(outputs, requires_grad=True) if bias else None
        links.append(kernels.Link(values, one, pattern.blob, outputs, relu))
    return links


def one_by_one(x, links):
    for link in links:
        x = kernels.sparse_linear(x, link.values, link.pattern, link.out_features, link.bias)
        x = x.relu() if link.relu else x
    return x


def leaves(x, links):
    return [t for t in (x, *(t for link in links for t in link[:2])) if t is not None and t.requires_grad]


@pytest.mark.parametrize("shape", [(1,), (), (16,), (70,), (3, 50), (1000,)])
def test_is_the_layers_one_by_one(shape):
    x, links = torch.randn(*shape, WIDTHS[0], requires_grad=True), layers(bias=len(shape) == 1)
    y, z = kernels.chained_linear(x, links), one_by_one(x, links)
    assert torch.equal(y, z)
    dy = torch.randn(y.shape)
    for found, expected in zip(*(torch.autograd.grad(t, leaves(x, links), dy) for t in (y, z)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(kernels.chained_linear(x, links), z)


def test_two_threads():
    torch.set_num_threads(2)
    x, links = torch.randn(200, WIDTHS[0], requires_grad=True), layers(density=0.9)
    y, z = kernels.chained_linear(x, links), one_by_one(x, links)
    assert torch.equal(y, z)
    for found, expected in zip(
        *(torch.autograd.grad(t.square().sum(), leaves(x, links)) for t in (y, z)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=4))[:-1])
def test_only_what_is_wanted(frozen):
    """x, the first, the middle or the last layer may be frozen."""
    x, links = torch.randn(20, WIDTHS[0], requires_grad=True), layers()
    for tensors, off in zip([[x], *(link[:2] for link in links)], frozen, strict=True):
        for tensor in tensors:
            tensor.requires_grad_(not off)
    y, z = kernels.chained_linear(x, links), one_by_one(x, links)
    y.sum().backward()
    found = [
        None if t.grad is None else t.grad.clone() for t in (x, *(t for link in links for t in link[:2]))
    ]
    for tensor in leaves(x, links):
        tensor.grad = None
    z.sum().backward()
    for grad, tensor in zip(found, (x, *(t for link in links for t in link[:2])), strict=True):
        assert (grad is None) == (tensor.grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, tensor.grad, rtol=1e-5, atol=1e-5)


def test_nan_and_infinity_pass_as_they_do():
    x, links = torch.randn(21, WIDTHS[0], requires_grad=True), layers()
    with torch.no_grad():
        x[2, 4], x[3, 5] = float("nan"), float("inf")
        links[2].values[3] = float("inf")
    y, z = kernels.chained_linear(x, links), one_by_one(x, links)
    assert torch.equal(y.isnan(), z.isnan()) and y.isnan().any() and not y.isnan().all()
    dy = torch.randn(y.shape)
    for found, expected in zip(*(torch.autograd.grad(t, leaves(x, links), dy) for t in (y, z)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_steps_aside_where_somebody_looks_on():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    x, links = torch.randn(20, WIDTHS[0]), layers()
    assert kernels.chained_linear(x, links) is not None
    with Mode():
        assert kernels.chained_linear(x, links) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.chained_linear(x, links) is None
    found = []
    torch.func.vmap(lambda x: found.append(kernels.chained_linear(x, links)) or x)(x)
    assert found == [None]


def test_steps_aside_where_a_layer_would_refuse():
    x, links = torch.randn(20, WIDTHS[0]), layers()
    assert kernels.chained_linear(x.double(), links) is None
    assert kernels.chained_linear(x[:, :-1], links) is None
    assert kernels.chained_linear(x[:0], links) is None
    assert kernels.chained_linear(x, [links[0], links[2]]) is None
    assert kernels.chained_linear(x, [links[0]._replace(out_features=1), links[1]]) is None


def test_steps_aside_without_compiled_kernels(monkeypatch):
    x, links = torch.randn(20, WIDTHS[0]), layers()
    monkeypatch.setattr(library, "_backend", TorchBackend())
    assert kernels.chained_linear(x, links) is None


def test_steps_aside_where_threads_would_wait():
    torch.set_num_threads(2)
    links = layers(density=1.0)
    assert (
        kernels.chained_linear(torch.randn(16, WIDTHS[0]), links) is not None
    )  # too little for a second thread
    assert (
        kernels.chained_linear(torch.randn(3 * 64, WIDTHS[0]), links) is None
    )  # three tiles for two threads


def test_who_watches_sees_what_the_layers_would_show():
    x, links = torch.randn(20, WIDTHS[0]), layers()
    seen: list = []
    for run in (kernels.chained_linear, one_by_one):
        watches = [
            kernels.watch(link.pattern, lambda x, dy, i=i: seen.append((i, x.clone(), dy.clone())))
            for i, link in enumerate(links)
        ]
        grads = torch.autograd.grad(run(x, links).square().sum(), leaves(x, links))
        seen.append(grads)
        for watch in watches:
            watch.remove()
    half = len(seen) // 2
    assert [i for i, *_ in seen[: half - 1]] == [2, 1, 0]
    for one, other in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_second_derivative():
    x, links = torch.randn(20, WIDTHS[0], requires_grad=True), layers()
    grads = torch.autograd.grad(
        kernels.chained_linear(x, links).square().sum(), leaves(x, links), create_graph=True
    )
    plain = torch.autograd.grad(one_by_one(x, links).square().sum(), leaves(x, links))
    for one, other in zip(grads, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grads[0].sum().backward()


def test_what_has_changed_since_is_refused():
    x, links = torch.randn(20, WIDTHS[0]), layers()
    y = kernels.chained_linear(x, links)
    with torch.no_grad():
        links[1].values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = kernels.chained_linear(x, links)
    links[1].values.data = links[1].values.data[:-1].clone()
    with pytest.raises(ValueError, match="one per weight of the pattern"):
        y.sum().backward()


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
def test_it_is_float32_whatever_is_the_default(default):
    x, links = torch.randn(20, WIDTHS[0], requires_grad=True), layers()
    wanted = torch.autograd.grad(kernels.chained_linear(x, links).sum(), leaves(x, links))
    torch.set_default_dtype(default)
    try:
        y = kernels.chained_linear(x, links)
        grads = torch.autograd.grad(y.sum(), leaves(x, links))
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.float32
    for one, other in zip(grads, wanted, strict=True):
        assert torch.equal(one, other)


def test_saved_activations_may_be_moved_about():
    x, links = torch.randn(20, WIDTHS[0], requires_grad=True), layers()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        y = kernels.chained_linear(x, links)
    grads = torch.autograd.grad(y.sum(), leaves(x, links))
    for one, other in zip(
        grads, torch.autograd.grad(one_by_one(x, links).sum(), leaves(x, links)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
