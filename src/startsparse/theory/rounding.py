"""How far the same sums in another order can be apart: a bound for every input of a box, in float64."""

from __future__ import annotations

import numpy as np

from .graph import Affine, Target

UNIT = 2.0**-53


def bound(target: Target, magnitude: np.ndarray, shift: np.ndarray) -> float:
    """The largest difference that rounding can make between the target and its copy, over all outputs.

    Both compute the same sums of the same products, in any order, each with an error of at most ``gamma(n)`` times
    the sum of absolute values (n roundings); activations with slope at most 1 pass errors on. The bound is twice the error
    of one of them.

    Args:
        target: traced.
        magnitude: (inputs,) largest absolute value of each input.
        shift: (inputs,) what the first layer adds to each input, zero where nothing.

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (gamma, sums in any order).

    Example:
        >>> import torch
        >>> from startsparse.theory.tracing import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.fill_(1.0)
        >>> bound(trace(net), np.ones(2), np.zeros(2)) < 1e-14
        True
    """
    largest: dict[str, np.ndarray] = {target.entry: magnitude + 2 * np.abs(shift)}
    errors: dict[str, np.ndarray] = {target.entry: _gamma(2) * np.abs(shift) + _gamma(1) * magnitude}
    for name, node in target.nodes.items():
        if node.kind in ("input", "raw"):
            continue
        read = node.reads[0]
        if node.affine is not None:
            # the shift is also taken off again, through the bias: as large as what it added
            more = np.abs(shift) if read == target.entry else np.zeros(1)
            largest[name], errors[name] = _affine(node.affine, largest[read], errors[read], more)
        elif node.kind == "add":
            other = node.reads[1]
            total = largest[read] + largest[other]
            largest[name] = total * (1 + UNIT)
            errors[name] = errors[read] + errors[other] + UNIT * total
        elif node.kind == "lift":
            largest[name], errors[name] = np.pad(largest[read], node.shift), np.pad(errors[read], node.shift)
        else:
            largest[name] = np.minimum(largest[read], node.ceiling)
            rounded = _gamma(node.rounding) * largest[read] if node.rounding else 0.0
            errors[name] = errors[read] + rounded
    return float(2 * errors[target.output].max())


def _affine(
    affine: Affine, largest: np.ndarray, error: np.ndarray, more: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    weight = np.abs(affine.weight).sum(axis=2)
    terms = affine.weight.shape[1] * affine.taps
    sums = grouped(weight, largest + more, affine.groups) + np.abs(affine.bias) + affine.slack
    passed = grouped(weight, error, affine.groups)
    rounded = _gamma(2 * terms + 8) * sums  # twice: the copy reads both signs of an input
    return sums + passed + rounded, passed + rounded


def grouped(weight: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """``weight @ values`` for a grouped layer: (outputs, inputs / groups) and (inputs,) give (outputs,)."""
    values = np.broadcast_to(values, (weight.shape[1] * groups,)).reshape(groups, -1)
    rows = weight.reshape(groups, -1, weight.shape[1])
    return np.einsum("goi,gi->go", rows, values).reshape(-1)


def _gamma(count: int) -> float:
    return count * UNIT / (1 - count * UNIT)
