"""Which layers run sparse, what is refused, and what is said about the rest."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.execution.modules import SparseConv2d, SparseLinear

from .twins import OPTIMIZERS, Run, batch, convolutional, loss_of, method, perceptron


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def executions(sparse: ss.Sparsifier) -> dict[str, str]:
    return {name: choice.execution for name, choice in sparse.execution.items()}


def test_an_unknown_execution_is_answered_with_the_nearest():
    model = perceptron()
    with pytest.raises(ValueError, match="unknown execution 'sparce': did you mean 'sparse'"):
        ss.attach(model, sgd(model), ss.Static(0.5), execution="sparce")
    with pytest.raises(ValueError, match=r"unknown execution 'fast'.*masked, sparse, auto"):
        ss.attach(model, sgd(model), ss.Static(0.5), execution="fast")


def test_masked_is_the_default_and_changes_no_module():
    model = perceptron()
    sparse = ss.attach(model, sgd(model), ss.Static(0.5))
    assert set(executions(sparse).values()) == {"masked"}
    assert type(model[0]) is nn.Linear
    assert not any(choice.reason for choice in sparse.execution.values())


# -- optimizers ----------------------------------------------------------------------------------------------------


class Unheard(torch.optim.SGD):
    """A subclass may do anything."""


REFUSED = {
    "LBFGS": lambda p: torch.optim.LBFGS(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2]),
    "Unheard": lambda p: Unheard(p, lr=0.1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_are_not_known_to_act_on_each_element_are_refused_by_name(name):
    model = perceptron()
    with pytest.raises(
        ValueError, match=rf"{name} is not known.*use one of SGD, Adam, .*ASGD, or execution='masked'"
    ):
        ss.attach(model, REFUSED[name](model.parameters()), ss.Static(0.5), execution="sparse")
    assert type(model[0]) is nn.Linear
    sparse = ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")
    assert set(executions(sparse).values()) == {"sparse"}


@pytest.mark.parametrize("name", REFUSED)
def test_under_auto_optimizers_that_are_not_known_keep_all_layers_masked(name):
    model = perceptron()
    sparse = ss.attach(model, REFUSED[name](model.parameters()), ss.Static(0.5), execution="auto")
    assert executions(sparse) == dict.fromkeys(("0.weight", "3.weight", "5.weight"), "masked")
    assert all(f"{name} is not known" in choice.reason for choice in sparse.execution.values())
    assert all(type(model[index]) is nn.Linear for index in (0, 3, 5))
    loss_of(model(batch(0, 4, 12))).backward()


def test_every_optimizer_must_be_known():
    model = perceptron()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), Unheard(model[1:].parameters(), lr=0.1)]
    with pytest.raises(ValueError, match="Unheard is not known"):
        ss.attach(model, optimizers, ss.Static(0.5), execution="sparse")


def test_the_table_of_this_folder_has_every_kind_that_is_taken():
    from startsparse.execution.optimizers import ELEMENTWISE

    built = {type(build(perceptron().parameters())) for build in OPTIMIZERS.values()}
    assert built == set(ELEMENTWISE)


# -- models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_refused(one_process):
    model = nn.parallel.DistributedDataParallel(perceptron())
    with pytest.raises(ValueError, match="DistributedDataParallel holds: use 'masked'"):
        ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")


def test_one_process_of_a_group_is_like_none(one_process):
    """The dense gradient is averaged over ranks, also where there is only one of them."""
    run = Run(perceptron(), method("rigl", update_interval=2), steps=20)
    for step in range(6):
        run.step(batch(step, 8, 12))
    assert run.sparse.report().num_moved > 0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.fc = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.attn(x, x, x, need_weights=False)[0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(x)))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 12), nn.Linear(12, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(x)


class Special(nn.Linear):
    """A subclass may compute anything."""


def block():
    return nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True)


STAYS_MASKED = {
    "attention": (Attention, (2, 3, 12), {"attn.in_proj_weight": "MultiheadAttention", "attn.out_proj.weight": "NonDynamic"}),
    "encoder": (
        lambda: nn.Sequential(block(), nn.Linear(12, 10)),
        (2, 3, 12),
        {"0.linear1.weight": "TransformerEncoderLayer reads", "0.linear2.weight": "TransformerEncoderLayer reads"},
    ),
    "decoder": (
        lambda: nn.ModuleList([nn.TransformerDecoderLayer(12, 2, 16), nn.Linear(12, 10)]),
        None,
        {"0.linear1.weight": "TransformerDecoderLayer reads"},
    ),
    "tied": (Tied, (4, 12), {"a.weight": "tied to another module"}),
    "subclass": (lambda: nn.Sequential(Special(12, 12), nn.Linear(12, 10)), (4, 12), {"0.weight": "this is Special.weight"}),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 2, 3)),
        (2, 3, 6, 6),
        {"0.weight": "ConvTranspose2d.weight"},
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(8, 2)), (2, 3, 10), {"0.weight": "Conv1d.weight"}),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Flatten(), nn.Linear(24, 2)),
        (1, 2, 3, 3, 3),
        {"0.weight": "Conv3d.weight"},
    ),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Conv2d(4, 2, 3)),
        (2, 3, 6, 6),
        {"0.weight": "this is circular"},
    ),
    "same": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 2, 3)),
        (2, 3, 6, 6),
        {"0.weight": "this is zeros, same"},
    ),
    "float64": (
        lambda: nn.Sequential(nn.Linear(12, 12).double(), nn.Linear(12, 10)),
        None,
        {"0.weight": "only float32.*float64"},
    ),
    "bfloat16": (
        lambda: nn.Sequential(nn.Linear(12, 12).bfloat16(), nn.Linear(12, 10)),
        None,
        {"0.weight": "only float32.*bfloat16"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS_MASKED)
def test_what_cannot_run_sparse_stays_masked_and_is_named(case):
    build, shape, reasons = STAYS_MASKED[case]
    model = build()
    with pytest.warns(UserWarning, match="these layers stay masked-dense: ") as caught:
        sparse = ss.attach(
            model, sgd(model), method("rigl", 0.4, update_interval=2), total_steps=20, execution="sparse"
        )
    assert len(caught) == 1 and caught[0].filename == __file__
    said = str(caught[0].message)
    for name, reason in reasons.items():
        assert re.search(rf"{re.escape(name)}: [^;]*{reason}", said), said
        assert re.search(reason, sparse.execution[name].reason)
    for name, execution in executions(sparse).items():
        assert (execution == "masked") is bool(re.search(rf"[:;] {re.escape(name)}: ", said))
    assert "sparse" in executions(sparse).values()
    assert re.search(re.escape(next(iter(reasons))) + " runs masked", str(sparse.report()))
    if shape is None:
        return
    optimizer = sparse._optimizers[0]
    for step in range(6):
        optimizer.zero_grad()
        model(batch(step, *shape)).square().mean().backward()
        optimizer.step()
        assert sum(int(mask.sum()) for mask in sparse.masks.values()) == sparse.target_count
    assert sparse.report().num_moved > 0
    plain = build()
    plain.load_state_dict(sparse.dense_state_dict())
    x = batch(9, *shape)
    torch.testing.assert_close(plain.eval()(x), sparse.detach().eval()(x), rtol=1e-4, atol=1e-5)


def test_an_embedding_tied_to_a_named_head_stays_masked():
    model = Embedded()
    with pytest.warns(UserWarning, match=r"embed\.weight: .*only nn\.Linear and nn\.Conv2d.*Embedding"):
        sparse = ss.attach(model, sgd(model), ss.Static(0.5), layers="embed.weight", execution="sparse")
    assert executions(sparse) == {"embed.weight": "masked"}
    assert model.head.weight is model.embed.weight


def test_the_fast_path_of_an_encoder_still_works():
    model = nn.Sequential(block(), nn.Linear(12, 10)).eval()
    with pytest.warns(UserWarning, match="stay masked-dense"):
        ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")
    x = batch(0, 2, 3, 12)
    expected = model(x)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model[1], SparseLinear)


def test_a_warning_that_is_an_error_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(12, 12), Special(12, 10))
    before = model[0].weight.detach().clone()
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="stay masked-dense"):
        warnings.simplefilter("error")
        ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")
    assert type(model[0]) is nn.Linear and torch.equal(model[0].weight, before)
    _ = ss.attach(model, sgd(model), ss.Static(0.5))


def test_only_the_chosen_layers_are_turned():
    model = convolutional()
    run = Run(model, method("static"), layers=["!3", "!9"])
    assert list(run.sparse.execution) == ["0.weight", "5.weight", "7.weight"]
    kinds = [type(model[index]) for index in (0, 3, 5, 7, 9)]
    assert kinds == [SparseConv2d, nn.Conv2d, SparseConv2d, SparseConv2d, nn.Linear]
    run.step(batch(0, 2, 4, 9, 9))


def test_old_style_weight_norm_is_left_alone():
    """It keeps its weight as a plain attribute that is made anew at every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.weight_norm(nn.Linear(12, 12))
    model = nn.Sequential(normed, nn.Linear(12, 10))
    with pytest.warns(UserWarning, match=r"0\.weight_g, 0\.weight_v stay dense"):
        run = Run(model, method("static"))
    assert list(run.sparse.execution) == ["1.weight"]
    run.step(batch(0, 4, 12))
    assert type(model[0]) is nn.Linear


