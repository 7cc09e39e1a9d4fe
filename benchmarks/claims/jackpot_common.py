"""What the claims about jackpots share: nets pre-trained once a seed and kept, searches, and how masks are judged.

The net is a ResNet with one block a stage and a stem of stride 2 (the eight-layer one of He et al.'s CIFAR family), on
20,000 training images with random mirrors. A pre-trained net is kept in the user's cache under a digest of everything
that made it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import startsparse as ss
from startsparse.training import data as data_sets
from startsparse.training import optim, seeds
from startsparse.training.data.cache import cache_folder
from startsparse.training.files import DamagedFile, load_tree, save_tree
from startsparse.training.models.resnet import BasicBlock

TRAIN, BATCH, PRETRAIN_EPOCHS, SEARCH_EPOCHS = 20_000, 128, 8, 5
RECALIBRATION = 60  # batches over which batch norm is measured anew
FLIP = data_sets.AUGMENTS["flip"]
WIDE, NARROW = 16, 8
Figures = dict[str, Any]


class SmallResNet(nn.Module):
    """A stem of stride 2, one block a stage, ``fc``; ``width`` channels in the first stage."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block1 = BasicBlock(width, width, 1, "A")
        self.block2 = BasicBlock(width, 2 * width, 2, "A")
        self.block3 = BasicBlock(2 * width, 4 * width, 2, "A")
        self.fc = nn.Linear(4 * width, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 10)."""
        x = self.block1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.block3(self.block2(x)).mean((2, 3)))


@functools.lru_cache(maxsize=1)
def load(name: str) -> common.Data:
    """The data, the same examples for all runs."""
    return common.load(name, train=TRAIN)


def fresh(name: str, width: int, seed: int) -> SmallResNet:
    """A net with random weights, a function of the seed."""
    seeds.seed_all(seeds.derive(seed, "model"))
    return SmallResNet(width, load(name).input_shape[0])


def pretrained(name: str, width: int, seed: int) -> SmallResNet:
    """The dense net of a seed, trained, or as an earlier run left it in the cache."""
    model = fresh(name, width, seed)
    recipe = {
        "net": "stride 2, one block a stage",
        "data": name,
        "width": width,
        "seed": seed,
        "train": TRAIN,
        "batch": BATCH,
        "epochs": PRETRAIN_EPOCHS,
        "lr": 0.1,
        "augment": "flip",
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache_folder() / "jackpots" / f"{name}-{width}-{seed}-{digest}.state"
    if kept.is_file():
        try:
            model.load_state_dict(load_tree(kept))
            return model
        except (DamagedFile, RuntimeError) as error:
            warnings.warn(f"training again: {error}", stacklevel=2)
    options = {"momentum": 0.9, "weight_decay": 5e-4}
    common.train(
        model,
        load(name),
        epochs=PRETRAIN_EPOCHS,
        batch=BATCH,
        lr=0.1,
        options=options,
        augment="flip",
        seed=seed,
    )
    save_tree(kept, dict(model.state_dict()))
    return model


def steps(epochs: int) -> int:
    """Optimizer steps of so many epochs."""
    return epochs * (TRAIN // BATCH)


def search(
    model: nn.Module,
    method: Any,
    name: str,
    *,
    epochs: int = SEARCH_EPOCHS,
    seed: int = 0,
    each_step: Callable[[ss.Search, float], None] | None = None,
    **arguments: Any,
) -> ss.Search:
    """A whole search with SGD and a cosine schedule; exact counts are asserted at every step.

    Args:
        model: with its weights.
        method: of the search.
        name: of the data.
        epochs: its length.
        seed: of the order of the examples and of the augmentation.
        each_step: called as (search, loss) after every step.
        arguments: of ``ss.search``.

    Returns:
        The search, not finished.
    """
    data, total = load(name), steps(epochs)
    found = ss.search(model, method, total_steps=total, **arguments)
    optimizer = torch.optim.SGD(found.scores(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), total)
    _ = model.train()
    while found.step < total:
        epoch = found.step // (TRAIN // BATCH)
        for inputs, labels in common.batches(data, BATCH, seeds.derive(seed, "search"), epoch, FLIP):
            rate.set(found.step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            assert found.num_active == found.target_count
            if each_step is not None:
                each_step(found, loss.item())
    return found


def recalibration(name: str) -> list[Tensor]:
    """Training images, as they are, over which batch norm is measured anew."""
    return list(load(name).x_train[: RECALIBRATION * BATCH].split(BATCH))


def judged(model: nn.Module, name: str) -> Figures:
    """Accuracy on the test part as the net is, and once batch norm is measured anew (which changes the net)."""
    data = load(name)
    raw = common.accuracy(model, data.x_test, data.y_test)
    _ = ss.reestimate_batch_norm(model, recalibration(name))
    return {"raw": raw, "accuracy": common.accuracy(model, data.x_test, data.y_test)}


def finished(found: ss.Search, name: str) -> Figures:
    """Figures of a search that is over, which is ended: frozen weights are checked bit by bit."""
    report = found.report()
    before = {key: value.clone() for key, value in found.weights.items()}
    masks = found.finish()
    parameters = {n: p.detach() for n, p in found.model.named_parameters()}
    moved = max(
        float((parameters[n][mask] - before[n][mask]).abs().max()) if mask.any() else 0.0
        for n, mask in masks.items()
    )
    return judged(found.model, name) | {
        "density": report.density,
        "density_with_classifier": report.weights_density,
        "weight_change": moved,
        "swaps": report.num_swaps,
    }


def one_shot(model: nn.Module, method: Any, name: str) -> Figures:
    """A first mask without any search, judged; the model gets its weights and statistics back."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = ss.search(model, method, total_steps=1)
    figures = judged(model, name)
    _ = found.restore()
    model.load_state_dict(state)
    return figures


