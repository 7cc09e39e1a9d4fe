"""Random layers against dense float64, as a program: ``python random_shapes.py [library] [rounds]``.

The tests run it once per instruction set and once with a library built for the sanitizers, which want a
process of their own.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import sys

import torch
import torch.nn.functional as F

from startsparse import kernels
from startsparse.kernels import block, library
from startsparse.kernels.native import NativeBackend


def close(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Equal but for float32 rounding of sums of a few thousand terms."""
    torch.testing.assert_close(
        found.double(), wanted, rtol=1e-4, atol=1e-4, msg=lambda text: f"{what}: {text}"
    )


def check(what: str, mask: torch.Tensor, groups: int, x: torch.Tensor, sparse, dense) -> None:
    """Outputs and all gradients of ``sparse(x, values, pattern, bias)`` against ``dense(x, weight,
    bias)``."""
    pattern = kernels.Pattern.from_mask(mask, groups)
    weight = torch.randn(mask.shape) * mask
    bias = torch.randn(mask.shape[0])
    leaves = [x.clone(), pattern.take_from(weight), bias.clone()]
    exact = [t.double() for t in (x, weight, bias)]
    for tensor in leaves + exact:
        tensor.requires_grad_(random.random() < 0.8)
    y, wanted = sparse(leaves[0], leaves[1], pattern, leaves[2]), dense(*exact)
    close(y, wanted, what + " y")
    if not y.requires_grad or not wanted.requires_grad:
        return
    dy = torch.randn(y.shape)
    y.backward(dy)
    wanted.backward(dy.double())
    for name, leaf, truth in zip(("dx", "dw", "db"), leaves, exact, strict=True):
        if leaf.grad is not None and truth.grad is not None:
            close(leaf.grad, pattern.take_from(truth.grad) if name == "dw" else truth.grad, f"{what} {name}")


def linear() -> None:
    batch, inputs, outputs = (
        random.choice([0, 1, 2, 15, 16, 17, 64, 70, 129]),
        random.randint(1, 200),
        random.randint(1, random.choice((200, 200, 200, 1200))),  # the large ones in several strips
    )
    mask = torch.rand(outputs, inputs) < random.choice([0.0, 0.02, 0.2, 0.7, 1.0])
    mask[torch.rand(outputs) < 0.1] = False
    lanes = random.choice([None, 16, 32, 48, 64])

    def sparse(x, values, pattern, bias):
        if lanes is None:
            return kernels.sparse_linear(x, values, pattern.blob, outputs, bias)
        blocked = kernels.to_blocked(x, lanes)
        y = kernels.sparse_linear(blocked, values, pattern.blob, outputs, bias, batch=batch)
        return kernels.from_blocked(y, batch)

    check(f"linear {batch} {inputs} {outputs} {lanes}", mask, 1, torch.randn(batch, inputs), sparse, F.linear)


