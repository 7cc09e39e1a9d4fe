"""What the claims about RST share: one net, one budget, arms by name, and what is noted at masking.

Fashion-MNIST, 2,000 training images averaged to 14x14, a batch-normed CNN whose first and last layer stay dense, as in
the paper. Arms of one seed share initial weights and ticket, and fine-tune on the same batches. Accuracy is that of the
last step. T is the length of one fine-tuning; a transformation takes 0.64 T of ramp and 0.51 T at the bound, the
paper's proportions, so ``scratch-ef`` (1 + 1.15) T sees as many samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss
from startsparse.training import models, seeds

SEEDS = tuple(range(1000, 1008))
WIDTHS = [8, 16, 32]
T, BATCH, RATE = 800, 64, 0.05
SLOWER = 5  # the transformation's learning rate is this much smaller than that of fine-tuning
RAMP, STAY = 0.64, 0.51
BOUND = 10.0  # the paper's is 1; in so few steps that leaves a twentieth of the weights standing (seed 900, not used here)
GATE = 0.005  # more of the same training must gain a random ticket less than this, or it is not trained out


class Bench:
    """One seed's data, initial weights and ticket density; trains what an arm asks for."""

    def __init__(self, seed: int, sparsity: float, steps: int = T):
        data = common.load("fashion-mnist", train=2000)
        self.seed, self.steps, self.sparsity = seed, steps, sparsity
        self.x, self.y = F.avg_pool2d(data.x_train, 2), data.y_train
        self.x_test, self.y_test = F.avg_pool2d(data.x_test, 2), data.y_test
        sizes = [p.numel() for p in self.net().parameters() if p.dim() > 1]
        self.density = (sizes[0] + sizes[-1] + (1 - sparsity) * sum(sizes[1:-1])) / sum(sizes)

    def net(self) -> nn.Module:
        """The model with this seed's initial weights."""
        seeds.seed_all(seeds.derive(self.seed, "model"))
        return models.make("small-cnn", widths=WIDTHS, input_shape=(1, 14, 14), classes=10)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as in the paper."""
        return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)

    def train(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        rate: Callable[[float], float],
        phase: str,
    ) -> None:
        """``steps`` steps at the rates of the share that is done; ``phase`` names the order of the batches."""
        generator = torch.Generator().manual_seed(seeds.derive(self.seed, "order", phase))
        per_epoch = len(self.y) // BATCH
        order = torch.empty(0)
        _ = model.train()
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(self.y), generator=generator)
            rows = order[step % per_epoch * BATCH : (step % per_epoch + 1) * BATCH]
            for group in optimizer.param_groups:
                group["lr"] = rate(step / steps)
            optimizer.zero_grad()
            F.cross_entropy(model(self.x[rows]), self.y[rows]).backward()
            _ = optimizer.step()

    def finetune(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, times: float = 1.0, peak: float = RATE
    ) -> float:
        """The final training: the rate falls to a tenth at half and at three quarters; returns the test accuracy."""
        self.train(model, optimizer, round(times * self.steps), falling(peak), "finetune")
        return self.accuracy(model)

    def accuracy(self, model: nn.Module) -> float:
        """Of the test part."""
        return common.accuracy(model, self.x_test, self.y_test)

    def ticket(self, **how: Any) -> ss.RST:
        """RST at this sparsity of the inner layers."""
        return ss.RST(self.density, "uniform", dense_ends=True, seed=self.seed, **how)

    # -- arms --------------------------------------------------------------------------------------------------

    def dense(self) -> dict[str, Any]:
        """All weights."""
        model = self.net()
        return {"accuracy": self.finetune(model, self.optimizer(model))}

    def scratch(self, times: float = 1.0, ticket: str = "random") -> dict[str, Any]:
        """The masked net from initialisation."""
        model = self.net()
        optimizer = self.optimizer(model)
        _ = ss.attach(model, optimizer, self.ticket(ticket=ticket, bound=math.inf))
        return {"accuracy": self.finetune(model, optimizer, times)}

    def rst(
        self, shorter: float = 1.0, slower: float = SLOWER, peak: float = RATE, **how: Any
    ) -> dict[str, Any]:
        """Transformation, mask, fine-tuning; the accuracies around masking and what was left outside the ticket."""
        model = self.net()
        optimizer = self.optimizer(model)
        ramp, stay = (round(share * shorter * self.steps) for share in (RAMP, STAY))
        method = self.ticket(**({"ramp_steps": ramp, "stabilise_steps": stay, "bound": BOUND} | how))
        with warnings.catch_warnings(action="ignore"):  # weak pulls are among what is compared
            sparse = ss.attach(model, optimizer, method)
        noted: dict[str, float] = {}
        last = method.masks_at(None)

        def before(*_: Any) -> None:
            if sparse.step == last:  # the optimizer's step is done, the sparsifier's hook comes next
                noted["before"] = self.accuracy(model)
                weights = {name: model.get_parameter(name).detach().abs() for name in sparse.masks}
                out = torch.cat([w[~sparse.target_masks[name]] for name, w in weights.items()]).mean()
                kept = torch.cat([w[sparse.target_masks[name]] for name, w in weights.items()]).mean()
                noted["residual"] = float(out / kept)
                _ = model.train()

        handle = optimizer.register_step_post_hook(before)
        optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
        self.train(model, optimizer, last + 1, lambda _: peak / slower, "transform")
        handle.remove()
        noted["after"] = self.accuracy(model)
        assert sparse.phase == "fine-tuning"
        return {"accuracy": self.finetune(model, optimizer, peak=peak), "transform_steps": last + 1} | noted

    def lottery(self, levels: int = 1) -> dict[str, Any]:
        """Magnitude pruning layer by layer, rewound to initialisation; every level is a full training."""
        model = self.net()
        names = [name for name, p in model.named_parameters() if p.dim() > 1]
        shares = {names[0]: 1.0, names[-1]: 1.0, "*": "uniform"}
        accuracies = []
        for level in ss.lottery(model, ss.IMP(self.density, shares, levels=levels)):
            accuracies.append(self.finetune(level.model, self.optimizer(level.model)))
        return {"accuracy": accuracies[-1], "dense": accuracies[0]}


def falling(peak: float) -> Callable[[float], float]:
    """The paper's steps: a tenth at half of the run, a hundredth at three quarters."""
    return lambda done: peak * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)


def arm_records(records: list[dict[str, Any]], **only: Any) -> list[dict[str, Any]]:
    """One record an arm, of the runs with these parameters."""
    chosen = [r for r in records if all(r["params"][key] == value for key, value in only.items())]
    return common.one_by_one(chosen, key="arm")


def mean(records: list[dict[str, Any]], arm: str, metric: str) -> float:
    """Of one figure over the seeds of an arm."""
    found = [r["result"][metric] for r in records if r["params"]["arm"] == arm]
    return sum(found) / len(found)


def values(records: list[dict[str, Any]], arm: str, metric: str) -> list[float]:
    """Of one figure, a seed each."""
    return [r["result"][metric] for r in records if r["params"]["arm"] == arm]


def gate(records: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether the random ticket is trained out: more of the same training must not gain half a point."""
    gained = common.difference(records, "arm", "accuracy", "scratch-ef", "scratch")
    passed = gained.mean < GATE
    word = (
        "met"
        if passed
        else "NOT met: scratch is still learning, so differences to it are of more training too"
    )
    return (
        passed,
        f"Convergence gate (scratch-ef - scratch < {100 * GATE:g} pp): {common.points(gained)}, {word}.",
    )
