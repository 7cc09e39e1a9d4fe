"""Exact bytes: today's writer makes the files of version 1, and they stay readable."""

import hashlib
import struct
from pathlib import Path

import torch

from startsparse.artifact import SparseFile, load, save

FOLDER = Path(__file__).parents[1] / "golden"

HEADER = (
    b'{"__metadata__":{"checksum":"CHECKSUM",'
    b'"density":"0.25","format":"startsparse","format_version":"1","library":"startsparse 0.1.0",'
    b'"masks":"MASKS","method":"{\\"name\\":\\"static\\"}"},'
    b'"dense.F32":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"live.F32":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},'
    b'"layout":{"dtype":"U8","shape":[80],"data_offsets":[16,96]},'
    b'"positions":{"dtype":"U8","shape":[1],"data_offsets":[96,97]}}'
)
DATA = (
    b"\x00\x00\x00\x3f\x00\x00\x00\xbf"  # the bias: 0.5, -0.5
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0"  # the live weights: 1, -2
    b'{"dtypes":["F32"],"tensors":[[0,"fc.weight",0,[2,4],"bits",2],[3,"bias",0,[2]]]}'
    b"\x44"  # 0100 0100
)


def small() -> SparseFile:
    weight = torch.tensor([[0.0, 1, 0, 0], [0, -2, 0, 0]])
    tensors = {"fc.weight": weight, "fc.bias": torch.tensor([0.5, -0.5])}
    return SparseFile(tensors, {"fc.weight": weight != 0}, {"method": {"name": "static"}}, {})


def test_a_file_spelled_out(tmp_path, library):
    masks = hashlib.sha256(b"fc.weight|(2, 4)|\x44").hexdigest()
    metadata = (
        '{"density":"0.25","format":"startsparse","format_version":"1","library":"startsparse 0.1.0",'
        f'"masks":"{masks}","method":"{{\\"name\\":\\"static\\"}}"}}'
    )
    checksum = hashlib.sha256(metadata.encode() + DATA).hexdigest()
    header = HEADER.replace(b"CHECKSUM", checksum.encode()).replace(b"MASKS", masks.encode())
    header += b" " * (-len(header) % 8)
    save(small(), tmp_path / "small")
    assert (tmp_path / "small").read_bytes() == struct.pack("<Q", len(header)) + header + DATA


def test_todays_writer_makes_the_committed_file(content, tmp_path, library):
    save(content, tmp_path / "today")
    assert (tmp_path / "today").read_bytes() == (FOLDER / "compact_v1.sparse.safetensors").read_bytes()


def test_the_committed_file_still_loads(content, same):
    file = load(FOLDER / "compact_v1.sparse.safetensors")
    same(file, content)
    same(file.masks, content.masks)
    assert file.drawn == content.drawn
    assert file.metadata["library"] == "startsparse 0.1.0"
    assert {"bits", "rice", "exact", "bernoulli", "all"} == _encodings()


def _encodings() -> set[str]:
    text = (FOLDER / "compact_v1.sparse.safetensors").read_bytes()
    return {name for name in ("bits", "rice", "exact", "bernoulli", "all") if f',"{name}",'.encode() in text}
