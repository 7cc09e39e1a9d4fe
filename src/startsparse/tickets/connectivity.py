"""Linear mode connectivity: how high the error rises between two nets that began as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ticket import tensors

_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Connection:
    """Errors along the line from one net to another.

    Args:
        positions: shares of the second net, from 0 to 1.
        errors: error at each.
    """

    positions: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """The highest error on the way less the mean of both ends, never below 0."""
        return max(0.0, max(self.errors) - (self.errors[0] + self.errors[-1]) / 2)


def connect(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    error: Callable[[nn.Module], float],
    *,
    positions: Sequence[float] | int = 11,
    batches: Iterable[Any] | None = None,
) -> Connection:
    """The error of nets on the line between two states of a model, which is left as it was.

    Two copies of a ticket that were trained with different noise are linearly connected if the barrier is near zero: the
    ticket is then stable, and the weights they began with are a point to rewind to.

    Args:
        model: of the architecture of both states; a copy of it is evaluated.
        first, second: ``state_dict()`` of each, or of their trained models.
        error: of a model, lower is better; called in evaluation mode.
        positions: how many, evenly spaced with both ends, or the shares of ``second`` themselves, rising from 0 to 1.
        batches: inputs of the training part, to take the running statistics of batch norms anew at every position:
            interpolated ones are not those of the interpolated net. Needed where there are any.

    Raises:
        ValueError: a state of another architecture, positions that do not go from 0 to 1, or batch norms without
            ``batches``.

    References:
        Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020,
        https://arxiv.org/abs/1912.05671

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> ends = {"weight": torch.tensor([[-1.0]])}, {"weight": torch.tensor([[1.0]])}
        >>> line = connect(net, *ends, lambda m: 1 - float(m.weight.detach().abs()), positions=3)
        >>> line.errors, line.barrier
        ((0.0, 1.0, 0.0), 1.0)
    """
    shares = _shares(positions)
    walker = copy.deepcopy(model)
    held = dict(tensors(walker))
    for which, state in (("first", first), ("second", second)):
        wrong = [n for n in held if n not in state or state[n].shape != held[n].shape]
        if wrong:
            raise ValueError(
                f"the {which} state is of another architecture: it lacks or differs in {', '.join(wrong)}"
            )
    norms = [m for m in walker.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    inputs = None if batches is None else list(batches)
    if norms and not inputs:
        raise ValueError("the model has batch norms: give batches=, to take their running statistics anew")
    errors = []
    for share in shares:
        with torch.no_grad():
            for name, tensor in held.items():
                if tensor.is_floating_point():
                    tensor.copy_(torch.lerp(first[name].to(tensor), second[name].to(tensor), share))
        if norms:
            reestimate(walker, inputs or [])
        errors.append(float(error(walker.eval())))
    return Connection(tuple(shares), tuple(errors))


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Take the running statistics of all batch norms anew: the plain mean over some batches.

    Args:
        model: changed in place; its mode is put back.
        batches: inputs, each a tensor or a tuple of arguments.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> reestimate(norm, [torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [4.0]])])
        >>> norm.running_mean, norm.momentum
        (tensor([2.]), 0.1)
    """
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    momenta, modes = [m.momentum for m in norms], {m: m.training for m in model.modules()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean
    _ = model.eval()
    for norm in norms:
        _ = norm.train()
    try:
        for batch in batches:
            _ = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _shares(positions: Sequence[float] | int) -> list[float]:
    if isinstance(positions, int) and positions >= 2:
        return [i / (positions - 1) for i in range(positions)]
    shares = [] if isinstance(positions, int) else [float(p) for p in positions]
    rising = all(math.isfinite(p) for p in shares) and shares == sorted(shares)
    if len(shares) < 2 or shares[0] != 0 or shares[-1] != 1 or not rising:
        raise ValueError(f"positions are a number >= 2, or shares rising from 0 to 1, got {positions!r}")
    return shares
