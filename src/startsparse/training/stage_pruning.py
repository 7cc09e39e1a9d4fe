"""What is pruned between two stages, and whether the ticket that would be drawn now has settled."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import startsparse as ss
from startsparse.layers import Layer, find
from startsparse.masks import unpack
from startsparse.methods.iterative import IMP
from startsparse.passes import Passes
from startsparse.tickets.early import changed, pruned
from startsparse.tickets.ticket import Ticket
from startsparse.training import build, loop
from startsparse.training.files import load_tree, save_tree
from startsparse.training.recipe import Recipe

BATCHES = 16  # of the training part, over which "obd" takes the mean of squared gradients


def prune(
    recipe: Recipe, ticket: Ticket, density: float, distribution: Any, criterion: str = "magnitude"
) -> Ticket:
    """The ticket with fewer live weights.

    Args:
        recipe: whose model the ticket is of; under "obd" also whose data are looked at.
        ticket: as the stage before left it.
        density: of the outcome, over all weights of the sparse layers.
        distribution: "global", a rule or a mapping.
        criterion: "magnitude", or "obd": half the squared weight times the mean of its squared gradient, over 16
            batches at the trained weights.

    Raises:
        ValueError: fewer weights live than are to be kept.
    """
    count = round(density * ticket.num_weights)
    if count > ticket.num_active:
        raise ValueError(
            f"prune to density {density:g}: {count} weights are asked for, but only {ticket.num_active} live at this stage"
        )
    model = build.model_of(recipe)
    ticket.put(model)
    layers = find(model, list(ticket.masks))
    signals = _squares(recipe, ticket) if criterion == "obd" else {}
    return _with_masks(
        ticket, _drawn(IMP(density, distribution, criterion=criterion), layers, ticket, count, signals)
    )


def _drawn(
    method: IMP, layers: dict[str, Layer], ticket: Ticket, count: int, signals: dict[str, Tensor]
) -> dict[str, Tensor]:
    views = {
        name: ss.methods.DenseView(
            name,
            layer.parameter.detach().cpu(),
            ticket.masks[name],
            None if name not in ticket.sources else ticket.sources[name].reshape(-1),
            signals.get(name),
            geometry=layer.geometry,
        )
        for name, layer in layers.items()
    }
    return pruned(views, method.update(views, 0, count, None))


def _with_masks(ticket: Ticket, masks: dict[str, Tensor]) -> Ticket:
    return Ticket(masks, ticket.weights, ticket.initial, ticket.sources, ticket.step)


def _squares(recipe: Recipe, ticket: Ticket) -> dict[str, Tensor]:
    """Root mean square of the gradients of single batches, at the ticket's weights."""
    job = build.bench_of(recipe.model_copy(update={"method": None})).job
    ticket.put(job.model)

    def loss_fn(outputs: Tensor, labels: Tensor) -> Tensor:
        return loop.loss_of(outputs, labels, job.settings.label_smoothing)

    passes = Passes(job.model, find(job.model, list(ticket.masks)), loss_fn=loss_fn)
    masks = {name: mask.to(job.device) for name, mask in ticket.masks.items()}
    total: dict[str, Tensor] = {}
    batches = list(itertools.islice(build.FirstBatches(job), BATCHES))
    for batch in batches:
        for name, gradient in passes.gradients(masks, [batch]).items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient.square()
    return {name: (square / len(batches)).sqrt().cpu() for name, square in total.items()}


class Settled:
    """Ends a training as soon as the ticket drawn from it has settled; asked after every epoch.

    The tickets of the last epochs lie in the stage's folder, so a training that was killed remembers them.
    """

    def __init__(
        self,
        folder: Path,
        ticket: Ticket,
        density: float,
        distribution: Any,
        window: int,
        tolerance: float,
    ):
        self._folder, self._ticket, self._window, self._tolerance = folder, ticket, window, tolerance
        self._method = IMP(density, distribution)
        self._count = round(density * ticket.num_weights)

    def add(self, epoch: int, model: nn.Module) -> bool:
        """Draw the ticket of an epoch that has ended; whether it has settled."""
        layers = find(model, list(self._ticket.masks))
        drawn = _drawn(self._method, layers, self._ticket, self._count, {})
        save_tree(self._file(epoch), _with_masks(self._ticket, drawn).state_dict()["masks"])
        return self.after(epoch)

    def after(self, epoch: int) -> bool:
        """Whether the ticket of an epoch agrees with those of all the epochs of its window."""
        before = [self._file(one) for one in range(epoch - self._window, epoch)]
        if epoch < self._window or not all(file.exists() for file in [*before, self._file(epoch)]):
            return False
        now = self._read(epoch)
        return all(
            changed(now, self._read(one)) <= self._tolerance for one in range(epoch - self._window, epoch)
        )

    def _file(self, epoch: int) -> Path:
        return self._folder / f"ticket-of-epoch-{epoch}"

    def _read(self, epoch: int) -> dict[str, Tensor]:
        state = load_tree(self._file(epoch))
        return {name: unpack(bits, tuple(self._ticket.masks[name].shape)) for name, bits in state.items()}
