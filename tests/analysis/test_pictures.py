"""Drawn pairs: one number a pair, numbers off faces and off each other, any mode and size of image."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.analysis.palette import HUMAN, OBJECT
from lib.analysis.pictures import BOXES_H, BOXES_O, _clear_spots, draw_hois, draw_pairs


def texts(axis):
    return [text.get_text() for text in axis.texts]


def boxes_of(axis, colour):
    return [patch.get_bbox().extents.tolist() for patch in axis.patches if patch.get_edgecolor()[:3] == rgb(colour)]


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_interactions_of_one_pair_share_a_number():
    human, ball, kite = [10, 10, 30, 90], [40, 60, 55, 75], [60, 5, 90, 30]
    rows = [[*human, *ball], [*human, *kite], [*human, *ball]]
    hois = pd.DataFrame(rows, columns=[*BOXES_H, *BOXES_O]).assign(
        hoi=["kick ball", "fly kite", "hold ball"], score=[0.9, 0.5, 0.03]
    )
    fig = draw_hois(Image.new("RGB", (100, 100)), hois)
    picture, side = fig.axes
    assert texts(picture) == ["1", "2"]
    assert texts(side)[:-2] == ["1", "kick ball", "0.90", "hold ball", "0.03", "2", "fly kite", "0.50"]
    assert boxes_of(picture, HUMAN) == [human] and boxes_of(picture, OBJECT) == [ball, kite]
    links = [line.get_xydata().tolist() for line in picture.lines if line.get_linestyle() == "-"]
    assert [[20, 50], [47.5, 67.5]] in links and [[20, 50], [75, 17.5]] in links


def test_a_person_who_is_also_an_object_shows_both_colours():
    one, two = [0, 0, 20, 50], [40, 0, 60, 50]
    axis = draw_pairs(Image.new("RGB", (80, 60)), [one, two], [two, one], ["hug person", "hug person"]).axes[0]
    dashed = [patch for patch in axis.patches if patch.get_linestyle() not in ("-", "solid")]
    assert sorted(boxes_of(axis, HUMAN)) == sorted(boxes_of(axis, OBJECT)) == [one, two] and len(dashed) == 2


def test_numbers_keep_off_faces_and_off_each_other():
    """Ten people hold an umbrella over themselves: the middle of every link is a face."""
    humans = np.array([[40 * i, 50, 40 * i + 30, 150] for i in range(10)], float)
    pairs = np.stack([humans, humans + [0, -45, 0, -95]], axis=1)  # object above, link through the head
    spots = _clear_spots(pairs, radius=5)
    middle = (pairs[:, :, :2] + pairs[:, :, 2:]).mean(axis=1) / 2
    heads = np.stack([humans[:, 1], humans[:, 1] + 25], axis=1)
    assert ((middle[:, 1] > heads[:, 0]) & (middle[:, 1] < heads[:, 1])).all()
    assert ((spots[:, 1] + 5 < heads[:, 0] + 0.01) | (spots[:, 1] - 5 > heads[:, 1] - 0.01)).all()
    crowd = _clear_spots(np.repeat(pairs[:1], 3, axis=0) + np.arange(3)[:, None, None], radius=5)
    apart = np.linalg.norm(crowd[:, None] - crowd[None], axis=2)[np.triu_indices(3, 1)]
    assert (apart > 10).all()
    assert _clear_spots(np.zeros((0, 2, 4)), 5).shape == (0, 2)


@pytest.mark.parametrize(
    ("size", "mode"), [((160, 128), "RGB"), ((4000, 3000), "L"), ((900, 90), "P"), ((60, 400), "CMYK")]
)
def test_text_keeps_its_size_on_any_image(size, mode):
    """Letters are as large on a thumbnail as on a photo of 12 megapixels; boxes stay in pixels of the file."""
    width, height = size
    human, thing = [0, 0, width / 2, height], [width / 2, height / 2, width, height]
    fig = draw_pairs(Image.new(mode, size), [human], [thing], ["ride bicycle"], [0.5], title="x" * 200)
    picture, side = fig.axes
    assert {text.get_fontsize() for text in side.texts} <= {9.0, 10.0}
    assert picture.get_xlim() == (-0.5, width - 0.5) and boxes_of(picture, OBJECT) == [thing]
    assert picture.images[0].get_array().shape[2] == 3 and max(picture.images[0].get_array().shape) <= 2000
    stream = io.BytesIO()
    fig.savefig(stream, format="png", dpi=50)
    drawn = picture.get_window_extent()
    label = next(text for text in side.texts if text.get_text() == "ride bicycle").get_window_extent()
    assert label.x0 > drawn.x1 and label.x1 < fig.bbox.x1  # beside the picture, not on it
    assert drawn.width / drawn.height == pytest.approx(width / height, rel=0.05)


def test_no_pair_is_said():
    assert "no pair" in texts(draw_pairs(Image.new("RGB", (40, 30)), [], [], []).axes[1])
