"""The clock: what happens before and after every optimizer step, and which step it is.

Steps are optimizer steps, counted from 0; accumulation does not advance them, a step skipped by a gradient scaler
neither. With several optimizers the first one is the clock, and each counts its own steps, so that all of them see
the same step number whichever steps first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from .execution.power import Held
from .topology import Topology


class Clock:
    """Runs a topology's changes around the steps of its optimizers.

    Args:
        topology: what changes.
        optimizers: the first one is the clock.

    Attributes:
        step: steps of the first optimizer that are done.
    """

    def __init__(self, topology: Topology, optimizers: Sequence[Optimizer]):
        self.step = 0
        self._topology = topology
        self._first = optimizers[0]
        self._steps = {id(optimizer): 0 for optimizer in optimizers}
        self._pulled = {id(optimizer): True for optimizer in optimizers}  # this step, through the gradient
        self._decided = -1  # the last step whose change was made before it
        self._roots: Held = []  # parameters that hold roots during the step in progress
        self._before: dict[str, Tensor] = {}  # values that it began with

    def set(self, step: int) -> None:
        """Go on after ``step`` steps."""
        self.step = step
        self._steps = dict.fromkeys(self._steps, step)
        self._decided = step - 1
        self._topology.gradients.capture(step)

    def before(self, optimizer: Optimizer, has_closure: bool, overflow: bool) -> bool:
        """Before a step; returns whether the optimizer must leave everything as it is (an update replaces it).

        Raises:
            RuntimeError: a layer or weight was replaced since attachment, or a step that is given a closure is to be
                replaced.
        """
        self._topology.check_in_place()
        self._roots, self._before = [], {}
        if overflow:
            return False
        if optimizer is self._first:
            self._topology.gradients.begin_step(optimizer)
        if self._prepare(optimizer, has_closure):
            return True
        self._roots = self._topology.to_roots(optimizer, has_closure)
        self._before = self._topology.before_step(optimizer)
        return False

    def _prepare(self, optimizer: Optimizer, has_closure: bool) -> bool:
        """What a method does before a step; returns whether an update replaces it."""
        topology, method = self._topology, self._topology.method
        step = self._steps[id(optimizer)]
        self._pulled[id(optimizer)] = topology.pull(step, optimizer, has_closure)
        topology.swap_in(step, optimizer, has_closure)
        if not topology.due(step):
            return False
        if method.needs_step_gradient and self._decided < step:
            if has_closure:  # the gradient comes inside the step: remember the weights it is taken at
                for site in topology.sites.values():
                    site.remember_weight()
            else:
                topology.update(step)
                self._decided = step
        if method.skip_step_on_update and has_closure:
            raise RuntimeError("skip_step_on_update cannot replace a step that is given a closure")
        return method.skip_step_on_update

    def after(self, optimizer: Optimizer, overflow: bool) -> None:
        """After a step."""
        topology = self._topology
        if overflow:
            topology.gradients.forget()
            return
        topology.after_step(optimizer, self._before)
        topology.from_roots(self._roots)
        if not self._pulled[id(optimizer)]:
            topology.shrink(self._steps[id(optimizer)], optimizer)
        topology.remask(optimizer)
        self._steps[id(optimizer)] += 1
        if optimizer is not self._first:
            return
        if topology.due(self.step) and self._decided < self.step:
            topology.update(self.step)
        topology.gradients.keep(self.step)
        self.step += 1
        topology.gradients.forget()
        topology.gradients.capture(self.step)
