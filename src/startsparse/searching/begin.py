"""``ss.search``: checks everything, measures what the first scores need, and begins."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel

from ..execution.hooks import attached_to
from ..execution.modules import refuse_sparse
from ..layers import Layer, find, is_conv1d, left_dense
from ..methods.ranked import RankedSearch
from ..methods.search import Scored, SearchMethod
from ..names import plain
from ..schedules import run_length
from ..sources import Source, Support, or_dense
from .engine import Search
from .signals import Loss, measure
from .sites import ScoreSite


def search(
    model: nn.Module,
    method: SearchMethod,
    *,
    source: Source | None = None,
    total_steps: int | None = None,
    layers: str | Sequence[str] | None = None,
    data: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
) -> Search:
    """Search a sparse sub-network of a model without changing one of its weights.

    The trained parameters are scores, one a weight: give ``search.scores()`` to any optimizer, the loop stays what it
    is. Weights, biases and norms are frozen; the model computes with the weights the scores leave active, zeros in
    place of the others, and stays the plain module it was. Each step's gradient of a weight becomes one of its score
    (straight through: weight times gradient, for inactive weights too).

    Args:
        model: pre-trained, or random. Under DistributedDataParallel, wrap it after this call.
        method: e.g. ``ss.Jackpot(density=0.1)``.
        source: where weights may be active, e.g. ``ss.RandomSource(density=0.3)``; default: everywhere. Nothing
            outside it is ever active.
        total_steps: optimizer steps of the search; what schedules need.
        layers: names or globs of the searched weights, ``!name`` excludes. Default: every Linear and convolution
            weight, without the last layer where the method excludes the classifier.
        data, loss_fn: batches of (inputs, targets), and the loss, for first scores that are measured
            (``init="snip"``, "taylor", "grasp"); batches of inputs for "wanda" and "ria".

    Returns:
        The ``Search``; ``finish()`` ends it and gives the masks.

    Raises:
        ValueError: an impossible density, an unknown layer, something missing that the method needs, or a model that
            is attached or searched already. The model is untouched then.

    Example:
        >>> import startsparse as ss
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
        >>> search = ss.search(model, ss.Jackpot(density=0.1), total_steps=5)
        >>> optimizer = torch.optim.SGD(search.scores(), lr=0.1, momentum=0.9)
        >>> for _ in range(5):
        ...     model(torch.randn(8, 20)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> masks = search.finish()
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'0.weight': 60}
        >>> torch.equal(model[0].weight != 0, masks["0.weight"])
        True
    """
    if not isinstance(method, SearchMethod):
        raise TypeError(
            f"method must be a search such as ss.Jackpot(density=0.1), got {method!r}; methods that train weights go "
            "to ss.attach"
        )
    total_steps = run_length(total_steps)
    found, excluded = _layers(model, method, layers)
    _check(model, found)
    _check_axes(method, found)
    source = or_dense(source)
    supports = source.supports(found)
    _check_locked(method, supports)
    sites = {
        name: ScoreSite(layer, supports[name].mask(), supports[name].locked) for name, layer in found.items()
    }
    scored = {name: site.scored for name, site in sites.items()}
    method.check(scored, total_steps)
    if total_steps is None and method.scheduled:
        warnings.warn(
            f"{method.name} has a schedule ({', '.join(method.scheduled)}) and no total_steps: it stays at its "
            "beginning where it restricts swaps, at its end where it lowers the density",
            stacklevel=2,
        )
    method.begin(scored, _signals(method, model, found, scored, data, loss_fn), total_steps)
    _check_begun(method, scored)
    return Search(model, method, source, total_steps, sites, excluded)


def _layers(
    model: nn.Module, method: SearchMethod, layers: str | Sequence[str] | None
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The searched layers, and why others are not."""
    refuse_sparse(model)
    found = find(model, layers)
    excluded: dict[str, str] = {}
    patterns = [layers] if isinstance(layers, str) else list(layers or [])
    named = any(not pattern.startswith("!") for pattern in patterns)
    last = classifier(model)
    if method.classifier == "exclude" and not named and last in found:
        if len(found) == 1:
            raise ValueError(
                f"{method.name} leaves the classifier out, and {last} is the only layer: name it with layers={last!r}, "
                "or set classifier='include'"
            )
        del found[last]
        excluded[last] = "the classifier"
    for name in left_dense(model, found):
        if name not in excluded:
            excluded[name] = "not chosen"
    return found, excluded


