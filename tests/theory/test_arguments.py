"""Arguments of embed and strong_ticket: numbers of other libraries, targets that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from startsparse import theory


def target() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_numbers_of_numpy_and_torch_are_numbers():
    plain = theory.embed(target(), density=0.5, delta=0.25, seed=3)
    other = theory.embed(target(), density=np.float32(0.5), delta=torch.tensor(0.25), seed=np.int64(3))
    each = theory.embed(
        target(), density=dict.fromkeys(("inputs", "0", "2"), np.float64(0.5)), delta=0.25, seed=3
    )
    assert plain.certificate == other.certificate
    assert each.source.copies == plain.source.copies
    tickets = [
        theory.strong_ticket(target(), density=density, eps=eps, seed=seed)
        for density, eps, seed in ((0.5, 0.5, 1), (np.float32(0.5), np.float64(0.5), np.int32(1)))
    ]
    assert tickets[0].certificate == tickets[1].certificate


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: nn.Linear(3, 2), "single Linear: put it into an nn.Sequential"),
        (lambda: nn.Conv2d(1, 2, 3), "single Conv2d: put it into an nn.Sequential"),
        (
            lambda: nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 0, bias=False)),
            r"layer '2' has no weights",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_targets_that_are_none(model, says):
    with pytest.raises(ValueError, match=says):
        theory.embed(model(), density=0.5)


def test_a_layer_named_by_a_number_is_named_as_a_layer():
    with pytest.raises(ValueError, match="each weight of layer '0'"):
        theory.strong_ticket(target(), density=0.5, eps=1e-15)


def test_an_option_no_model_has_is_named(tmp_path, capsys):
    from safetensors.torch import save_file

    from startsparse.cli.main import main

    save_file(target().state_dict(), tmp_path / "net.safetensors")
    assert main(
        ["embed", str(tmp_path / "net.safetensors"), "--model", "mlp", "inputs=4", "--density", "0.5"]
    )
    assert "model.inputs: mlp has no such option: did you mean 'input_shape'?" in capsys.readouterr().err
