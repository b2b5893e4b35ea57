"""How every verb of the stick world looks: a pose and the placement of the object.

Verbs are put together from shared parts, so that a verb looks alike on every object and shares parts with others:

| part | values (verbs) |
|---|---|
| legs | stand (hold, lift, stand_on), stride (carry, walk, push), lunge (throw, swing), brace (pull), |
|      | crouch (hug, inspect), astride (ride, jump), seated (sit_on), surf (ride, jump on a board), kick, lie |
| arms | down, ahead (hold, push, pull, ride), around (carry, hug), up (lift, catch), out (jump, throw), back (swing) |
| object | in the hand, in the arms, overhead, ahead on the ground, under the body, in the air ahead |
"""

from __future__ import annotations

import cmath
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lib.data.stick_objects import Item
from lib.data.stick_person import ANKLE, Pose
from lib.data.stick_shapes import Shape, stroke

BOARDS = {"skateboard", "surfboard"}
FLOOR = ANKLE * 1j


@dataclass
class Action:
    """One person with one object, in person heights with the ground at y = 0 and the person facing +x.

    ``order`` says where the object is painted: ``behind`` the person, ``between`` far limbs and body, ``front`` of
    the body but under the near arm.
    """

    pose: Pose
    item: Item
    order: str = "front"
    extras: list[Shape] = field(default_factory=list)  # strings, leads, motion streaks: part of no box
    rise: float = 0.0  # height above the ground of the whole group


def compose(verb: str, item: Item, both_hands: bool, rng: np.random.Generator) -> Action:
    """Pose a person doing ``verb`` with ``item``; ``both_hands`` picks the two-label variant of a ride."""
    action = _ACTIONS[verb](item, both_hands, rng)
    pose = action.pose
    pose.lean += rng.normal(0, 0.05)
    pose.nod += rng.normal(0, 0.08)
    pose.hands = [hand + _wobble(rng, 0.01) for hand in pose.hands]
    if action.rise:
        pose.feet = [foot + _wobble(rng, 0.01) for foot in pose.feet]
    return action


def idle_pose(rng: np.random.Generator) -> Pose:
    """A bystander: standing or walking, arms hanging, on the hips, or one hand raised to the head."""
    pose = stand() if rng.random() < 0.5 else stride(rng)
    arms = rng.choice(["hang", "hips", "wave"], p=[0.65, 0.25, 0.1])
    if arms == "hips":
        pose.hands = [pose.pelvis + 0.05 + 0.07j, pose.pelvis - 0.05 + 0.07j]
    elif arms == "wave":
        pose.hands[0] = pose.shoulder + 0.12 + 0.2j
    pose.hands = [hand + _wobble(rng, 0.02) for hand in pose.hands]
    pose.lean += rng.normal(0, 0.04)
    return pose


def _wobble(rng: np.random.Generator, size: float) -> complex:
    return complex(*rng.normal(0, size, 2))


# --- legs -----------------------------------------------------------------------------------------------------


def stand() -> Pose:
    return Pose()


def stride(rng: np.random.Generator) -> Pose:
    step = rng.uniform(0.13, 0.2)
    feet = [step + FLOOR, -step - 0.02 + FLOOR + 0.04j]
    if rng.random() < 0.5:
        feet.reverse()
    return Pose(pelvis=0.475j, lean=0.06, feet=feet, hands=[-0.12 + 0.47j, 0.14 + 0.48j])


def lunge() -> Pose:
    return Pose(pelvis=0.43j, feet=[0.22 + FLOOR, -0.22 + FLOOR])


def brace() -> Pose:
    return Pose(pelvis=-0.12 + 0.43j, lean=-0.38, feet=[0.14 + FLOOR, 0.02 + FLOOR])


def crouch() -> Pose:
    return Pose(pelvis=-0.1 + 0.23j, lean=0.6, feet=[0.06 + FLOOR, -0.1 + FLOOR])


