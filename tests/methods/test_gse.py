"""GSE by hand: the subset bounds what may grow, the net is ranked as a whole."""

from __future__ import annotations

import pytest

import startsparse as ss

from .family import updated, view


# Heddes et al. 2024, algorithm 1: of the random subset the largest gradients grow, of what lived before the smallest
# magnitudes go, both over the whole net. With a subset as large as all that is inactive nothing is left to chance.
@pytest.mark.parametrize(
    ("fraction", "source", "first", "second"),
    [
        (0.0, None, "1 1 1 1 0 0", "1 1 0 0 0 0"),
        (1 / 6, None, "1 1 1 0 0 0", "1 1 0 1 0 0"),  # 0.1 of a goes, the gradient 9 of b comes
        (2 / 6, None, "1 1 1 0 0 1", "1 0 0 1 0 0"),
        (
            4 / 6,
            None,
            "1 1 0 0 1 1",
            "0 0 1 1 0 0",
        ),  # 3 dropped of b (0.2, 2); of its gradients 1 the lower index
        (1.0, None, "0 0 0 0 1 1", "0 0 1 1 1 1"),  # all that lived goes, all that did not comes
        (1.0, "1 1 1 1 0 1", "1 0 0 0 0 1", "0 0 1 1 1 1"),  # five are free, so five move
    ],
)
def test_gse_by_hand(fraction, source, first, second):
    more = {} if source is None else {"source": source}
    views = {
        "a": view(
            [5.0, -4.0, 0.3, 0.1, 0.0, 0.0], "1 1 1 1 0 0", [7.0, 7.0, 7.0, 7.0, 4.0, 5.0], name="a", **more
        ),
        "b": view([2.0, 0.2, 0.0, 0.0, 0.0, 0.0], "1 1 0 0 0 0", [7.0, 7.0, 1.0, 9.0, 1.0, 1.0], name="b"),
    }
    gse = ss.GSE(0.5, drop_fraction=fraction, drop_schedule="constant", subset=9.0)
    assert updated(gse, views, 1, 6) == {"a": first, "b": second}


def test_growth_is_restricted_to_the_subset():
    layer = view(
        [1.0] * 4 + [0.0] * 60, " ".join(["1"] * 4 + ["0"] * 60), [0.0] * 4 + [1.0 + i for i in range(60)]
    )
    gse = ss.GSE(0.5, drop_fraction=0.5, drop_schedule="constant", subset=0.5)
    grown = set()
    for step in range(40):
        change = gse.update({"fc.weight": layer}, step, 4, 100)["fc.weight"]
        assert len(change.grown) == 2, "half of four, and all of the subset"
        grown |= set(change.grown.tolist())
    assert len(grown) > 30, "not only the largest gradients"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subset": -1}, "subset must be a number >= 0"),
        ({"exclude_dropped": False}, "exclude_dropped must be True"),
    ],
)
def test_bad_hyper_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        _ = ss.GSE(0.1, **given)
