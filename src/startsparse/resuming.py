"""A sparsifier's state that comes back: read as a whole, and refused in words, before anything changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .damage import are_bits, are_positions, as_dict, by_layer, is_float, is_tensor, refusal, require, same
from .draw import Drawn
from .execution.interface import KEPT
from .execution.young import AGES, POSITIONS
from .methods import Method
from .methods.base import LEAVING
from .methods.deep_r import SIGNS
from .methods.dst_ee import SEEN, TIMES
from .methods.hidden import HIDDEN, LOGIT, REACHED, THRESHOLD
from .methods.view import SCALE
from .probing import EARLIER, PROBED
from .state import FORMAT, Shapes, unpack_masks, unpack_sources

COUNTS = ("step", "start_count", "num_updates", "num_moved")
PARTS = ("describe", "masks", "sources", "gradients", "memory", *COUNTS)
_WHOLE = (KEPT, EARLIER, HIDDEN, LEAVING)  # memories of the weight's shape
_POSITIONS = (REACHED, SEEN, POSITIONS)  # rising positions
_NUMBERS = (SCALE, PROBED, LOGIT, THRESHOLD, "starved")
_LONG_AS = {TIMES: SEEN, AGES: POSITIONS}
_PAIRS = ({THRESHOLD, LOGIT}, {SEEN, TIMES}, {POSITIONS, AGES})  # both or none


@dataclass(frozen=True)
class Saved:
    """What a state says, checked, by layer name.

    Attributes:
        counts: the numbers of ``COUNTS``.
        positions: active positions, int64, rising.
        drawn: the masks that are exactly a draw.
        sources: flat bool tensors, draws, or None for all positions.
        gradients: dense gradients of a step that was interrupted, or None.
        memory: of the method.
        dynamics: of the recorder; None: not in the state.
    """

    counts: dict[str, int]
    positions: dict[str, Tensor]
    drawn: dict[str, Drawn]
    sources: dict[str, Tensor | Drawn | None]
    gradients: dict[str, Tensor | None]
    memory: dict[str, dict[str, Tensor]]
    dynamics: dict[str, Any] | None


def read(
    state: Any, describe: Mapping[str, Any], shapes: Shapes, method: Method, draws: Mapping[str, Drawn]
) -> Saved:
    """What ``Sparsifier.state_dict`` gave, for a sparsifier that is to go on from it.

    Args:
        state: what was given.
        describe: method, source and run of the sparsifier.
        shapes: layer name -> shape of the weight.
        method: of the sparsifier.
        draws: layer name -> draw, of sources that are exactly one.

    Raises:
        ValueError: names the first thing that differs, or is damaged, and what it must be.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError("this is not the state of a sparsifier: it has no 'format'")
    if not same(state["format"], FORMAT):
        raise ValueError(
            f"sparsifier state of format {state['format']!r}; this version reads format {FORMAT}"
        )
    missing = [part for part in PARTS if part not in state]
    if missing:
        raise ValueError(f"the sparsifier state lacks {', '.join(missing)}: it is damaged or cut short")
    counts = {key: state[key] for key in COUNTS}
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"the sparsifier state's {key} is {value!r}, it must be an int >= 0")
    _check_run(as_dict(state["describe"], "describe"), describe)
    positions, drawn = unpack_masks(state["masks"], shapes)
    _check_start(counts, sum(map(len, positions.values())), describe["total_steps"], shapes, method)
    gradients = by_layer(state["gradients"], "gradients", shapes)
    for name, value in gradients.items():
        good = value is None or is_float(value, shapes[name])
        require(good, f"gradient of {name!r}", f"None or of the weight's shape {shapes[name]}", value)
    remembered = by_layer(state["memory"], "memory", shapes)
    needed = {*method.remembers(counts["step"], describe["total_steps"]), *([HIDDEN] if method.hides else [])}
    memory = {n: _memory(n, value, needed, shapes[n], positions[n]) for n, value in remembered.items()}
    return Saved(
        counts,
        positions,
        drawn,
        _sources(state["sources"], shapes, draws),
        gradients,
        memory,
        _dynamics(state.get("dynamics"), shapes),
    )


def _check_start(
    counts: Mapping[str, int], live: int, total_steps: int | None, shapes: Shapes, method: Method
) -> None:
    """Whether as many weights live as are scheduled; an update that was left out may leave more while they get fewer."""
    start, total = counts["start_count"], sum(map(math.prod, shapes.values()))
    first, now = (method.target(step, total, start, total_steps) for step in (-1, counts["step"] - 1))
    good = live == now if first == now else live <= start <= total
    require(good, "start_count", f"that of a run in which {live} of {total} weights live now", start)


