import pytest
import torch
from torch import nn

from startsparse.artifact import FormatError, state
from startsparse.artifact.format import Record


@pytest.mark.parametrize("name", state.DTYPES)
def test_every_dtype_keeps_its_bits(name):
    raw = torch.arange(64, dtype=torch.uint8) * 37 % 251
    tensor = (raw % 2 == 0 if name == "BOOL" else raw.view(state.DTYPES[name])).reshape(4, -1)
    dtype, array = state.to_array(tensor)
    back = state.to_tensor(Record("w", dtype, tuple(tensor.shape), array))
    assert (dtype, back.dtype, back.shape) == (name, tensor.dtype, tensor.shape)
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "BF16", "C64"])
def test_unusual_dtypes_may_be_sparse(name):
    weight = torch.tensor([[0.0, 2.0], [-1.0, 0.0]]).to(state.DTYPES[name])
    mask = torch.tensor([[False, True], [True, False]])
    (record,) = state.to_records({"w": weight}, {"w": mask}, {})
    assert record.live is not None and record.live.all_positions().tolist() == [1, 2]
    assert record.values is not None and len(record.values) == 2
    assert torch.equal(state.to_tensor(record).view(torch.uint8), weight.view(torch.uint8))
    with pytest.raises(ValueError, match="1 values of 'w' outside its mask are not zero"):
        state.to_records({"w": weight}, {"w": torch.tensor([[False, True], [False, False]])}, {})


def test_layouts_of_memory_do_not_matter():
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    expected = state.to_array(weight)[1]
    assert (state.to_array(weight.to(memory_format=torch.channels_last))[1] == expected).all()
    assert (state.to_array(weight.transpose(0, 1).contiguous().transpose(0, 1))[1] == expected).all()
    assert state.to_array(torch.ones(1).expand(3))[1].tolist() == [1, 1, 1]


def test_what_has_no_word_in_the_format_is_refused_by_name():
    for bad in (
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex128),
    ):
        with pytest.raises(ValueError, match=r"'layer\.w' cannot be stored"):
            state.to_records({"layer.w": bad}, {}, {})
    with pytest.raises(TypeError, match=r"'layer\._extra_state' is a dict"):
        state.to_records({"layer._extra_state": {}}, {}, {})


def test_masks_must_belong_to_tensors():
    weights = {"fc.weight": torch.zeros(2, 3)}
    with pytest.raises(
        ValueError, match=r"mask for 'fc\.wieght' and no such tensor; did you mean 'fc\.weight'"
    ):
        state.to_records(weights, {"fc.wieght": torch.zeros(2, 3, dtype=torch.bool)}, {})
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        state.to_records(weights, {"fc.weight": torch.zeros(3, 2, dtype=torch.bool)}, {})
    with pytest.raises(ValueError, match=r"torch\.float32"):
        state.to_records(weights, {"fc.weight": torch.zeros(2, 3)}, {})
    with pytest.raises(ValueError, match="are both 'a' without"):
        state.to_records({"a": torch.zeros(1), "module.a": torch.zeros(1)}, {}, {})


def test_nan_outside_a_mask_is_refused():
    with pytest.raises(ValueError, match="not zero"):
        state.to_records({"w": torch.tensor([float("nan")])}, {"w": torch.tensor([False])}, {})


def test_tied_tensors_are_one_record_and_views_are_not():
    tied = nn.Linear(4, 4, bias=False)
    tensors = nn.ModuleDict({"a": tied, "b": tied}).state_dict() | {
        "part": tied.weight[0],
        "turned": tied.weight.T,
    }
    records = state.to_records(tensors, {"b.weight": tied.weight != 0}, {})
    assert [record.alias for record in records] == [None, 0, None, None]
    assert records[0].live is not None
    back, masks, _ = state.to_state(records)
    assert back["a.weight"] is back["b.weight"]
    assert list(masks) == ["a.weight"]


def test_tied_tensors_cannot_have_two_masks():
    weight = torch.zeros(2, 2)
    masks = {"a": torch.zeros(2, 2, dtype=torch.bool), "b": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(ValueError, match="'a' and 'b' are one tensor"):
        state.to_records({"a": weight, "b": weight}, masks, {})


def test_bools_are_zero_or_one():
    import numpy as np

    with pytest.raises(FormatError, match="neither 0 nor 1"):
        state.to_tensor(Record("w", "BOOL", (1,), np.array([2], np.uint8)))
