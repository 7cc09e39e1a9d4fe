"""Distillation: the dense net, which a search has at hand all along, as the teacher of its sub-network."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from .engine import Search


def distillation_loss(outputs: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Divergence of a teacher's softened probabilities from a student's, in nats, times the temperature squared.

    Args:
        outputs: logits (..., classes) of the student.
        teacher: logits of the teacher, of that shape; no gradient flows into them.
        temperature: both are divided by it first.

    Returns:
        The mean over everything but the classes.

    Raises:
        ValueError: shapes differ, or the temperature is not positive.

    References:
        Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2,
        https://arxiv.org/abs/1503.02531

    Fidelity:
        The divergence where the paper has the cross-entropy, whose gradient is the same and which is 0 where nothing
        is left to learn.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> distillation_loss(logits, logits).item()
        0.0
    """
    if outputs.shape != teacher.shape:
        raise ValueError(f"outputs are {tuple(outputs.shape)}, the teacher's {tuple(teacher.shape)}")
    if not temperature > 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    student = (outputs.flatten(0, -2) / temperature).log_softmax(-1)
    wanted = (teacher.detach().flatten(0, -2) / temperature).log_softmax(-1)
    return F.kl_div(student, wanted, reduction="batchmean", log_target=True) * temperature**2


def check_distillation(share: Any, temperature: Any) -> None:
    """Refuse what cannot be a share and a temperature.

    Raises:
        ValueError: says which, and what it may be.
    """
    numbers = {"share": share, "temperature": temperature}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} must be a number, got {value!r}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature!r}")


class Distillation:
    """A loss that also asks the sub-network for what the dense net would say.

    The teacher is the net as ``ss.search`` found it: its weights, and its batch-norm statistics of then, in evaluation
    mode. No second copy of the model is made, and nothing of it changes.

    Args:
        search: that is running.
        share: of the distillation loss in the whole, in [0, 1].
        temperature: see ``distillation_loss``.

    Raises:
        ValueError: a share or temperature that is out of range.

    Example:
        >>> import startsparse as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> search = ss.search(model, ss.Jackpot(density=0.2), total_steps=3)
        >>> distill = ss.Distillation(search, share=0.5)
        >>> optimizer = torch.optim.SGD(search.scores(), lr=0.1, momentum=0.9)
        >>> for _ in range(3):
        ...     x, y = torch.randn(4, 8), torch.randint(3, (4,))
        ...     outputs = model(x)
        ...     distill(torch.nn.functional.cross_entropy(outputs, y), outputs, x).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> search.step
        3
    """

    def __init__(self, search: Search, *, share: float = 0.5, temperature: float = 2.0):
        check_distillation(share, temperature)
        self.search, self.share, self.temperature = search, float(share), float(temperature)

    def __call__(self, loss: Tensor, outputs: Any, *inputs: Any, **named: Any) -> Tensor:
        """The loss to go back from.

        Args:
            loss: of the outputs and the labels.
            outputs: logits (..., classes), or something that has them as ``.logits``.
            inputs, named: what the model made the outputs of.
        """
        if self.share == 0:
            return loss
        teacher = _logits(self.teach(*inputs, **named))
        wanted = distillation_loss(_logits(outputs), teacher, temperature=self.temperature)
        return (1 - self.share) * loss + self.share * wanted

    @torch.no_grad()
    def teach(self, *inputs: Any, **named: Any) -> Any:
        """What the dense net makes of some inputs.

        Raises:
            RuntimeError: the search is finished: the model's dense weights are gone.
        """
        search = self.search
        search._check_running()
        model = search.model
        dense = {id(site.parameter): site.scored.weight for site in search._sites.values()}
        held = {  # a module that is listed twice once: functional_call would not put its tensors back
            f"{prefix}.{key}" if prefix else key: dense[id(parameter)]
            for prefix, module in model.named_modules()
            for key, parameter in module._parameters.items()
            if id(parameter) in dense
        }
        modes = [(module, module.training) for module in model.modules()]
        try:
            return functional_call(
                model.eval(), held | search.first_buffers, inputs, named, tie_weights=False
            )
        finally:
            for module, training in modes:
                module.training = training


def _logits(outputs: Any) -> Tensor:
    return getattr(outputs, "logits", outputs)
