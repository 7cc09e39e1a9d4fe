import numpy as np
import pytest

from startsparse.artifact import container, format
from startsparse.artifact.format import Record
from startsparse.artifact.live import of_mask

VALUES = np.array([1.5, -2], np.float32)
LIVE = of_mask(np.array([False, True, False, True]))
RECORDS = [
    Record("w", "F32", (2, 2), VALUES, LIVE),
    Record("b", "F32", (2,), np.array([3, 4], np.float32)),
    Record("tied", "F32", (2, 2), None, alias=0),
]


def pack(records, **about):
    return np.concatenate(format.pack(records, about, "startsparse 0.1.0"))


def test_the_container_holds_few_tensors():
    tensors, metadata, _ = container.read(pack(RECORDS, method={"name": "set"}))
    assert {name: array.tolist() for name, array in tensors.items() if name != "layout"} == {
        "live.F32": [1.5, -2], "dense.F32": [3, 4], "positions": [0b01010000],
    }  # fmt: skip
    assert tensors["layout"].tobytes() == (
        b'{"dtypes":["F32"],"tensors":[[0,"w",0,[2,2],"bits",2],[0,"b",0,[2]],[0,"tied",0]]}'
    )
    assert set(metadata) == {"format", "format_version", "library", "density", "masks", "checksum", "method"}
    assert metadata["density"] == "0.5" and metadata["method"] == '{"name":"set"}'


def test_build_inverts_pack():
    records, metadata = format.build(format.parse(pack(RECORDS, user=[1, None])))
    for found, expected in zip(records, RECORDS, strict=True):
        for field in ("name", "dtype", "shape", "alias", "draw"):
            assert getattr(found, field) == getattr(expected, field)
        assert np.array_equal(found.values, expected.values)
        assert (found.live is None) == (expected.live is None)
    assert records[0].live is not None and records[0].live.all_positions().tolist() == [1, 3]
    assert metadata["user"] == [1, None] and "checksum" not in metadata


def test_parse_allocates_nothing_and_says_what_build_will():
    parsed = format.parse(pack(RECORDS))
    assert parsed.num_bytes() == 4 * 4 + 4 + 2 * 4
    assert parsed.num_bytes({"w"}) == 2 * (4 + 8) + 2 * 4


@pytest.mark.parametrize("records", [[], RECORDS[1:2], [Record("e", "BF16", (0, 3), np.zeros(0, "<u2"))]])
def test_files_with_nothing_sparse(records):
    found, metadata = format.build(format.parse(pack(records)))
    assert [record.name for record in found] == [record.name for record in records]
    assert metadata["density"] == 1
