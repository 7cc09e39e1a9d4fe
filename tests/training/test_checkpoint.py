import errno

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.choice import EXECUTIONS
from startsparse.training import checkpoint, files, loop, optim, seeds
from startsparse.training.data import AUGMENTS, Batches

from ..contract.settings import given, quick


def make(tiny, method="rigl", steps=12, width=32, execution="masked"):
    """A job with everything random in it: dropout, augmentation, a topology that changes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, 10),
    )
    optimizer = optim.make("adamw", model.parameters(), lr=0.01)
    batches = Batches(tiny.train, 16, 0, AUGMENTS["crop-flip"])
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), steps)
    job = loop.Job(model, optimizer, rate, tiny, batches, loop.Settings(steps, label_smoothing=0.1))
    sparse = None
    if method is not None:
        made = ss.methods.make(method, density=0.2, **quick(method))
        sparse = ss.attach(
            model,
            optimizer,
            made,
            source=ss.RandomSource(0.5),
            total_steps=steps,
            execution=execution,
            **given(made, torch.randn(16, 64)),
        )
    seeds.seed_all(1)
    return job, sparse


def advance(job, count):
    for _, _ in zip(range(count), loop.steps(job), strict=False):
        pass


def flat(job, sparse):
    state = {"job": job.state_dict(), "sparse": None if sparse is None else sparse.state_dict()}
    return state | {"random": seeds.capture()}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


ABLE = [
    (method, execution)
    for method in [None, *ss.methods.names("attach")]
    for execution in EXECUTIONS
    if execution != "sparse" or method is None or not ss.methods.get(method).masked_only
]


@pytest.mark.parametrize(("method", "execution"), ABLE)
@pytest.mark.parametrize("stop", [1, 5])
def test_stopped_is_never_stopped(tiny, tmp_path, method, stop, execution):
    job, sparse = make(tiny, method, execution=execution)
    advance(job, stop)
    checkpoint.save(tmp_path / "checkpoint", job, sparse, 77)
    for _ in loop.steps(job):
        pass
    whole = flat(job, sparse)
    again, again_sparse = make(tiny, method, execution=execution)
    advance(again, 3)  # whatever it was at before
    assert checkpoint.load(tmp_path / "checkpoint", again, again_sparse) == 77
    assert again.position.step == stop
    for _ in loop.steps(again):
        pass
    assert same(whole, flat(again, again_sparse))


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_damage_names_file_and_remedy(tiny, tmp_path, harm):
    path, (job, sparse) = tmp_path / "checkpoint", make(tiny)
    checkpoint.save(path, job, sparse, 0)
    content = bytearray(path.read_bytes())
    content = content[:-5] if harm == "truncated" else content[:-5] + b"12345"
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=f"{path} is damaged.*Remove {path}"):
        checkpoint.load(path, job, sparse)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [({}, {"width": 16}), ({"method": None}, {}), ({}, {"method": "set"}), ({}, {"steps": 13})],
)
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, saved, loaded):
    checkpoint.save(tmp_path / "checkpoint", *make(tiny, **saved), 0)
    with pytest.raises(checkpoint.CheckpointError, match=r"Remove .* to start this run from its beginning"):
        checkpoint.load(tmp_path / "checkpoint", *make(tiny, **loaded))


def test_a_later_format_is_refused(tiny, tmp_path):
    files.save_tree(tmp_path / "checkpoint", {"format": 99})
    with pytest.raises(checkpoint.CheckpointError, match="has format 99"):
        checkpoint.load(tmp_path / "checkpoint", *make(tiny))


def test_a_full_disk_leaves_the_old_checkpoint(tiny, tmp_path, monkeypatch):
    path, (job, sparse) = tmp_path / "checkpoint", make(tiny)
    checkpoint.save(path, job, sparse, 1)
    before = path.read_bytes()
    advance(job, 2)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk is full"):
        checkpoint.save(path, job, sparse, 2)
    assert path.read_bytes() == before
    job.model(torch.zeros(2, 1, 8, 8))  # unharmed
