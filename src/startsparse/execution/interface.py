"""What every execution of a layer answers to: the one interface between a method at work and how weights are held."""

from __future__ import annotations

import abc
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..draw import Drawn, key
from ..layers import Layer
from ..methods import Change, LayerView, Method
from ..methods.base import LEAVING

KEPT = "gradient"  # the memory that holds the dense gradient of earlier steps


class FirstSite(abc.ABC):
    """One layer before training begins: where its weights will live, and what they are.

    Attributes:
        parameter: what the optimizer updates: the dense weight, or the vector of its live values.
        source: flat bool of the positions that may live, their draw where storing it would be too large, or None
            for all.
    """

    execution: str
    parameter: nn.Parameter

    def __init__(self, layer: Layer, source: Tensor | Drawn | None):
        self.layer = layer
        self.name = layer.name
        self.source = source
        self.memory: dict[str, Tensor] = {}  # of the method, by name; saved with the state

    @property
    @abc.abstractmethod
    def num_active(self) -> int:
        """Live weights."""

    @abc.abstractmethod
    def positions(self) -> Tensor:
        """Active positions, int64, rising, on the CPU."""

    @abc.abstractmethod
    def first_values(self, positions: Tensor, seed: int) -> Tensor:
        """The weights at these positions when training begins; ``seed`` is for values that must be made up."""

    @abc.abstractmethod
    def view(self) -> LayerView:
        """The layer as a method sees it."""

    @abc.abstractmethod
    def remask(self) -> None:
        """Set the inactive weights to zero."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        return self.layer.shape


class Site(FirstSite):
    """One layer in training: its live weights and their optimizer state.

    Attributes:
        capturing: whether the dense gradient of the current step is kept for the method.
    """

    capturing: bool

    # -- what is there -----------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def mask(self) -> Tensor:
        """Bool tensor of the weight's shape."""

    @abc.abstractmethod
    def dense_weight(self) -> Tensor:
        """The weight with its zeros."""

    def first_values(self, positions: Tensor, seed: int) -> Tensor:
        return self.dense_weight().reshape(-1)[positions]

    def source_mask(self) -> Tensor:
        """Bool tensor of the weight's shape: the positions that may live."""
        if isinstance(self.source, Drawn):
            return torch.from_numpy(self.source.mask()).view(self.shape)
        return (
            torch.ones(self.shape, dtype=torch.bool) if self.source is None else self.source.view(self.shape)
        )

    @abc.abstractmethod
    def index_of(self, positions: Tensor) -> Tensor:
        """Where live positions, int64 and rising, are in the flat parameter."""

    @abc.abstractmethod
    def leaving(self) -> Tensor | None:
        """Bool tensor of the parameter's shape: the live weights that are pulled to zero; None for none."""

    def target_mask(self) -> Tensor:
        """Bool tensor of the weight's shape: the active positions that are not leaving."""
        leaving = self.memory.get(LEAVING)
        return self.mask if leaving is None else self.mask & ~leaving.to(self.mask.device)

    # -- hooks and invariants ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def hook(self) -> None:
        """Watch the gradient from now on."""

    @abc.abstractmethod
    def unhook(self) -> None:
        """Undo ``hook``."""

    @abc.abstractmethod
    def release(self, optimizers: Iterable[Optimizer]) -> Site:
        """Leave a plain module behind; returns a site that still tells what there is."""

    # -- the dense gradient ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def average_gradient(self) -> None:
        """Average the dense gradient over the ranks; one that did not arrive counts as zeros."""

    @abc.abstractmethod
    def gradient_is_finite(self) -> bool:
        """Whether the dense gradient can be ranked; one that did not arrive can."""

    @abc.abstractmethod
    def has_gradient(self) -> bool:
        """Whether a dense gradient was kept."""

    @abc.abstractmethod
    def gradient_state(self) -> Tensor | None:
        """What a checkpoint between two micro-batches of an update step must keep."""

    @abc.abstractmethod
    def remember_weight(self) -> None:
        """Keep the weight as it is before a step whose closure brings the gradient."""

    @abc.abstractmethod
    def add_kept_gradient(self, carry: float) -> None:
        """Add what ``keep_gradient`` kept, times ``carry``, to this step's dense gradient; it is gone then."""

    @abc.abstractmethod
    def keep_gradient(self) -> None:
        """Keep the dense gradient for the next step, unless it is not finite: then nothing is kept."""

    @abc.abstractmethod
    def forget_gradient(self) -> None:
        """Let this step's dense gradient go, and what else was kept for one step."""

    # -- changes -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def apply(self, change: Change, optimizers: Iterable[Optimizer], method: Method, step: int) -> None:
        """Carry out a topology change: positions, weight, gradient, optimizer state.

        Args:
            change: what was dropped and grown.
            optimizers: their state of the weight's shape follows the weights.
            method: its policies for the value and state of grown weights.
            step: of the change.
        """

    @abc.abstractmethod
    def restore(
        self,
        positions: Tensor,
        source: Tensor | Drawn | None,
        gradient: Tensor | None,
        optimizers: Iterable[Optimizer],
    ) -> None:
        """Take over saved positions, source and dense gradient, and the weight that was loaded before them."""

    @abc.abstractmethod
    def after_load(self, optimizers: Iterable[Optimizer]) -> bool:
        """The module was loaded: follow a replaced parameter, put the weight back on the mask.

        Returns whether the load brought positions of its own.

        What was loaded off the mask is kept until the next step: it belongs to the mask of the same checkpoint, which
        may be loaded later.
        """

    def grown_values(
        self, method: Method, step: int, count: int, weights: Tensor, gradient: Tensor | None
    ) -> Tensor | None:
        """Values of newly grown weights in rising position, or None for zeros.

        Args:
            method: its policy.
            step: of the change.
            count: weights grown.
            weights: live values before the change: their spread is the scale.
            gradient: dense gradient at the grown positions, or None if none arrived.
        """
        if method.grown_value == "zero" or count == 0 or len(weights) == 0:
            return None
        spread = weights.float().std(unbiased=False)
        if method.grown_value == "normal":
            generator = torch.Generator().manual_seed(key(f"value:{step}", method.seed, self.name) % 2**63)
            return torch.randn(count, generator=generator, dtype=torch.float32).to(weights) * spread.to(
                weights.dtype
            )
        return None if gradient is None else -gradient.sign().to(weights.dtype) * spread.to(weights.dtype)
