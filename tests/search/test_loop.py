"""A search in loops of all kinds: scalers, clipping, copies, compile, averaging, processes, other optimizers."""

from __future__ import annotations

import copy
import runpy
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.hooks import collect_garbage

from .nets import advance, copies, loss_of, make, net, same_bits


def begun(method=None, model=None, **arguments):
    search = ss.search(model or net(), method or ss.JackpotReleased(0.2), **arguments)
    return search, torch.optim.SGD(search.scores(), lr=0.5, momentum=0.9)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_by_the_scaler_changes_nothing(fused):
    search, _ = begun()
    optimizer = torch.optim.Adam(search.scores(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    for overflow in (False, True, False):
        before = (search.step, [s.detach().clone() for s in search.scores()], copies(search.model))
        optimizer.zero_grad()
        loss = scaler.scale(loss_of(search.model, 0))
        (loss * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert search.step == before[0] + (not overflow)
        same = all(torch.equal(a.detach(), b) for a, b in zip(search.scores(), before[1], strict=True))
        assert same == overflow
        if overflow:
            assert all(same_bits(copies(search.model)[n], value) for n, value in before[2].items())


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_seen_unscaled(fused):
    """Running averages and penalties are those of a run without a scaler."""
    runs = []
    for scaled in (False, True):
        search, _ = begun(ss.Jackpot(0.2, order="curvature"), total_steps=4)
        optimizer = torch.optim.SGD(search.scores(), lr=0.5, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(search.model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append(search)
    for name in runs[0].masks:
        for key in ("mean", "square"):
            a, b = (run._layers[name].moments[key] for run in runs)
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-9)
            assert float(a.abs().max()) > 0


def test_clipping_sees_gradients_of_scores():
    search, optimizer = begun()
    loss_of(search.model, 0).backward()
    norm = nn.utils.clip_grad_norm_(search.scores(), 1e-3)
    assert float(norm) > 1e-3
    again = nn.utils.clip_grad_norm_(search.scores(), 1e9)
    assert float(again) == pytest.approx(1e-3, rel=1e-3)
    assert all(parameter.grad is None for parameter in search.model.parameters())
    optimizer.step()


def test_other_optimizers_are_left_alone():
    search, optimizer = begun()
    other = nn.Linear(2, 2)
    stranger = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.randn(3, 2)).sum().backward()
    stranger.step()
    assert search.step == 0
    advance(search, optimizer, range(2))
    second = ss.search(net(1), ss.JackpotReleased(0.2))
    advance(second, torch.optim.SGD(second.scores(), lr=0.1), range(3))
    assert (search.step, second.step) == (2, 3)


def test_two_searches_one_after_the_other():
    model = net()
    before = copies(model)
    search, optimizer = begun(model=model)
    advance(search, optimizer, range(2))
    search.restore()
    again, optimizer = begun(ss.EdgePopup(0.3), model=model)
    advance(again, optimizer, range(2))
    assert search.step == 2
    again.restore()
    assert all(same_bits(copies(model)[n], value) for n, value in before.items())


def test_a_search_lives_as_long_as_its_scores_or_its_model():
    search, optimizer = begun()
    model, watcher = search.model, weakref.ref(search)
    del search
    collect_garbage()
    loss_of(model, 0).backward()
    optimizer.step()
    assert watcher().step == 1
    del optimizer, model
    collect_garbage()
    assert watcher() is None
    torch.optim.SGD(net().parameters(), lr=0.1).step()  # no hook is left behind


def test_a_closure_that_is_called_once():
    search, optimizer = begun()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(search.model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert search.step == 3
    assert search.num_active == search.target_count


def test_lbfgs_is_refused_by_name():
    search, _ = begun()
    optimizer = torch.optim.LBFGS(search.scores())
    with pytest.raises(RuntimeError, match="LBFGS"):
        optimizer.step(lambda: 0.0)


def test_copies_are_plain_models():
    search, optimizer = begun(ss.Jackpot(0.2, batch_norm="freeze"), total_steps=5)
    advance(search, optimizer, range(1))
    twin = copy.deepcopy(search.model)
    loss_of(twin, 0).backward()
    assert search.scores()[0].grad is None
    advance(search, optimizer, range(1, 3))
    assert search.step == 3


def test_compiled_models():
    torch.compiler.reset()
    model = net()
    search, optimizer = begun(model=model)
    compiled = torch.compile(model, backend="eager")
    for step in range(3):
        loss_of(compiled, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    twin, stepper = begun()
    advance(twin, stepper, range(3))
    assert all(torch.equal(search.masks[n], twin.masks[n]) for n in twin.masks)
    wrapped = torch.compile(net(), backend="eager")
    inside = ss.search(wrapped, ss.JackpotReleased(0.2))
    assert list(inside.masks) == list(search.masks)


def test_batch_norm_can_stay():
    search, optimizer = begun(ss.JackpotReleased(0.2, batch_norm="freeze"))
    before = [b.clone() for b in search.model.buffers()]
    search.model.train()
    advance(search, optimizer, range(2))
    assert all(torch.equal(a, b) for a, b in zip(search.model.buffers(), before, strict=True))
    search.finish()
    search.model.train()
    loss_of(search.model, 0)
    assert not torch.equal(search.model[1].running_mean, before[0])


def test_batch_norm_is_measured_anew():
    """The statistics afterwards are the mean over the given batches, not a running average."""
    search, optimizer = begun(ss.JackpotReleased(0.2, batch_norm="reestimate"))
    advance(search, optimizer, range(2))
    with pytest.raises(ValueError, match=r"finish\(data=...\)"):
        search.finish()
    assert not search.finished
    x = [torch.randn(20, 4, 6, 6) + 3 for _ in range(2)]
    search.model.eval()
    search.finish(data=x)
    assert not search.model.training
    with torch.no_grad():
        first = [search.model[0](part) for part in x]
    mean = torch.stack([part.mean((0, 2, 3)) for part in first]).mean(0)
    var = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in first]).mean(0)
    assert torch.allclose(search.model[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(search.model[1].running_var, var, rtol=1e-4)
    assert search.model[1].momentum == 0.1


def test_reestimation_without_batches_changes_nothing():
    model = net()
    before = [b.clone() for b in model.buffers()]
    with pytest.raises(ValueError, match="no batch"):
        ss.reestimate_batch_norm(model, [])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert ss.reestimate_batch_norm(model, [torch.randn(4, 4, 6, 6)] * 5, batches=2) == 2
    assert ss.reestimate_batch_norm(nn.Linear(2, 2), [torch.zeros(1, 2)]) == 0


def test_assigned_weights_keep_the_search():
    """load_state_dict(assign=True) replaces parameters and drops their hooks; the search follows."""
    search, optimizer = begun()
    advance(search, optimizer, range(2))
    state = {key: value.clone() for key, value in search.model.state_dict().items()}
    search.model.load_state_dict(state, assign=True)
    twin, stepper = begun()
    advance(twin, stepper, range(2))
    advance(search, optimizer, range(2, 5))
    advance(twin, stepper, range(2, 5))
    assert all(torch.equal(search.masks[n], twin.masks[n]) for n in twin.masks)
    assert search.finish().keys() == twin.masks.keys()


def test_dense_weights_that_are_loaded_are_masked_again():
    model = net()
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    search, optimizer = begun(model=model)
    advance(search, optimizer, range(1))
    effective = copies(model)
    model.load_state_dict(dense)
    assert all(same_bits(copies(model)[n], effective[n]) for n in effective)


def test_the_second_stage_tunes_what_was_found():
    """Masks stay, active weights and everything else are trained."""
    search, optimizer = begun()
    advance(search, optimizer, range(3))
    with pytest.raises(RuntimeError, match=r"finish\(\)"):
        search.attach(optimizer)
    masks = search.finish()
    before = copies(search.model)
    stepper = torch.optim.SGD(search.model.parameters(), lr=0.1, momentum=0.9)
    sparse = search.attach(stepper, total_steps=3)
    assert all(torch.equal(sparse.masks[n], masks[n]) for n in masks)
    for step in range(3):
        loss_of(search.model, step).backward()
        stepper.step()
        stepper.zero_grad()
    assert all(torch.equal(sparse.masks[n], masks[n]) for n in masks)
    after = copies(search.model)
    assert all(not torch.equal(after[n], before[n]) for n in ("0.weight", "1.weight", "3.weight", "8.bias"))
    assert all(not bool(after[n][~masks[n]].any()) for n in masks)


def test_the_dense_model_can_teach():
    """Distillation from the frozen weights, no second copy of the model."""
    search, optimizer = begun()
    x = torch.randn(6, 4, 6, 6)
    search.model.eval()
    with search.dense() as teacher, torch.no_grad():
        target = teacher(x).softmax(1)
    assert torch.allclose(target, net().eval()(x).softmax(1))
    loss = nn.functional.cross_entropy(search.model(x), target)
    loss.backward()
    optimizer.step()
    assert search.step == 1


WORKER = """
import sys, torch, torch.distributed as dist
from torch import nn
import startsparse as ss

def run(rank, ranks, file):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    method = ss.Jackpot(0.3, order="curvature", restriction=0.5, init="random")
    search = ss.search(model, method, total_steps=6)
    wrapped = model
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
        wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(search.scores(), lr=1.0, momentum=0.9)
    for step in range(6):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
        for part in x.chunk(ranks)[rank].chunk(2):
            (wrapped(part).square().mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    if ranks > 1:
        dist.destroy_process_group()
    return {"masks": search.finish(), "swaps": search.num_swaps}

if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, file, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.save(run(rank, 2, file), f"{out}.{rank}")
"""


def test_processes_search_as_one(tmp_path):
    """Two processes with accumulation find, each of them, the masks one process finds on all the data."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, str(script)]
    paths = [str(tmp_path / "rendezvous"), str(tmp_path / "two")]
    workers = [subprocess.Popen([*command, str(rank), *paths]) for rank in range(2)]
    one = runpy.run_path(str(script))["run"](0, 1, "")
    assert [worker.wait(120) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"two.{rank}") for rank in range(2))
    assert one["swaps"] > 0
    for name, mask in one["masks"].items():
        assert torch.equal(first["masks"][name], second["masks"][name])
        assert torch.equal(first["masks"][name], mask)


@pytest.mark.parametrize("name", ["jackpot", "edge-popup", "jackpot-nm"])
def test_transformers(name):
    """Attention's fused projections, tied embeddings left out, no batch norm."""

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 16)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.block(self.embed(tokens)))

    torch.manual_seed(0)
    model = Tiny()
    before = copies(model)
    density = {} if name == "jackpot-nm" else {"density": 0.4}
    search = ss.search(model, make(name, **density), total_steps=4)
    assert sorted(search.masks) == [
        "block.linear1.weight",
        "block.linear2.weight",
        "block.self_attn.in_proj_weight",
        "block.self_attn.out_proj.weight",
    ]
    optimizer = torch.optim.Adam(search.scores(), lr=0.1)
    tokens = torch.randint(11, (4, 9))
    for _ in range(4):
        nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert search.num_active == search.target_count
    masks = search.finish()
    for n, parameter in model.named_parameters():
        expected = torch.where(masks[n], before[n], 0) if n in masks else before[n]
        assert same_bits(parameter.detach(), expected)
