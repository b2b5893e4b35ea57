"""Plane geometry of the stick world: shapes as complex points, moved, measured and painted.

A point is a complex number, x + iy with y up, in units of the height of the person it belongs to; turning and
scaling are one multiplication. Pixels (y down) appear only in :func:`paint`.
"""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

from PIL import ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2


class Shape(NamedTuple):
    """A filled ``poly``, a round-ended ``stroke`` along points, a ``disc`` or a ``ring`` around one point."""

    kind: str
    points: tuple[complex, ...]
    colour: Colour
    width: float = 0.0  # stroke thickness, or diameter of a disc or ring
    line: float = 0.0  # thickness of a ring


def poly(colour: Colour, *points: complex) -> Shape:
    return Shape("poly", points, colour)


def stroke(colour: Colour, width: float, *points: complex) -> Shape:
    return Shape("stroke", points, colour, width)


def disc(colour: Colour, centre: complex, radius: float) -> Shape:
    return Shape("disc", (centre,), colour, 2 * radius)


def ring(colour: Colour, centre: complex, radius: float, line: float) -> Shape:
    return Shape("ring", (centre,), colour, 2 * radius, line)


def ellipse(
    colour: Colour,
    centre: complex,
    rx: float,
    ry: float,
    angle: float = 0.0,
    start: float = 0.0,
    stop: float = math.tau,
    steps: int = 18,
) -> Shape:
    """Return a polygon on an ellipse, turned by ``angle``; ``start``/``stop`` cut an arc (radians)."""
    turn = cmath.rect(1, angle)
    ts = [start + (stop - start) * k / steps for k in range(steps + 1)]
    return poly(colour, *(centre + turn * complex(rx * math.cos(t), ry * math.sin(t)) for t in ts))


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or lighten (factor > 1) a colour."""
    return tuple(max(0, min(255, round(channel * factor))) for channel in colour)


def move(shapes: list[Shape], turn: complex = 1, shift: complex = 0, mirror: bool = False) -> list[Shape]:
    """Mirror left-right (optional), then turn and scale by ``turn``, then shift."""
    scale = abs(turn)
    moved = []
    for shape in shapes:
        points = [complex(-p.real, p.imag) for p in shape.points] if mirror else shape.points
        moved.append(
            Shape(
                shape.kind,
                tuple(turn * p + shift for p in points),
                shape.colour,
                shape.width * scale,
                shape.line * scale,
            )
        )
    return moved


def bounds(shapes: list[Shape]) -> Box:
    """Return the tight box x1, y1, x2, y2 of shapes (same frame as their points)."""
    x1 = y1 = math.inf
    x2 = y2 = -math.inf
    for shape in shapes:
        half = shape.width / 2
        for p in shape.points:
            x1, x2 = min(x1, p.real - half), max(x2, p.real + half)
            y1, y2 = min(y1, p.imag - half), max(y2, p.imag + half)
    return x1, y1, x2, y2


def paint(draw: ImageDraw.ImageDraw, shapes: list[Shape], scale: float) -> None:
    """Paint shapes whose points are image coordinates (y down) times ``scale`` (the supersampling factor)."""
    for shape in shapes:
        points = [(p.real * scale, p.imag * scale) for p in shape.points]
        if shape.kind == "poly":
            draw.polygon(points, fill=shape.colour)
        elif shape.kind == "stroke":
            width = max(1.0, shape.width * scale)
            draw.line(points, fill=shape.colour, width=round(width))
            if width > 2.5:
                for x, y in points:
                    _disc(draw, x, y, width / 2, fill=shape.colour)
        elif shape.kind == "disc":
            _disc(draw, *points[0], shape.width * scale / 2, fill=shape.colour)
        else:
            line = max(1, round(shape.line * scale))
            _disc(draw, *points[0], shape.width * scale / 2, outline=shape.colour, width=line)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, **style) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), **style)
