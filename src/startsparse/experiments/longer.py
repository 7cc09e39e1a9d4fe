"""Runs on equal budgets: those that have seen fewer samples train longer in the end, until all have seen as many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from startsparse.experiments import staged
from startsparse.experiments.budgets import plan_of
from startsparse.experiments.results import ResultsError, Run, read
from startsparse.training import reading, recipe, runs, stage_runs, stages
from startsparse.training.stage_chain import EXTENDED, Stages, steps_of

BUDGETS = ("fine-tune", "total")


def final_steps(run: Run) -> int:
    """Steps of the final training: of the last stage's schedule, or since the number of live weights is the final one."""
    if staged.is_staged(run.folder):
        return steps_of(chain_of(run).stages[-1])
    plan, method = plan_of(run)
    total = run.result["steps"]
    if method is None:
        return total
    last = total - 1
    while last >= 0 and method.target(last - 1, plan.num_weights, plan.num_start, total) == plan.num_final:
        last -= 1
    return total - 1 - last


def check_final(found: Mapping[str, Mapping[int, Run]]) -> int:
    """The steps of the final training, which is as long in all groups.

    Raises:
        ResultsError: it is not; the groups are named with theirs.
    """
    lengths = {label: {final_steps(run) for run in group.values()} for label, group in found.items()}
    if len(set().union(*lengths.values())) > 1:
        told = "; ".join(f"{label} {', '.join(map(str, sorted(of)))}" for label, of in lengths.items())
        raise ResultsError(
            f"budget: fine-tune compares runs whose final training is equally long, and its steps are: {told}. Give all "
            f"the same last stage, or take budget total"
        )
    return next(iter(lengths.values())).pop()


def to_equal_totals(found: Sequence[Run], say: Callable[[str], None] = lambda line: None) -> list[Run]:
    """The runs as they are where they have seen the most samples, else others like them that train longer in the end.

    The last stage, or a run of one stage as a whole, is made longer by whole steps and its schedule stretched over
    them. Such a run lies in the folder ``extended`` beside the first one; one that is done is not trained again.

    Args:
        found: finished runs.
        say: is told what is trained.

    Raises:
        ResultsError: a run that this version would describe otherwise.
    """
    most = max(run.samples for run in found)
    return [_longer(run, most, say) for run in found]


def _longer(run: Run, samples: int, say: Callable[[str], None]) -> Run:
    if staged.is_staged(run.folder):
        chain = chain_of(run)
        last = chain.stages[-1].recipe
        assert last is not None
        more = (samples - run.samples) // (last.data.batch_size * last.train.accumulate)
        if not more:
            return run
        chain = chain.longer(more)
        say(f"{run.folder}: {more} steps more in the last stage, in {chain.folder}")
        _ = stage_runs.run(chain, progress=False)
        return read(chain.folder)
    chosen = recipe.parse(reading.read_yaml(run.folder / "recipe.yaml"))
    more = (samples - run.samples) // (chosen.data.batch_size * chosen.train.accumulate)
    if not more:
        return run
    train = chosen.train.model_copy(update={"epochs": None, "steps": run.result["steps"] + more})
    place = {"train": train, "out": str(run.folder.parent / EXTENDED)}
    chosen = chosen.model_copy(update=place)
    say(f"{run.folder}: {more} steps more, in {chosen.folder}")
    _ = runs.run(chosen, progress=False)
    return read(chosen.folder)


def chain_of(run: Run) -> Stages:
    """The stages of a finished run, ready to be run where it lies.

    Raises:
        ResultsError: this version would address them otherwise.
    """
    told = staged.read_file(run.folder)
    place = run.folder.parent.parent if run.folder.parent.name == EXTENDED else run.folder.parent
    chain = stages.parse(told["described"] | {"out": str(place)})
    more = told.get("lengthened", 0)
    chain = chain.longer(more) if more else chain
    if [stage.address for stage in chain.stages] != [stage["address"] for stage in told["stages"]]:
        raise ResultsError(
            f"{run.folder} was made by another version, whose stages have other addresses: train it again"
        )
    return chain
