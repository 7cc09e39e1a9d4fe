"""What every method is: a frozen set of hyper-parameters and pure functions of layers and steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..distributions import Distribution, Scaled, allocate, whole
from ..distributions import names as distribution_names
from ..draw import Drawn
from ..flow import Repair
from ..names import nearest
from ..scalars import make_plain
from ..selection import top_k, top_k_across
from .reduced import Growth
from .view import Change, LayerView

if TYPE_CHECKING:
    from ..passes import Passes

Views = Mapping[str, LayerView]
Changes = dict[str, Change]
GLOBAL = "global"
LEAVING = "leaving"  # the memory that holds the live positions a method pulls to zero


@dataclass(frozen=True)
class Start:
    """The first mask of a layer: a draw, a flat bool tensor, or None for all of the source."""

    mask: Drawn | Tensor | None = None
    repair: Repair | None = None


@dataclass(frozen=True)
class Method:
    """Base of the methods that are attached to a training loop.

    Args:
        density: live weights over all weights of the sparse layers, in (0, 1].
        distribution: layer-wise densities: a rule name, a mapping name or glob -> density, ``Scaled``, or, where a
            method ranks weights, ``"global"`` (the ranking decides).
        seed: of every random decision of the method.
    """

    density: float
    distribution: Distribution = "erk"
    seed: int = 0

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    kind: ClassVar[str] = "attach"
    masked_only: ClassVar[str] = ""  # why it cannot run under sparse execution, if it cannot
    passes: ClassVar[tuple[str, ...]] = ()  # arguments of attach() for passes of its own: what begin() needs
    ranks: ClassVar[bool] = False  # whether distribution="global" means something here
    moves_across_layers: ClassVar[bool] = False  # layers do not keep the counts of the first masks
    grows: ClassVar[bool] = False  # weights that were inactive come to live
    hides: ClassVar[bool] = False  # inactive weights keep a value, out of the model's sight
    shrinks: ClassVar[bool] = False  # live weights are shrunk by a threshold that is learnt
    needs_step_gradient: ClassVar[bool] = False  # decides on a gradient of unmoved weights, before the step
    grown_value: ClassVar[str] = "zero"  # a hyper-parameter of methods that grow, as are the next two
    grown_state: ClassVar[str] = "reset"
    skip_step_on_update: ClassVar[bool] = False
    probes: ClassVar[int] = 0  # batches an update's dense gradient takes besides those that are trained on
    penalty: ClassVar[str] = "auto"  # how weights are pulled: "gradient", "decoupled" or by the optimizer

    def __post_init__(self):
        make_plain(self)
        if (
            isinstance(self.density, bool)
            or not isinstance(self.density, int | float)
            or not 0 < self.density <= 1
        ):
            raise ValueError(f"{self.name}: density must be in (0, 1], got {self.density!r}")
        self._integer("seed", low=None)
        known = distribution_names() + ([GLOBAL] if self.ranks else [])
        if isinstance(self.distribution, str) and self.distribution not in known:
            if self.distribution == GLOBAL:
                raise ValueError(f"{self.name} ranks no weights: distribution='global' needs one of {known}")
            raise ValueError(
                f"{self.name}: unknown distribution {self.distribution!r}: {nearest(self.distribution, known)}"
            )
        if not isinstance(self.distribution, str | Mapping | Scaled):
            raise ValueError(
                f"{self.name}: distribution must be a name, a mapping or Scaled, got {self.distribution!r}"
            )

    def _integer(self, field: str, low: int | None) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
            bound = "" if low is None else f" >= {low}"
            raise ValueError(f"{self.name}: {field} must be an int{bound}, got {value!r}")

    def _one_of(self, field: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, field)
        if value not in allowed:
            raise ValueError(f"{self.name}: unknown {field} {value!r}: {nearest(str(value), allowed)}")

    def hyper_parameters(self) -> dict[str, Any]:
        """The fields as plain data, as ``methods.make`` takes them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.distribution, Scaled):
            fields["distribution"] = {"scaled": dict(self.distribution.base)}
        elif isinstance(self.distribution, Mapping):
            fields["distribution"] = dict(self.distribution)
        return fields

    @property
    def needs(self) -> tuple[str, ...]:
        """Which of ``data``, ``loss_fn`` and ``example_input`` it needs to choose its first masks by passes of its own."""
        return self.passes

    # -- what a method answers; the defaults are those of a topology that never changes ------------------------

    def check(self, views: Views, total_steps: int | None) -> None:
        """Refuse, before anything is touched, what cannot work; raises ValueError."""

    def rule(self, views: Views) -> Distribution:
        """How the final density is shared among these layers."""
        return self.distribution

    def start(self, views: Views) -> dict[str, Start]:
        """The first mask of every layer."""
        raise TypeError(f"{type(self).__name__} does not say how it starts")

    def begin(self, views: Views, passes: Passes, target: int) -> Changes:
        """The change before the first step, of a method that ``needs`` passes of its own to decide it."""
        raise TypeError(f"{type(self).__name__} makes no passes of its own")

    def target(self, step: int, total: int, start_count: int, total_steps: int | None) -> int:
        """Live weights scheduled once step ``step`` is done; step -1 is before the first one."""
        return start_count

    def due(self, step: int, total_steps: int | None) -> bool:
        """Whether the topology changes at this step."""
        return False

    def wants_gradient(self, step: int, total_steps: int | None) -> bool:
        """Whether the dense gradient of this step is needed for an update."""
        return False

    def gradient_carry(self, step: int, total_steps: int | None) -> float:
        """How much of the dense gradient kept at the step before is added to that of this one; 0: it is forgotten.

        1 at the later steps of a window sums the gradients of its steps, with their signs; a constant below 1 keeps
        their moving average, up to its scale. The gradient must be wanted at these steps too.
        """
        return 0.0

    def reduces_to(self, views: Views, step: int, total_steps: int | None) -> Growth | None:
        """The most this step's update can grow by gradient, where that and the gradient of live weights is all it looks
        at: dense gradients are reduced to candidates then when they arrive. None: it needs them whole.
        """
        return None

    def strength(self, step: int, total_steps: int | None) -> float:
        """How strongly the weights at the positions of ``memory[LEAVING]`` are pulled to zero at this step."""
        return 0.0

    def decay(self, rate: float, total_steps: int | None) -> float:
        """By how many e-folds a leaving weight shrinks, where ``rate`` * strength is its share a step; inf: no pull."""
        return math.inf

    def remembers(self, step: int, total_steps: int | None) -> tuple[str, ...]:
        """The memories that every layer has once ``step`` steps are done, and that the method cannot do without."""
        return ()

    def hidden_pull(self, step: int) -> float:
        """How strongly inactive weights that are trained behind their zeros are pulled to zero at this step."""
        return 0.0

    def begins_anew(self, step: int, total_steps: int | None) -> bool:
        """Whether the optimizers forget all they know once the change at this step is made."""
        return False

    def update(self, views: Views, step: int, target: int, total_steps: int | None) -> Changes:
        """What is dropped and grown at this step, per layer."""
        return {}

    def phase(self, step: int, total_steps: int | None) -> str:
        """What the method is doing, once step - 1 is done: a word for reports."""
        return "static"

    def figures(self, explored: float) -> Mapping[str, float]:
        """Shares between 0 and 1 that reports show beside the density, by name.

        Args:
            explored: the share of all weights that were live at some time.
        """
        return {}

    def dense_gradient_steps(self, total_steps: int) -> int:
        """How many steps of a run compute the dense weight gradient (for counting FLOPs)."""
        return sum(self.wants_gradient(step, total_steps) for step in range(total_steps))


