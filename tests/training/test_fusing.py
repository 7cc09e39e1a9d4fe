"""Models that are not of this library: under sparse execution their layers run together where tracing finds that they can."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from startsparse.execution.traces import trace_of
from startsparse.experiments import page
from startsparse.training import build, models, recipe, runs, stage_runs, stages

RAW = {
    "name": "theirs",
    "data": {"name": "digits", "batch_size": 64},
    "model": "theirs",
    "method": {"name": "rigl", "density": 0.3, "update_interval": 4},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "train": {"steps": 12, "log_every": 4, "execution": "sparse"},
}


class Theirs(nn.Module):
    """Convolutions and norms that a ``forward`` of somebody else calls one by one."""

    def __init__(self, classes: int, draws: bool):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)
        self.draws = draws

    def forward(self, x):
        y = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        if self.draws:
            y = y + torch.rand(1)
        return self.head(y.mean((2, 3)))


def theirs(input_shape=(1, 8, 8), classes: int = 10, draws: bool = False) -> nn.Module:
    return Theirs(classes, draws)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(models.TABLE, "theirs", theirs)


def make(tmp_path, **changes):
    return recipe.parse(RAW | {"out": str(tmp_path / "runs")} | changes)


def test_layers_run_together_and_the_page_says_which(tmp_path):
    chosen = make(tmp_path)
    bench = build.bench_of(chosen)
    assert bench.fusion.together == (("conv1", "norm1", "conv2", "norm2"),)
    _ = runs.run(chosen, progress=False)
    told = (chosen.folder / "fused.txt").read_text()
    assert "one operation  conv1, norm1, conv2, norm2" in told and "by itself      head" in told
    assert "Layers that run together" in page.write(chosen.folder).read_text()


def test_what_cannot_be_traced_is_trained_layer_by_layer(tmp_path):
    chosen = make(tmp_path, model={"name": "theirs", "draws": True})
    bench = build.bench_of(chosen)
    assert trace_of(bench.job.model) is None
    result = runs.run(chosen, progress=False)
    assert result["steps"] == 12
    assert "not traced     the model: it uses a tensor" in (chosen.folder / "fused.txt").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"train": RAW["train"] | {"execution": "masked"}},
        {"train": RAW["train"] | {"amp": "bf16"}},
        {"model": "small-cnn"},
        {"method": None, "train": {"steps": 12}},
    ],
    ids=["masked", "autocast", "ours", "dense"],
)
def test_where_there_is_nothing_to_fuse_there_is_no_word_about_it(tmp_path, changes):
    assert build.bench_of(make(tmp_path, **changes)).fusion is None


def test_stopped_and_resumed_is_never_stopped(tmp_path, monkeypatch):
    whole, cut = (
        make(tmp_path / "whole"),
        make(tmp_path / "cut", train=RAW["train"] | {"checkpoint_every": 3}),
    )
    _ = runs.run(whole, progress=False)
    real = runs.loop.steps

    def killed(job):
        for step, ended in enumerate(real(job)):
            yield ended
            if step == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(runs.loop, "steps", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.run(cut, progress=False)
    monkeypatch.setattr(runs.loop, "steps", real)
    _ = runs.run(cut, progress=False)
    for name in ("checkpoint", "net.sparse.safetensors", "result.json", "fused.txt"):
        assert (whole.folder / name).read_bytes() == (cut.folder / name).read_bytes(), name


def test_stages_do_so_too(tmp_path):
    raw = {key: value for key, value in RAW.items() if key not in ("method", "train")}
    listed = [
        {"stage": "train", "train": {"steps": 4, "execution": "masked"}},
        {"stage": "prune", "density": 0.3},
        {"stage": "train", "train": {"steps": 4}},
    ]
    found = stages.parse(
        raw | {"out": str(tmp_path / "runs"), "train": {"steps": 4, "execution": "sparse"}, "stages": listed}
    )
    _ = stage_runs.run(found, progress=False)
    there = [(found.output(stage) / "fused.txt").exists() for stage in found.stages]
    assert there == [False, False, True]
