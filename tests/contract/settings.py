"""One row per method: the smallest run that shows all it does. A new method adds a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import startsparse as ss

TOTAL_STEPS = 10
WEIGHTS = 144  # of the sparse layers of ``tiny``
DENSITY = 0.2
SOURCE_DENSITY = 0.5


@dataclass(frozen=True)
class Setting:
    """How a method is run by the laws.

    Args:
        hyper_parameters: beside the density; an update at several of the ``TOTAL_STEPS`` steps, so that each law has
            something to hold.
        random: whether the masks depend on the method's seed.
        changes: the steps after (or, for a method that decides before the step, in) which masks are expected to
            change; None: whenever the weights say so.
        xfail: name of a law -> why this method cannot keep it.
        gradients: steps whose dense gradient is taken, where these are not the updates.
    """

    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    random: bool = False
    changes: tuple[int, ...] | None = ()
    xfail: dict[str, str] = field(default_factory=dict)
    gradients: int | None = None


SETTINGS: dict[str, Setting] = {
    "str": Setting(
        {"update_interval": 2, "update_begin": 1, "update_end": 8},
        changes=None,
    ),
    "cht": Setting({"update_interval": 2, "drop_fraction": 0.5, "update_end": 8}, True, (2, 4, 6)),
    "deepr": Setting({"update_end": 8}, True, None),
    "dst_ee": Setting({"update_interval": 2, "drop_schedule": "constant", "update_end": 8}, True, (2, 4, 6)),
    "gse": Setting({"update_interval": 2, "drop_schedule": "constant", "update_end": 8}, True, (2, 4, 6)),
    "softgmp": Setting({"update_interval": 2, "update_begin": 1, "update_end": 8}, changes=(2, 4, 6)),
    "topkast": Setting(
        {"update_interval": 4, "update_end": 8, "backward_density": 1.0},
        changes=(4,),
        xfail={"gradients": "inactive weights that are reached have a gradient: that is the method"},
    ),
    "dsr": Setting(
        {"update_interval": 2, "drop_fraction": 0.3, "update_end": 8, "floor": 0}, True, (2, 4, 6)
    ),
    "snfs": Setting(
        {"update_interval": 2, "drop_schedule": "constant", "update_end": 8}, True, (2, 4, 6), gradients=7
    ),
    "srigl": Setting({"update_interval": 2, "drop_schedule": "constant", "update_end": 8}, True, (2, 4, 6)),
    "acdc": Setting(
        {"update_begin": 1, "phase_length": 2, "last_dense": 2, "update_end": 7}, changes=(1, 3, 7)
    ),
    "ggr": Setting(
        {"update_interval": 2, "drop_schedule": "constant", "update_end": 8, "floor": 0}, True, (2, 4, 6)
    ),
    "granet": Setting(
        {
            "update_interval": 2,
            "prune_end": 6,
            "start_density": 0.4,
            "regrow_schedule": "constant",
        },
        True,
        (2, 4, 6, 8),
    ),
    "itop": Setting({"update_interval": 2, "update_end": 8}, True, (2, 4, 6)),
    "mest": Setting({"update_interval": 2, "update_end": 8, "drop_fraction": 0.3}, True, (2, 4, 6)),
    "gmp": Setting({"update_interval": 2, "update_begin": 1, "update_end": 8}, changes=(2, 4, 6)),
    "grasp": Setting(),
    "magnitude": Setting(),
    "rigl": Setting({"update_interval": 2, "drop_fraction": 0.5, "update_end": 8}, True, (2, 4, 6)),
    "rst": Setting({"ramp_steps": 3, "stabilise_steps": 2}, True, (4,)),
    "set": Setting({"update_interval": 2, "drop_fraction": 0.5, "update_end": 8}, True, (2, 4, 6)),
    "snip": Setting(changes=(0,)),
    "static": Setting(random=True),
    "synflow": Setting({"rounds": 5}),
}


def make(name: str, **changes: Any) -> ss.methods.Method:
    """The method of a row, with some hyper-parameters changed."""
    return ss.methods.make(name, **({"density": DENSITY} | SETTINGS[name].hyper_parameters | changes))


SOURCES: dict[str, Callable[[], Any]] = {
    "dense": ss.DenseSource,
    "exact": lambda: ss.RandomSource(SOURCE_DENSITY, "balanced", seed=3),
    "bernoulli": lambda: ss.RandomSource(SOURCE_DENSITY, "uniform", seed=4, draw="bernoulli"),
    "n:m": lambda: ss.RandomSource(0.5, layout="2:4", seed=5),
    "zeros": ss.ZerosSource,
}


def tiny(source: str = "dense", seed: int = 0) -> nn.Module:
    """A net of two sparse layers (and a norm, which is never sparse)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 10))
        if source == "zeros":
            with torch.no_grad():
                for weight in (model[0].weight, model[3].weight):
                    weight.masked_fill_(torch.rand(weight.shape) < 0.5, 0)
    return model


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets for ``tiny``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(5, 8, generator=generator), torch.randn(5, 10, generator=generator))
        for _ in range(count)
    ]


