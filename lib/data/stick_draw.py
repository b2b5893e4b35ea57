"""Drawing of stick-world scenes: background, clutter, soft shadows, figures, light and camera noise.

Everything is painted at twice the size and reduced; textures come from one cached noise field per size.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lib.data.stick_scene import Scene
from lib.data.stick_shapes import Colour, Shape, disc, ellipse, paint, poly, shade, stroke

SCALE = 2  # supersampling
HAZE = (206, 208, 206)

_SKIES = [((108, 160, 216), (206, 224, 236)), ((150, 168, 186), (214, 214, 208)), ((92, 126, 190), (238, 206, 170))]
_WALLS = [(206, 190, 160), (172, 192, 196), (214, 206, 196), (160, 150, 170), (196, 168, 148), (148, 172, 148)]
_GROUNDS: dict[str, list[tuple[Colour, Colour]]] = {  # far and near colour
    "park": [((120, 152, 84), (70, 112, 48)), ((150, 160, 90), (98, 118, 52)), ((92, 140, 90), (54, 98, 54))],
    "street": [((140, 140, 142), (96, 96, 100)), ((158, 150, 140), (118, 112, 106)), ((122, 126, 134), (80, 84, 92))],
    "beach": [((226, 208, 168), (206, 182, 134)), ((214, 196, 160), (190, 166, 126))],
    "room": [((150, 112, 78), (124, 88, 58)), ((170, 160, 150), (136, 126, 118)), ((112, 84, 66), (92, 66, 50))],
    "court": [((78, 128, 96), (60, 108, 80)), ((74, 110, 160), (56, 90, 140)), ((184, 104, 72), (160, 84, 56))],
}


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of ``scene.width`` x ``scene.height``; equal scenes give equal pixels."""
    rng = np.random.default_rng(scene.paint_seed)
    canvas = Image.fromarray(_background(scene, rng))
    draw = ImageDraw.Draw(canvas)
    paint(draw, _CLUTTER[scene.place](scene, rng), SCALE)
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, HAZE), 0.5)  # what is far is pale
    draw = ImageDraw.Draw(canvas)
    canvas.paste((18, 18, 26), mask=_shadow_mask(scene, rng))
    for group in scene.groups:
        paint(draw, group.shapes, SCALE)
    if rng.random() < 0.14:
        paint(draw, _occluder(scene, rng), SCALE)
    return _camera(canvas.reduce(SCALE), rng)