def first_masks(model: nn.Module, init: str, density: float, name: str, seed: int = 0) -> dict[str, Tensor]:
    """The mask of a criterion at the budgets of global magnitude; the model is left as it was."""
    data = load(name)
    batches = list(zip(data.x_train[:2048].split(256), data.y_train[:2048].split(256), strict=True))
    needs = {"data": batches, "loss_fn": F.cross_entropy} if init in ("taylor", "snip", "grasp") else {}
    method = ss.JackpotReleased(density, init=init, seed=seed)
    found = ss.search(model, method, **needs)
    masks = {n: mask.clone() for n, mask in found.masks.items()}
    _ = found.restore()
    return masks


def verdict(says: str, word: str, figures: str) -> str:
    """A line of a judgement."""
    return f"- {says}: {word}, {figures}"


UNTRAINED = ("random weights", "signed constants")


def untrained(
    model: nn.Module, method: Any, density: float, name: str, width: int, seed: int
) -> dict[str, Figures]:
    """The same search over weights that were never trained, at the budgets of the pre-trained ones (of ``model``)."""
    budgets = first_masks(model, "magnitude", density, name)
    shares = {n: float(mask.float().mean()) for n, mask in budgets.items()}
    cases = {}
    for weights in UNTRAINED:
        net = fresh(name, width, seed)
        if weights == "signed constants":
            with torch.no_grad():
                for parameter in net.parameters():
                    if parameter.dim() > 1:
                        _ = parameter.copy_(parameter.sign() * parameter.std())
        chosen = method(density, distribution=ss.Scaled(shares), init="random", seed=seed)
        found = search(net, chosen, name, seed=seed)
        cases[f"{weights}, {100 - 100 * density:g} %"] = finished(found, name)
    return cases


# -- judging -------------------------------------------------------------------------------------------------------


def tables(cases: list[dict[str, Any]], baseline: str) -> list[str]:
    """Accuracies with batch norm measured anew, and as it is, of the whole cases."""
    have = common.values(cases, "case", "accuracy")
    whole = [case for case in cases if set(have[case["params"]["case"]]) == set(have[baseline])]
    return [
        "Test accuracy, batch norm measured anew:",
        common.paired_table(whole, "case", "accuracy", baseline),
        "The same nets with batch norm as it is:",
        common.paired_table(whole, "case", "raw", baseline),
    ]


def existence(cases: list[dict[str, Any]], others: list[dict[str, Any]] | None = None) -> list[str]:
    """Whether jackpots exist: against magnitude, against dense, and whether no weight changed."""
    found = common.difference(cases, "case", "accuracy", "jackpot, 90 %", "magnitude, 90 %")
    word = (
        "PASS" if found.mean >= 0.05 and found.low > 0.02 else "FAIL" if found.high < 0.05 else "CANNOT TELL"
    )
    says = "at 90 % the search adds 5 points or more to magnitude with batch norm anew"
    lines = [verdict(says, word if found.seeds >= 5 else "CANNOT TELL", common.points(found))]
    for at, bar in (("80 %", -0.01), ("90 %", -0.03)):
        found = common.difference(cases, "case", "accuracy", f"jackpot, {at}", "dense")
        says = f"a jackpot of {at} is within {-100 * bar:g} points of dense"
        lines.append(verdict(says, common.at_least(found, bar), common.points(found)))
    searched = [c["result"] for c in [*cases, *(others or [])] if "weight_change" in c["result"]]
    worst = max(result["weight_change"] for result in searched)
    lines.append(verdict("no weight changed", "PASS" if worst == 0 else "FAIL", f"largest change {worst:g}"))
    both = sorted({(r["density"], r["density_with_classifier"]) for r in searched})
    text = ", ".join(f"{100 * a:.2f} % ({100 * b:.2f} % with the classifier)" for a, b in both)
    return [*lines, f"- Density of the searched layers, and of all weights: {text}"]


def margin(cases: list[dict[str, Any]], other: str, bar: float = 0.05) -> str:
    """Whether the jackpot beats another case by a bar in every seed."""
    accuracies = common.values(cases, "case", "accuracy")
    theirs = accuracies.get(other, {})
    margins = [accuracies["jackpot, 90 %"][s] - value for s, value in theirs.items()] or [0.0]
    word = "CANNOT TELL" if len(theirs) < 5 else "PASS" if min(margins) >= bar else "FAIL"
    text = f"{100 * min(margins):+.1f} to {100 * max(margins):+.1f} points over {len(theirs)} seeds"
    says = f"pre-trained weights beat {other.split(',')[0]} by {100 * bar:g} points in every seed"
    return verdict(says, word, text)
