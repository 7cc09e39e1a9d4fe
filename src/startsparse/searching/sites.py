"""One layer under a search: its values, its scores, and what is written in place of the weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..execution.hooks import nothing
from ..layers import Layer
from ..methods.renewal import Swap
from ..methods.search import Scored
from .hooks import distributed

if TYPE_CHECKING:
    from .engine import Search


class ScoreSite:
    """Holds a layer's frozen values and scores, and keeps its parameter at what the mask makes of them.

    Args:
        layer: the layer.
        source: flat bool of the positions that may ever be active, or None for all.
        locked: flat bool of those that always are, or None for none.

    Attributes:
        parameter: the layer's weight; holds the effective values.
        scored: the layer as the method sees it; its ``weight`` are the values that never change.
        score: the trained parameter.
    """

    def __init__(self, layer: Layer, source: Tensor | None, locked: Tensor | None = None):
        self.layer, self.name = layer, layer.name
        self.parameter: nn.Parameter = layer.parameter
        weight = self.parameter.detach().clone(memory_format=torch.contiguous_format)
        inside = None if source is None else source.to(weight.device).reshape(layer.shape)
        self.scored = Scored(layer.name, weight, inside)
        self.scored.locked = None if locked is None else locked.to(weight.device).reshape(layer.shape)
        self.score: nn.Parameter
        self._handle = None
        self._required_grad = self.parameter.requires_grad
        self.foreign = False  # values that are not the search's were loaded

    def begin(self, search: Search) -> None:
        """Make the scores a parameter, and take the weight over."""
        self.score = nn.Parameter(self.scored.score.to(torch.float32))
        self.scored.score = self.score.detach()
        self.score._startsparse_search = search  # type: ignore[attr-defined]  # lives as long as its scores
        self.hook(search)

    def hook(self, search: Search) -> None:
        """Turn gradients of the weight into gradients of the scores from now on."""
        _ = self.parameter.requires_grad_(True)
        self._handle = self.parameter.register_post_accumulate_grad_hook(_Gradient(self, search))

    def release(self) -> None:
        """Let go of the weight as it is."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.parameter.grad = None
        _ = self.parameter.requires_grad_(self._required_grad)
        if hasattr(self.score, "_startsparse_search"):
            del self.score._startsparse_search  # type: ignore[attr-defined]

    # -- values ------------------------------------------------------------------------------------------------

    def effective(self, values: Tensor | None) -> Tensor:
        """What the layer computes with: given values, or the weight on the mask."""
        scored = self.scored
        effective = torch.where(scored.mask, scored.weight, 0) if values is None else values
        return scored.inside(effective, 0).to(scored.weight.dtype)

    @torch.no_grad()
    def write(self, values: Tensor | None) -> None:
        """Write all effective values in place."""
        _ = self.parameter.copy_(self.effective(values))

    @torch.no_grad()
    def place(self, swap: Swap) -> None:
        """Make a swap, and write the weights it changes."""
        scored = self.scored
        scored.change(swap)
        if not self.parameter.is_contiguous():
            self.write(None)
            return
        flat = self.parameter.detach().view(-1)
        _ = flat.index_fill_(0, swap.leaving, 0)
        _ = flat.index_copy_(0, swap.arriving, scored.weight.view(-1)[swap.arriving])

    def is_untouched(self, values: Tensor | None) -> bool:
        """Whether the weight still holds, bit for bit, what the search wrote."""
        expected = self.effective(values)
        return same_bits(self.parameter.detach(), expected)

    def after_load(self, search: Search, values: Tensor | None) -> None:
        """Values were loaded into the module: the search's own are put back, others are noted."""
        if self.layer.parameter is not self.parameter:
            if self._handle is not None:
                self._handle.remove()
            self.parameter = self.layer.parameter
            self.hook(search)
        loaded, scored = self.parameter.detach(), self.scored
        expected = self.effective(values)
        own = same_bits(loaded, expected) or same_bits(loaded, scored.weight)
        self.foreign = not own
        if own:
            self.write(values)

    def check_place(self) -> None:
        """Refuse to go on when the layer's weight is not what the search holds.

        Raises:
            RuntimeError: names the layer and the remedy.
        """
        if self.layer.parameter is not self.parameter:
            raise RuntimeError(
                f"{self.name} was replaced during the search: finish() before replacing a layer or its parameter"
            )
        if self.score.device != self.parameter.device or self.parameter.dtype != self.scored.weight.dtype:
            raise RuntimeError(
                f"{self.name} is {self.parameter.dtype} on {self.parameter.device}, its search began with "
                f"{self.scored.weight.dtype} on {self.score.device}: move and convert the model before ss.search"
            )
        if self.foreign:
            raise RuntimeError(
                f"other weights were loaded into {self.name} during the search: load the search's own state after "
                "them (search.load_state_dict), or load weights before ss.search"
            )


@contextmanager
@torch.no_grad()
def showing(sites: Mapping[str, ScoreSite], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in the weights, inside; what was there comes back, bit for bit."""
    before = {name: site.parameter.detach().clone() for name, site in sites.items()}
    try:
        for name, site in sites.items():
            _ = site.parameter.copy_(values[name])
        with torch.enable_grad():
            yield
    finally:
        for name, site in sites.items():
            _ = site.parameter.copy_(before[name])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit: minus zero is not zero, NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b.to(a.device)))
    return torch.equal(a, b)


class _Gradient:
    """The post-accumulate hook of a weight; in a copy of the model it does nothing."""

    def __init__(self, site: ScoreSite, search: Search):
        self._site, self._search = weakref.ref(site), weakref.ref(search)

    @torch.no_grad()
    def __call__(self, parameter: Tensor) -> None:
        site, search, gradient = self._site(), self._search(), parameter.grad
        if site is None or search is None or gradient is None:
            return
        parameter.grad = None
        if gradient.layout != torch.strided:
            raise ValueError(
                f"{site.name}: its gradient is a sparse tensor; build the layer with sparse=False"
            )
        site.check_place()
        scored = site.scored
        base = search.method.base(scored)
        if gradient.dtype == base.dtype == torch.float32 and not distributed():
            signal = gradient.mul_(base)  # nobody else has it: it is what this backward pass accumulated
        else:
            exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            signal = (exact * base).to(torch.float32)
        search._steps.deliver(search, site, scored.inside(signal.contiguous(), 0))

    def __deepcopy__(self, memo: dict):
        return nothing

    def __reduce__(self):
        return _inert, ()


def _inert():
    return nothing
