import pytest
import torch
import torch.nn.functional as F
from torch import nn

from startsparse.training import loop, optim
from startsparse.training.data import Batches


def make_job(tiny, steps=8, size=16, lr=0.1, model=None, **settings):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = optim.make("sgd", model.parameters(), lr=lr, momentum=0.9)
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), steps)
    return loop.Job(
        model, optimizer, rate, tiny, Batches(tiny.train, size, 0), loop.Settings(steps, **settings)
    )


def weights(job):
    return torch.cat([p.detach().flatten() for p in job.model.parameters()])


def test_it_is_the_loop_anybody_would_write(tiny):
    job = make_job(tiny)
    assert list(loop.steps(job)) == [False, False, False, True] * 2
    plain = make_job(tiny)
    for step in range(8):
        plain.rate.set(step)
        inputs, labels = plain.batches.get(step // 4, step % 4)
        plain.optimizer.zero_grad()
        F.cross_entropy(plain.model(tiny.normalise(inputs)), labels).backward()
        plain.optimizer.step()
    assert torch.equal(weights(job), weights(plain))
    assert vars(job.position) == {"step": 8, "epoch": 2, "batch": 0}


def test_accumulation_is_one_larger_batch(tiny):
    small = make_job(tiny, steps=4, size=8, accumulate=2)
    large = make_job(tiny, steps=4, size=16)
    assert list(loop.steps(small)) == list(loop.steps(large)) == [False, False, False, True]
    assert torch.allclose(weights(small), weights(large), atol=1e-6)
    assert loop.steps_per_epoch(small.batches, 2) == 4


def test_an_epoch_that_does_not_divide(tiny):
    job = make_job(tiny, steps=5, size=16, accumulate=3)
    assert list(loop.steps(job)) == [True] * 5
    with pytest.raises(ValueError, match="4 batches holds no step of 5"):
        make_job(tiny, accumulate=5)


def test_clipping_and_smoothing_change_the_step(tiny):
    free, clipped, smooth = (
        make_job(tiny),
        make_job(tiny, clip_norm=0.01),
        make_job(tiny, label_smoothing=0.2),
    )
    start = weights(free)
    for job in (free, clipped, smooth):
        next(loop.steps(job))
    assert (weights(clipped) - start).norm() == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert (weights(free) - start).norm() > 0.01
    assert not torch.equal(weights(free), weights(smooth))


def test_bf16_trains(tiny):
    job = make_job(tiny, amp="bf16")
    assert len(list(loop.steps(job))) == 8
    assert weights(job).dtype == torch.float32 and weights(job).isfinite().all()


class Overflows(nn.Module):
    """Its gradient is not finite on the chosen calls."""

    def __init__(self, calls):
        super().__init__()
        self.inner, self.calls, self.call = nn.Linear(64, 10), calls, 0

    def forward(self, x):
        factor = float("inf") if self.call in self.calls else 1.0
        self.call += 1
        return self.inner(x.flatten(1)).mul(factor if factor == 1.0 else torch.tensor(factor))


def test_a_skipped_step_uses_data_but_is_no_step(tiny):
    """fp16 on the CPU: the last batch of the first epoch overflows, and the epoch's end is still told."""
    job = make_job(tiny, steps=6, model=Overflows(calls={3}), amp="fp16")
    assert list(loop.steps(job)) == [False, False, False, True, False, False]
    assert vars(job.position) == {"step": 6, "epoch": 1, "batch": 3}
    assert weights(job).isfinite().all()


def test_evaluation_keeps_the_mode_and_all_examples(tiny):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    model.train()
    first, second = (loop.evaluate(model, tiny, tiny.validation, batch=size) for size in (16, 5))
    assert model.training and first["accuracy"] == second["accuracy"]
    assert first["loss"] == pytest.approx(second["loss"])


def test_divergence_is_an_error_with_a_remedy():
    with pytest.raises(loop.Diverged, match=r"nan at step 7: a smaller optimizer.lr"):
        loop.check_finite({"loss": float("nan")}, 7)
