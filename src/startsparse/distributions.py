"""Layer-wise densities: (shapes, density) -> active weights per layer, the budget met to the weight.

A distribution is a rule name (``names()``), a ``Scaled`` set of base densities (from scores, from another pruner's
masks, from a trained net), or a mapping from layer names or globs to densities, whose unnamed layers follow a rule.
Every rule only says how dense the layers want to be relative to each other; one water-filling solver meets the
budget under every layer's capacity, and largest remainders make the counts integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .names import matches, nearest
from .scalars import as_plain

Shapes = Mapping[str, tuple[int, ...]]
Rule = Callable[[Shapes, float], tuple[dict[str, float], dict[str, float]]]


@dataclass(frozen=True)
class Scaled:
    """Layer densities proportional to given ones: of scores, of another pruner's masks, of a trained net.

    Args:
        base: layer name -> relative density (>= 0, any common scale).

    Raises:
        ValueError: one of them is negative or no finite number.

    References:
        Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, ICML 2023 (ratios borrowed from
        another pruner, positions drawn again at random), https://arxiv.org/abs/2210.02412

    Fidelity:
        The authors' code scales without redistributing what dense layers cannot take; here the budget is exact.

    Example:
        >>> allocate(Scaled({"a": 0.8, "b": 0.1}), {"a": (10, 10), "b": (10, 90)}, 0.2)
        {'a': 94, 'b': 106}
    """

    base: Mapping[str, float]

    def __post_init__(self):
        plain = {name: as_plain(value) for name, value in self.base.items()}
        for name, value in plain.items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ValueError(f"Scaled: the base density of {name!r} must be a number >= 0, got {value!r}")
        object.__setattr__(self, "base", plain)


Distribution = str | Scaled | Mapping[str, "float | str"]

_RULES: dict[str, Rule] = {}


def names() -> list[str]:
    """The rules known by name."""
    return sorted(_RULES)


def summary(name: str) -> str:
    """What a rule does, in a line.

    Example:
        >>> summary("uniform")
        'Every layer at the same density'
    """
    return (_RULES[name].__doc__ or "").split("\n")[0].rstrip(".")


def _rule(name: str):
    def register(rule: Rule) -> Rule:
        _RULES[name] = rule
        return rule

    return register


@_rule("uniform")
def _uniform(shapes: Shapes, density: float):
    """Every layer at the same density."""
    return dict.fromkeys(shapes, 1.0), {}


@_rule("uniform+")
def _uniform_plus(shapes: Shapes, density: float):
    """First convolution dense, last layer at least 20 % dense, the rest uniform (Gale et al. 2019)."""
    first, last = next(iter(shapes)), list(shapes)[-1]
    fixed = {last: max(density, 0.2)} if len(shapes) > 1 else {}
    if len(shapes[first]) > 2:
        fixed[first] = 1.0
    return dict.fromkeys(shapes, 1.0), fixed


@_rule("er")
def _er(shapes: Shapes, density: float):
    """Erdos-Renyi: (out + in) / (out * in), kernel size left out (Mocanu et al. 2018)."""
    return {name: sum(shape[:2]) / math.prod(shape[:2]) for name, shape in shapes.items()}, {}


@_rule("erk")
def _erk(shapes: Shapes, density: float):
    """Erdos-Renyi-Kernel: sum(shape) / prod(shape) (Evci et al. 2020, the rule of the authors' code)."""
    return {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}, {}


@_rule("erk+")
def _erk_plus(shapes: Shapes, density: float):
    """ERK with the last layer dense (Liu et al. 2022)."""
    return _erk(shapes, density)[0], {list(shapes)[-1]: 1.0} if len(shapes) > 1 else {}


@_rule("balanced")
def _balanced(shapes: Shapes, density: float):
    """Every layer keeps the same number of weights (Gadhikar et al. 2023)."""
    return {name: 1 / math.prod(shape) for name, shape in shapes.items()}, {}


@_rule("pyramidal")
def _pyramidal(shapes: Shapes, density: float):
    """Density r, r^2, r^3, ... in layer order, r the root that meets the budget (Gadhikar et al. 2023)."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    low, high, budget = 0.0, 1.0, density * sum(sizes)
    for _ in range(60):
        r = (low + high) / 2
        below = sum(n * r**level for level, n in enumerate(sizes, 1)) < budget
        low, high = (r, high) if below else (low, r)
    return {name: high**level for level, name in enumerate(shapes, 1)}, {}


@_rule("smart")
def _smart(shapes: Shapes, density: float):
    """Smart ratios: n^2 + n, n layers from the end, last layer at least 30 % dense (Su et al. 2020)."""
    last = list(shapes)[-1]
    wishes = {name: float(n * n + n) for n, name in zip(range(len(shapes), 0, -1), shapes, strict=True)}
    return wishes, {last: max(density, 0.3)} if len(shapes) > 1 else {}


def densities(
    distribution: Distribution, shapes: Shapes, density: float, *, capacity: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Real-valued densities of the layers under a distribution; the budget ``density * total`` is met exactly.

    Args:
        distribution: a rule name, ``Scaled``, or a mapping name or glob -> density (or a rule for the rest).
        shapes: weight shapes in layer order, (out, in, *kernel).
        density: share of all weights in ``shapes`` that is active, in (0, 1].
        capacity: the most weights a layer can hold (a source's positions); default: its size.

    Returns:
        Layer name -> density in [0, 1].

    Raises:
        ValueError: density outside (0, 1], unknown rule or layer, or a budget that cannot be met.

    References:
        Gadhikar et al. 2023, section 3; Evci et al., Rigging the Lottery, ICML 2020, section 3,
        https://arxiv.org/abs/1911.11134

    Fidelity:
        Surplus of layers that are full is redistributed until the budget is met; the published codes of balanced
        and of some ERK variants clamp instead and end up sparser than asked (by up to 47 %).

    Example:
        >>> shapes = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
        >>> {k: round(v, 6) for k, v in densities("balanced", shapes, 0.1).items()}
        {'fc1': 0.054464, 'fc2': 0.427, 'fc3': 1.0}
    """
    density = as_plain(density)
    if type(density) not in (int, float) or not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density!r}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    capacity = dict(sizes if capacity is None else capacity)
    base, fixed = _wishes(distribution, shapes, density)
    held = {name: min(capacity[name], share * sizes[name]) for name, share in fixed.items()}
    budget = density * sum(sizes.values()) - sum(held.values())
    slack = 1e-9 * sum(sizes.values())
    target, certain = round(density * sum(sizes.values())), sum(held.values())  # off by rounding is not off
    too_many = budget < -slack and math.floor(certain + 1e-9) > target
    if too_many or (held and budget <= slack and len(held) < len(sizes)):
        raise ValueError(
            f"density {density:g} allows {density * sum(sizes.values()):.0f} weights, but the layers held at a "
            f"density of their own already need {sum(held.values()):.0f} ({', '.join(held)}): raise the density "
            "or hold fewer layers"
        )
    free = [name for name in sizes if name not in held]
    room = sum(capacity[name] for name in free)
    if budget > room + slack and target > math.ceil(room + certain - 1e-9):
        raise ValueError(_too_large(density, sizes, capacity, held, distribution))
    budget = min(budget, room)
    wish = {name: base[name] * sizes[name] for name in free}
    counts = held | water_fill(wish, {name: capacity[name] for name in free}, max(budget, 0.0))
    return {name: counts[name] / sizes[name] if sizes[name] else 0.0 for name in sizes}


