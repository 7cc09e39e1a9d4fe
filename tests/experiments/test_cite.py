"""Every method can be cited, and BibTeX says what the docstring says."""

from __future__ import annotations

import re

import pytest

from startsparse import methods
from startsparse.experiments.cite import Reference, references


@pytest.mark.parametrize("name", methods.names())
def test_every_method_names_its_paper(name):
    first = references(name)[0]
    author, year = re.fullmatch(r"(.+?) (\d{4})", methods.get(name).paper).groups()
    assert first.authors.split(",")[0].split()[0] == author.split()[0].rstrip(",")
    assert first.year == year and first.title and first.url.startswith("https://")
    assert first.bibtex().startswith("@") and f"year = {{{year}}}" in first.bibtex()


def test_there_are_methods():
    assert len(methods.names()) >= 6


@pytest.mark.parametrize(
    ("text", "authors", "title", "venue", "year"),
    [
        ("Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878",
         "Zhu and Gupta", "To prune, or not to prune", "", "2017"),
        ("Mallya, Davis, Lazebnik, Piggyback: Adapting, ECCV 2018, section 3, https://arxiv.org/abs/1801.06519",
         "Mallya, Davis, Lazebnik", "Piggyback: Adapting", "ECCV", "2018"),
        ("Frankle et al., Stabilizing (late rewinding), https://arxiv.org/abs/1903.01611",
         "Frankle et al.", "Stabilizing", "", "2019"),
        ("Ramanujan et al., CVPR 2020, https://arxiv.org/abs/1911.13299", "Ramanujan et al.", "", "CVPR", "2020"),
    ],
)  # fmt: skip
def test_reading_a_reference(text, authors, title, venue, year):
    found = Reference(text)
    assert (found.authors, found.title, found.venue, found.year) == (authors, title, venue, year)
    assert ("note" in found.bibtex()) == (not title)


def test_an_unknown_method():
    with pytest.raises(ValueError, match="unknown method 'rigll': did you mean 'rigl'"):
        references("rigll")
