"""The autograd node in C++ does what Python does, bit for bit, and leaves to Python what it does not know."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from startsparse import kernels
from startsparse.kernels import library, memory, node

COMPILED = "SparseLayerBackward"


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """Calls go through the node."""
    if library.backend().name != "native":
        pytest.skip("no compiler on this machine")
    monkeypatch.setenv("STARTSPARSE_NODE", "auto")
    node.forget()
    if not node.has_node():
        pytest.skip("the autograd node is not compiled: `startsparse build` does that, or says why it cannot")
    yield
    node.forget()


def pattern(rows=8, columns=5, groups=1):
    return kernels.Pattern.from_mask(torch.rand(rows, columns) < 0.5, groups=groups)


def linear(x, bias=True, batch=None):
    """Inputs of a layer with 5 features and 8 outputs, and the call."""
    live = pattern()
    values = torch.randn(live.nnz, requires_grad=True)
    bias = torch.randn(8, requires_grad=True) if bias else None
    call = lambda: kernels.sparse_linear(x, values, live.blob, 8, bias, batch=batch)
    return [t for t in (x, values, bias) if t is not None], call


def conv(x, bias=True, batch=None, **options):
    live = kernels.Pattern.from_mask(torch.rand(4, 2, 3, 3) < 0.5, groups=2)
    values = torch.randn(live.nnz, requires_grad=True)
    bias = torch.randn(4, requires_grad=True) if bias else None
    call = lambda: kernels.sparse_conv2d(
        x, values, live.blob, 4, (3, 3), bias, groups=2, batch=batch, **options
    )
    return [t for t in (x, values, bias) if t is not None], call


def randn(*shape):
    return torch.randn(*shape, requires_grad=True)


CASES = {
    "rows": lambda: linear(randn(7, 5)),
    "no bias": lambda: linear(randn(7, 5), bias=False),
    "one row": lambda: linear(randn(5)),
    "no row": lambda: linear(randn(0, 5)),
    "three dimensions": lambda: linear(randn(2, 3, 5)),
    "strided": lambda: linear(randn(5, 7).t().detach().requires_grad_()),
    "blocked": lambda: linear(randn(2, 5, 16), batch=20),
    "not a leaf": lambda: linear(randn(7, 5) * 2),
    "frozen input": lambda: linear(torch.randn(7, 5)),
    "one image": lambda: conv(randn(1, 4, 6, 5), padding=(1, 1)),
    "images": lambda: conv(randn(3, 4, 6, 5)),
    "strides": lambda: conv(randn(3, 4, 6, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "channels last": lambda: conv(
        randn(3, 4, 6, 5).detach().to(memory_format=torch.channels_last).requires_grad_()
    ),
    "blocked images": lambda: conv(randn(1, 4, 6, 5, 16), bias=False, batch=9),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [None, 1, -1])
def test_bit_for_bit_as_in_python(case, frozen, monkeypatch):
    inputs, call = CASES[case]()
    if frozen is not None and inputs[frozen].is_leaf:
        inputs[frozen].requires_grad_(False)
    wanted = [t for t in inputs if t.requires_grad]
    y = call()
    assert y.grad_fn.name() == COMPILED
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, wanted, dy, retain_graph=True)
    again = torch.autograd.grad(y, wanted, dy)
    alone = torch.autograd.grad(call(), wanted[-1], dy)
    with torch.no_grad():
        assert torch.equal(call(), y) and not call().requires_grad
    with torch.inference_mode():
        assert torch.equal(call(), y)
    monkeypatch.setenv("STARTSPARSE_NODE", "python")
    node.forget()
    plain = call()
    assert plain.grad_fn.name() != COMPILED
    assert torch.equal(plain, y)
    expected = torch.autograd.grad(plain, wanted, dy)
    for found in (grads, again):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(alone[0], expected[-1])


def test_gradients_are_handed_over_not_copied():
    (x, values, bias), call = linear(randn(7, 5))
    call().sum().backward()
    assert all(t.grad.is_contiguous() and t.grad.shape == t.shape for t in (x, values, bias))
    before = values.grad.clone()
    call().sum().backward()
    assert torch.equal(values.grad, 2 * before)


class Looks(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Own(torch.Tensor):
    """A subclass, whose functions torch tells about each call."""


@pytest.mark.parametrize(
    "around",
    [lambda: torch.autocast("cpu"), Looks, lambda: torch.device("cpu")],
    ids=["autocast", "mode", "device"],
)
def test_whoever_looks_on_is_left_to_python(around):
    _, call = linear(randn(7, 5))
    expected = call()
    with around():
        y = call()
    assert y.grad_fn.name() != COMPILED
    assert torch.equal(y, expected)


def test_subclasses_are_left_to_python():
    x = randn(7, 5)
    _, call = linear(x.detach().as_subclass(Own).requires_grad_())
    assert call().grad_fn.name() != COMPILED


def test_a_mode_around_the_backward_pass_sees_it():
    (x, values, bias), call = linear(randn(7, 5))
    dy = torch.randn(7, 8)
    expected = torch.autograd.grad(call(), (x, values, bias), dy)
    seen = []

    class Notes(Looks):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    y = call()
    with Notes():
        grads = torch.autograd.grad(y, (x, values, bias), dy)
    assert "startsparse.sparse_linear_backward.default" in seen
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_who_begins_to_watch_after_the_forward_pass_is_told():
    live = pattern()
    x, values = randn(7, 5), randn(live.nnz)
    seen = []
    y = kernels.sparse_linear(x, values, live.blob, 8)
    watch = kernels.watch(live.blob, lambda x, dy: seen.append((x.clone(), dy.clone())))
    dy = torch.randn_like(y)
    y.backward(dy)
    watch.remove()
    assert len(seen) == 1
    assert torch.equal(seen[0][0], x) and torch.equal(seen[0][1], dy)
    kernels.sparse_linear(x, values, live.blob, 8).backward(dy)
    assert len(seen) == 1


def test_what_a_watcher_raises_arrives():
    live = pattern()
    x, values = randn(7, 5), randn(live.nnz)

    def stop(x, dy):
        raise ZeroDivisionError("from a watcher")

    watch = kernels.watch(live.blob, stop)
    try:
        with pytest.raises(ZeroDivisionError, match="from a watcher"):
            kernels.sparse_linear(x, values, live.blob, 8).sum().backward()
    finally:
        watch.remove()


def test_second_derivatives_are_refused():
    (x, *_), call = linear(randn(7, 5))
    (dx,) = torch.autograd.grad(call().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_refused_not_taken_for_zero(grad):
    (x, *_), _ = linear(randn(7, 5))
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        _, call = linear(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        with pytest.raises(RuntimeError, match="forward-mode"):
            call()
        _, plain = linear(x.detach())  # no tangent
        assert plain().shape == (7, 8)


def test_changes_in_place_are_noticed():
    for which in (0, 1):
        inputs, call = linear(torch.randn(7, 5))
        y = call()
        with torch.no_grad():
            inputs[which].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_graph_is_gone_once_it_was_used():
    _, call = linear(randn(7, 5))
    y = call()
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_saved_tensors_go_through_hooks():
    (x, values, bias), call = linear(randn(7, 5))
    expected = torch.autograd.grad(call().sum(), (x, values, bias))
    kept = []

    def pack(tensor):
        kept.append(tensor.detach().clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: kept[i]):
        y = call()
    assert len(kept) == 2
    grads = torch.autograd.grad(y.sum(), (x, values, bias))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_saved_tensors_that_come_back_different_are_refused():
    _, call = linear(randn(7, 5))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.double()):
        y = call()
    with pytest.raises(ValueError, match="must be a float32 tensor"):
        y.sum().backward()


def test_a_missing_output_gradient_is_zero():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return None

    (x, values, _), call = linear(randn(7, 5))
    (Nothing.apply(call()).sum() + x.sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert values.grad is None or not values.grad.any()


def test_hooks_on_the_node_are_called():
    (x, *_), call = linear(randn(7, 5))
    y = call()
    y.grad_fn.register_hook(lambda grads, dy: (grads[0] * 0, *grads[1:]))
    y.sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(x=torch.randn(7, 5, dtype=torch.float64)), "x must be a float32"),
        (lambda c: c.update(x=torch.randn(7, 4)), "another shape"),
        (lambda c: c.update(values=c["values"][1:]), "values must be"),
        (lambda c: c.update(bias=torch.randn(7)), "the bias must be"),
        (lambda c: c.update(out_features=9), "9 were asked for"),
        (lambda c: c.update(pattern=c["pattern"][:100]), "cut short"),
        (lambda c: c.update(pattern=c["pattern"].float()), "uint8"),
        (lambda c: c.update(pattern=torch.zeros_like(c["pattern"])), "must be|Pattern.build|asked for"),
    ],
)
def test_errors_are_those_of_python(change, words):
    live = pattern()
    call = {"x": torch.randn(7, 5), "values": randn(live.nnz), "bias": randn(8)}
    call |= {"pattern": live.blob, "out_features": 8}
    change(call)
    with pytest.raises(ValueError, match=words):
        kernels.sparse_linear(**call)


def test_nothing_is_kept_alive():
    (x, *_), call = linear(randn(7, 5))
    y = call()
    gone = weakref.ref(x)
    y.sum().backward()
    del y, x, call, _
    _ = gc.collect()
    assert gone() is None


def test_more_shapes_than_are_remembered():
    live = pattern()
    values = randn(live.nnz)
    for rows in (*range(1, 4200), 3):
        y = kernels.sparse_linear(torch.ones(rows, 5), values, live.blob, 8)
    y.sum().backward()
    expected = live.dense(values.detach(), (8, 5)).sum(1)
    torch.testing.assert_close(y[0], expected)


def test_threads_train_side_by_side():
    """Each has its own scratch, also after giving it back."""
    results = {}

    def train(seed):
        generator = torch.Generator().manual_seed(seed)
        live = kernels.Pattern.from_mask(torch.rand(64, 96, generator=generator) < 0.2)
        values = torch.randn(live.nnz, generator=generator, requires_grad=True)
        x = torch.randn(50, 96, generator=generator)
        expected = x @ live.dense(values.detach(), (64, 96)).t()
        for i in range(20):
            y = kernels.sparse_linear(x, values, live.blob, 64)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
            y.sum().backward()
            if i % 5 == 0:
                memory.release_scratch()
        results[seed] = values.grad / 20 - x.sum(0)[live.positions()[live.order().argsort()] % 96]

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(error.abs().max() < 1e-3 for error in results.values())


def test_scratch_is_shared_with_python():
    memory.release_scratch()
    live = kernels.Pattern.from_mask(torch.rand(64, 96) < 0.2)
    values, x = randn(live.nnz), torch.randn(200, 96)
    y = kernels.sparse_linear(x, values, live.blob, 64)
    before = memory.scratch()
    y.sum().backward()
    grown = memory.scratch(before.numel() + 10_000)
    assert memory.room() == (grown.data_ptr(), grown.numel())
    assert torch.equal(kernels.sparse_linear(x, values, live.blob, 64), y)


def test_another_number_of_threads_backwards():
    (x, values, bias), call = linear(randn(400, 5))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        y = call()
        torch.set_num_threads(1)
        grads = torch.autograd.grad(y.sum(), (x, values, bias))
    finally:
        torch.set_num_threads(before)
    expected = torch.autograd.grad(call().sum(), (x, values, bias))
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)