def chain() -> None:
    """A chain of layers against the same layers one by one, whatever of it is wanted."""
    batch, widths = (
        random.choice([1, 15, 16, 40, 64, 100, 129, 513]),
        [random.randint(1, 150) for _ in range(4)],
    )
    links, gives_relu = [], [random.random() < 0.7, random.random() < 0.7, False]
    for inputs, outputs, relu in zip(widths[:-1], widths[1:], gives_relu, strict=True):
        pattern = kernels.Pattern.from_mask(torch.rand(outputs, inputs) < random.choice([0.0, 0.05, 0.4]))
        values, bias = torch.randn(pattern.nnz), torch.randn(outputs) if random.random() < 0.8 else None
        links.append(kernels.Link(values, bias, pattern.blob, outputs, relu))
    x = torch.randn(batch, widths[0])
    leaves = [t for t in (x, *(t for link in links for t in link[:2])) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_(random.random() < 0.7)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    y, z = kernels.chained_linear(x, links), x
    for link in links:
        z = kernels.sparse_linear(z, link.values, link.pattern, link.out_features, link.bias)
        z = z.relu() if link.relu else z
    if y is None:
        return
    what = f"chain {batch} {widths}"
    close(y, z.double(), what)
    dy = torch.randn(y.shape)
    found, expected = (
        [] if not wanted else torch.autograd.grad(t, wanted, dy, allow_unused=True) for t in (y, z)
    )
    for one, other in zip(found, expected, strict=True):
        close(one, other.double(), what)


def conv() -> None:
    groups = random.choice([1, 1, 2, 3])
    batch = random.choice([0, 1, 3, 16, 21, 33])
    inputs, outputs = groups * random.randint(1, 5), groups * random.randint(1, 5)
    kernel, stride, padding, dilation = (
        tuple(random.randint(low, 3) for _ in range(2)) for low in (1, 1, 0, 1)
    )
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [n + random.randint(0, 9) for n in smallest]
    mask = torch.rand(outputs, inputs // groups, *kernel) < random.choice([0.05, 0.3, 1.0])
    lanes = random.choice([None, 16, 32])
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def sparse(x, values, pattern, bias):
        call = (values, pattern.blob, outputs, kernel, bias)
        if lanes is None:
            return kernels.sparse_conv2d(x, *call, **options)
        y = kernels.sparse_conv2d(kernels.to_blocked(x, lanes), *call, **options, batch=batch)
        return kernels.from_blocked(y, batch)

    what = f"conv {batch} {inputs} {outputs} {size} {kernel} {options} {lanes}"
    check(
        what,
        mask,
        groups,
        torch.randn(batch, inputs, *size),
        sparse,
        lambda x, w, b: F.conv2d(x, w, b, **options),
    )


def convs_and_norms() -> None:
    """Two convolutions with their norms: output and the gradient of x."""
    batch, threads = random.choice([1, 2, 5, 16, 21, 50]), torch.get_num_threads()
    lanes = random.choice([1, 16, 32])
    groups = random.choice([1, 2])
    widths = [groups * random.randint(1, 9) for _ in range(3)]
    side = random.randint(1, 9)
    links, layers = [], []
    for inputs, outputs in itertools.pairwise(widths):
        kernel, stride = random.choice([1, 3]), random.choice([1, 1, 2])
        mask = torch.rand(outputs, inputs // groups, kernel, kernel) < random.choice([0.1, 0.5])
        pattern = kernels.Pattern.from_mask(mask, groups)
        weight = torch.randn(mask.shape) * mask
        running = (torch.randn(outputs), torch.rand(outputs) + 0.5) if lanes == 1 else None
        affine = torch.randn(outputs), torch.randn(outputs)
        padding = kernel // 2
        around = ((kernel, kernel), (stride, stride), (padding, padding), (1, 1), groups)
        values = pattern.take_from(weight).requires_grad_(lanes > 1)
        links.append(block.ConvNorm(values, pattern.blob, outputs, *around, None, 0.1, *affine, running))
        layers.append((weight.double(), stride, padding, running, [t.double() for t in affine]))
    x = torch.randn(batch, widths[0], side, side, requires_grad=lanes > 1)
    exact = x.detach().double().requires_grad_()
    blocked = x.unsqueeze(-1) if lanes == 1 else kernels.to_blocked(x, lanes)
    y, _ = block.run_block(blocked, batch, links)
    y = y.squeeze(-1) if lanes == 1 else kernels.from_blocked(y, batch)
    wanted = exact
    for weight, stride, padding, running, affine in layers:
        wanted = F.conv2d(wanted, weight, None, stride, padding, groups=groups)
        axes = (0, 2, 3)
        mean, var = (wanted.mean(axes), wanted.var(axes, correction=0)) if running is None else running
        mean, var, scale, shift = (t.double().view(-1, 1, 1) for t in (mean, var, *affine))
        wanted = ((wanted - mean) / (var + 0.1).sqrt() * scale + shift).relu()
    what = f"block {batch} {lanes} {widths} {side} {threads}"
    close(y, wanted, what)
    if lanes > 1:
        y.backward(wanted.detach().float())
        wanted.backward(wanted.detach())
        assert x.grad is not None and exact.grad is not None
        off = (x.grad - exact.grad).norm() / exact.grad.norm().clamp(min=1.0)
        assert off < 1e-3, f"{what} dx {off}"


def topology() -> None:
    most = random.choice((90, 90, 90, 300))  # the large ones are divided among threads
    rows, cols = random.randint(1, most), random.randint(1, most)
    before, after = (torch.rand(rows, cols) < random.random() for _ in range(2))
    weight = torch.randn(rows, cols)
    old = kernels.Pattern.from_mask(before)
    drop, grow = ((a & ~b).flatten().nonzero().flatten() for a, b in ((before, after), (after, before)))
    new, source = old.changed(drop, grow)
    assert torch.equal(source, old.source(new))
    (moved,) = old.move(new, [old.take_from(weight)])
    assert torch.equal(new.dense(moved), weight * (before & after)), (rows, cols)
    bar, start = random.random(), random.randint(0, 9)
    at, scores = library.backend().above(weight.clone(), start, old.positions() + start, drop + start, bar, 2)
    wanted = ((weight.abs() > bar) & ~(before & after)).flatten().nonzero().flatten()
    assert torch.equal(at - start, wanted) and torch.equal(scores, weight.abs().flatten()[wanted])
    ranked, prefer = weight.flatten().round(decimals=random.choice((0, 6))), before.flatten()
    count = random.randint(1, rows * cols)
    taken = library.backend().highest(ranked, count, random.choice((prefer, None)), 2)
    if taken is not None:  # the fallback has none
        assert torch.equal(ranked[taken].sort().values, ranked.sort().values[-count:])
        assert torch.equal(library.backend().pick(ranked, taken, True, 2), ranked[taken])


def main(path: str | None, rounds: int) -> None:
    if path:
        library._backend = NativeBackend(ctypes.CDLL(path))
    random.seed(0)
    torch.manual_seed(0)
    for i in range(rounds):
        torch.set_num_threads(1 + i % 3)
        random.choice((linear, chain, conv, convs_and_norms, topology))()
    print(library.backend().name, library.backend().width)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        arguments[0] if arguments and arguments[0] != "-" else None,
        int(arguments[1]) if len(arguments) > 1 else 200,
    )