def surf(deck: complex) -> Pose:
    feet = [deck + 0.19 + FLOOR, deck - 0.17 + FLOOR]
    return Pose(pelvis=deck - 0.03 + 0.37j, lean=0.3, feet=feet)


def _astride(item: Item) -> Pose:
    seat = item["seat"]
    feet = [item["pedal"] + 0.04 - 0.05j, item["pedal"] - 0.02 + 0.06j]
    return Pose(pelvis=seat + 0.05j, lean=0.35, feet=feet)


# --- verbs ----------------------------------------------------------------------------------------------------


def _carry(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = stride(rng)
    at = 0.17 + 0.6j
    angle = {"umbrella": -1.25, "suitcase": 0.0}.get(item.name, 0.0) + rng.normal(0, 0.08)
    if item.name in BOARDS:
        at = 0.1 + 0.56j
    placed = item.placed("centre", at, angle)
    pose.hands = [at + 0.05 - 0.05j, at + 0.1 - 0.02j]
    return Action(pose, placed, "front")


def _hug(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = crouch() if item.name == "dog" else Pose(lean=0.2, nod=0.2)
    placed = item.placed("neck", pose.shoulder + 0.15 - 0.06j, mirror=True)
    placed = placed.moved(shift=-1j * placed["bottom"].imag)
    pose.hands = [placed["neck"] + 0.06 - 0.02j, placed["neck"] + 0.08 + 0.04j]
    pose.nod = 0.3
    return Action(pose, placed, "between")


def _hold(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = stand()
    if item.name == "bicycle":
        placed = item.placed("bar", 0.22 + item["bar"].imag * 1j)
        pose.hands[0] = placed["bar"]
        return Action(pose, placed, "behind")
    hand = 0.24 + 0.66j + _wobble(rng, 0.02)
    angle = {"umbrella": -0.12, "tennis_racket": -0.5, "kite": -0.2}.get(item.name, 0.0) + rng.normal(0, 0.12)
    if item.name == "sports_ball":
        hand += 0.02
    placed = item.placed("grip", hand, angle)
    pose.hands[0] = hand - (0.07 if item.name == "sports_ball" else 0)
    return Action(pose, placed, "front")


def _walk(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = stride(rng)
    at = {"bicycle": 0.23, "horse": 0.42, "dog": 0.62}[item.name] + rng.uniform(-0.03, 0.03)
    placed = item.placed("neck", at + item["neck"].imag * 1j)
    if item.name == "bicycle":
        pose.hands = [placed["bar"], -0.13 + 0.5j]
        return Action(pose, placed, "behind")
    pose.hands[0] = 0.22 + 0.6j
    lead = stroke((60, 44, 40), 0.018, pose.hands[0], placed["neck"])
    return Action(pose, placed, "behind", [lead])


def _push(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = Pose(pelvis=-0.1 + 0.44j, lean=0.42, feet=[0.0 + FLOOR, -0.34 + FLOOR + 0.03j], nod=-0.15)
    placed = item.placed("rear", 0.31 + item["rear"].imag * 1j)
    pose.hands = [placed["rear"], placed["rear"] + 0.02j]
    return Action(pose, placed, "front")


def _pull(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = brace()
    hands = 0.14 + 0.66j
    if item.name == "kite":
        placed = item.placed("centre", complex(rng.uniform(0.45, 0.75), rng.uniform(1.1, 1.35)), rng.normal(0, 0.25))
        hands = 0.1 + 0.74j
        string = [stroke((236, 236, 236), 0.014, hands, placed["rear"])]
    elif item.name == "horse":
        placed = item.placed("rear", 0.42 + item["rear"].imag * 1j, mirror=True)
        string = [stroke((70, 46, 34), 0.022, hands, placed["rear"])]
    else:
        hands = 0.17 + item["rear"].imag * 1j
        placed, string = item.placed("rear", hands), []
    pose.hands = [hands, hands + 0.02]
    return Action(pose, placed, "between", string)


def _lift(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = Pose(feet=[0.1 + FLOOR, -0.1 + FLOOR], pelvis=0.48j, nod=-0.25)
    placed = item.placed("lift", 0.02 + 1.1j, rng.normal(0, 0.1))
    pose.hands = [0.09 + 1.1j, -0.06 + 1.1j]
    return Action(pose, placed, "between")


def _catch(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = Pose(pelvis=-0.02 + 0.42j, lean=-0.12, feet=[0.12 + FLOOR, -0.12 + FLOOR], nod=-0.35)
    hands = 0.24 + 0.98j
    gap = complex(item["right"].real + rng.uniform(0.03, 0.16), rng.uniform(0.04, 0.14))
    placed = item.placed("bottom", hands + gap)
    pose.hands = [hands, hands - 0.05 + 0.06j]
    return Action(pose, placed, "front")


def _throw(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = lunge()
    pose.lean, pose.nod = 0.3, -0.3
    pose.hands = [pose.shoulder + 0.33 + 0.06j, pose.shoulder - 0.3 - 0.12j]
    at = pose.hands[0] + complex(rng.uniform(0.22, 0.5), rng.uniform(0.08, 0.28))
    return Action(pose, item.placed("centre", at, rng.normal(0, 0.2)), "front", _streaks(at - 0.14, 0.12, rng))


def _swing(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = lunge()
    pose.lean = -0.12
    hand = pose.shoulder + complex(-0.26, rng.uniform(0.0, 0.14))
    pose.hands = [hand, hand + 0.04 + 0.01j]
    return Action(pose, item.placed("grip", hand, rng.uniform(0.7, 1.2)), "front")


def _kick(item: Item, _: bool, rng: np.random.Generator) -> Action:
    pose = Pose(pelvis=0.48j, lean=-0.22, hands=[-0.28 + 0.72j, 0.24 + 0.7j], toe=0.6)
    foot = complex(0.34, rng.uniform(0.16, 0.26))
    pose.feet = [foot, -0.04 + FLOOR]
    side = complex(foot.real + rng.uniform(0.1, 0.2), max(0.0, foot.imag - rng.uniform(0.06, 0.2)))
    placed = item.placed("left", side)
    return Action(pose, placed.moved(shift=1j * max(0.0, -placed["bottom"].imag)), "front")


def _inspect(item: Item, _: bool, rng: np.random.Generator) -> Action:
    if item.name == "tennis_racket":
        pose = Pose(lean=0.28, nod=0.45)
        held = 0.3 + 0.62j
        placed = item.placed("grip", held, -0.25 + rng.normal(0, 0.1))
        pose.hands = [pose.head + 0.06 - 0.08j, held]
        return Action(pose, placed, "between")
    pose = Pose(pelvis=-0.1 + 0.4j, lean=0.75, nod=0.25, feet=[0.06 + FLOOR, -0.1 + FLOOR])
    placed = item.moved(shift=0.3 - item["left"].real, mirror=False)
    pose.hands = [pose.head + 0.07 - 0.07j, pose.pelvis + 0.1 - 0.04j]
    return Action(pose, placed, "between")


def _ride(item: Item, both_hands: bool, rng: np.random.Generator) -> Action:
    tilt = rng.normal(0, 0.04)
    placed = item.moved(tilt)
    if item.name in BOARDS:
        placed = item.moved(tilt + 0.06)
        pose = surf(placed["deck"])
        pose.hands = [pose.shoulder + 0.3 - 0.08j, pose.shoulder - 0.26 - 0.06j]
        spray = _spray(placed, rng) if item.name == "surfboard" else []
        return Action(pose, placed, "behind", [*spray, *_streaks(placed["left"] + 0.1j, 0.3, rng)])
    pose = _astride(placed)
    if both_hands or item.name == "horse":
        pose.hands = [placed["bar"], placed["bar"] + 0.02j]
    else:
        pose.hands = [pose.shoulder + 0.3 + 0.02j, pose.shoulder - 0.28 - 0.04j]
        pose.lean = 0.1
    return Action(pose, placed, "between", _streaks(placed["left"] + 0.12j, 0.4, rng))


def _jump(item: Item, both_hands: bool, rng: np.random.Generator) -> Action:
    rise, tilt = float(rng.uniform(0.2, 0.34)), rng.uniform(0.18, 0.34)
    placed = item.moved(tilt)
    if item.name in BOARDS:
        pose = surf(placed["deck"])
        pose.pelvis += -0.02 - 0.04j
        turn = cmath.rect(1, tilt)
        pose.feet = [placed["deck"] + turn * (x + FLOOR) for x in (0.15, -0.15)]
        pose.hands = [pose.shoulder + 0.22 + 0.24j, pose.shoulder - 0.22 + 0.22j]
        return Action(pose, placed, "behind", rise=rise)
    placed = placed.moved(shift=-1j * placed["bottom"].imag)
    pose = _astride(placed)
    pose.lean += 0.1
    pose.hands = [placed["bar"], placed["bar"] + 0.02j]
    return Action(pose, placed, "between", rise=rise)


def _sit_on(item: Item, _: bool, rng: np.random.Generator) -> Action:
    x = rng.uniform(-0.3, 0.3) if item.name == "bench" else 0.0
    seat = item["seat"] + x
    pose = Pose(pelvis=seat + 0.055j, lean=-0.04)
    knee = seat + 0.23 + 0.05j
    pose.feet = [complex(knee.real + 0.03, ANKLE), complex(knee.real - 0.04, ANKLE)]
    pose.hands = [knee - 0.02 + 0.05j, knee - 0.06 + 0.06j]
    return Action(pose, item, "behind")


def _stand_on(item: Item, _: bool, rng: np.random.Generator) -> Action:
    deck = item["deck"]
    pose = Pose(pelvis=deck + 0.495j, feet=[deck + 0.06 + FLOOR, deck - 0.06 + FLOOR])
    pose.hands = [deck + 0.2 + 0.56j, deck - 0.2 + 0.56j]
    return Action(pose, item, "behind")


def _lie_on(item: Item, _: bool, rng: np.random.Generator) -> Action:
    seat = item["seat"] + 0.06j + 0.02
    pose = Pose(pelvis=seat, lean=-1.5, nod=-0.35, toe=1.4)
    pose.feet = [seat + 0.46 - 0.01j, seat + 0.44 + 0.01j]
    pose.hands = [seat - 0.04 + 0.06j, seat - 0.12 + 0.07j]
    return Action(pose, item, "behind")


def _streaks(start: complex, length: float, rng: np.random.Generator) -> list[Shape]:
    lengths = length * rng.uniform(0.5, 1.0, 3)
    return [
        stroke((228, 230, 232), 0.014, start + dy * 1j, start + dy * 1j - float(run))
        for dy, run in zip((-0.06, 0.02, 0.1), lengths, strict=True)
    ]


def _spray(item: Item, rng: np.random.Generator) -> list[Shape]:
    x1, x2 = item["left"].real, item["right"].real
    drops = zip(rng.uniform(x1 - 0.1, x2, 14), rng.uniform(-0.02, 0.07, 14), rng.uniform(0.03, 0.07, 14), strict=True)
    return [Shape("disc", (complex(x, y),), (232, 240, 244), float(size)) for x, y, size in drops]


_ACTIONS: dict[str, Callable[[Item, bool, np.random.Generator], Action]] = {
    "carry": _carry, "catch": _catch, "hold": _hold, "hug": _hug, "inspect": _inspect, "jump": _jump,
    "kick": _kick, "lie_on": _lie_on, "lift": _lift, "pull": _pull, "push": _push, "ride": _ride,
    "sit_on": _sit_on, "stand_on": _stand_on, "swing": _swing, "throw": _throw, "walk": _walk,
}  # fmt: skip