def test_a_module_whose_forward_was_replaced_stays_masked():
    """As offloading and quantisation tools do: the replacement reads a dense weight."""
    model = perceptron()
    plain = model[0].forward
    model[0].forward = lambda x: plain(2 * x)
    with pytest.warns(UserWarning, match=r"0\.weight: .*forward"):
        sparse = ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")
    loss_of(model(batch(0, 4, 12))).backward()
    assert executions(sparse)["0.weight"] == "masked"


def test_a_model_that_is_cast_after_attachment_is_told_what_is_wrong():
    run = Run(perceptron(), method("static"))
    for cast, becomes in (
        (nn.Module.double, r"become torch\.float64 on cpu"),
        (nn.Module.half, r"become torch\.float16 on cpu"),
        (lambda model: model.to("meta"), r"become torch\.float32 on meta"),
        (
            lambda model: model._apply(torch.zeros_like),
            "lose its positions",
        ),  # as to_empty, whatever memory holds
    ):
        with pytest.raises(ValueError, match=rf"in_features=12.*{becomes}.*sparse\.detach\(\)"):
            cast(run.model)
    with pytest.raises(ValueError, match=r"must be a float32 tensor on the CPU, not torch\.float64"):
        run.model(batch(0, 4, 12).double())
    for same in (nn.Module.float, nn.Module.cpu, nn.Module.share_memory):
        assert same(run.model) is run.model
    run.step(batch(0, 4, 12))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 11), torch.zeros(4, 12, dtype=torch.float64)], ids=["shape", "dtype"]
)
def test_wrong_inputs_are_errors_in_words(wrong):
    run = Run(perceptron(), method("static"))
    with pytest.raises(ValueError, match=r"startsparse: x must be (\[..., 12\]|a float32 tensor)"):
        run.model(wrong)
    run.step(batch(0, 4, 12))


