import json

import pytest

from startsparse.artifact import FormatError
from startsparse.artifact.layout import Row, dump, parse

ROWS = [
    Row("layer.0.weight", "F32", (2, 3, 1), ("bits", 3)),
    Row("layer.0.bias", "F32", (2,)),
    Row("layer.10.weight", "BF16", (50, 50), ("rice", 7, 8, 9)),
    Row("steps", "I64", ()),
    Row("head", "F32", (2, 3, 1), alias=0),
    Row("ärger\N{GRINNING FACE}", "BOOL", (0, 4)),
]


def test_parse_inverts_dump():
    assert parse(dump(ROWS)) == ROWS
    assert parse(dump([])) == []
    assert ROWS[2].group == "live.BF16" and ROWS[2].count == 7 and ROWS[4].count == 0 and ROWS[3].size == 1


def table(*rows, dtypes=("F32", "I64")):
    return json.dumps({"dtypes": list(dtypes), "tensors": list(rows)}).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\x00", "not valid JSON"),
        (b"[]", "two parts"),
        (b'{"dtypes":[],"tensors":[],"more":1}', "two parts"),
        (b'{"dtypes":[],"tensors":{}}', "two parts"),
        (table(dtypes=["F33"]), "unknown dtype: 'F33'"),
        (table(dtypes=[[]]), "unknown dtype"),
        (table(3), "row 0 .* no row"),
        (table([1, "a", 0, [1]]), "row 0 .* no row"),
        (table([-1, "a", 0, [1]]), "row 0 .* no row"),
        (table([True, "a", 0, [1]]), "row 0 .* no row"),
        (table([0, 5, 0, [1]]), "row 0 .* no row"),
        (table([0, "a"]), "row 0 .* no row"),
        (table([0, "a", 2, [1]]), "row of 'a'"),
        (table([0, "a", -1, [1]]), "row of 'a'"),
        (table([0, "a", True, [1]]), "row of 'a'"),
        (table([0, "a", 0, 4]), "row of 'a'"),
        (table([0, "a", 0, [-1]]), r"impossible shape: \[-1\]"),
        (table([0, "a", 0, [2.0]]), "impossible shape"),
        (table([0, "a", 0, [True]]), "impossible shape"),
        (table([0, "a", 0, [1] * 65]), "impossible shape"),
        (table([0, "a", 0, [2**40, 2**40]]), "beyond any machine"),
        (table([0, "a", 0, [0, 2**80]]), "beyond any machine"),
        (table([0, "a", 0, [4], "bits", 5]), "mask of 'a' cannot be"),
        (table([0, "a", 0, [4], "zip", 2]), "no known encoding"),
        (table([0, "a", 0, [1]], [1, "", 0, [1]]), "'a' a second time"),
        (table([0, "a", 0]), "tied to row 0"),
        (table([0, "a", 0, [1]], [0, "b", 1]), "tied to row 1"),
        (table([0, "a", 0, [1]], [0, "b", 0], [0, "c", 1]), "tied to row 1"),
        (b'{"dtypes":["F32"],"tensors":[[0,"\\ud800",0,[1]]]}', "no valid text"),
    ],
)
def test_unsound_tables_are_refused(text, reason):
    with pytest.raises(FormatError, match=reason):
        parse(text)
