"""States that are damaged, one thing at a time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor


def paths(state, at=()):
    """Where things are in a state: keys, one after the other."""
    yield at
    for key, value in state.items() if isinstance(state, dict) else ():
        yield from paths(value, (*at, key))


MISSING, EXTRA = object(), object()
DAMAGE = [
    *(None, 3, -7, 1.5, "x", [], {}, MISSING, EXTRA),
    *(torch.zeros(1), torch.zeros(3, dtype=torch.int64), torch.ones(7, 2, dtype=torch.bool), torch.tensor(2)),
]


def damaged(state, path, damage):
    """A copy of the state with one thing in it replaced, left out or made longer."""
    state = copy.deepcopy(state)
    if not path:
        return damage
    *parents, last = path
    within = state
    for key in parents:
        within = within[key]
    if damage is MISSING:
        del within[last]
    elif damage is not EXTRA:
        within[last] = damage
    elif isinstance(within[last], Tensor) and within[last].numel():
        within[last] = torch.cat([within[last].reshape(-1), within[last].reshape(-1)[:1]])
    elif isinstance(within[last], dict):
        within[last]["bogus"] = 3
    else:
        within[last] = ["more"]
    return state


def paths_and_damage(state):
    """All that can be wrong."""
    return ((path, damage) for path in paths(state) for damage in DAMAGE)


def same(a, b):
    """Whether two states are the same, bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
