"""The report page: whole, self-contained, and with the figures of the run."""

from __future__ import annotations

import base64
import html.parser
import io
import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from startsparse.experiments import drawing, page
from startsparse.experiments.results import ResultsError

VOID = {"meta", "img"}


class Balanced(html.parser.HTMLParser):
    """Every tag that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_of_a_run(trained, tmp_path):
    rigl, _ = trained
    place = page.write(rigl.folder, tmp_path / "page.html")
    text = place.read_text()
    reader = Balanced()
    reader.feed(text)
    assert not reader.open
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "<script" not in text
    assert f"{100 * rigl.result['test_accuracy']:.2f} %" in text
    assert "rigl, mlp on digits, seed 0" in text and "fc1.weight" in text and "fc2.weight" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert text.count("<img") == 2


def test_the_page_of_a_dense_run(trained):
    text = page.page(trained[1])
    assert "every weight lives" in text and "dense, mlp on digits" in text


def test_beside_the_run_by_default(trained):
    place = page.write(trained[0].folder)
    assert place == trained[0].folder / "report.html"
    place.unlink()


def test_a_run_that_has_not_ended(finished):
    folder = finished(0)
    (folder / "result.json").unlink()
    with pytest.raises(ResultsError, match="has not ended"):
        page.write(folder)


def test_points_where_they_belong():
    svg = drawing.curves({"a": [(0, 0.0), (10, 1.0)], "b": [(5, 0.5), (6, float("nan"))]}, "step", "<loss>")
    root = ElementTree.fromstring(svg)
    lines = [line.get("points") for line in root.iter("polyline")]
    (x0, y0), (x1, y1) = [tuple(map(float, point.split(","))) for point in lines[0].split()]
    ((x2, y2),) = [tuple(map(float, point.split(","))) for point in lines[1].split()]
    assert x0 < x2 < x1 and y1 < y2 < y0  # up is smaller
    assert (x2, y2) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.11)
    assert root.get("aria-label") == "<loss>" and len(list(root.iter("circle"))) == 1


def test_no_points():
    assert drawing.curves({"a": [(0, float("nan"))]}, "step", "loss") == "<p>no values of loss</p>"


def _pixels(picture: str) -> np.ndarray:
    data = re.search(r"base64,([^\"]+)", picture)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_small_mask_is_shown_weight_by_weight():
    live = torch.tensor([[True, False, True], [False, False, True]])
    assert ((_pixels(drawing.mask(live)) < 128) == live.numpy()).all()


def test_a_large_mask_is_averaged():
    live = torch.zeros(200, 10, 3, 3, dtype=torch.bool)
    live[:100] = True
    pixels = _pixels(drawing.mask(live, most=50))
    assert pixels.shape == (50, 50) and (pixels[:25] == 30).all() and (pixels[25:] == 255).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.92), (-5, 1e6), (1e-5, 3e-5), (99.9, 100.1)])
def test_ticks_are_round_and_inside(low, high):
    found = drawing.ticks(low, high)
    assert 2 <= len(found) <= 7 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert all(b > a for a, b in itertools.pairwise(found))


def test_a_curve_that_stays_is_drawn_against_zero():
    picture = drawing.curves({"density": [(0, 0.1), (10, 0.1)]}, "step", "density")
    labels = re.findall(r'class="y"[^>]*>([^<]+)<', picture)
    assert labels[0] == "0" and labels[-1] == "0.1"
