"""The objects of the stick world: shapes and the anchor points by which a person touches them.

Every maker draws its object facing +x, standing on y = 0 at x = 0, in person heights, and names anchors:
``grip`` (held by), ``seat`` (sat, ridden or lain on), ``deck`` (stood on), ``rear`` (pushed or pulled by),
``bar`` (handle in front of a rider), ``neck`` (hugged or led by), ``centre``, ``pedal``.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lib.data.stick_shapes import Colour, Shape, bounds, disc, ellipse, move, poly, ring, shade, stroke

# Every class has its own family of colours, as bananas are yellow: a small model can learn to name them.
TEALS, REDS, YELLOWS = [(0, 150, 170), (0, 132, 186)], [(204, 40, 48), (222, 58, 84)], [(238, 190, 40), (248, 210, 70)]
PURPLES, PINKS, GREENS = (
    [(118, 62, 168), (146, 84, 190)],
    [(226, 60, 150), (240, 96, 170)],
    [(120, 190, 40), (90, 170, 50)],
)
ORANGES, WHITES, BLUES = (
    [(232, 112, 32), (240, 134, 50)],
    [(238, 240, 242), (224, 232, 240)],
    [(30, 90, 190), (40, 110, 210)],
)


@dataclass
class Item:
    """One object: its shapes in painting order and its anchor points."""

    name: str
    shapes: list[Shape]
    anchors: dict[str, complex]

    def __getitem__(self, anchor: str) -> complex:
        """Return an anchor; ``top``, ``bottom``, ``left``, ``right``, ``centre`` default to the box."""
        if anchor in self.anchors:
            return self.anchors[anchor]
        x1, y1, x2, y2 = bounds(self.shapes)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        box = {"top": complex(x, y2), "bottom": complex(x, y1), "left": complex(x1, y), "right": complex(x2, y)}
        return box.get(anchor, complex(x, y))

    def moved(self, angle: float = 0.0, shift: complex = 0, mirror: bool = False, scale: float = 1.0) -> Item:
        """Mirror, then turn by ``angle`` (radians, counter-clockwise) and scale about the origin, then shift."""
        turn = cmath.rect(scale, angle)
        anchors = {key: turn * (complex(-p.real, p.imag) if mirror else p) + shift for key, p in self.anchors.items()}
        return Item(self.name, move(self.shapes, turn, shift, mirror), anchors)

    def placed(self, anchor: str, at: complex, angle: float = 0.0, mirror: bool = False) -> Item:
        """Turn by ``angle`` and bring ``anchor`` to the point ``at``."""
        turned = self.moved(angle, mirror=mirror)
        return turned.moved(shift=at - turned[anchor])


def make_item(name: str, rng: np.random.Generator) -> Item:
    """Draw one object of a class with random colours and size."""
    item = _MAKERS[name](rng)
    return item.moved(scale=float(rng.uniform(0.9, 1.12)))


def _pick(rng: np.random.Generator, palette: list[Colour]) -> Colour:
    return shade(palette[rng.integers(len(palette))], float(rng.uniform(0.85, 1.12)))


def _bicycle(rng: np.random.Generator) -> Item:
    frame, tyre = _pick(rng, TEALS), (34, 34, 38)
    back, front, r = -0.27 + 0.19j, 0.29 + 0.19j, 0.175
    crank, saddle, head = 0.0 + 0.17j, -0.11 + 0.47j, 0.2 + 0.46j
    spokes = [
        stroke((150, 152, 156), 0.006, hub + cmath.rect(r, a), hub - cmath.rect(r, a))
        for hub in (back, front)
        for a in (0.4, 1.45, 2.5)
    ]
    tubes = [
        (back, crank),
        (back, saddle - 0.08j),
        (crank, saddle),
        (crank, head),
        (saddle - 0.08j, head),
        (head, front),
    ]
    shapes = [
        *spokes,
        *(ring(tyre, hub, r, 0.03) for hub in (back, front)),
        *(stroke(frame, 0.03, *tube) for tube in tubes),
        stroke((40, 36, 34), 0.045, saddle - 0.05, saddle + 0.06),
        stroke((60, 60, 66), 0.024, head, head + 0.02 + 0.1j, head + 0.1 + 0.11j),
        disc((70, 70, 74), crank, 0.045),
    ]
    anchors = {"seat": saddle + 0.02j, "bar": head + 0.07 + 0.11j, "pedal": crank, "rear": saddle - 0.04 + 0.02j}
    return Item("bicycle", shapes, anchors | {"grip": anchors["bar"], "neck": anchors["bar"]})


def _bench(rng: np.random.Generator) -> Item:
    wood, iron, w = _pick(rng, [(150, 104, 62), (128, 86, 50)]), (58, 60, 64), float(rng.uniform(0.42, 0.5))
    slats = [
        stroke(shade(wood, 0.85 + 0.07 * k), 0.04, -w + 1j * y, w + 1j * y) for k, y in enumerate((0.38, 0.45, 0.52))
    ]
    legs = [stroke(iron, 0.035, x + 0.02j, x + 0.24j) for x in (-w + 0.06, w - 0.06)]
    posts = [stroke(iron, 0.03, x + 0.24j, x + 0.54j) for x in (-w + 0.06, w - 0.06)]
    seat = poly(wood, -w - 0.03 + 0.21j, w + 0.03 + 0.21j, w - 0.01 + 0.29j, -w + 0.01 + 0.29j)
    edge = stroke(shade(wood, 0.7), 0.025, -w - 0.02 + 0.21j, w + 0.02 + 0.21j)
    return Item("bench", [*posts, *slats, *legs, seat, edge], {"seat": 0.27j, "deck": 0.27j, "centre": -w / 2 + 0.35j})


def _chair(rng: np.random.Generator) -> Item:
    wood, cushion = _pick(rng, [(214, 170, 104), (198, 152, 88)]), _pick(rng, REDS)
    far = shade(wood, 0.7)
    shapes = [
        *(stroke(far, 0.03, x + 0.03j, x + 0.26j) for x in (-0.07, 0.19)),
        stroke(wood, 0.04, -0.14 + 0.26j, -0.2 + 0.62j),
        *(stroke(shade(wood, 0.9), 0.035, -0.16 + 1j * y, -0.08 + 1j * (y + 0.02)) for y in (0.38, 0.48, 0.58)),
        stroke(far, 0.03, -0.06 + 0.28j, -0.11 + 0.62j),
        poly(cushion, -0.16 + 0.25j, 0.15 + 0.25j, 0.21 + 0.31j, -0.1 + 0.31j),
        stroke(wood, 0.03, -0.15 + 0.25j, 0.15 + 0.25j),
        *(stroke(wood, 0.035, x + 0.015j, x + 0.25j) for x in (-0.14, 0.14)),
    ]
    return Item("chair", shapes, {"seat": 0.01 + 0.29j, "deck": 0.02 + 0.29j, "rear": -0.17 + 0.58j, "lift": 0.2j})


def _quadruped(fur: Colour, back: complex, chest: complex, girth: float, hoof: float) -> list[Shape]:
    legs, far = [], shade(fur, 0.68)
    for x, colour in (
        (back + 0.05 * abs(chest - back), far),
        (chest + 0.06 * abs(chest - back), far),
        (back, fur),
        (chest, fur),
    ):
        foot = complex(x.real, hoof / 2)
        legs.append(stroke(colour, hoof, x - 0.3j * girth, foot))
    body = [
        stroke(fur, girth, back, chest),
        stroke(shade(fur, 1.12), girth * 0.35, back + 0.2j * girth, chest + 0.2j * girth),
    ]
    return legs[:2] + body + legs[2:]


def _dog(rng: np.random.Generator) -> Item:
    fur = _pick(rng, [(228, 214, 190), (240, 230, 212)])
    ear, neck, head = shade(fur, 0.6), 0.17 + 0.29j, 0.25 + 0.37j
    shapes = [
        stroke(fur, 0.035, -0.19 + 0.25j, -0.27 + 0.33j, -0.29 + 0.4j),
        *_quadruped(fur, -0.16 + 0.22j, 0.14 + 0.23j, 0.14, 0.05),
        stroke(fur, 0.1, neck - 0.02, head - 0.02),
        disc(fur, head, 0.075),
        stroke(fur, 0.06, head - 0.01j, head + 0.1 - 0.03j),
        disc((30, 26, 26), head + 0.125 - 0.025j, 0.018),
        poly(ear, head - 0.06 + 0.05j, head - 0.01 + 0.07j, head - 0.05 - 0.06j),
        disc((26, 22, 22), head + 0.035 + 0.02j, 0.012),
        stroke((200, 40, 40), 0.03, neck - 0.05 + 0.03j, neck + 0.05 - 0.02j),
    ]
    return Item("dog", shapes, {"neck": neck, "rear": neck, "centre": 0.06 + 0.3j, "grip": -0.02 + 0.17j})


def _horse(rng: np.random.Generator) -> Item:
    fur = _pick(rng, [(126, 78, 42), (104, 62, 34)])
    mane, neck, poll = shade(fur, 0.5), 0.3 + 0.55j, 0.44 + 0.84j
    shapes = [
        stroke(mane, 0.06, -0.4 + 0.52j, -0.48 + 0.42j, -0.48 + 0.24j),
        *_quadruped(fur, -0.28 + 0.46j, 0.24 + 0.47j, 0.23, 0.065),
        *(stroke(mane, 0.07, x + 0.02j, x + 0.05j) for x in (-0.28, 0.24)),
        poly(fur, 0.14 + 0.56j, 0.36 + 0.42j, 0.52 + 0.76j, 0.38 + 0.88j),
        stroke(mane, 0.06, 0.16 + 0.6j, 0.28 + 0.74j, 0.38 + 0.88j),
        stroke(fur, 0.12, poll - 0.01j, poll + 0.08 - 0.08j),
        stroke(shade(fur, 0.85), 0.09, poll + 0.08 - 0.07j, poll + 0.15 - 0.16j),
        poly(fur, poll - 0.03 + 0.02j, poll + 0.03 + 0.04j, poll + 0.01 + 0.12j),
        disc((24, 20, 20), poll + 0.05, 0.016),
        stroke((60, 36, 24), 0.02, poll + 0.03 - 0.12j, poll + 0.13 - 0.06j),
    ]
    saddle = [poly((84, 44, 28), -0.14 + 0.6j, 0.1 + 0.6j, 0.07 + 0.46j, -0.1 + 0.46j)]
    anchors = {"seat": -0.02 + 0.6j, "bar": 0.25 + 0.72j, "pedal": 0.05 + 0.26j, "neck": neck + 0.07 + 0.16j}
    return Item("horse", shapes + saddle, anchors | {"rear": poll + 0.12 - 0.12j})


def _umbrella(rng: np.random.Generator) -> Item:
    cloth, second = _pick(rng, REDS), _pick(rng, WHITES)
    r, top = float(rng.uniform(0.33, 0.42)), 0.62j
    panels = []
    for k in range(5):
        ts = [math.pi * (k + s / 3) / 5 for s in range(4)]
        rim = [complex(r * math.cos(t), 0.22 * math.sin(t)) + top - 0.16j for t in ts]
        lower = [complex(r * math.cos(math.pi * k / 5), 0), complex(r * math.cos(math.pi * (k + 1) / 5), 0)]
        base = top - 0.16j
        panels.append(poly(shade(cloth if k % 2 else second, 0.82 + 0.09 * k), *rim, base + lower[1], base + lower[0]))
    shaft = [
        stroke((70, 60, 56), 0.022, 0.0 + 0.03j, top + 0.08j),
        stroke((90, 56, 30), 0.032, 0.04j, 0.01j, 0.035 + 0j),
    ]
    return Item("umbrella", shaft + panels, {"grip": 0.08j, "centre": 0.3j, "rear": 0.1j})


def _suitcase(rng: np.random.Generator) -> Item:
    cloth = _pick(rng, YELLOWS)
    w, h = float(rng.uniform(0.13, 0.16)), float(rng.uniform(0.36, 0.42))
    shapes = [
        *(stroke((110, 112, 116), 0.018, x + h * 1j, x + (h + 0.16) * 1j) for x in (-0.06, 0.06)),
        stroke((60, 60, 64), 0.03, -0.065 + (h + 0.16) * 1j, 0.065 + (h + 0.16) * 1j),
        poly(cloth, -w + 0.03j, w + 0.03j, w + h * 1j, -w + h * 1j),
        poly(shade(cloth, 1.2), -w + (h - 0.03) * 1j, w + (h - 0.03) * 1j, w + h * 1j, -w + h * 1j),
        *(stroke(shade(cloth, 0.65), 0.018, x + 0.06j, x + (h - 0.04) * 1j) for x in (-w / 2, 0, w / 2)),
        *(disc((28, 28, 30), x + 0.025j, 0.028) for x in (-w + 0.02, w - 0.02)),
    ]
    anchors = {"rear": (h + 0.16) * 1j, "seat": h * 1j, "grip": (h + 0.16) * 1j, "centre": h * 0.5j, "lift": 0.05j}
    return Item("suitcase", shapes, anchors)


def _sports_ball(rng: np.random.Generator) -> Item:
    base, r = _pick(rng, ORANGES), 0.105
    line, c = shade(base, 0.4), 1j * 0.105
    shapes = [
        disc(base, c, r),
        ellipse(shade(base, 0.82), c, r, r, start=math.pi, stop=math.tau),
        stroke(line, 0.016, c - r * 0.95, c + r * 0.95),
        stroke(line, 0.016, c - r * 0.95j, c + r * 0.95j),
        stroke(line, 0.012, c + r * (-0.65 + 0.7j), c + r * -0.3, c + r * (-0.65 - 0.7j)),
        disc(shade(base, 1.25), c + r * (0.35 + 0.45j), 0.025),
    ]
    return Item("sports_ball", shapes, {"grip": c, "centre": c})


def _kite(rng: np.random.Generator) -> Item:
    cloths = [_pick(rng, PURPLES), _pick(rng, TEALS), _pick(rng, PURPLES)]
    n, e, s, w = 0.26j, 0.17 + 0.08j, -0.2j, -0.17 + 0.08j
    tail = [-0.2j, 0.05 - 0.26j, -0.03 - 0.32j, 0.03 - 0.39j]
    shapes = [
        stroke((210, 210, 210), 0.012, *tail),
        *(
            poly(cloths[k % 3], p - 0.035 + 0.02j, p - 0.035 - 0.02j, p, p + 0.035 + 0.02j, p + 0.035 - 0.02j)
            for k, p in enumerate(tail[1:])
        ),
        poly(cloths[0], n, e, 0.08j),
        poly(cloths[1], e, s, 0.08j),
        poly(cloths[0], s, w, 0.08j),
        poly(cloths[1], w, n, 0.08j),
        stroke((70, 54, 40), 0.014, n, s),
        stroke((70, 54, 40), 0.014, e, w),
    ]
    return Item("kite", shapes, {"grip": -0.14j, "centre": 0.03j, "rear": 0.05j})


def _skateboard(rng: np.random.Generator) -> Item:
    deck, wheel = _pick(rng, PINKS), _pick(rng, [(236, 226, 190), (60, 60, 64)])
    w = float(rng.uniform(0.28, 0.33))
    shapes = [
        *(stroke((120, 122, 128), 0.03, x + 0.05j, x + 0.1j) for x in (-w * 0.55, w * 0.55)),
        *(disc(wheel, x + 0.042j, 0.042) for x in (-w * 0.55 - 0.02, w * 0.55 + 0.02)),
        stroke(deck, 0.05, -w - 0.05 + 0.155j, -w * 0.75 + 0.11j, w * 0.75 + 0.11j, w + 0.05 + 0.155j),
        stroke((40, 40, 42), 0.02, -w * 0.75 + 0.13j, w * 0.75 + 0.13j),
    ]
    return Item("skateboard", shapes, {"deck": 0.135j, "seat": 0.135j, "grip": 0.08j, "centre": 0.09j})


def _surfboard(rng: np.random.Generator) -> Item:
    base, stripe, w = _pick(rng, BLUES), _pick(rng, WHITES), float(rng.uniform(0.5, 0.58))
    shapes = [
        poly(shade(base, 0.6), -w * 0.7 + 0.07j, -w * 0.78 - 0.01j, -w * 0.58 + 0.06j),
        ellipse(shade(base, 0.7), 0.085j, w, 0.085),
        ellipse(base, 0.1j, w, 0.075),
        ellipse(stripe, 0.1j, w * 0.97, 0.028),
        poly(stripe, w * 0.5 + 0.04j, w * 0.6 + 0.045j, w * 0.6 + 0.155j, w * 0.5 + 0.16j),
    ]
    return Item("surfboard", shapes, {"deck": 0.13j, "seat": 0.14j, "grip": 0.06j, "centre": 0.09j, "lift": 0.03j})


def _tennis_racket(rng: np.random.Generator) -> Item:
    frame, c = _pick(rng, GREENS), 0.37j
    rx, ry, strings = 0.115, 0.15, (222, 222, 206)
    rim = [c + complex(rx * math.cos(t), ry * math.sin(t)) for t in np.linspace(0, math.tau, 19)]
    shapes = [
        ellipse((176, 184, 170), c, rx, ry),
        *(stroke(strings, 0.008, c + x - 0.12j, c + x + 0.12j) for x in (-0.06, -0.02, 0.02, 0.06)),
        *(stroke(strings, 0.008, c + y * 1j - 0.1, c + y * 1j + 0.1) for y in (-0.08, -0.03, 0.03, 0.08)),
        stroke(frame, 0.026, *rim),
        stroke(frame, 0.03, 0.22j, 0.14j),
        stroke((44, 40, 40), 0.045, 0.14j, 0.02j),
    ]
    return Item("tennis_racket", shapes, {"grip": 0.05j, "centre": 0.3j})


_MAKERS: dict[str, Callable[[np.random.Generator], Item]] = {
    "bicycle": _bicycle, "bench": _bench, "dog": _dog, "horse": _horse, "umbrella": _umbrella,
    "suitcase": _suitcase, "sports_ball": _sports_ball, "kite": _kite, "skateboard": _skateboard,
    "surfboard": _surfboard, "tennis_racket": _tennis_racket, "chair": _chair,
}  # fmt: skip