def _check_run(theirs: dict, ours: Mapping[str, Any]) -> None:
    if not same(theirs.get("total_steps"), ours["total_steps"]):
        raise ValueError(
            f"the state is of a run of total_steps={theirs.get('total_steps')!r}, the sparsifier has "
            f"{ours['total_steps']!r}: schedules would differ, attach with the same total_steps"
        )
    if not same(theirs.get("power", 1.0), ours.get("power", 1.0)):
        raise ValueError(
            f"the state is of a run with power={theirs.get('power', 1.0)}, the sparsifier has "
            f"{ours.get('power', 1.0)}: attach with the same power"
        )
    for part in ("method", "source"):
        their, our = as_dict(theirs.get(part), f"describe.{part}"), ours[part]
        for key in [*our, *their]:
            if not same(their.get(key), our.get(key)):
                raise ValueError(
                    f"the state's {part}.{key} is {their.get(key)!r}, the sparsifier's is {our.get(key)!r}: attach "
                    "with the same method and source as the run that was saved"
                )


def _sources(state: Any, shapes: Shapes, draws: Mapping[str, Drawn]) -> dict[str, Tensor | Drawn | None]:
    sources = unpack_sources(state, shapes)
    for name, source in sources.items():
        if name in draws and source != draws[name]:
            raise ValueError(
                f"the state's source of {name!r} must be the draw that attach() made, {draws[name]}, not {source}: the "
                "state is damaged"
            )
    return sources


def _memory(
    name: str, state: Any, needed: set[str], shape: tuple[int, ...], positions: Tensor
) -> dict[str, Tensor]:
    """A layer's memory; whole ones in the weight's shape, whatever execution they are of."""
    held = as_dict(state, f"memory of {name!r}")
    needed = needed.union(*(pair for pair in _PAIRS if held.keys() & pair))
    lengths = {k: v.numel() for k, of in _LONG_AS.items() if isinstance(v := held.get(of), Tensor)}
    lengths[SIGNS] = len(positions)
    found = {}
    for key in [*held, *sorted(needed - held.keys())]:
        value, what = held.get(key), f"memory {key!r} of {name!r}"
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise refusal(what, "a tensor", value)
        wanted = _wrong(key, value, shape, lengths.get(key))
        require(not wanted, what, wanted, value)
        found[key] = (value.reshape(shape) if key in _WHOLE else value).clone()
    live = torch.isin(found.get(POSITIONS, positions).cpu(), positions).all()
    require(bool(live), f"memory {POSITIONS!r} of {name!r}", "those of live weights", held.get(POSITIONS))
    return found


def _wrong(key: str, value: Tensor, shape: tuple[int, ...], length: int | None) -> str:
    """What a memory must be and is not, or an empty string; one that is not known may be anything."""
    if key in _WHOLE:
        kind = value.dtype == torch.bool if key == LEAVING else value.is_floating_point()
        good, what = kind and value.numel() == math.prod(shape), "bools" if key == LEAVING else "floats"
        return "" if good else f"{what} of the weight's shape {shape}"
    if key in _POSITIONS:
        return "" if are_positions(value, shape) else f"rising int64 positions in a weight of shape {shape}"
    if length is not None:
        good = value.shape == (length,) and not value.is_floating_point()
        return "" if good else f"{length} integers"
    return "one number" if key in _NUMBERS and value.numel() != 1 else ""


def _dynamics(state: Any, shapes: Shapes) -> dict[str, Any] | None:
    if state is None:  # of an older file
        return None
    held = as_dict(state, "dynamics")
    steps, rows = held.get("steps"), held.get("rows")
    start, visited = (as_dict(held.get(part), f"dynamics.{part}") for part in ("start", "visited"))
    if not isinstance(steps, list) or not all(type(step) is int for step in steps):
        raise refusal("dynamics.steps", "a list of ints", steps)
    wanted = (len(steps), len(shapes), 4)
    good = is_tensor(rows, 3, torch.int64) and tuple(rows.shape) == wanted if steps else rows is None
    require(good, "dynamics.rows", f"int64 of shape {wanted}" if steps else "None: there are no steps", rows)
    for part, layers in (("start", start), ("visited", visited)):
        if layers or steps:
            _ = by_layer(layers, f"dynamics.{part}", shapes)
    for name, count in start.items():
        require(type(count) is int and count >= 0, f"dynamics.start of {name!r}", "an int >= 0", count)
    for name, seen in visited.items():
        good = are_positions(seen, shapes[name]) or are_bits(seen, shapes[name])
        require(good, f"dynamics.visited of {name!r}", "uint8 bits or rising int64 positions", seen)
    require(start.keys() == visited.keys(), "dynamics.visited", "of the layers of dynamics.start", visited)
    return {"steps": steps, "rows": rows, "start": start, "visited": visited}
