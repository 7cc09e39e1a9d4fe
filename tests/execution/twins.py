"""A masked and a sparse run of the same net side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import startsparse as ss

from ..contract.settings import given, quick

Build = Callable[..., Optimizer]

EPS = {"eps": 1e-3}  # so that gradients that are nothing but rounding are not what is trained on
OPTIMIZERS: dict[str, Build] = {  # one of every kind that sparse execution takes
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, **EPS),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.5, centered=True, **EPS),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True, **EPS),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, **EPS),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, **EPS),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, **EPS),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.005),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
}
SOURCES: dict[str, Callable[[], Any]] = {
    "dense": ss.DenseSource,
    "exact": lambda: ss.RandomSource(0.5, "balanced", seed=3),
    "bernoulli": lambda: ss.RandomSource(0.5, "uniform", seed=4, draw="bernoulli"),
    "n:m": lambda: ss.RandomSource(0.5, layout="2:4", seed=5),
    "zeros": ss.ZerosSource,
}


def method(name: str, density: float = 0.2, **changes: Any) -> ss.methods.Method:
    """A method that changes its masks often."""
    return ss.methods.make(name, **({"density": density} | quick(name, 5) | changes))


def seeded(build: Callable[[], nn.Module], seed: int = 0, zeros: bool = False) -> nn.Module:
    """A net built from a seed, half of its weights zero if wanted."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        if zeros:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.masked_fill_(torch.rand(parameter.shape) < 0.5, 0)
    return model


def perceptron() -> nn.Module:
    """Three sparse layers, one of them without a bias, and a norm; 12 inputs, 10 outputs."""
    return nn.Sequential(
        nn.Linear(12, 16),
        nn.LayerNorm(16),
        nn.Tanh(),
        nn.Linear(16, 16, bias=False),
        nn.Tanh(),
        nn.Linear(16, 10),
    )


def convolutional() -> nn.Module:
    """Stride, padding, dilation, groups, a depthwise layer and a norm in between; 4 x 9 x 9 inputs."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 25, 10),
    )


def example_of(model: nn.Module) -> Tensor:
    """A batch that either net takes."""
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return batch(0, 4, 4, 9, 9) if convolutional else batch(0, 4, 12)


def batch(step: int, *shape: int) -> Tensor:
    """The inputs of a step."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + step))


def loss_of(output: Tensor) -> Tensor:
    """Something to minimise: a distance to targets that depend on nothing."""
    wanted = torch.linspace(-1, 1, output.shape[-1])
    return (output - wanted).square().mean()


class Run:
    """A model, its optimizer and its sparsifier."""

    def __init__(
        self,
        model: nn.Module,
        how: ss.methods.Method,
        build: Build = OPTIMIZERS["sgd"],
        *,
        execution: str = "sparse",
        source: Any = None,
        steps: int = 100,
        **more: Any,
    ):
        self.model, self.optimizer = model, build(model.parameters())
        self.sparse = ss.attach(
            model,
            self.optimizer,
            how,
            source=source,
            total_steps=steps,
            execution=execution,
            **(given(how, example_of(model)) if how.needs else {}),
            **more,
        )

    def step(self, *inputs: Tensor, clip: float | None = None) -> Tensor:
        """One step over one or more micro-batches; returns the outputs."""
        self.optimizer.zero_grad()
        outputs = []
        for x in inputs:
            outputs.append(self.model(x))
            (loss_of(outputs[-1]) / len(inputs)).backward()
        if clip is not None:
            _ = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        return torch.cat([output.detach() for output in outputs])

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, dense."""
        names = dict(self.model.named_parameters())
        return {name: value for name, value in self.sparse.dense_state_dict().items() if name in names}


def pair(
    build: Callable[[], nn.Module], how, optimizer: Build = OPTIMIZERS["sgd"], **more: Any
) -> tuple[Run, Run]:
    """The same net, masked and sparse."""
    zeros = isinstance(more.get("source"), ss.ZerosSource)
    masked = Run(seeded(build, zeros=zeros), how, optimizer, execution="masked", **more)
    return masked, Run(seeded(build, zeros=zeros), how, optimizer, execution="sparse", **more)


def gathered(run: Run, name: str, dense: Tensor) -> Tensor:
    """A tensor of a weight's dense shape as a sparse run holds it."""
    module = run.model.get_submodule(name.rpartition(".")[0])
    return module.live().take_from(dense)


def is_sparse(run: Run, name: str) -> bool:
    return name in run.sparse.execution and run.sparse.execution[name].execution == "sparse"


@torch.no_grad()
def synchronise(masked: Run, sparse: Run) -> None:
    """Give the sparse run the weights and the optimizer state of the masked one, whose masks it has."""
    buffers = dict(masked.model.named_buffers())
    for name, buffer in sparse.model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
    for name, ours, theirs in zip_parameters(masked, sparse):

        def taken(value, name=name, shape=ours.shape):
            if not isinstance(value, Tensor):
                return value
            return (
                gathered(sparse, name, value)
                if is_sparse(sparse, name) and value.shape == shape
                else value.clone()
            )

        theirs.copy_(taken(ours.detach()))
        state = masked.optimizer.state.get(ours, {})
        if state:
            sparse.optimizer.state[theirs] = {key: taken(value) for key, value in state.items()}


def zip_parameters(masked: Run, sparse: Run) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    """Name, parameter of the masked run, parameter of the sparse run."""
    theirs = dict(sparse.model.named_parameters())
    return [(name, parameter, theirs[name]) for name, parameter in masked.model.named_parameters()]


def assert_same_masks(masked: Run, sparse: Run) -> None:
    assert list(masked.sparse.masks) == list(sparse.sparse.masks)
    for name, mask in masked.sparse.masks.items():
        assert torch.equal(mask, sparse.sparse.masks[name]), name


@torch.no_grad()
def near(found: Tensor, wanted: Tensor, what: str, *, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """``torch.testing.assert_close``, but quick where all is well."""
    same = found.shape == wanted.shape and bool(((found - wanted).abs() <= atol + rtol * wanted.abs()).all())
    if not same:
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def assert_close(
    masked: Run, sparse: Run, *, gradients: bool = True, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    """Weights, gradients at live positions and optimizer states agree."""
    for name, ours, theirs in zip_parameters(masked, sparse):

        def same(what: str, dense: Tensor, found: Tensor, name=name, shape=ours.shape):
            wanted = (
                gathered(sparse, name, dense) if is_sparse(sparse, name) and dense.shape == shape else dense
            )
            near(found, wanted, f"{what} of {name}", rtol=rtol, atol=atol)

        same("weight", ours, theirs)
        assert (ours.grad is None) == (theirs.grad is None)
        if gradients and ours.grad is not None:
            same("gradient", ours.grad, theirs.grad)
        here, there = masked.optimizer.state.get(ours, {}), sparse.optimizer.state.get(theirs, {})
        assert here.keys() == there.keys()
        for key, value in here.items():
            if isinstance(value, Tensor):
                same(f"state {key}", value, there[key])


def checkpoint(run: Run) -> dict[str, Any]:
    """Everything a run needs to go on."""
    return copy.deepcopy({part: getattr(run, part).state_dict() for part in ("model", "optimizer", "sparse")})