def test_a_wrong_number_of_channels_is_said():
    run = Run(convolutional(), method("static"))
    for wrong in (torch.zeros(2, 3, 9, 9), torch.zeros(3, 9, 9)):
        with pytest.raises(ValueError, match=r"x must be \[batch, 4, height, width\] for this layer, not \["):
            run.model(wrong)


def test_inputs_that_are_not_contiguous():
    run = Run(perceptron(), method("static"))
    x = batch(0, 12, 8)
    torch.testing.assert_close(run.model(x.t()), run.model(x.t().contiguous()))
    conv = Run(convolutional(), method("static"))
    y = batch(0, 4, 4, 9, 9)
    conv.model.eval()
    torch.testing.assert_close(conv.model(y.to(memory_format=torch.channels_last)), conv.model(y))


@pytest.mark.parametrize("execution", ["masked", "sparse", "auto"])
def test_a_model_that_runs_sparse_already_is_named(execution):
    model = perceptron()
    _kept = ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")
    with pytest.raises(ValueError, match=r"0\.weight is attached to a sparsifier already"):
        ss.attach(model, sgd(model), ss.Static(0.5), execution=execution)


def test_a_sequence_of_attachments_of_one_model():
    model = perceptron()
    first = ss.attach(model, sgd(model), ss.Static(0.5), execution="sparse")
    _ = first.detach()
    second = ss.attach(model, sgd(model), ss.Static(0.25), execution="sparse")
    assert second.density == pytest.approx(0.25, abs=0.01)


def test_a_replaced_sparse_layer_is_an_error_that_names_it():
    run = Run(perceptron(), method("static"))
    run.model[0] = nn.Linear(12, 16)
    run.optimizer.add_param_group({"params": run.model[0].parameters()})
    loss_of(run.model(batch(0, 4, 12))).backward()
    with pytest.raises(RuntimeError, match=r"0\.weight was replaced"):
        run.optimizer.step()


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_weight_whose_gradient_somebody_hooked_stays_masked_and_says_so(kind):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    seen = []
    _ = getattr(model[0].weight, kind)(lambda tensor: seen.append(tuple(tensor.shape)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"stay masked-dense: 0\.weight: somebody hooked into its gradient"):
        sparse = ss.attach(model, optimizer, ss.Static(0.5), execution="sparse")
    assert [choice.execution for choice in sparse.execution.values()] == ["masked", "sparse"]
    model(torch.randn(3, 6)).square().mean().backward()
    assert seen == [(8, 6)]


def test_attributes_of_a_weight_stay_with_it():
    model = nn.Sequential(nn.Linear(6, 8))
    model[0].weight.group = "slow"
    sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(0.5), execution="sparse")
    assert model[0].weight.group == "slow" and model[0].weight.dim() == 1
    assert sparse.detach()[0].weight.group == "slow"