def check_attachable(method: Any) -> None:
    """Refuse what does not go into a training loop by itself.

    Raises:
        TypeError: it is a search, or no method at all.
    """
    if isinstance(method, Method):
        return
    if getattr(method, "kind", None) == "search":
        raise TypeError(
            f"{method.name} searches a mask over frozen weights: use ss.search(model, {type(method).__name__}(...))"
        )
    raise TypeError(f"method must be a method such as ss.RigL(density=0.05), got {method!r}")


def layer_counts(
    distribution: Distribution, views: Views, density: float, *, capacity: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Active weights per layer under a distribution, within each layer's source (or a tighter ``capacity``)."""
    shapes = {name: view.shape for name, view in views.items()}
    room = {name: view.capacity for name, view in views.items()} if capacity is None else capacity
    return allocate(distribution, shapes, density, capacity=room)


def masks_of(views: Views, positions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bool masks of the weights' shapes, True at these positions."""
    masks = {}
    for name, where in positions.items():
        mask = torch.zeros(math.prod(views[name].shape), dtype=torch.bool, device=where.device)
        mask[where] = True
        masks[name] = mask.view(views[name].shape)
    return masks


def counts_on_the_way(
    views: Views, target: int, method: Method, room: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Live weights of each layer once ``target`` of all are left: every layer goes the same share of its way from what
    lives now to its final count; ``room`` is the most a layer may hold, by default what lives now."""
    live = {name: view.num_active for name, view in views.items()}
    ends = layer_counts(method.distribution, views, method.density)
    now, end = sum(live.values()), sum(ends.values())
    left = (target - end) / (now - end) if now > end else 0.0
    return whole(
        {name: ends[name] + left * (live[name] - ends[name]) for name in views}, target, room or live
    )


def prune_to(views: Views, scores: Mapping[str, Tensor], target: int, method: Method) -> Changes:
    """Drop the live weights of lowest score until ``target`` are left, over all layers or layer by layer.

    Layer by layer, every layer goes the same share of its way from what lives now to its final count.

    Args:
        views: the layers.
        scores: name -> score of each live weight, (num_active,), in rising position.
        target: live weights to keep, of all layers together.
        method: its distribution (``"global"`` ranks all layers together) and final density.
    """
    if method.distribution == GLOBAL:
        kept = top_k_across(scores, target)
    else:
        counts = counts_on_the_way(views, target, method)
        kept = {name: top_k(scores[name], counts[name], what=name) for name in views}
    return {
        name: Change(view.active_positions()[~kept[name]], torch.empty(0, dtype=torch.int64))
        for name, view in views.items()
    }
