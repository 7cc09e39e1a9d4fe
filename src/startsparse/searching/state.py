"""The state of a search as plain data and tensors, and the checks when it comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..damage import as_dict, by_layer, is_float, require, same
from ..names import plain
from ..state import pack_masks, pack_sources, unpack_masks, unpack_sources
from .sites import ScoreSite

FORMAT = 2
COUNTS = ("step", "num_updates", "num_swaps")
PARTS = (
    "describe",
    "masks",
    "sources",
    "scores",
    "moments",
    "weights",
    "budgets",
    "frozen",
    "buffers",
    *COUNTS,
)


def digest(tensor: Tensor) -> str:
    """A sha256 of a tensor's shape, type and bits.

    Example:
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2)), digest(torch.zeros(2)) == digest(-torch.zeros(2))
        (True, False)
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    head = f"{tensor.dtype}|{tuple(tensor.shape)}|".encode()
    return hashlib.sha256(head + flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def digests(model: nn.Module, searched: Mapping[str, ScoreSite]) -> dict[str, str]:
    """Parameter name -> digest, of all parameters that are frozen beside the searched ones."""
    held = {id(site.parameter) for site in searched.values()}
    return {
        plain(name): digest(parameter)
        for name, parameter in model.named_parameters()
        if id(parameter) not in held and not parameter.requires_grad
    }


def pack(sites: Mapping[str, ScoreSite]) -> dict[str, Any]:
    """Masks, sources, what is locked in, scores, moments, weights and budgets of all layers."""
    shapes = {name: site.scored.shape for name, site in sites.items()}
    positions = {n: s.scored.mask.reshape(-1).nonzero().squeeze(1).cpu() for n, s in sites.items()}
    sources = {n: _flat(s.scored.source) for n, s in sites.items()}
    return {
        "masks": pack_masks(positions, {}, shapes),
        "sources": pack_sources(sources, {}),
        "locked": pack_sources({n: _flat(s.scored.locked) for n, s in sites.items()}, {}),
        "scores": {name: site.score.detach().clone() for name, site in sites.items()},
        "moments": {n: {k: v.clone() for k, v in s.scored.moments.items()} for n, s in sites.items()},
        "weights": {name: site.scored.weight.clone() for name, site in sites.items()},
        "budgets": {name: site.scored.count for name, site in sites.items()},
    }


def _flat(positions: Tensor | None) -> Tensor | None:
    return None if positions is None else positions.reshape(-1)


def check(
    state: Any, describe: Mapping[str, Any], sites: Mapping[str, ScoreSite], buffers: Mapping[str, Tensor]
) -> None:
    """Refuse a state that is not of this method, source and model.

    Raises:
        ValueError: names the first thing that differs.
    """
    if not isinstance(state, dict) or not same(state.get("format"), FORMAT) or "scores" not in state:
        raise ValueError(f"this is not the state of a search of format {FORMAT}")
    missing = [part for part in PARTS if part not in state]
    if missing:
        raise ValueError(f"the search's state lacks {', '.join(missing)}: it is damaged or cut short")
    for key in COUNTS:
        value = state[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"the search's state has {key}={value!r}, it must be an int >= 0")
    theirs, ours = as_dict(state["describe"], "describe"), describe
    if not same(theirs.get("total_steps"), ours["total_steps"]):
        raise ValueError(
            f"the state is of a search of total_steps={theirs.get('total_steps')!r}, this one has "
            f"{ours['total_steps']!r}: schedules would differ"
        )
    for part in ("method", "source"):
        their = as_dict(theirs.get(part), f"describe.{part}")
        for key in [*ours[part], *their]:
            mine, other = ours[part].get(key), their.get(key)
            if not same(other, mine):
                raise ValueError(
                    f"the state's {part}.{key} is {other!r}, this search's is {mine!r}: search with the same method "
                    "and source as the one that was saved"
                )
    for part in ("scores", "weights", "moments", "budgets"):
        _ = by_layer(state[part], part, sites)
    for name, site in sites.items():
        scored, shape = site.scored, tuple(site.score.shape)
        for part, wanted in (("scores", shape), ("weights", scored.shape)):
            require(
                is_float(state[part][name], wanted),
                f"{part} of {name!r}",
                f"of shape {wanted}",
                state[part][name],
            )
        budget = state["budgets"][name]
        require(
            type(budget) is int and 0 <= budget <= scored.weight.numel(),
            f"budget of {name!r}",
            "a count",
            budget,
        )
        for key in scored.moments.keys() | as_dict(state["moments"][name], f"moments of {name!r}").keys():
            moment = state["moments"][name].get(key)
            require(is_float(moment, shape), f"moment {key!r} of {name!r}", f"of shape {shape}", moment)
    frozen = as_dict(state["frozen"], "frozen")
    require(
        all(isinstance(text, str) for text in frozen.values()),
        "frozen",
        "the digests of weights by name",
        frozen,
    )
    theirs, ours = (
        {n: tuple(getattr(b, "shape", ("none",))) for n, b in as_dict(found, "buffers").items()}
        for found in (state["buffers"], buffers)
    )
    if theirs != ours:
        differ = sorted(
            str(name) for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
        )
        raise ValueError(f"the state's buffers are those of another model: {', '.join(differ)} differ")


@torch.no_grad()
def unpack(state: Mapping[str, Any], sites: Mapping[str, ScoreSite]) -> None:
    """Put a checked state into the sites; scores are the same parameters as before.

    Raises:
        ValueError: the masks do not fit their hash. Nothing has changed then.
    """
    shapes = {name: site.scored.shape for name, site in sites.items()}
    positions, _ = unpack_masks(state["masks"], shapes)
    sources = unpack_sources(state["sources"], shapes)
    locked = unpack_sources(state["locked"], shapes) if "locked" in state else {}
    for name, site in sites.items():
        scored, device = site.scored, site.scored.weight.device
        mask = torch.zeros(scored.weight.numel(), dtype=torch.bool)
        mask[positions[name]] = True
        scored.mask = mask.view(scored.shape).to(device)
        scored.source = _shaped(sources[name], scored.weight)
        if name in locked:
            scored.locked = _shaped(locked[name], scored.weight)
        scored.count = int(state["budgets"][name])
        scored.weight = state["weights"][name].detach().to(device).clone()
        scored.moments = {k: v.to(device).clone() for k, v in state["moments"][name].items()}
        _ = scored.score.copy_(state["scores"][name])
        site.foreign = False


def _shaped(positions: Any, weight: Tensor) -> Tensor | None:
    assert positions is None or isinstance(positions, Tensor)
    return None if positions is None else positions.view(weight.shape).to(weight.device)
