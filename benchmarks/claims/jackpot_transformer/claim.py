"""2:4 and 50 % sparsity of a pre-trained character GPT: a searched mask against one-shot masks, no weight changed.

There is no batch norm to measure anew. All masks cover the same weights (embeddings and the head are left out); one-shot
masks are chosen in each row or group, as Wanda does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from typing import Any

import common
import jackpot_common as jackpots
import torch

import startsparse as ss
from startsparse.layouts import parse
from startsparse.training import data, loop, models, optim, seeds
from startsparse.training.data import Options
from startsparse.training.data.cache import cache_folder
from startsparse.training.files import DamagedFile, load_tree, save_tree

TITLE = "A searched 2:4 mask of a frozen character GPT loses less than magnitude's and Wanda's"
SOURCE = (
    "Fang et al., MaskLLM, NeurIPS 2024, abstract (learned 2:4 masks over frozen weights), by another search"
)

SEEDS = (0, 1, 2, 3, 4)
STEPS, SEARCH_STEPS, BATCH = 700, 300, 16
RATE = 3.0  # of 0.1 and 3.0, by the validation loss on a net of a seed that is not among these
ONE_SHOT = ("magnitude", "wanda")
PATTERNS = {"2:4": "2:4", "50 %": "row"}
MODEL = {"name": "gpt", "width": 64, "depth": 3, "heads": 4}


@functools.lru_cache(maxsize=1)
def dataset() -> data.Dataset:
    """Windows of 64 characters of tiny Shakespeare, a tenth held out."""
    return data.load("tinyshakespeare", validation=0.1, seed=0, options=Options(context=64))


def runs() -> list[dict[str, Any]]:
    """One a pre-trained net."""
    return [{"seed": seed} for seed in SEEDS]


def pretrained(seed: int) -> Any:
    """The dense net of a seed, trained or from the cache."""
    seeds.seed_all(seeds.derive(seed, "model"))
    model = models.make(**MODEL, input_shape=dataset().input_shape, classes=dataset().classes)
    recipe = MODEL | {"seed": seed, "steps": STEPS, "batch": BATCH, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache_folder() / "jackpots" / f"gpt-{seed}-{digest}.state"
    if kept.is_file():
        try:
            _ = model.load_state_dict(load_tree(kept))
            return model
        except (DamagedFile, RuntimeError) as error:
            warnings.warn(f"training again: {error}", stacklevel=2)
    optimizer = optim.make("adamw", model.parameters(), lr=5e-3, weight_decay=0.01)
    _train(model, optimizer, seed, STEPS, 0.1)
    save_tree(kept, dict(model.state_dict()))
    return model


def _train(model: Any, optimizer: Any, seed: int, steps: int, warmup: float) -> None:
    rate = optim.LearningRate(optimizer, optim.schedule("cosine", warmup=warmup), steps)
    batches = data.Batches(dataset().train, BATCH, seed, None)
    for _ in loop.steps(
        loop.Job(model, optimizer, rate, dataset(), batches, loop.Settings(steps, clip_norm=1.0))
    ):
        pass


def run(seed: int) -> dict[str, Any]:
    """Case -> losses of the validation part, the test part and some of the training part, nats a character."""
    cases = {"dense": _judged(pretrained(seed))}
    train = dataset().train
    calibration = [dataset().normalise(train.inputs[i : i + 64]) for i in range(0, 512, 64)]
    for name, scope in PATTERNS.items():
        for init in (*ONE_SHOT, "search"):
            model = pretrained(seed)
            needs = {"data": calibration} if init == "wanda" else {}
            start = "magnitude" if init == "search" else init
            method = ss.JackpotReleased(0.5, distribution="uniform", scope=scope, init=start)
            if init == "search":
                method = ss.Jackpot(0.5, distribution="uniform", scope=scope)
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            search = ss.search(model, method, total_steps=SEARCH_STEPS, **needs)
            if init == "search":
                optimizer = torch.optim.SGD(search.scores(), lr=RATE, momentum=0.9)
                _train(model, optimizer, 100 + seed, SEARCH_STEPS, 0.0)
                masks = search.finish()
                assert all(torch.equal(search.weights[n], before[n]) for n in masks)
            else:
                masks = {n: mask.clone() for n, mask in search.masks.items()}
            if name == "2:4":
                assert all(parse("2:4").legal(mask) for mask in masks.values())
            cases[f"{name}, {init}"] = _judged(model) | {
                "density": sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
            }
    return cases


def _judged(model: Any) -> dict[str, float]:
    train = dataset().train
    seen = data.Split(
        train.inputs[:1000], train.labels[:1000]
    )  # whether a search fails to fit, or to generalise
    parts = {"train": seen, "validation": dataset().validation, "test": dataset().test}
    return {f"{part}_loss": loop.evaluate(model, dataset(), split)["loss"] for part, split in parts.items()}


def judge(records: list[dict[str, Any]]) -> str:
    """A table of losses, then the thresholds."""
    cases = common.one_by_one(records)
    if not cases:
        return "No run is there: CANNOT TELL."
    parts = []
    for part in ("validation", "test", "train"):
        parts += [
            f"## {part.capitalize()} loss, nats a character",
            common.paired_table(cases, "case", f"{part}_loss", "dense"),
        ]
    losses, lines = common.values(cases, "case", "validation_loss"), []
    for name in PATTERNS:
        searched = losses[f"{name}, search"]
        best = {s: min(losses[f"{name}, {init}"][s] for init in ONE_SHOT) for s in searched}
        wins = sum(searched[s] < best[s] for s in searched)
        word = "CANNOT TELL" if len(searched) < 5 else "PASS" if wins == len(searched) else "FAIL"
        gain = sum(best[s] - searched[s] for s in searched) / max(len(searched), 1)
        text = f"in {wins} of {len(searched)} nets, by {gain:.3f} nats on average"
        lines.append(
            jackpots.verdict(f"{name}: the search ends below the better of magnitude and Wanda", word, text)
        )
    lines.append("- Every 2:4 mask was legal, no weight changed: PASS, asserted")
    return "\n\n".join([*parts, "## Thresholds", "\n".join(lines)])
