"""Thumbnails hold both boxes; nothing is drawn for a row without them."""

import base64
import io

import numpy as np
import pandas as pd
from PIL import Image

from lib.analysis.embeddings import BOXES_H, BOXES_O
from lib.analysis.thumbnails import Thumbnails, draw_boxes

BLUE, ORANGE = (0, 114, 178), (230, 159, 0)


def frame(*boxes: tuple[float, ...], image: int = 0) -> pd.DataFrame:
    return pd.DataFrame(list(boxes), columns=[*BOXES_H, *BOXES_O]).assign(image=image, split="test")


def test_the_crop_holds_both_boxes_with_a_margin():
    grey = Image.new("RGB", (400, 300), "grey")
    picture = Thumbnails(frame((100, 50, 160, 200, 150, 150, 250, 210)), lambda i, split: grey).picture(0, 345)
    # union 150 x 160, margin 24: 198 x 208 -> the longer side becomes 345
    assert picture.size == (round(198 * 345 / 208), 345)
    colours = {colour for _, colour in picture.getcolors(1 << 16)}
    assert BLUE in colours and ORANGE in colours


def test_boxes_are_drawn_where_they_are():
    picture = draw_boxes(Image.new("RGB", (100, 100)), np.array([[10, 20, 40, 80], [50, 50, 90, 90]], float), width=2)
    assert picture.getpixel((11, 40)) == BLUE and picture.getpixel((51, 70)) == ORANGE
    assert picture.getpixel((10, 40)) == (255, 255, 255) and picture.getpixel((25, 25)) == (0, 0, 0)


def test_boxes_beyond_the_image_and_of_no_size_do_no_harm():
    grey = Image.new("RGB", (60, 40), "grey")
    look = Thumbnails(frame((-20, -5, 300, 400, 30, 30, 30, 30), (30, 20, 30, 20, 30, 20, 30, 20)), lambda i, s: grey)
    assert max(look.picture(0, 96).size) == max(look.picture(1, 96).size) == 96


def test_pictures_are_read_once_and_few_are_kept():
    asked = []

    def load(index: int, split: str) -> Image.Image:
        asked.append((index, split))
        return Image.new("RGB", (50, 50))

    table = pd.concat([frame((1, 1, 9, 9, 5, 5, 20, 20), image=i) for i in range(3)], ignore_index=True)
    look = Thumbnails(table, load, remember=2)
    first = look.uri(0)
    assert look.uri(0) == first and asked == [(0, "test")]
    assert Image.open(io.BytesIO(base64.b64decode(first.split(",")[1]))).size == (96, 96)
    look.uri(1), look.uri(2), look.uri(0)
    assert [index for index, _ in asked] == [0, 1, 2, 0]


def test_rows_without_image_or_boxes_have_no_picture():
    rows = pd.concat([frame((1, 1, 9, 9, 5, 5, 20, 20), image=-1), frame((np.nan,) * 8)], ignore_index=True)
    look = Thumbnails(rows, lambda i, s: Image.new("RGB", (9, 9)))
    assert [look.uri(0), look.uri(1)] == ["", ""]
    assert Thumbnails(frame((1, 1, 9, 9, 5, 5, 20, 20)), None).uri(0) == ""
