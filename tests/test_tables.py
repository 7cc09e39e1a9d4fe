from __future__ import annotations

import pytest

from startsparse.tables import percent, size, table


def test_the_first_column_is_left_aligned_the_others_right():
    lines = table(["name", "n", "share"], [["a", "1,000", "5%"], ["a longer one", "1", "100%"]]).split("\n")
    assert lines == ["name              n  share", "a             1,000     5%", "a longer one      1   100%"]


def test_a_table_without_rows_is_its_header():
    assert table(["layer", "live"], []) == "layer  live"


def test_empty_cells_leave_no_trailing_blanks():
    assert table(["a", "b"], [["x", ""]]) == "a  b\nx"


def test_a_row_of_another_length_is_refused():
    with pytest.raises((ValueError, IndexError)):
        table(["a", "b"], [["x"]])
    with pytest.raises(ValueError):
        table(["a", "b"], [["x", "y", "z"]])


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.05, "5%"), (0.123456, "12.3%"), (0.000532, "0.0532%"), (0.3, "30%")],
)
def test_percentages(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (5000 * 2**30, "5000.0 GiB"),
    ],
)
def test_sizes(num_bytes, text):
    assert size(num_bytes) == text