def _too_large(density: float, sizes, capacity, held, distribution) -> str:
    if len(held) == len(sizes):
        total = sum(held.values())
        return (
            f"density {density:g} asks for {density * sum(sizes.values()):.0f} weights, but the distribution "
            f"names a density for every layer and they hold {total:.0f} (density {total / sum(sizes.values()):.6g})"
        )
    full = [name for name in sizes if capacity[name] < sizes[name]]
    where = f"; limited by the source: {', '.join(full)}" if full else ""
    return (
        f"density {density:g} asks for {density * sum(sizes.values()):.0f} weights, but the layers can hold only "
        f"{sum(held.get(name, capacity[name]) for name in sizes):.0f}{where}: lower the density or enlarge the source"
    )


def _wishes(distribution: Distribution, shapes: Shapes, density: float):
    """(relative density of every layer, densities that are held fixed)."""
    if isinstance(distribution, Scaled):
        missing = [name for name in shapes if name not in distribution.base]
        if missing:
            raise ValueError(f"Scaled distribution has no base density for {', '.join(missing)}")
        return {name: float(distribution.base[name]) for name in shapes}, {}
    if isinstance(distribution, str):
        if distribution not in _RULES:
            raise ValueError(f"unknown distribution {distribution!r}: {nearest(distribution, names())}")
        return _RULES[distribution](shapes, density)
    fixed: dict[str, float] = {}
    rest = "erk"
    for pattern, value in distribution.items():
        found = matches(pattern, shapes)
        if not found:
            raise ValueError(f"distribution: {pattern!r} matches no layer: {nearest(pattern, list(shapes))}")
        if isinstance(value, str):
            if value not in _RULES:
                raise ValueError(f"unknown distribution {value!r}: {nearest(value, names())}")
            if pattern != "*":
                raise ValueError(
                    f"distribution: {pattern!r} is given the rule {value!r}; a rule is for the layers no density names, "
                    "under the key '*'"
                )
            rest = value
            continue
        if not 0 <= value <= 1:
            raise ValueError(f"distribution: the density of {pattern!r} must be in [0, 1], got {value!r}")
        fixed |= {name: float(value) for name in found if name not in fixed}
    free = {name: shape for name, shape in shapes.items() if name not in fixed}
    if not free:
        return {}, fixed
    left = density * sum(map(math.prod, shapes.values())) - sum(
        fixed[n] * math.prod(shapes[n]) for n in fixed
    )
    share = min(1.0, max(left / sum(map(math.prod, free.values())), 1e-12))
    base, more = _wishes(rest, free, share)
    return base, fixed | more


