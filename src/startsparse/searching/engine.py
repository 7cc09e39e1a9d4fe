"""The search: scores are trained, weights stay, the model computes with what the scores leave of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..attaching import attach
from ..execution.hooks import claim, release
from ..masks import Lazy
from ..methods.search import SearchMethod
from ..names import plain
from ..sources import Source, describe
from ..sparsifier import Sparsifier
from . import state as saved
from .batch_norm import reestimate_batch_norm
from .hooks import LoadHook, freeze_batch_norm
from .report import SearchReport, build_report
from .sites import ScoreSite, showing
from .steps import Steps


class Search:
    """What ``ss.search`` returns: the scores, the masks they make, and the weights that never change.

    Attributes:
        model: the model as it was given; its searched weights hold what the masks leave of the frozen ones.
        method, source: what decides which weights are active, and where they may be.
        total_steps: length of the search in optimizer steps, or None.
        step: optimizer steps done so far; skipped ones, as after an overflow, do not count.
        num_updates, num_swaps: steps that changed a mask, and weights that became inactive in them.
        finished: whether the search is over.
        first_buffers: buffer name -> its value when the search began, such as the dense net's batch-norm statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        method: SearchMethod,
        source: Source,
        total_steps: int | None,
        sites: Mapping[str, ScoreSite],
        excluded: Mapping[str, str],
    ):
        self.model, self.method, self.source, self.total_steps = model, method, source, total_steps
        self.step = self.num_updates = self.num_swaps = 0
        self.finished = False
        self._sites, self._excluded = dict(sites), dict(excluded)
        self._layers = {name: site.scored for name, site in sites.items()}
        self.first_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._connect()

    def _connect(self) -> None:
        """From here on the model is changed: parameters are frozen, weights go onto their masks, hooks are set."""
        searched = {id(site.parameter) for site in self._sites.values()}
        self._required = [
            (parameter, parameter.requires_grad)
            for parameter in self.model.parameters()
            if id(parameter) not in searched
        ]
        for parameter, _ in self._required:
            _ = parameter.requires_grad_(False)
        for site in self._sites.values():
            site.begin(self)
        claim(self, [site.parameter for site in self._sites.values()])  # type: ignore[arg-type]
        self._digests = saved.digests(self.model, self._sites)
        owners = {id(site.layer.module): site.layer.module for site in self._sites.values()}
        hook = LoadHook(self)
        self._handles = [module.register_load_state_dict_post_hook(hook) for module in owners.values()]
        self._steps = Steps(self)
        self._steps.begin()
        if self.method.batch_norm == "freeze":
            self._handles += freeze_batch_norm(self.model)
        _ = weakref.finalize(self, _remove, self._handles)
        self._write_all()

    def __repr__(self) -> str:
        state = "finished" if self.finished else f"step {self.step}"
        length = "" if self.total_steps is None else f" of {self.total_steps}"
        weights = sum(layer.weight.numel() for layer in self._layers.values())
        return (
            f"Search({self.method.name}, {state}{length}, {self.num_active:,} of {weights:,} weights active)"
        )

    # -- what can be read --------------------------------------------------------------------------------------

    def scores(self) -> list[nn.Parameter]:
        """The trained parameters, one a layer, float32: give them to an optimizer, all to the same."""
        return [site.score for site in self._sites.values()]

    def named_scores(self) -> dict[str, nn.Parameter]:
        """Parameter name of the weight -> its scores."""
        return {name: site.score for name, site in self._sites.items()}

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor of the weight's shape, True = active. Do not write to them."""
        return Lazy({name: lambda layer=layer: layer.mask for name, layer in self._layers.items()})

    @property
    def source_masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor of the positions that may ever be active."""
        return Lazy(
            {
                name: lambda layer=layer: (
                    torch.ones_like(layer.mask) if layer.source is None else layer.source
                )
                for name, layer in self._layers.items()
            }
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> the frozen dense weight. Do not write to them."""
        return {name: layer.weight for name, layer in self._layers.items()}

    @property
    def num_active(self) -> int:
        """Active weights of the searched layers."""
        return sum(int(layer.mask.sum()) for layer in self._layers.values())

    @property
    def density(self) -> float:
        """Active weights over all weights of the searched layers."""
        return self.num_active / sum(layer.weight.numel() for layer in self._layers.values())

    @property
    def target_count(self) -> int | None:
        """Active weights scheduled for now; None where the number is what the scores make of it."""
        return self.method.target(self._layers, self.step, self.total_steps)

    def describe(self) -> dict[str, Any]:
        """Method, hyper-parameters and source as plain data."""
        method = {"name": self.method.name} | self.method.hyper_parameters()
        return {"method": method, "source": describe(self.source), "total_steps": self.total_steps}

    def report(self) -> SearchReport:
        """Where the active weights are, per layer, of the searched layers and of the whole model; prints as a table."""
        return build_report(self, self._sites, self._excluded)

    # -- the model for a moment --------------------------------------------------------------------------------

    @contextmanager
    def dense(self) -> Iterator[nn.Module]:
        """The model with its dense weights, e.g. as its own teacher: no gradients inside, the search goes on after.

        Example:
            >>> import startsparse as ss
            >>> model = nn.Linear(4, 4)
            >>> search = ss.search(model, ss.JackpotReleased(density=0.25), layers="weight")
            >>> with search.dense() as teacher, torch.no_grad():
            ...     int(teacher.weight.count_nonzero())
            16
            >>> int(model.weight.count_nonzero())
            4
        """
        self._check_running()
        with showing(self._sites, {name: layer.weight for name, layer in self._layers.items()}):
            yield self.model

    @contextmanager
    def preview(self) -> Iterator[nn.Module]:
        """The model as ``finish`` would leave it now; the search goes on after. For soft and sampled masks."""
        self._check_running()
        finals = self.method.final(self._layers, self.step, self.total_steps)
        with showing(self._sites, {name: self._final_values(name, mask) for name, mask in finals.items()}):
            yield self.model

    def _final_values(self, name: str, mask: Tensor) -> Tensor:
        layer = self._layers[name]
        current, layer.mask = layer.mask, mask
        try:
            values = self.method.final_values(layer)
            return self._sites[name].effective(values)
        finally:
            layer.mask = current

    # -- the end -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def finish(self, data: Iterable[Any] | None = None) -> dict[str, Tensor]:
        """End the search: the model keeps its active weights, zeros elsewhere, and is a plain module again.

        Args:
            data: batches of inputs, or of (inputs, labels), over which batch norm is measured anew; needed for
                ``batch_norm="reestimate"``, welcome for "update".

        Returns:
            The masks, copies.

        Raises:
            RuntimeError: no optimizer made a step with all scores, or a frozen parameter was changed.
            ValueError: batch norm is to be measured anew and there are no data.
        """
        self._check_running()
        if self.method.batch_norm == "reestimate" and data is None:
            raise ValueError(
                f"{self.method.name}: batch_norm='reestimate' needs batches: finish(data=...); nothing has changed"
            )
        if self.step == 0:
            raise RuntimeError(
                "no optimizer step was seen: give search.scores() to an optimizer and step it; restore() ends a search "
                "that is not wanted"
            )
        self.check_frozen()
        finals = self.method.final(self._layers, self.step, self.total_steps)
        values = {name: self._final_values(name, mask) for name, mask in finals.items()}
        for name, site in self._sites.items():
            site.scored.mask = finals[name]
            _ = site.parameter.copy_(values[name])
        self._release()
        if data is not None:
            _ = reestimate_batch_norm(self.model, data)
        return {name: mask.clone() for name, mask in finals.items()}

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """End the search and put the dense weights back, bit for bit."""
        self._check_running()
        for site in self._sites.values():
            _ = site.parameter.copy_(site.scored.weight)
        self._release()
        return self.model

    def attach(self, optimizer: Optimizer, *, total_steps: int | None = None) -> Sparsifier:
        """Tune the weights the search found (the second stage): masks stay, active weights are trained.

        Args:
            optimizer: over the model's parameters.
            total_steps: of the tuning.

        Returns:
            The sparsifier; nothing of it has to be called in the loop.

        Raises:
            RuntimeError: the search is not finished, or left nothing.
        """
        if not self.finished:
            raise RuntimeError("finish() the search before its weights are tuned")
        if self.num_active == 0:
            raise RuntimeError(
                f"the search ({self.method.name}) left no weight active: nothing is there to tune"
            )
        from ..methods import Static
        from ..sources import MaskSource

        masks = dict(self.masks)
        method = Static(density=self.density)
        return attach(
            self.model,
            optimizer,
            method,
            source=MaskSource(masks),
            layers=list(masks),
            total_steps=total_steps,
        )

    def check_frozen(self) -> None:
        """Refuse to go on when a weight or a frozen parameter is not, bit for bit, what the search left there.

        Raises:
            RuntimeError: names the parameters.
        """
        changed = [n for n, site in self._sites.items() if not site.is_untouched(self._values(site))]
        present = {plain(name): parameter for name, parameter in self.model.named_parameters()}
        changed += [
            name
            for name, digest in self._digests.items()
            if name not in present
            or (not present[name].requires_grad and saved.digest(present[name]) != digest)
        ]
        if changed:
            raise RuntimeError(
                f"{', '.join(changed)} changed during the search, whose weights never change: give the optimizer "
                "search.scores() alone, and load weights before ss.search (a parameter you mean to train beside the "
                "scores must have requires_grad=True)"
            )

    def _release(self) -> None:
        self._steps.end()
        _remove(self._handles)
        release([site.parameter for site in self._sites.values()])
        for site in self._sites.values():
            site.release()
        for parameter, required in self._required:
            _ = parameter.requires_grad_(required)
        self.finished = True

    def _check_running(self) -> None:
        if self.finished:
            raise RuntimeError("this search is finished")

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped, beside the model's and the optimizer's own states.

        Plain data and tensors only, so ``torch.load(weights_only=True)`` reads it. Holds the frozen weights, which
        the model itself has only in part.
        """
        counts = {key: getattr(self, key) for key in saved.COUNTS}
        head = {"format": saved.FORMAT, "describe": self.describe(), "frozen": dict(self._digests)}
        return head | counts | {"buffers": dict(self.first_buffers)} | saved.pack(self._sites)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``; before or after the model's own ``load_state_dict``, in any order.

        The scores stay the same parameters, so an optimizer that has them keeps them; load its own state as well.

        Raises:
            ValueError: the state is of another method, source, model or format, or is damaged. Nothing has changed
                then.
        """
        self._check_running()
        saved.check(state, self.describe(), self._sites, self.first_buffers)
        saved.unpack(state, self._sites)
        for key in saved.COUNTS:
            setattr(self, key, state[key])
        self._digests = dict(state["frozen"])
        for name, buffer in self.first_buffers.items():
            self.first_buffers[name] = state["buffers"][name].to(buffer.device)
        self._write_all()

    # -- written values ----------------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy would be of a search that nobody steps.

        Raises:
            TypeError: always; says what to copy instead.
        """
        raise TypeError(
            "a search is bound to its model and to the optimizer of its scores, and is neither copied nor pickled: keep "
            "state_dict(), and search a copy of the model"
        )

    def _values(self, site: ScoreSite) -> Tensor | None:
        return self.method.values(site.scored, self.step, self.total_steps)

    @torch.no_grad()
    def _write_all(self) -> None:
        for site in self._sites.values():
            site.write(self._values(site))

    @torch.no_grad()
    def _after_load(self, module: nn.Module) -> None:
        for site in self._sites.values():
            if site.layer.module is module:
                release([site.parameter])
                site.after_load(self, self._values(site))
                claim(self, [site.parameter])  # type: ignore[arg-type]


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
