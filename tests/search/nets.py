"""Small nets and runs for the tests of searches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import startsparse as ss

TOTAL_STEPS = 8
PRESETS: dict[str, dict[str, Any]] = {
    "biprop": {"density": 0.4},
    "continuous-sparsification": {},
    "edge-popup": {"density": 0.3},
    "edge-popup-annealed": {"density": 0.2, "start_density": 0.6, "levels": 3},
    "hydra": {"density": 0.2},
    "jackpot": {"density": 0.2},
    "jackpot-2021": {"density": 0.2},
    "jackpot-2023-released": {"density": 0.2},
    "jackpot-nm": {},
    "maskllm": {},
    "movement-frozen": {"density": 0.2, "update_begin": 1, "update_end": 6},
    "piggyback": {},
    "probmask": {"density": 0.2},
    "supermask": {},
}
OPTIMIZERS = {
    "sgd": lambda scores: torch.optim.SGD(scores, lr=0.5, momentum=0.9, weight_decay=1e-2),
    "adam": lambda scores: torch.optim.Adam(scores, lr=0.05),
}


def make(name: str, **changes: Any) -> Any:
    """A preset of ``PRESETS``, with some hyper-parameters changed."""
    return ss.methods.make(name, **(PRESETS[name] | changes))


def net(seed: int = 0) -> nn.Module:
    """Convolutions, batch norm with statistics of its own, biases, a classifier: 288 + 576 + 320 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 0.5)
    return model


def batch(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 4, 6, 6, generator=generator), torch.randint(10, (size,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    """The loss that is searched on."""
    inputs, labels = batch(step)
    return nn.functional.cross_entropy(model(inputs), labels)


def advance(search: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Some steps of a plain loop."""
    for step in steps:
        loss_of(search.model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> copy."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    )
