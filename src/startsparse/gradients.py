"""The dense gradients of a step that its update looks at: which are kept, for how long, and whether they can be ranked."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from .execution.arriving import Arriving
from .execution.interface import KEPT
from .execution.masked import MaskedSite
from .methods import Method
from .methods.view import SCALE
from .probing import EARLIER

_FRAMES = 16  # callers of a step among which its gradient scaler is looked for


class StepGradients:
    """The dense gradients at all layers, around the steps of a method.

    Args:
        method: says which steps it needs them of.
        sites: layer name -> what holds its weights; looked at anew at each step.
        total_steps: length of the run, or None.

    Attributes:
        accumulates: whether they are kept whole in any case; set once a gradient that was reduced turned out to be one
            of several.
        scale: what a gradient scaler multiplied those of this step by.
    """

    def __init__(self, method: Method, sites: Mapping[str, Any], total_steps: int | None):
        self._method, self._sites, self._total_steps = method, sites, total_steps
        self._most_arrivals = 0  # of one layer's gradient in one step, since the last update
        self._partial = False  # whether some that arrived at this step were not seen
        self.accumulates = False
        self.scale = 1.0

    def begin_step(self, optimizer: Optimizer) -> None:
        """A step of the first optimizer begins: note the scale of the gradients that are kept."""
        if any(site.capturing for site in self._sites.values()):
            self.scale = loss_scale(optimizer)

    def capture(self, step: int) -> None:
        """Keep the dense gradients of this step if the method will ask for them; let those of earlier ones go."""
        wanted = self._method.wants_gradient(step, self._total_steps)
        arriving = self._reduced(step) if wanted else None
        for site in self._sites.values():
            site.capturing = wanted
            if isinstance(site, MaskedSite):
                site.arriving = arriving

    def begin_within_a_step(self) -> None:
        """Go on from a saved state: how many gradients its step has seen is not known."""
        self._partial = True

    def _reduced(self, step: int) -> Arriving | None:
        """What this step's dense gradients are reduced to as they arrive, where that is all the update needs.

        They must arrive whole: of one process, one step, and one micro-batch, as those since the last update did.
        """
        alone, self._most_arrivals = self._most_arrivals == 1 and not self._partial, 0
        carry = any(self._method.gradient_carry(at, self._total_steps) for at in (step, step + 1))
        many = torch.distributed.is_available() and torch.distributed.is_initialized()
        held = any(site.has_gradient() for site in self._sites.values())
        if carry or many or held or not alone or self.accumulates:
            return None
        growth = self._method.reduces_to(
            {name: site.view() for name, site in self._sites.items()}, step, self._total_steps
        )
        return None if growth is None else Arriving(growth)

    def are_usable(self, step: int) -> bool:
        """Average them over the ranks; whether the update at this step can rank them, said aloud if not."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for site in self._sites.values():
                site.average_gradient()
        arriving = next((s.arriving for s in self._sites.values() if isinstance(s, MaskedSite)), None)
        if arriving is not None and arriving.spoilt:
            self.accumulates = True
            warnings.warn(
                f"{self._method.name}: {arriving.spoilt}: the update at step {step} is left out, the topology stays; later "
                "ones keep the whole gradients",
                stacklevel=6,
            )
            return False
        bad = [name for name, site in self._sites.items() if not site.gradient_is_finite()]
        if self._method.needs_step_gradient and not any(site.has_gradient() for site in self._sites.values()):
            raise ValueError(
                f"{self._method.name}: no gradient arrived before step {step}, so no mask can be chosen"
            )
        if not bad:
            return True
        where = f"the dense gradient of {', '.join(bad)} is not finite at step {step}"
        if self._method.needs_step_gradient:
            raise ValueError(
                f"{self._method.name}: {where}, so no mask can be chosen; the model is unchanged"
            )
        warnings.warn(
            f"{self._method.name}: {where}: this update is left out, the topology stays", stacklevel=6
        )
        return False

    def add_kept(self, step: int) -> None:
        """Add the gradients of earlier steps to this one's, as far as the method carries them; once a step.

        A gradient scaler may have changed its mind between them: they are brought to the scale of this one's.
        """
        carry = self._method.gradient_carry(step, self._total_steps)
        probed = self._method.probes and self._method.due(step, self._total_steps)
        for site in self._sites.values():
            if probed:
                site.add_kept_gradient(1.0)
            if EARLIER in site.memory:
                site.memory[KEPT] = site.memory.pop(EARLIER)
            before = float(site.memory.pop(SCALE, self.scale))
            site.add_kept_gradient(carry * (self.scale / before))
            if self.scale != 1:
                site.memory[SCALE] = torch.tensor(self.scale, dtype=torch.float64)

    def keep(self, step: int) -> None:
        """A step is done: keep its gradients if the method carries them into the next one."""
        if self._method.gradient_carry(step, self._total_steps):
            self.add_kept(step)
        if self._method.gradient_carry(step + 1, self._total_steps):
            for site in self._sites.values():
                site.keep_gradient()
                if self.scale != 1:  # an update may have cleared it away
                    site.memory[SCALE] = torch.tensor(self.scale, dtype=torch.float64)

    def forget(self) -> None:
        """Let go of what was kept for one step; a layer that was frozen until now is hooked."""
        for site in self._sites.values():
            if isinstance(site, MaskedSite):
                seen = 2 if self._partial else site.arrivals
                self._most_arrivals, site.arrivals = max(self._most_arrivals, seen), 0
            site.forget_gradient()
            site.hook()
        self._partial = False


def loss_scale(optimizer: Optimizer) -> float:
    """What the gradients of a step that has begun were multiplied by; 1 without a gradient scaler.

    A fused optimizer is told; of others the scaler is the one that called the step.
    """
    told = getattr(optimizer, "grad_scale", None)
    if told is not None:
        return float(told)
    if torch.compiler.is_compiling():  # callers cannot be seen from there
        return 1.0
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        if (
            frame.f_code is torch.amp.GradScaler.step.__code__
        ):  # locals of other frames would outlive their `del`
            return float(frame.f_locals["self"].get_scale())
        if frame.f_back is None:
            break
        frame = frame.f_back
    return 1.0