def quick(name: str, interval: int = 2, end: float = 0.8) -> dict[str, Any]:
    """A row's hyper-parameters for a run of another length: an update every ``interval`` steps until ``end``."""
    schedule = {"update_interval": interval, "update_end": end}
    known = {field.name for field in fields(ss.methods.get(name))}
    return SETTINGS[name].hyper_parameters | {key: schedule[key] for key in schedule.keys() & known}


def given(how: ss.methods.Method, inputs: Tensor | None = None) -> dict[str, Any]:
    """What ``attach`` must be given for the passes a method makes of its own."""
    inputs = batches(1)[0][0] if inputs is None else inputs
    signals = {
        "data": [(inputs + shift, torch.zeros(len(inputs))) for shift in range(2)],
        "loss_fn": lambda output, target: (output.flatten(1).mean(1) - target - 1).square().mean(),
        "example_input": inputs,
    }
    return {name: signals[name] for name in how.needs}


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss that is trained on."""
    return nn.functional.mse_loss(model(batch[0]), batch[1])


class Drifting(Optimizer):
    """An optimizer nobody has heard of: momentum under an unknown key, other odd state, and weights that drift.

    It moves every weight, also one without a gradient of its own, and keeps beside the tensor that belongs to the
    weights one of another shape, a number and a string.
    """

    def __init__(self, params: Iterator[nn.Parameter], lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["flotsam"] = torch.full_like(parameter, 0.5)
                    state["totals"] = torch.zeros(7)
                    state["visits"], state["mood"] = 0, "calm"
                state["visits"] += 1
                state["totals"] += parameter.grad.sum()
                state["flotsam"].mul_(0.9).add_(parameter.grad)
                parameter.add_(state["flotsam"], alpha=-group["lr"]).add_(0.01)
        return loss


@dataclass(frozen=True)
class Stepping:
    """How an optimizer is built and called.

    Args:
        build: from parameters.
        closure: whether its step is given a closure.
        elementwise: whether each weight moves by its own gradient and state alone.
    """

    build: Callable[..., Optimizer]
    closure: bool = False
    elementwise: bool = True


OPTIMIZERS: dict[str, Stepping] = {
    "sgd": Stepping(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2)),
    "adam": Stepping(lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True)),
    "adamw-fused": Stepping(lambda p: torch.optim.AdamW(p, lr=0.02, fused=True)),
    "adamw-foreach": Stepping(lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True)),
    "rmsprop": Stepping(lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True)),
    "adagrad": Stepping(lambda p: torch.optim.Adagrad(p, lr=0.05)),
    "lbfgs": Stepping(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), closure=True, elementwise=False),
    "drifting": Stepping(lambda p: Drifting(p)),
    "drifting-closure": Stepping(lambda p: Drifting(p), closure=True),
}
