import numpy as np
import pytest
import torch

from startsparse.training import data
from startsparse.training.data import Options


def load(path, label=None, **options):
    return data.load(f"table:{path}", options=Options(label=label), **options)


def csv(path, rows, header="height,kind,weight"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def flowers(tmp_path):
    rows = [f"{i / 10},{'rose' if i % 3 else 'oak'},{100 + i}" for i in range(50)]
    return csv(tmp_path / "flowers.csv", rows)


def test_a_csv_file(flowers):
    whole = load(flowers, "kind", validation=5)
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (35, 5, 10)
    assert (whole.input_shape, whole.classes, whole.scale) == ((2,), 2, 1)
    both = torch.cat([whole.train.inputs, whole.validation.inputs, whole.test.inputs])
    assert sorted(both[:, 1].tolist()) == [100.0 + i for i in range(50)]
    number = ((whole.train.inputs[:, 1] - 100).round()).long()
    assert torch.equal(whole.train.labels, (number % 3 > 0).long())  # oak is 0, rose 1


def test_it_is_standardised_by_what_is_trained_on_alone(flowers):
    whole = load(flowers, "kind")
    normal = whole.normalise(whole.train.inputs)
    assert normal.mean(0).abs().max() < 1e-5 and (normal.std(0, correction=0) - 1).abs().max() < 1e-5
    assert whole.mean == tuple(whole.train.inputs.double().mean(0).tolist())
    assert whole.normalise(whole.test.inputs).mean(0).abs().max() > 1e-3


def test_the_test_part_is_the_same_for_every_seed(flowers):
    first, other = load(flowers, "kind", seed=0), load(flowers, "kind", seed=1)
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert not torch.equal(first.validation.inputs, other.validation.inputs)


def test_numpy_files(tmp_path):
    x, y = np.arange(60, dtype=np.float64).reshape(20, 3), np.arange(20) % 4
    np.save(tmp_path / "a.npy", np.column_stack([x, y]))
    np.savez(tmp_path / "b.npz", x=x, y=y)
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    last, whole, parts = (load(tmp_path / name) for name in ("a.npy", "b.npz", "c.npz"))
    assert torch.equal(last.train.inputs, whole.train.inputs) and torch.equal(
        last.test.labels, whole.test.labels
    )
    assert torch.equal(parts.test.inputs, torch.from_numpy(x[:6]).float()) and len(parts.train) == 18
    np.save(tmp_path / "first.npy", np.column_stack([y, x]))
    assert torch.equal(load(tmp_path / "first.npy", "0").train.inputs, whole.train.inputs)
    np.savez(tmp_path / "images.npz", x=np.zeros((20, 3, 4, 4), np.uint8), y=y)
    images = load(tmp_path / "images.npz")
    assert images.input_shape == (3, 4, 4) and images.mean == (0.0,) * 3 and images.std == (1.0,) * 3


@pytest.mark.parametrize(
    ("rows", "label", "says"),
    [
        (["1,a,2", "1,b,x"], "kind", r"line 3, column 'weight': 'x' is no number"),
        (["1,a,2", ",b,2"], "kind", r"line 3, column 'height': a value is missing"),
        (["1,a,2", "nan,b,2", "1,b,2", "1,a,2", "2,b,3"], "kind", "1 values are missing or not finite"),
        (["1,a"], "kind", "line 2: 2 values for 3 columns"),
        (["1,a,2"] * 5, "kin", "label: no column 'kin'; did you mean 'kind'"),
        (["1,a,2"] * 5, None, "none of its columns is called label, target, class, y; known: height, kind"),
        (["1,a,2"] * 5, "kind", "every row is of the class a"),
        (["1,1,2", "1,2,3", "1,2,0.5"] * 3, "weight", "label: 0.5 is no class"),
        ([], "kind", "0 rows to train on"),
    ],
)
def test_bad_tables_are_named_by_line_and_column(tmp_path, rows, label, says):
    with pytest.raises(ValueError, match=says) as caught:
        load(csv(tmp_path / "bad.csv", rows), label)
    assert "bad.csv" in str(caught.value)


def test_bad_files_are_named(tmp_path, flowers):
    with pytest.raises(FileNotFoundError, match=r"no data set table:nowhere.csv"):
        load("nowhere.csv")
    (tmp_path / "x.txt").write_text("1 2")
    with pytest.raises(ValueError, match=r"x.txt: a table is a .csv, .npy or .npz"):
        load(tmp_path / "x.txt")
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(data.DamagedData, match=r"x.npz is no NumPy file of numbers"):
        load(tmp_path / "x.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object))
    with pytest.raises(data.DamagedData, match=r"objects.npy is no NumPy file of numbers"):
        load(tmp_path / "objects.npy")
    np.save(tmp_path / "flat.npy", np.arange(4))
    with pytest.raises(data.DamagedData, match=r"rows and two columns .* got int64 \(4,\)"):
        load(tmp_path / "flat.npy")
    np.save(tmp_path / "square.npy", np.eye(4))
    with pytest.raises(ValueError, match="label: a column from 0 to 3 was expected, got '7'"):
        load(tmp_path / "square.npy", "7")
    np.savez(tmp_path / "z.npz", x=np.zeros((3, 2)), z=np.zeros(3))
    with pytest.raises(data.DamagedData, match=r"arrays x and y, .* got \['x', 'z'\]"):
        load(tmp_path / "z.npz")
    np.savez(tmp_path / "y.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    with pytest.raises(data.DamagedData, match="are not rows of numbers and a class each"):
        load(tmp_path / "y.npz")
