"""Sparse layers that follow each other in an ``nn.Sequential`` run as one operation where they can (``sequence``).

The container is turned in place, as the layers are (its class changes, the object stays): modules, names, parameters and
state_dict are those it had. Wherever somebody looks at what passes between two of the layers (a hook, a tracer,
autocast, a transform), they are called one by one, as ever; results are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fused import observed_globally, unobserved
from .modules import is_sparse
from .sequence import Activations, can_run_together, through
from .turned import PLAIN, turn_back


class SparseSequential(nn.Sequential):
    """``nn.Sequential``; what it calls and what it gives are the same."""

    def forward(self, input: Tensor) -> Tensor:
        """Each module's output into the next one."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or observed_globally():
            return super().forward(input)
        return through(flat(self), Activations(input)).rows()

    def _get_name(self) -> str:
        return nn.Sequential.__name__


setattr(SparseSequential, PLAIN, nn.Sequential)


def flat(container: nn.Module, observed: bool = False) -> list[nn.Module]:
    """The modules of a container one after the other, with those of the containers in it.

    A container in it that somebody looks at is one of them itself, unless ``observed``.
    """
    found: list[nn.Module] = []
    for module in container._modules.values():
        if isinstance(module, nn.Sequential) and _is_plain(type(module)) and (observed or unobserved(module)):
            found += flat(module, observed)
        else:
            found.append(module)  # type: ignore[arg-type]
    return found


def _is_plain(kind: type[nn.Sequential]) -> bool:
    """Whether a container does no more than ``nn.Sequential`` does."""
    return (
        kind.forward in (nn.Sequential.forward, SparseSequential.forward)
        and kind.__iter__ is nn.Sequential.__iter__
        and kind.__call__ is nn.Module.__call__
    )


def join(model: nn.Module) -> None:
    """Let the sparse layers of plain containers run together where they can."""
    for module in model.modules():
        plain = type(module) is nn.Sequential and "forward" not in module.__dict__
        if plain and can_run_together(flat(module, observed=True)):
            module.__class__ = SparseSequential


def part(model: nn.Module) -> None:
    """The inverse of ``join`` (and of ``fuse``), for modules without sparse layers."""
    for module in model.modules():
        if not any(map(is_sparse, module.modules())):
            turn_back(module)
