"""Around every optimizer step: gradients of weights become those of scores, scores become masks."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from ..execution.every_step import listen, stop_listening
from ..methods.renewal import Swap
from .hooks import Reducer
from .sites import ScoreSite

if TYPE_CHECKING:
    from .engine import Search


class Steps:
    """Follows the steps of whichever optimizer holds the scores, which may be born later; others are not touched."""

    def __init__(self, search: Search):
        self._search = weakref.ref(search)
        self._ids = {id(score) for score in search.scores()}
        self._reducer = Reducer()

    def begin(self) -> None:
        """Listen to all optimizers there will be."""
        self._number = listen(self)

    def end(self) -> None:
        """Listen no more."""
        stop_listening(self._number)

    def deliver(self, search: Search, site: ScoreSite, signal: Tensor) -> None:
        """A weight's gradient arrived: make it one of its scores, averaged over processes."""

        def deliver(signal: Tensor) -> None:
            gradient = search.method.score_gradient(site.scored, signal, search.step, search.total_steps)
            if site.score.grad is None:
                site.score.grad = gradient
            else:
                site.score.grad += gradient

        self._reducer.add(site.name, signal, deliver)

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step pre-hook: what a method adds to the scores' gradients, and sees of them.

        Raises:
            RuntimeError: the optimizer has only some of the scores, or is not one that makes a step at a time; no
                gradient has reached the scores; or the model is not as the search left it.
        """
        search = self._search()
        if search is None or not self._concerns(search, optimizer):
            return
        if isinstance(optimizer, LBFGS):
            raise RuntimeError(
                "LBFGS moves scores several times a step, and masks follow steps: take another one"
            )
        self._reducer.check_idle()
        for site in search._sites.values():
            site.check_place()
        if _closure(args, kwargs) is None:
            _check_gradients(search)
        elif search.method.looks_before_steps:
            raise RuntimeError(
                f"{search.method.name} works on the scores' gradients before a step, and step(closure) makes them inside "
                "it: call backward() first, then step()"
            )
        if overflow(optimizer):
            return
        method, now, factor = search.method, (search.step, search.total_steps), scale(optimizer)
        for site in search._sites.values():
            penalty = method.penalty(site.scored, *now)
            if penalty is not None:
                penalty = penalty if factor == 1 else penalty * factor
                site.score.grad = penalty if site.score.grad is None else site.score.grad + penalty
            if site.score.grad is not None:
                method.observe(site.scored, site.score.grad if factor == 1 else site.score.grad / factor)

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The step post-hook: the masks of the new scores.

        Raises:
            ValueError: scores that cannot be ranked; names the step.
        RuntimeError: the closure made no gradient.
        """
        search = self._search()
        if search is None or not self._concerns(search, optimizer) or overflow(optimizer):
            return
        for site in search._sites.values():
            site.scored.score = site.score.detach()
        if _closure(args, kwargs) is not None:
            _check_gradients(search)
        search.step += 1
        layers = search._layers
        now = (search.step, search.total_steps)
        try:
            search.method.project(layers, *now)
            swaps = search.method.swaps(layers, *now)
        except ValueError as error:
            raise ValueError(
                f"{search.method.name} cannot choose masks after step {search.step - 1}: {error}"
            ) from error
        for name, swap in swaps.items():
            _check_inside(name, layers[name].source, swap)
            if len(swap):
                (layers[name].change if search.method.soft else search._sites[name].place)(swap)
        if search.method.soft:
            search._write_all()
        search.num_swaps += sum(len(swap.leaving) for swap in swaps.values())
        search.num_updates += any(len(swap) for swap in swaps.values())

    def _concerns(self, search: Search, optimizer: Optimizer) -> bool:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        found = self._ids & held
        if found and found != self._ids:
            missing = [name for name, site in search._sites.items() if id(site.score) not in held]
            raise RuntimeError(
                f"the optimizer has no scores of {', '.join(missing)}: give all of search.scores() to one optimizer"
            )
        return bool(found)


def _closure(args: tuple, kwargs: dict) -> Any:
    """What ``optimizer.step`` was called with, beside the optimizer."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def _check_gradients(search: Search) -> None:
    if all(site.score.grad is None for site in search._sites.values()):
        raise RuntimeError(
            "no gradient has reached a score: backward() has to come before step(), from a loss of the model that is "
            "searched (not of a copy made before or after)"
        )


def _check_inside(name: str, source: Tensor | None, swap: Swap) -> None:
    assert source is None or bool(source.reshape(-1)[swap.arriving].all()), f"{name}: a mask left its source"


def overflow(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler found an overflow: a fused optimizer runs its hooks on the skipped step too."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def scale(optimizer: Optimizer) -> float:
    """What the gradients of a fused optimizer are still multiplied by; 1 for others."""
    found = getattr(optimizer, "grad_scale", None)
    return 1.0 if found is None else float(found)
