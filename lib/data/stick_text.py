"""English of the stick world: class descriptions (spec ez-hoi.md §4.1) and captions of scenes."""

from __future__ import annotations

import numpy as np

from lib.data.stick_labels import GERUNDS, HOIS
from lib.data.stick_scene import Pair, Scene
from lib.data.vocabulary import noun_phrase

# Pose of the body and placement of the object; {o} is the object.
_POSES = {
    "carry": "The person walks with bent arms wrapped around the {o} and keeps it against the chest, off the ground",
    "catch": "The person stretches both arms up and forward with bent knees towards the {o} that flies in the air",
    "hold": "The person stands upright on straight legs and grips the {o} with one hand in front of the body",
    "hug": "The person leans in close with the head beside the {o} and wraps both arms around its neck",
    "inspect": "The person bends forward with lowered head, a hand at the face, and looks closely at the {o} in front",
    "jump": "The person is in the air together with the {o}, knees bent, with a gap and a shadow below",
    "kick": "The person leans back on one leg and swings the other leg forward with the foot at the low {o}",
    "lie_on": "The person is stretched out horizontally on top of the {o} with straight legs and the head at one end",
    "lift": "The person stands with both arms straight up and raises the {o} above the head",
    "no_interaction": "The person stands or walks beside the {o} without touching it, arms hanging or on the hips",
    "pull": "The person leans far back with braced feet and both arms stretched forward to draw the {o} closer",
    "push": "The person leans forward with the rear leg stretched and both hands on the {o} on the ground ahead",
    "ride": "The person is on top of the moving {o} with bent knees, leaning forward, with streaks of motion behind",
    "sit_on": "The person sits upright on top of the {o} with bent knees, hands on the thighs and feet on the ground",
    "stand_on": "The person stands upright on top of the {o} with straight legs and arms hanging to both sides",
    "swing": "The person stands in a wide stance and draws both hands with the {o} back behind the shoulder",
    "throw": "The person lunges with one arm stretched forward and the other back while the {o} flies away ahead",
    "walk": "The person strides along with the {o} at the side on the ground, one hand forward on it or on its lead",
}
_LOOKS = {
    "bicycle": "two spoked wheels, a thin tube frame, a saddle and a handlebar",
    "bench": "a long wooden seat with a slatted back on iron legs",
    "dog": "four short legs, a furry body, hanging ears, a tail and a collar",
    "horse": "a large body on four long legs, a raised neck with a mane and a saddle",
    "umbrella": "a wide dome of coloured panels on a thin shaft with a hooked handle",
    "suitcase": "a ribbed upright box with small wheels and a pull-out handle",
    "sports_ball": "a small round ball with dark seams",
    "kite": "a diamond of two colours with a tail of bows",
    "skateboard": "a short narrow deck with bent ends on small wheels",
    "surfboard": "a long flat pointed board with a stripe and a fin",
    "tennis_racket": "an oval frame with strings and a short handle",
    "chair": "a small seat with a tall back on four thin legs",
}
_PLACES = {
    "park": ("in a park", "on the grass", "outdoors on a meadow"),
    "street": ("on a street", "in the city", "in front of houses"),
    "beach": ("on a beach", "by the sea", "on the sand near the water"),
    "room": ("in a room", "indoors", "in front of a wall with a window"),
    "court": ("on a court", "on a playing field", "in a sports hall"),
}
_SUBJECTS = ("a person", "a person", "a person", "a man", "a woman", "someone")
_BESIDE = ("a person and {o}", "a person next to {o}", "a person standing near {o}")


def description_file() -> str:
    """Return the text of ``hoi_descriptions.txt``: a block of three lines an HOI class, in HOI order."""
    blocks = []
    for number, (verb, obj) in enumerate(HOIS, start=1):
        plain = obj.replace("_", " ")
        text = f"{_POSES[verb].format(o=plain)}. The {plain} shows {_LOOKS[obj]}."
        blocks.append(f"{number}. A photo of a person {GERUNDS[verb]} {noun_phrase(obj)}:\n   - Description: {text}\n")
    return "\n".join(blocks)


def scene_captions(scene: Scene, rng: np.random.Generator, count: int = 2) -> list[str]:
    """Write ``count`` captions: the interacting pairs in varied wording; now and then the surroundings only."""
    acting = [pair for pair in scene.pairs if HOIS[pair.hois[0]][0] != "no_interaction"] or scene.pairs
    captions = []
    for _ in range(count):
        place = rng.choice(_PLACES[scene.place])
        if not acting or rng.random() < 0.04:
            captions.append(rng.choice([f"A photo of a scene {place}.", f"A picture taken {place}."]))
            continue
        clauses = [_clause(scene, pair, rng) for pair in acting[:3]]
        if len(clauses) > 1 and rng.random() < 0.35:
            clauses = clauses[:1]
        sentence = " and ".join(dict.fromkeys(clauses))
        where = f" {place}" if rng.random() < 0.5 else ""
        form = rng.choice(["A photo of {}{}.", "{}{}.", "A picture of {}{}.", "There is {}{}."], p=[0.4, 0.4, 0.1, 0.1])
        caption = form.format(sentence, where)
        captions.append(caption[0].upper() + caption[1:])
    return captions


def _clause(scene: Scene, pair: Pair, rng: np.random.Generator) -> str:
    verb, obj = HOIS[int(rng.choice(pair.hois))]
    if verb == "no_interaction":
        return str(rng.choice(_BESIDE)).format(o=noun_phrase(obj))
    who = str(rng.choice(_SUBJECTS))
    if rng.random() < 0.25:
        who += f" in a {scene.things[pair.person].look.shirt} shirt"
    return f"{who} {GERUNDS[verb]} {noun_phrase(obj)}"
