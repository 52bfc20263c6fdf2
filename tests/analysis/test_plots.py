"""Figures: real PNGs, the same bytes for the same data, and what must be on them is."""

import base64
import io

import numpy as np
from PIL import Image

from analysis import plots
from analysis.plots import GridRow, Point


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_one_picture_keeps_its_pixels() -> None:
    image = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    pixels = np.asarray(opened(base64.b64decode(plots.picture(image))))
    np.testing.assert_array_equal(pixels, np.rint(np.moveaxis(image, 0, -1) * 255).astype(np.uint8))


def test_grid_shows_each_picture_where_it_belongs() -> None:
    red, green = np.zeros((2, 3, 16, 16), dtype=np.float32)
    red[0], green[1] = 1, 1
    data = plots.image_grid(
        [
            GridRow(label="one", remark="", images=[red, green]),
            GridRow(label="two", remark="", images=[green, None]),
        ],
        ["a", "b"],
    )
    pixels = np.asarray(opened(data).convert("RGB"))
    is_red, is_green = (pixels == (255, 0, 0)).all(-1), (pixels == (0, 255, 0)).all(-1)
    cell = (2 * 16 * 2) ** 2  # 16 pixels, drawn twice as large in points, at two pixels per point
    assert abs(is_red.sum() - cell) <= 4 * 64  # matplotlib may round an edge by a pixel
    assert abs(is_green.sum() - 2 * cell) <= 8 * 64
    rows, columns = is_red.nonzero()
    beside, below = is_green.copy(), is_green.copy()
    beside[:, : columns.max() + 1] = False
    below[:, columns.max() + 1 :] = False
    assert abs(beside.sum() - cell) <= 4 * 64
    assert (beside.nonzero()[0].min(), beside.nonzero()[0].max()) == (rows.min(), rows.max())
    assert (below.nonzero()[1].min(), below.nonzero()[1].max()) == (columns.min(), columns.max())
    assert below.nonzero()[0].min() > rows.max()


def test_front_plot_is_deterministic_and_follows_the_data() -> None:
    points = [Point(label="a", cost=1.0, quality=30.0, low=29.0, high=31.0), Point(label="b", cost=2.0, quality=40.0)]
    words = {"title": "t", "cost_name": "s", "quality_name": "dB"}
    first = plots.pareto(points, **words, floor=35.0, floor_name="floor", baseline=1.5, baseline_name="base")
    again = plots.pareto(points, **words, floor=35.0, floor_name="floor", baseline=1.5, baseline_name="base")
    moved = plots.pareto(points[:1], **words, floor=35.0, floor_name="floor", baseline=1.5, baseline_name="base")
    assert first == again
    assert first != moved
    assert b"Software" not in first
    assert min(opened(first).size) >= 600
