"""The articulated person of the stick world: a pose (where pelvis, hands and feet are) turned into shapes.

The person faces +x, stands on y = 0 and is 1 unit tall when upright. Hands and feet are targets that two-bone
inverse kinematics reaches, so a hand that should touch an object does touch it.
"""

from __future__ import annotations

import cmath
from dataclasses import dataclass, field

import numpy as np

from lib.data.stick_shapes import Colour, Shape, disc, ellipse, poly, shade, stroke

TORSO, UPPER_ARM, FOREARM, THIGH, SHIN, ANKLE = 0.33, 0.175, 0.175, 0.24, 0.24, 0.03
HEAD_RADIUS = 0.075

SKINS = [(244, 206, 176), (226, 176, 138), (198, 142, 100), (150, 100, 68), (102, 66, 46)]
HAIRS = [(38, 28, 22), (84, 54, 32), (140, 96, 50), (206, 170, 104), (120, 116, 112), (150, 60, 30)]
SHIRTS = {
    "red": (200, 44, 44), "blue": (46, 82, 182), "green": (50, 134, 70), "yellow": (232, 196, 62),
    "white": (236, 234, 228), "black": (44, 44, 50), "orange": (228, 124, 44), "purple": (120, 66, 150),
    "pink": (228, 128, 160), "grey": (134, 138, 144),
}  # fmt: skip
TROUSERS = [(44, 56, 92), (34, 34, 40), (98, 84, 66), (178, 162, 128), (84, 90, 98), (64, 82, 60)]


@dataclass
class Look:
    """Colours and clothing of one person."""

    shirt: str
    skin: Colour
    hair: Colour
    trousers: Colour
    shorts: bool
    short_sleeves: bool
    long_hair: bool
    width: float = 1.0  # thickness of limbs and torso

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Look:
        return cls(
            shirt=str(rng.choice(list(SHIRTS))),
            skin=SKINS[rng.integers(len(SKINS))],
            hair=HAIRS[rng.integers(len(HAIRS))],
            trousers=TROUSERS[rng.integers(len(TROUSERS))],
            shorts=bool(rng.random() < 0.25),
            short_sleeves=bool(rng.random() < 0.45),
            long_hair=bool(rng.random() < 0.4),
            width=float(rng.uniform(0.9, 1.2)),
        )


@dataclass
class Pose:
    """Where the body is: complex points in person heights; ``lean`` and ``nod`` in radians, forward positive."""

    pelvis: complex = 0.495j
    lean: float = 0.0
    hands: list[complex] = field(default_factory=lambda: [0.05 + 0.44j, -0.05 + 0.44j])  # near, far
    feet: list[complex] = field(default_factory=lambda: [0.06 + ANKLE * 1j, -0.06 + ANKLE * 1j])  # near, far
    nod: float = 0.0
    toe: float = 0.0  # direction of the feet against the horizontal

    @property
    def shoulder(self) -> complex:
        return self.pelvis + TORSO * cmath.rect(1, cmath.pi / 2 - self.lean)

    @property
    def head(self) -> complex:
        return self.shoulder + 0.125 * cmath.rect(1, cmath.pi / 2 - self.lean * 0.6 - self.nod)


def reach(root: complex, target: complex, first: float, second: float, side: int) -> tuple[complex, complex]:
    """Return joint and end of a two-bone limb from ``root`` towards ``target``, bent to ``side`` (+1 or -1)."""
    gap = target - root
    distance = min(max(abs(gap), abs(first - second) + 0.02), first + second - 1e-3)
    along = gap / abs(gap) if abs(gap) > 1e-6 else -1j
    a = (first**2 - second**2 + distance**2) / (2 * distance)
    b = max(first**2 - a**2, 0.0) ** 0.5
    return root + along * complex(a, b * side), root + along * distance


def person_layers(pose: Pose, look: Look) -> tuple[list[Shape], list[Shape], list[Shape]]:
    """Return the shapes of far limbs, body with near leg, and near arm, in painting order."""
    shirt, w = SHIRTS[look.shirt], look.width
    up = cmath.rect(1, cmath.pi / 2 - pose.lean)
    shoulder, head = pose.shoulder, pose.head

    def arm(hand: complex, light: float) -> list[Shape]:
        elbow, wrist = reach(shoulder - 0.03 * up, hand, UPPER_ARM, FOREARM, -1)
        fore = look.skin if look.short_sleeves else shirt
        return [
            stroke(shade(fore, light), 0.05 * w, elbow, wrist),
            stroke(shade(shirt, light), 0.066 * w, shoulder - 0.03 * up, elbow),
            disc(shade(look.skin, light), wrist, 0.032),
        ]

    def leg(foot: complex, light: float) -> list[Shape]:
        knee, ankle = reach(pose.pelvis, foot, THIGH, SHIN, +1)
        shin = look.skin if look.shorts else look.trousers
        toe = ankle + 0.075 * cmath.rect(1, pose.toe) - 0.012j
        return [
            stroke(shade((58, 46, 42), light), 0.045, ankle - 0.012j, toe),
            stroke(shade(shin, light), 0.062 * w, knee, ankle),
            stroke(shade(look.trousers, light), 0.088 * w, pose.pelvis, knee),
        ]

    torso = [
        stroke(shirt, 0.125 * w, pose.pelvis + 0.06 * up, shoulder - 0.05 * up),
        stroke(shade(shirt, 1.12), 0.045 * w, pose.pelvis + 0.08 * up - 0.02, shoulder - 0.06 * up - 0.02),
        stroke(look.trousers, 0.115 * w, pose.pelvis, pose.pelvis + 0.02 * up),
    ]
    face = (head - shoulder) / abs(head - shoulder)  # upward axis of the head
    skull = [
        stroke(shade(look.skin, 0.85), 0.05, shoulder, head),
        disc(look.skin, head, HEAD_RADIUS),
        disc(shade(look.skin, 0.92), head + face * (-0.074j - 0.012), 0.018),  # nose
        ellipse(look.hair, head, 0.08, 0.08, cmath.phase(face) - 0.35, 0.0, 2.6, 10),
        disc((30, 24, 24), head + face * (-0.045j + 0.008), 0.011),  # eye
    ]
    if look.long_hair:
        skull.insert(0, poly(look.hair, *(head + face * p for p in (0.03 + 0.08j, -0.16 + 0.09j, -0.15, 0.02))))
    far = arm(pose.hands[1], 0.72) + leg(pose.feet[1], 0.68)
    return far, leg(pose.feet[0], 1.0) + torso + skull, arm(pose.hands[0], 0.92)
