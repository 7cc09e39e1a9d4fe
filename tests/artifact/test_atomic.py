import errno
import os

import numpy as np
import pytest

from startsparse.artifact import atomic

resource = pytest.importorskip("resource", reason="limits of a process, on POSIX systems")
PARTS = [np.frombuffer(b"hello ", np.uint8), np.frombuffer(b"world", np.uint8)]


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "file"
    atomic.write(path, PARTS[:1])
    atomic.write(str(path), PARTS)
    assert path.read_bytes() == b"hello world"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    atomic.write(tmp_path / "link", PARTS)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"hello world"


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A real failing write: the system's limit on the size of a file, in the middle of the content."""
    path = tmp_path / "file"
    atomic.write(path, PARTS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot save") as caught:
            atomic.write(path, [np.zeros(1_000_000, np.uint8)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"hello world"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_whatever_fails_nothing_is_left(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    atomic.write(path, PARTS)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        atomic.write(path, PARTS[:1])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"hello world"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_leaves_nothing(tmp_path):
    def parts():
        yield PARTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write(tmp_path / "file", parts())
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no/file"):
        atomic.write(tmp_path / "no" / "file", PARTS)