def classifier(model: nn.Module) -> str:
    """The name of the last linear or convolution weight, the classifier of most nets."""
    names = [
        n
        for n, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module)
    ]
    return plain(f"{names[-1]}.weight" if names and names[-1] else "weight")


def _check(model: nn.Module, found: Mapping[str, Layer]) -> None:
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "a model under DistributedDataParallel waits for gradients of weights that the search freezes: call "
            "ss.search first, then wrap the model"
        )
    for name, layer in found.items():
        if attached_to(layer.parameter):
            raise ValueError(f"{name} is attached to a sparsifier or searched already: end that first")
        if layer.parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and has no weights to search over")
        if not layer.parameter.is_floating_point():
            raise ValueError(f"{name} is {layer.parameter.dtype}: floating-point weights are needed")
        if not bool(layer.parameter.isfinite().all()):
            raise ValueError(f"{name} holds weights that are not finite: the pre-trained net is damaged")


def _check_axes(method: SearchMethod, found: Mapping[str, Layer]) -> None:
    """Rows, N:M groups and channels are of an output's inputs: refuse weights that are stored the other way round."""
    scope = getattr(method, "scope", "layer")
    turned = [n for n, layer in found.items() if layer.geometry.transposed]
    if turned and scope not in ("layer", "global"):
        raise ValueError(
            f"{method.name}: scope {scope!r} groups the inputs of an output, but {', '.join(turned)} has its inputs "
            "first (a transposed convolution, or Conv1D of transformers): take scope='layer' or 'global', leave it out "
            "with layers=, or put a Linear in its place"
        )


def _check_locked(method: SearchMethod, supports: Mapping[str, Support]) -> None:
    locks = any(support.locked is not None and bool(support.locked.any()) for support in supports.values())
    if locks and (method.soft or not isinstance(method, RankedSearch)):
        raise ValueError(
            f"{method.name} does not compute with the weights its ranked scores leave as they are, so weights cannot be "
            "locked in: take ss.RandomSource, or another search such as ss.EdgePopup"
        )


def _signals(
    method: SearchMethod,
    model: nn.Module,
    found: Mapping[str, Layer],
    scored: Mapping[str, Scored],
    data: Any,
    loss_fn: Loss | None,
) -> dict[str, torch.Tensor]:
    given = {"data": data, "loss_fn": loss_fn}
    for need in method.needs:
        if given[need] is None:
            init = getattr(method, "init", "")
            raise ValueError(
                f"{method.name} with init={init!r} needs {need}=: batches to measure its first scores on"
                if need == "data"
                else f"{method.name} with init={init!r} needs {need}=: (outputs, targets) -> loss"
            )
    for name, value in given.items():
        if value is not None and name not in method.needs:
            warnings.warn(f"{method.name} measures nothing with it: {name}= is not used", stacklevel=3)
    signal = getattr(method, "signal", None)
    if signal is None:
        return {}
    masks = {
        name: torch.ones(layer.shape, dtype=torch.bool, device=layer.weight.device)
        if layer.source is None
        else layer.source
        for name, layer in scored.items()
    }
    return measure(signal, model, found, masks, data, loss_fn)


def _check_begun(method: SearchMethod, scored: Mapping[str, Any]) -> None:
    for name, layer in scored.items():
        assert tuple(layer.mask.shape) == layer.shape
        assert layer.source is None or not bool((layer.mask & ~layer.source).any())
        if method.exact and layer.count == 0 and math.prod(layer.shape):
            warnings.warn(
                f"{name} keeps no weight at all: no signal passes it. Raise the density or choose another "
                "distribution",
                stacklevel=3,
            )