def water_fill(wish: dict[str, float], capacity: dict[str, int], budget: float) -> dict[str, float]:
    """c * wish capped at capacity, with the one c that adds up to the budget: full layers leave, the rest shares."""
    full: dict[str, float] = {}
    while True:
        open_ = [name for name in wish if name not in full]
        share = sum(wish[name] for name in open_)
        left = budget - sum(full.values())
        scale = left / share if share > 0 else 0.0
        over = [name for name in open_ if scale * wish[name] >= capacity[name] * (1 - 1e-12)]
        if not over:
            if share == 0 and left > 0.5:
                raise ValueError(f"{left:.0f} weights are left over, but the remaining layers want none")
            return full | {name: scale * wish[name] for name in open_}
        full |= {name: float(capacity[name]) for name in over}


def allocate(
    distribution: Distribution, shapes: Shapes, density: float, *, capacity: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Active weights per layer: ``densities`` as integers that add up to ``round(density * total)``.

    Leftover weights go to the largest remainders, ties to the earlier layer. Arguments and errors as ``densities``.

    Example:
        >>> allocate("erk", {"fc1": (300, 784), "fc2": (10, 300)}, 0.1)
        {'fc1': 20820, 'fc2': 3000}
    """
    shares = densities(distribution, shapes, density, capacity=capacity)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    wanted = {name: shares[name] * sizes[name] for name in sizes}
    return whole(wanted, round(density * sum(sizes.values())), sizes if capacity is None else capacity)


def whole(wanted: Mapping[str, float], total: int, room: Mapping[str, int]) -> dict[str, int]:
    """Real-valued counts as integers that add up to ``total``: floors, and the rest to the largest remainders.

    Args:
        wanted: layer name -> count; they add up to ``total`` but for rounding.
        total: what the integers add up to.
        room: the most a layer can hold.

    Example:
        >>> whole({"a": 1.5, "b": 1.5, "c": 7.0}, 10, {"a": 9, "b": 9, "c": 7})
        {'a': 2, 'b': 1, 'c': 7}
    """
    counts = {name: min(room[name], math.floor(wanted[name] + 1e-9)) for name in wanted}
    left = total - sum(counts.values())
    for name in sorted(wanted, key=lambda n: counts[n] - wanted[n]):  # stable: the earlier layer wins a tie
        step = min(max(left, 0), 1, room[name] - counts[name])
        counts[name] += step
        left -= step
    if left:  # every layer of a fractional share is full: the last weights go wherever there is room
        for name in wanted:
            step = max(-counts[name], min(left, room[name] - counts[name]))
            counts[name] += step
            left -= step
    return counts
