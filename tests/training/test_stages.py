"""Stages: what they make of a ticket, that nothing is done twice, that what was killed goes on, and what is refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import startsparse as ss
from startsparse.cli.main import main
from startsparse.tickets.ticket import Ticket
from startsparse.training import loop, runs, stage_runs, stages
from startsparse.training.files import load_tree
from startsparse.training.folder import FolderError, RunFolder
from startsparse.training.recipe import RecipeError

BASE = {
    "data": {"name": "digits", "batch_size": 32},
    "model": {"name": "mlp", "widths": [16, 12]},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "train": {"steps": 12, "log_every": 4, "checkpoint_every": 3},
}
LOTTERY = [
    {"stage": "train"},
    {"stage": "prune", "density": 0.3},
    {"stage": "rewind", "step": 4},
    {"stage": "train"},
]


def described(tmp_path, listed, **more):
    return stages.parse(BASE | more | {"out": str(tmp_path), "stages": listed})


def run(tmp_path, listed, **more):
    found = described(tmp_path, listed, **more)
    return found, stage_runs.run(found, progress=False)


def ticket_of(found, index) -> Ticket:
    state = load_tree(found.output(found.stages[index]) / stage_runs.OUTPUT)
    return Ticket.of(state["ticket"])


@pytest.fixture
def trained(monkeypatch):
    """How many optimizer steps are made."""
    made = []
    real = loop.steps

    def steps(job):
        for ended in real(job):
            made.append(job.position.step)
            yield ended

    monkeypatch.setattr(loop, "steps", steps)
    return made


def test_each_stage_makes_of_the_ticket_what_it_says(tmp_path):
    found, result = run(tmp_path, LOTTERY)
    first, pruned, rewound, last = (ticket_of(found, index) for index in range(4))
    total = 64 * 16 + 16 * 12 + 12 * 10
    assert (first.num_active, pruned.num_active, last.num_active) == (
        total,
        round(0.3 * total),
        round(0.3 * total),
    )
    kept = load_tree(found.output(found.stages[0]) / "step-4")
    assert all(torch.equal(rewound.weights[name], kept[name]) for name in kept)
    assert all(torch.equal(pruned.weights[name], first.weights[name]) for name in kept)
    magnitudes = torch.cat([first.weights[n].abs()[m] for n, m in pruned.masks.items()])
    gone = torch.cat([first.weights[n].abs()[~m] for n, m in pruned.masks.items()])
    assert magnitudes.min() >= gone.max()
    assert all(not bool(last.weights[n][~m].any()) for n, m in last.masks.items())
    assert result["costs"]["dense_samples"] == 12 * 32 and result["costs"]["sparse_samples"] == 8 * 32
    assert result["costs"]["flops"] == 32 * 6 * (12 * total + 8 * round(0.3 * total))
    assert 0 < result["test_accuracy"] < 1 and result["live_weights"] == round(0.3 * total)


def test_the_same_as_the_iterator(tmp_path):
    method = {"name": "imp", "density": 0.2, "levels": 2, "rewind_step": 3}
    found, result = run(
        tmp_path, [{"stage": "lottery", "method": method}], source={"name": "random", "density": 0.6}
    )
    assert [s.kind for s in found.stages] == ["train", "prune", "rewind", "train", "prune", "rewind", "train"]
    from startsparse.training import build

    recipe = found.stages[0].recipe
    bench = build.bench_of(recipe)
    model = bench.job.model
    source = ss.RandomSource(0.6, seed=0)
    levels = ss.lottery(model, ss.IMP(0.2, levels=2, rewind_step=3), source=source)
    for level in levels:
        again = build.bench_of(recipe)
        job = loop.Job(
            level.model,
            build.optimizer_of(recipe, level.model),
            again.job.rate,
            again.dataset,
            again.job.batches,
            again.job.settings,
        )
        job.rate.optimizer, job.position = job.optimizer, loop.Position(level.start_step, 0, level.start_step)
        for _ in loop.steps(job):
            pass
    final = ticket_of(found, -1)
    assert all(torch.equal(final.masks[n], m) for n, m in levels.ticket.masks.items())
    state = model.state_dict()
    assert all(torch.equal(final.weights[n], state[n]) for n in final.weights)
    assert result["costs"]["dense_samples"] == 0


def test_what_is_done_is_not_done_again_and_beginnings_are_shared(tmp_path, trained):
    _, first = run(tmp_path, LOTTERY)
    assert len(trained) == 12 + 8
    _, again = run(tmp_path, LOTTERY)
    assert len(trained) == 20 and again == first
    found, _ = run(tmp_path, [*LOTTERY[:3], {"stage": "branch", "kind": "reinit"}, LOTTERY[3]])
    assert len(trained) == 20 + 12, "only what follows the branch is new"
    assert found.stages[-1].first == 0
    _ = run(tmp_path, [LOTTERY[0], {"stage": "prune", "density": 0.2}, *LOTTERY[2:]])
    assert len(trained) == 32 + 8
    _ = run(tmp_path, LOTTERY, seed=1)
    assert len(trained) == 40 + 20, "another seed is another run"


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 5, 6, 7])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, at):
    listed = [
        {
            "stage": "transform",
            "method": {"name": "rst", "density": 0.2, "ramp_steps": 5, "stabilise_steps": 3, "bound": 30.0},
        },
        {"stage": "fine-tune", "optimizer": {"name": "adamw", "lr": 0.01}},
    ]
    whole, result = run(tmp_path / "whole", listed)
    real, calls = runs.checkpoint.save, []

    def save(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == at:
            raise Killed

    monkeypatch.setattr(runs.checkpoint, "save", save)
    with pytest.raises(Killed):
        run(tmp_path / "killed", listed)
    monkeypatch.setattr(runs.checkpoint, "save", real)
    killed, again = run(tmp_path / "killed", listed)
    for index in range(2):
        a, b = ticket_of(whole, index), ticket_of(killed, index)
        assert all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
        assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)
    timed = {"environment", "costs"}
    assert {k: v for k, v in result.items() if k not in timed} == {
        k: v for k, v in again.items() if k not in timed
    }


def test_a_search_leaves_weights_as_they_are(tmp_path):
    listed = [
        {"stage": "train"},
        {"stage": "search", "method": {"name": "jackpot", "density": 0.3}, "train": {"steps": 6}},
        {"stage": "fine-tune", "train": {"steps": 3}},
    ]
    found, _ = run(tmp_path, listed)
    before, searched, after = (ticket_of(found, index) for index in range(3))
    for name, mask in searched.masks.items():
        assert torch.equal(searched.weights[name][mask], before.weights[name][mask])
    assert searched.num_active < before.num_active
    assert all(torch.equal(after.masks[n], m) for n, m in searched.masks.items())
    assert not all(torch.equal(after.weights[n], w) for n, w in searched.weights.items())


def test_sparse_execution_of_the_sparse_stages(tmp_path):
    found, _ = run(tmp_path, [*LOTTERY[:3], {"stage": "train", "train": {"execution": "sparse"}}])
    masked, _ = run(tmp_path, LOTTERY)
    a, b = ticket_of(found, -1), ticket_of(masked, -1)
    assert found.stages[0].address == masked.stages[0].address
    assert all(torch.allclose(a.weights[n], b.weights[n], atol=1e-5) for n in a.weights)


def test_another_recipe_in_the_folder_is_named_and_nothing_overwritten(tmp_path):
    found, _ = run(tmp_path, LOTTERY)
    file = found.folder / "stages.json"
    file.write_text(file.read_text().replace('"density": 0.3', '"density": 0.25'))
    before = file.read_text()
    with pytest.raises(FolderError, match=r"options\.density: 0\.25 in the folder, 0\.3 now"):
        run(tmp_path, LOTTERY)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("listed", "more", "says"),
    [
        ([], {}, "stages: a list of stages was expected"),
        ([{"stage": "trian"}], {}, r"stages\[0\]\.stage: unknown stage 'trian'.*did you mean 'train'"),
        ([{"train": {}}], {}, r"stages\[0\]\.stage: missing"),
        ([{"stage": "train", "densty": 1}], {}, r"stages\[0\]\.densty: train has no such key"),
        ([{"stage": "prune"}], {}, r"stages\[0\]\.density: prune needs it"),
        ([{"stage": "prune", "density": 2}], {}, r"stages\[0\]\.density: .*must be in \(0, 1\]"),
        ([{"stage": "rewind", "step": -1}], {}, r"stages\[0\]\.step: rewind goes to an optimizer step"),
        ([{"stage": "branch", "kind": "reset"}], {}, r"stages\[0\]\.kind: unknown branch 'reset'"),
        (
            [{"stage": "prune", "density": 0.1}, {"stage": "prune", "density": 0.5}, {"stage": "train"}],
            {},
            r"stages: prune at density 0\.5, but an earlier one leaves 0\.1",
        ),
        (
            [
                {"stage": "prune", "density": 0.1},
                {"stage": "train", "method": {"name": "rigl", "density": 0.2}},
                {"stage": "prune", "density": 0.15},
                {"stage": "train"},
            ],
            {},
            r"(?s)train at density 0\.2, but an earlier one leaves 0\.1.*prune at density 0\.15, but",
        ),
        ([{"stage": "transform"}], {}, r"stages\[0\]\.method: transform needs one of"),
        (
            [{"stage": "search", "method": {"name": "rigl", "density": 0.1}}],
            {},
            "rigl is a attach method, search takes",
        ),
        ([{"stage": "train", "method": {"name": "rigl", "density": 3}}], {}, r"stages\[0\]\.method\.density"),
        (
            [{"stage": "train"}, {"stage": "prune", "density": 0.5}],
            {},
            "the last one must train, it is 'prune'",
        ),
        (
            [{"stage": "train"}, {"stage": "rewind", "step": 99}, {"stage": "train"}],
            {},
            "to step 99, but the first one trains 12 steps",
        ),
        ([{"stage": "rewind", "step": 1}, {"stage": "train"}], {}, "no stage has trained yet"),
        ([{"stage": "train"}], {"method": "rigl"}, "each stage names its own"),
        ([{"stage": "train"}], {"power": 2}, "stages have none"),
        (
            [{"stage": "lottery", "method": {"name": "imp", "density": 0.05, "prune_fraction": 0.2}}],
            {},
            "jump over density",
        ),
        ([{"stage": "lottery", "method": {"name": "set", "density": 0.05}}], {}, "lottery needs one of"),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, listed, more, says):
    with pytest.raises(RecipeError, match=says):
        described(tmp_path, listed, **more)
    assert not list(tmp_path.iterdir())


def test_pruning_to_more_than_lives_is_named(tmp_path):
    listed = [{"stage": "train"}, {"stage": "prune", "density": 0.5}, {"stage": "train"}]
    with pytest.raises(
        ValueError, match=r"prune to density 0\.5: 668 weights are asked for, but only 401 live"
    ):
        run(tmp_path, listed, source={"name": "random", "density": 0.3})


def test_the_command_runs_stages(tmp_path, capsys):
    file = tmp_path / "lottery.yaml"
    file.write_text(json.dumps(BASE | {"stages": LOTTERY}))
    arguments = ["train", str(file), f"out={tmp_path / 'runs'}", "--quiet"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "prune" in capsys.readouterr().out and not (tmp_path / "runs").exists()
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["live_weights"] == 401 and (tmp_path / "runs" / printed["stages"][0] / "output").exists()


EARLY = {"name": "early-bird", "density": 0.3, "window": 2, "tolerance": 0.2}


def early(tmp_path, **method):
    """Four steps an epoch."""
    listed = [{"stage": "lottery", "method": EARLY | method, "train": {"epochs": 8, "checkpoint_every": 3}}]
    return run(tmp_path, listed, data={"name": "digits", "batch_size": 300})


def test_an_early_bird_stops_its_first_training_once_the_ticket_has_settled(tmp_path, trained):
    found, result = early(tmp_path)
    first = found.stages[0]
    ended = trained.index(1, 1)  # where the second training begins
    assert 3 * 4 <= ended < 8 * 4 and ended % 4 == 0
    tickets = sorted(found.output(first).glob("ticket-of-epoch-*"))
    assert len(tickets) == ended // 4
    assert len(trained) - ended == 8 * 4, "the ticket has the whole schedule"
    assert result["costs"]["dense_samples"] == ended * 300 and result["costs"]["sparse_samples"] == 32 * 300
    drawn = [set(ss.masks.unpack(load_tree(f)["fc1.weight"], (16, 64)).flatten().nonzero().flatten().tolist())
             for f in tickets[-3:]]  # fmt: skip
    assert all(len(drawn[-1] & before) >= 0.7 * len(drawn[-1]) for before in drawn[:2])
    _, never = early(tmp_path, tolerance=0.0)
    assert never["costs"]["dense_samples"] == 32 * 300
    with pytest.raises(RecipeError, match="only weights are looked at"):
        early(tmp_path, criterion="obd")


@pytest.mark.parametrize("at", [1, 3, 4, 6, 8])
def test_a_killed_early_bird_stops_where_it_would_have(tmp_path, monkeypatch, at):
    whole, result = early(tmp_path / "whole")
    real, calls = runs.checkpoint.save, []

    def save(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == at:
            raise Killed

    monkeypatch.setattr(runs.checkpoint, "save", save)
    with pytest.raises(Killed):
        early(tmp_path / "killed")
    monkeypatch.setattr(runs.checkpoint, "save", real)
    killed, again = early(tmp_path / "killed")
    assert again["costs"]["dense_samples"] == result["costs"]["dense_samples"]
    a, b = ticket_of(whole, -1), ticket_of(killed, -1)
    assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)


def test_optimal_brain_damage_between_stages(tmp_path):
    listed = [
        {"stage": "train"},
        {"stage": "prune", "density": 0.3, "criterion": "obd"},
        {"stage": "fine-tune"},
    ]
    found, _ = run(tmp_path, listed)
    by_size, _ = run(tmp_path, [listed[0], {"stage": "prune", "density": 0.3}, listed[2]])
    trained, pruned = ticket_of(found, 0), ticket_of(found, 1)
    assert pruned.num_active == ticket_of(by_size, 1).num_active == round(0.3 * trained.num_weights)
    assert any(not torch.equal(m, ticket_of(by_size, 1).masks[n]) for n, m in pruned.masks.items())

    from startsparse.training import build

    job = build.bench_of(found.stages[0].recipe).job
    trained.put(job.model)
    squares = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in trained.masks.items()}
    for index in range(16):
        inputs, labels = job.batches.get(0, index)
        job.model.zero_grad()
        torch.nn.functional.cross_entropy(job.model(job.data.normalise(inputs)), labels).backward()
        for name in squares:
            squares[name] += job.model.get_parameter(name).grad ** 2 / 16
    scores = {name: trained.weights[name] ** 2 * square / 2 for name, square in squares.items()}
    kept = torch.cat([scores[n][m] for n, m in pruned.masks.items()])
    gone = torch.cat([scores[n][~m] for n, m in pruned.masks.items()])
    assert kept.min() >= gone.max() * (1 - 1e-4)


def test_runs_that_begin_alike_wait_for_each_other(tmp_path, trained):
    """Another run is at the first stage: this one waits, takes what it made, and does only the rest."""
    here, there = described(tmp_path / "here", LOTTERY), described(tmp_path / "there", LOTTERY)
    _ = stage_runs.run(there, progress=False)
    trained.clear()
    made = there.output(there.stages[0])
    wanted = here.output(here.stages[0])
    shutil.copytree(made, wanted)
    (wanted / stage_runs.OUTPUT).rename(tmp_path / "not yet")
    with ThreadPoolExecutor(1) as pool:
        with RunFolder(wanted).lock():
            running = pool.submit(stage_runs.run, here, progress=False)
            with pytest.raises(TimeoutError):
                _ = running.result(timeout=0.5)
            assert not trained
            (tmp_path / "not yet").rename(wanted / stage_runs.OUTPUT)
        result = running.result(timeout=60)
    assert result["density"] == pytest.approx(0.3, abs=1e-3)
    assert len(trained) == 12 - 4
