"""Scenes of the stick world: who does what with which object, and where everybody stands in the picture.

A scene is built without drawing: boxes come from the geometry, so labels can be sampled quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lib.data.stick_labels import HOI_ID, HOIS, OBJECTS, class_weights, labels_of
from lib.data.stick_objects import Item, make_item
from lib.data.stick_person import Look, person_layers
from lib.data.stick_poses import compose, idle_pose
from lib.data.stick_shapes import Box, Shape, bounds, move

PLACES = ("park", "street", "beach", "room", "court")
_USUAL_PLACE = {
    "surfboard": "beach", "kite": "park", "chair": "room", "suitcase": "street", "bench": "park",
    "horse": "park", "tennis_racket": "court", "sports_ball": "court", "skateboard": "street",
}  # fmt: skip
MIN_VISIBLE = 0.6  # visible share of an entity cut by the image border
MIN_SIDE = 5.0  # pixels


@dataclass
class Thing:
    """One person or object: category name and visible box, x1 y1 x2 y2 in 0-based continuous pixels."""

    category: str
    box: Box
    look: Look | None = None  # people only


@dataclass
class Pair:
    """One physical human-object pair: indices into ``Scene.things`` and its HOI ids (first = what was posed)."""

    person: int
    item: int
    hois: list[int]


@dataclass
class Group:
    """Things that are drawn together, in pixels: shapes in painting order, ground line and shadows."""

    shapes: list[Shape]
    ground: float
    shadows: list[tuple[float, float, float]]  # x centre, half width, strength
    box: Box


@dataclass
class Scene:
    """All that is needed to draw and to annotate one image."""

    width: int
    height: int
    place: str
    horizon: float  # y of the line between far background and ground, pixels
    paint_seed: int
    things: list[Thing] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)  # painting order: far to near


@dataclass
class SceneRecipe:
    """What kind of scene to build."""

    width: int = 160
    height: int = 128
    flatten: float = 1.0  # exponent on the class frequencies: 1 long tail, 0 uniform
    num_pairs: tuple[float, ...] = (0.03, 0.5, 0.33, 0.14)  # chance of 0, 1, 2, 3 pairs
    bystanders: tuple[float, ...] = (0.5, 0.35, 0.15)  # chance of 0, 1, 2 people who use nothing
    distractors: tuple[float, ...] = (0.55, 0.33, 0.12)  # chance of 0, 1, 2 objects nobody uses
    heights: tuple[tuple[float, float], ...] = ((52, 84), (62, 94), (54, 78), (46, 64))
    # ^ range of a person's height by number of pairs, pixels of a picture 128 high
    repeat: float = 0.3  # chance that a further pair does the same as the first


@dataclass
class _Part:
    """A group before placement, in person heights: (category, shapes) members, shapes in painting order."""

    members: list[tuple[str, list[Shape], Look | None]]
    order: list[Shape]
    rise: float = 0.0


def build_scene(rng: np.random.Generator, recipe: SceneRecipe, lead: int | None = None) -> Scene:
    """Sample one scene; ``lead`` fixes the HOI id of its first pair (and then there is at least one)."""
    hois = _sample_classes(rng, recipe, lead)
    objects = [HOIS[hoi][1] for hoi in hois]
    place = _sample_place(rng, objects)
    horizon = recipe.height * float(rng.uniform(0.42, 0.6))
    scene = Scene(recipe.width, recipe.height, place, horizon, int(rng.integers(2**31)))
    tall = float(rng.uniform(*recipe.heights[len(hois)])) * recipe.height / 128
    for number, hoi in enumerate(hois):
        verb, obj = HOIS[hoi]
        item, both_hands = make_item(obj, rng), bool(rng.random() < 0.7)
        part = _idle_pair(item, rng) if verb == "no_interaction" else _acting_pair(verb, item, both_hands, rng)
        first = len(scene.things)
        if _place(scene, part, tall, rng, must=number == 0):
            scene.pairs.append(Pair(first, first + 1, labels_of(verb, obj, both_hands)))
    for _ in range(rng.choice(len(recipe.bystanders), p=recipe.bystanders)):
        _place(scene, _bystander(rng), tall, rng)
    for _ in range(rng.choice(len(recipe.distractors), p=recipe.distractors)):
        name = str(rng.choice(OBJECTS[1:]))
        item = _resting(make_item(name, rng), rng)
        _place(scene, _Part([(name, item.shapes, None)], item.shapes), tall, rng)
    _pair_bystanders(scene)
    scene.groups.sort(key=lambda group: group.ground)
    return scene


def _sample_classes(rng: np.random.Generator, recipe: SceneRecipe, lead: int | None) -> list[int]:
    count = int(rng.choice(len(recipe.num_pairs), p=recipe.num_pairs))
    drawn = [int(hoi) for hoi in rng.choice(len(HOIS), size=len(recipe.num_pairs), p=class_weights(recipe.flatten))]
    again = rng.random(len(drawn)) < recipe.repeat
    if lead is not None:
        count, drawn[0] = max(count, 1), lead
    return [drawn[0] if k and again[k] else drawn[k] for k in range(count)]


def _sample_place(rng: np.random.Generator, objects: list[str]) -> str:
    if objects and objects[0] in _USUAL_PLACE and rng.random() < 0.6:
        return _USUAL_PLACE[objects[0]]
    allowed = PLACES if not {"horse", "kite"} & set(objects) else ("park", "street", "beach")
    return str(rng.choice(allowed))


# --- groups in person heights ---------------------------------------------------------------------------------


def _acting_pair(verb: str, item: Item, both_hands: bool, rng: np.random.Generator) -> _Part:
    action = compose(verb, item, both_hands, rng)
    look, held = Look.sample(rng), action.item.shapes
    far, body, near = person_layers(action.pose, look)
    order = {
        "behind": [*action.extras, *held, *far, *body, *near],
        "between": [*action.extras, *far, *held, *body, *near],
        "front": [*action.extras, *far, *body, *held, *near],
    }[action.order]
    members = [("person", [*far, *body, *near], look), (item.name, held, None)]
    return _Part(members, order, action.rise)


def _bystander(rng: np.random.Generator) -> _Part:
    look = Look.sample(rng)
    far, body, near = person_layers(idle_pose(rng), look)
    shapes = [*far, *body, *near]
    if rng.random() < 0.5:
        shapes = move(shapes, mirror=True)
    return _Part([("person", shapes, look)], shapes)


def _resting(item: Item, rng: np.random.Generator) -> Item:
    """Put an unused object on the ground; long things lie or lean, some kites fly."""
    if item.name == "kite" and rng.random() < 0.5:
        return item.moved(rng.normal(0, 0.3), shift=1j * rng.uniform(1.0, 1.4))
    angle = {"umbrella": 1.15, "tennis_racket": 1.45, "kite": 1.2}.get(item.name, 0.0)
    if item.name == "surfboard" and rng.random() < 0.5:
        angle = 1.45
    item = item.moved(angle * rng.choice([-1, 1]), mirror=bool(rng.random() < 0.5))
    return item.moved(shift=-1j * item["bottom"].imag)


def _idle_pair(item: Item, rng: np.random.Generator) -> _Part:
    """A bystander close to an object without touching it: the no_interaction classes."""
    person = _bystander(rng)
    item = _resting(item, rng)
    right = bounds(person.order)[2]
    item = item.moved(shift=right + rng.uniform(0.04, 0.3) - item["left"].real)
    return _Part([*person.members, (item.name, item.shapes, None)], [*person.order, *item.shapes])


# --- placement ------------------------------------------------------------------------------------------------


def _place(scene: Scene, part: _Part, tall: float, rng: np.random.Generator, must: bool = False) -> bool:
    """Find a free position for a group; return whether one was found (``must``: take the last try anyway)."""
    x1, _, x2, top = bounds([shape for _, shapes, _ in part.members for shape in shapes])
    for trial in range(16):
        size = tall * float(rng.uniform(0.88, 1.12))
        size = min(size, 0.92 * scene.width / (x2 - x1), 0.9 * scene.height / (top + part.rise))
        near = float(np.clip((size * 128 / scene.height - 30) / 50 + rng.normal(0, 0.15), 0.12, 1))
        ground = scene.horizon + near * (scene.height - 3 - scene.horizon)
        ground = min(max(ground, 2 + size * (top + part.rise)), scene.height - 2.0)
        left_facing = bool(rng.random() < 0.5)
        lo, hi = (-x2 * size, -x1 * size) if left_facing else (x1 * size, x2 * size)
        overflow = 0.14 * (hi - lo) if rng.random() < 0.15 else 0.0
        x = float(rng.uniform(-lo - overflow, max(scene.width - hi + overflow, -lo - overflow + 1)))
        origin = complex(x, ground - part.rise * size)
        pixels = [move(shapes, -size, origin, not left_facing) for _, shapes, _ in part.members]
        full = [bounds(shapes) for shapes in pixels]
        seen = [_clip(box, scene) for box in full]
        union = _union(seen)
        fits = all(_visible(box, cut) for box, cut in zip(full, seen, strict=True))
        free = all(_cover(union, other.box) < 0.3 for other in scene.groups)
        if fits and (free or (must and trial == 15)):
            break
    else:
        return False
    for (category, _, look), box in zip(part.members, seen, strict=True):
        scene.things.append(Thing(category, box, look))
    shadows = [((b[0] + b[2]) / 2, (b[2] - b[0]) / 2, 0.5 if ground - b[3] < 0.12 * size else 0.2) for b in full]
    shapes = move(part.order, -size, origin, not left_facing)
    scene.groups.append(Group(shapes, ground, shadows, union))
    return True


def _clip(box: Box, scene: Scene) -> Box:
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(scene.width)), min(y2, float(scene.height))


def _visible(box: Box, cut: Box) -> bool:
    wide, high = cut[2] - cut[0], cut[3] - cut[1]
    return min(wide, high) >= MIN_SIDE and wide * high >= MIN_VISIBLE * (box[2] - box[0]) * (box[3] - box[1])


def _union(boxes: list[Box]) -> Box:
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _cover(a: Box, b: Box) -> float:
    """Intersection over the smaller area."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(wide, 0.0) * max(high, 0.0) / max(smaller, 1e-6)


def _pair_bystanders(scene: Scene) -> None:
    """Add the no_interaction pairs of people without a pair who stand right beside an object."""
    busy = {pair.person for pair in scene.pairs}
    for i, person in enumerate(scene.things):
        if person.category != "person" or i in busy:
            continue
        x1, y1, x2, y2 = person.box
        for j, thing in enumerate(scene.things):
            if thing.category == "person":
                continue
            gap = max(thing.box[0] - x2, x1 - thing.box[2])
            overlap_y = min(y2, thing.box[3]) - max(y1, thing.box[1])
            if gap < 0.15 * (y2 - y1) and overlap_y > 0.15 * (y2 - y1):
                scene.pairs.append(Pair(i, j, [HOI_ID["no_interaction", thing.category]]))