@cache
def _noise(height: int, width: int) -> np.ndarray:
    """Return a fixed zero-mean texture of fine and coarse grain, float32, twice the size in both axes."""
    rng = np.random.default_rng(20150)
    field = rng.normal(0, 0.5, (2 * height, 2 * width))
    for step, weight in ((4, 0.7), (16, 0.9), (48, 0.8)):
        coarse = rng.normal(0, 1, (2 * height // step + 2, 2 * width // step + 2)).astype(np.float32)
        smooth = Image.fromarray(coarse).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
        field += weight * np.asarray(smooth)
    return field.astype(np.float32)


def _texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    field = _noise(height, width)
    y, x = rng.integers(height), rng.integers(width)
    return field[y : y + height, x : x + width]


def _gradient(top: Colour, bottom: Colour, rows: int) -> np.ndarray:
    mix = np.linspace(0, 1, max(rows, 1), dtype=np.float32)[:, None]
    return np.float32(top) * (1 - mix) + np.float32(bottom) * mix  # (rows, 3)


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return far background and ground with gradients and texture, uint8 (H, W, 3), supersampled."""
    height, width, line = SCALE * scene.height, SCALE * scene.width, round(SCALE * scene.horizon)
    grounds = _GROUNDS[scene.place]
    ground = _gradient(*grounds[rng.integers(len(grounds))], height - line)
    if scene.place in ("room", "court"):
        wall = _WALLS[rng.integers(len(_WALLS))]
        far = _gradient(wall, shade(wall, 0.86), line)
    else:
        far = _gradient(*_SKIES[rng.integers(len(_SKIES))], line)
    column = np.concatenate([far, ground])[:, None, :]
    column = column * rng.uniform(0.9, 1.08, 3).astype(np.float32)
    strength = np.where(np.arange(height) < line, 2.0, rng.uniform(4, 8)).astype(np.float32)
    grain = _texture(height, width, rng) * strength[:, None]
    return np.clip(column + grain[..., None], 0, 255).astype(np.uint8)


def _shadow_mask(scene: Scene, rng: np.random.Generator) -> Image.Image:
    mask = Image.new("L", (scene.width, scene.height))
    draw = ImageDraw.Draw(mask)
    slant, outdoors = rng.uniform(-0.5, 0.5), rng.uniform(0.6, 1.0)
    for group in scene.groups:
        for x, half, strength in group.shadows:
            x, thick = x + slant * half, max(2.0, 0.12 * half)
            box = (x - 0.95 * half, group.ground - thick, x + 0.95 * half, group.ground + thick)
            draw.ellipse(box, fill=round(210 * strength * outdoors))
    return mask.filter(ImageFilter.BoxBlur(1.5)).resize((SCALE * scene.width, SCALE * scene.height))


def _camera(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary light, colour cast and contrast, add a slope of light across the picture and sensor noise."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.6))))
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    slope = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(rng.normal(0, 0.04))
    light = (1 + slope + np.float32(0.012) * _texture(height, width, rng)) * np.float32(rng.uniform(0.9, 1.08))
    cast = rng.normal(1, 0.02, 3).astype(np.float32)
    contrast = np.float32(rng.uniform(0.92, 1.1))
    pixels = (pixels - 120) * contrast + 120
    pixels = pixels * light[..., None] * cast
    pixels += _texture(height, width, rng)[..., None] * np.float32(rng.uniform(0.6, 1.5))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# --- clutter, in image pixels (y down) ------------------------------------------------------------------------


def _bush(x: float, y: float, size: float, rng: np.random.Generator) -> list[Shape]:
    green = (int(rng.integers(40, 80)), int(rng.integers(84, 128)), int(rng.integers(34, 64)))
    blobs = rng.uniform(-1, 1, (9, 2)) * (0.8 * size, 0.4 * size)
    return [
        disc(shade(green, 0.75 + 0.05 * k), complex(x + dx, y - 0.5 * size + dy), 0.45 * size)
        for k, (dx, dy) in enumerate(blobs)
    ]


def _tree(x: float, y: float, size: float, rng: np.random.Generator) -> list[Shape]:
    trunk = stroke((92, 70, 50), size * 0.12, complex(x, y), complex(x, y - size))
    return [trunk, *_bush(x, y - 0.8 * size, 0.55 * size, rng)]


def _park(scene: Scene, rng: np.random.Generator) -> list[Shape]:
    shapes, y = [], scene.horizon
    if rng.random() < 0.6:  # hills or a line of woods
        xs = np.linspace(-10, scene.width + 10, 9)
        ridge = [complex(x, y - rng.uniform(3, 14)) for x in xs]
        colour = shade((96, 124, 92), float(rng.uniform(0.8, 1.1)))
        shapes.append(poly(colour, *ridge, complex(scene.width + 10, y + 1), complex(-10, y + 1)))
    if rng.random() < 0.5:  # a path
        a, b = rng.uniform(0, scene.width, 2)
        shapes.append(
            poly((186, 172, 144), a + y * 1j, a + 5 + y * 1j, b + 34 + scene.height * 1j, b - 12 + scene.height * 1j)
        )
    for x in rng.uniform(0, scene.width, rng.integers(1, 5)):
        grow = _tree if rng.random() < 0.6 else _bush
        shapes += grow(float(x), y + rng.uniform(0, 5), rng.uniform(9, 30), rng)
    return shapes


def _street(scene: Scene, rng: np.random.Generator) -> list[Shape]:
    shapes, y, x = [], scene.horizon, float(rng.uniform(-20, 0))
    while x < scene.width:
        wide, high = rng.uniform(22, 50), rng.uniform(0.5, 1.1) * y
        wall = shade(_WALLS[rng.integers(len(_WALLS))], float(rng.uniform(0.55, 0.95)))
        shapes.append(poly(wall, x + y * 1j, x + wide + y * 1j, complex(x + wide, y - high), complex(x, y - high)))
        pane = shade((90, 110, 130), float(rng.uniform(0.6, 1.5)))
        for wx in np.arange(x + 4, x + wide - 5, 9):
            for wy in np.arange(y - high + 5, y - 8, 12):
                shapes.append(poly(pane, *(complex(wx + dx, wy + dy) for dx, dy in ((0, 0), (4, 0), (4, 6), (0, 6)))))
        x += wide + rng.uniform(0, 6)
    kerb = y + rng.uniform(5, 12)
    shapes.append(stroke((186, 184, 178), 2.0, complex(0, kerb), complex(scene.width, kerb)))
    if rng.random() < 0.6:  # lane marks
        lane = rng.uniform(kerb + 8, scene.height)
        shapes += [
            stroke((216, 214, 200), 1.6, complex(x, lane), complex(x + 12, lane)) for x in range(-5, scene.width, 26)
        ]
    for x in rng.uniform(0, scene.width, rng.integers(0, 3)):  # lamp posts
        shapes.append(stroke((70, 72, 76), 1.8, complex(x, y + 6), complex(x, y - rng.uniform(25, 55))))
    return shapes


def _beach(scene: Scene, rng: np.random.Generator) -> list[Shape]:
    y, w = scene.horizon, scene.width
    shore = y + rng.uniform(6, 0.75 * (scene.height - y))
    sea = shade((62, 124, 158), float(rng.uniform(0.8, 1.2)))
    edge = [complex(x, shore + rng.uniform(-2, 2)) for x in np.linspace(w + 5, -5, 10)]
    shapes = [poly(sea, -5 + y * 1j, w + 5 + y * 1j, *edge), stroke((238, 242, 242), 2.2, *edge)]
    for _ in range(rng.integers(4, 10)):
        x, wave, run = rng.uniform(-10, w), rng.uniform(y + 2, shore), rng.uniform(8, 40)
        shapes.append(stroke(shade(sea, float(rng.uniform(1.1, 1.4))), 1.0, complex(x, wave), complex(x + run, wave)))
    return shapes


def _room(scene: Scene, rng: np.random.Generator) -> list[Shape]:
    y, w, shapes = scene.horizon, scene.width, []
    shapes.append(stroke((232, 228, 220), 2.4, y * 1j, w + y * 1j))  # skirting
    for _ in range(rng.integers(1, 4)):  # windows, pictures
        x, top = rng.uniform(0, w - 25), rng.uniform(3, 0.4 * y)
        wide, high = rng.uniform(16, 38), rng.uniform(14, 0.5 * y)
        inner = (
            shade((170, 204, 226), float(rng.uniform(0.7, 1.1)))
            if rng.random() < 0.5
            else tuple(map(int, rng.integers(50, 210, 3)))
        )
        frame = shade((236, 232, 224), float(rng.uniform(0.4, 1.0)))
        for grow, colour in ((1.6, frame), (0.0, inner)):
            corners = ((-grow, -grow), (wide + grow, -grow), (wide + grow, high + grow), (-grow, high + grow))
            shapes.append(poly(colour, *(complex(x + dx, top + dy) for dx, dy in corners)))
        shapes.append(stroke(frame, 1.0, complex(x + wide / 2, top), complex(x + wide / 2, top + high)))
    if rng.random() < 0.5:  # cupboard
        x, wide, high = rng.uniform(-10, w - 15), rng.uniform(18, 42), rng.uniform(18, 44)
        wood = shade((132, 92, 58), float(rng.uniform(0.7, 1.3)))
        shapes.append(
            poly(wood, complex(x, y + 4), complex(x + wide, y + 4), complex(x + wide, y - high), complex(x, y - high))
        )
        shapes.append(stroke(shade(wood, 0.6), 1.0, complex(x + wide / 2, y + 3), complex(x + wide / 2, y - high)))
    if rng.random() < 0.4:  # carpet
        cx, rx, cy = rng.uniform(30, w - 30), rng.uniform(25, 60), rng.uniform(y + 12, scene.height - 8)
        shapes.append(ellipse(tuple(map(int, rng.integers(70, 190, 3))), complex(cx, cy), rx, 0.22 * rx))
    return shapes


def _court(scene: Scene, rng: np.random.Generator) -> list[Shape]:
    y, w, h = scene.horizon, scene.width, scene.height
    shapes = [stroke((226, 226, 220), 1.5, complex(0, y + d), complex(w, y + d)) for d in (7, rng.uniform(18, 40))]
    a, b = rng.uniform(0, w), rng.uniform(0, w)
    shapes.append(stroke((226, 226, 220), 1.5, complex(a, y + 7), complex(b, h)))
    if rng.random() < 0.5:  # fence
        dark = (96, 104, 108)
        shapes += [stroke(dark, 0.8, complex(x, y), complex(x, 0.35 * y)) for x in range(int(rng.integers(0, 8)), w, 9)]
        shapes.append(stroke(dark, 1.2, complex(0, 0.35 * y), complex(w, 0.35 * y)))
    return shapes


_CLUTTER = {"park": _park, "street": _street, "beach": _beach, "room": _room, "court": _court}


def _occluder(scene: Scene, rng: np.random.Generator) -> list[Shape]:
    """Something close to the camera at the lower border or across the picture: a bush, a box or a pole."""
    x, y = rng.uniform(0, scene.width), scene.height + 3.0
    kind = rng.integers(3)
    if kind == 0:
        return _bush(x, y, rng.uniform(10, 18), rng)
    if kind == 1:
        wide, high = rng.uniform(12, 28), rng.uniform(9, 20)
        tone = tuple(map(int, rng.integers(60, 190, 3)))
        return [poly(tone, complex(x, y), complex(x + wide, y), complex(x + wide, y - high), complex(x, y - high))]
    return [stroke((84, 86, 90), float(rng.uniform(2.5, 4)), complex(x, y), complex(x, rng.uniform(-5, 40)))]
