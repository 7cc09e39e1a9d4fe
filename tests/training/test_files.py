import errno

import pytest
import torch

from startsparse.training import files

TREE = {
    "text": "ä",
    3: [1, 2.5, float("inf"), None, True],
    "nested": {"tuple": (1, (2,)), "empty": [{}, (), []]},
    "tensors": [
        torch.arange(3),
        torch.tensor(2.0, dtype=torch.float64),
        torch.zeros(0, 2),
        torch.tensor([True]),
    ],
    "half": torch.ones(2, dtype=torch.bfloat16),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_tree_comes_back_as_it_was(tmp_path):
    files.save_tree(tmp_path / "tree", TREE)
    assert same(TREE, files.load_tree(tmp_path / "tree"))


def test_shared_and_strided_tensors(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    files.save_tree(tmp_path / "tree", {"a": base, "tied": base, "view": base[1:], "t": base.t()})
    loaded = files.load_tree(tmp_path / "tree")
    assert (
        torch.equal(loaded["tied"], base)
        and torch.equal(loaded["view"], base[1:])
        and torch.equal(loaded["t"], base.t())
    )


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"state.a\[1\] holds a set"):
        files.save_tree(tmp_path / "tree", {"a": [1, {2}]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["truncated", "flipped", "header", "empty", "other"])
def test_damage_is_noticed(tmp_path, harm):
    path = tmp_path / "tree"
    files.save_tree(path, TREE)
    content = bytearray(path.read_bytes())
    changed = {
        "truncated": content[:-1],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "header": b"x" + content[1:],
        "empty": b"",
        "other": files.MAGIC + bytes(40),
    }[harm]
    path.write_bytes(changed)
    with pytest.raises(files.DamagedFile, match="tree"):
        files.load_tree(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tree"
    files.save_tree(path, {"old": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        OSError, match="the disk is full, what was saved before is intact: free some space"
    ) as caught:
        files.save_tree(path, {"new": torch.zeros(100)})
    assert caught.value.filename == str(path)
    assert files.load_tree(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["tree"]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".checkpoint.123abc.tmp").touch()
    (tmp_path / "checkpoint").touch()
    files.remove_temporaries(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]
