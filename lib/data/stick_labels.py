"""Vocabulary of the stick world: objects, verbs, HOI classes, their frequencies, zero-shot splits and captions.

The lists follow HICO-DET's conventions (spec data-and-evaluation.md §1.5, §1.6): objects in COCO order with person
at index 0, verbs alphabetical, HOI classes grouped by object (PASCAL objects first, then the others, both
alphabetical) with ``no_interaction`` last in every group. Readers must take the vocabulary from the written
annotation file; only the world's own code imports it from here.
"""

from __future__ import annotations

import numpy as np

from lib.data.vocabulary import GERUNDS as ALL_GERUNDS

OBJECTS = [
    "person", "bicycle", "bench", "dog", "horse", "umbrella", "suitcase", "sports_ball", "kite",
    "skateboard", "surfboard", "tennis_racket", "chair",
]  # fmt: skip

# Relative frequency of every interaction in the training split: a long tail, as in HICO-DET.
FREQUENCY: dict[str, dict[str, float]] = {
    "bicycle": {"hold": 40, "jump": 6, "push": 34, "ride": 150, "walk": 70},
    "chair": {"lift": 3, "pull": 18, "push": 30, "sit_on": 170, "stand_on": 5},
    "dog": {"carry": 45, "hug": 34, "inspect": 8, "walk": 130},
    "horse": {"hug": 9, "jump": 24, "pull": 28, "ride": 140, "walk": 45},
    "bench": {"inspect": 3, "lie_on": 45, "sit_on": 130},
    "kite": {"catch": 3, "hold": 50, "pull": 110, "throw": 22},
    "skateboard": {"carry": 28, "jump": 70, "ride": 120, "stand_on": 40},
    "sports_ball": {"catch": 75, "hold": 85, "kick": 140, "throw": 70},
    "suitcase": {"carry": 60, "kick": 2, "lift": 16, "pull": 80, "push": 40, "sit_on": 22},
    "surfboard": {"carry": 80, "lie_on": 30, "lift": 20, "ride": 120, "stand_on": 14},
    "tennis_racket": {"hold": 60, "inspect": 4, "swing": 110},
    "umbrella": {"carry": 16, "hold": 160, "swing": 4},
}
NO_INTERACTION_FREQUENCY = {"bench": 30, "dog": 30, "bicycle": 24, "chair": 24, "umbrella": 4, "surfboard": 10}
NO_INTERACTION_DEFAULT = 12.0

# Labels that a drawn interaction carries besides its own (one annotation row each, as in HICO-DET).
# A value below 1 is the chance of the pose variant that shows the second label (both hands on the bars).
ALSO: dict[tuple[str, str], tuple[str, float]] = {
    ("bicycle", "ride"): ("hold", 0.7),
    ("bicycle", "walk"): ("hold", 1.0),
    ("bicycle", "jump"): ("ride", 1.0),
    ("horse", "jump"): ("ride", 1.0),
    ("skateboard", "ride"): ("stand_on", 1.0),
    ("surfboard", "ride"): ("stand_on", 1.0),
    ("tennis_racket", "swing"): ("hold", 1.0),
    ("tennis_racket", "inspect"): ("hold", 1.0),
    ("umbrella", "swing"): ("hold", 1.0),
}

UNSEEN_VERBS = ["lift", "pull", "ride"]  # each shares arms, legs or placement with seen verbs
UNSEEN_OBJECTS = ["horse", "skateboard"]  # every verb of theirs is also seen with another object
NUM_UNSEEN_COMPOSITIONS = 12  # about a fifth of the classes, as 120 of HICO's 600

VERBS = sorted({verb for verbs in FREQUENCY.values() for verb in verbs} | {"no_interaction"})
GERUNDS = {verb: ALL_GERUNDS[verb] for verb in VERBS}

_PASCAL = {"bicycle", "chair", "dog", "horse"}
HOIS: list[tuple[str, str]] = [
    (verb, obj)
    for obj in sorted(FREQUENCY, key=lambda name: (name not in _PASCAL, name))
    for verb in [*sorted(FREQUENCY[obj]), "no_interaction"]
]  # HOI id -> (verb, object)
HOI_ID = {pair: hoi for hoi, pair in enumerate(HOIS)}


def correspondence() -> list[list[int]]:
    """Return one ``[hoi, object, verb]`` row a class, the layout of the HICO-DET JSON."""
    return [[hoi, OBJECTS.index(obj), VERBS.index(verb)] for hoi, (verb, obj) in enumerate(HOIS)]


def class_weights(flatten: float = 1.0) -> np.ndarray:
    """Return the sampling weight of every HOI class, shape (C,), summing to 1.

    ``flatten`` is an exponent: 1 keeps the long tail of the training split, 0 makes all classes equal.
    """
    weights = [
        NO_INTERACTION_FREQUENCY.get(obj, NO_INTERACTION_DEFAULT) if verb == "no_interaction" else FREQUENCY[obj][verb]
        for verb, obj in HOIS
    ]
    raised = np.asarray(weights, dtype=np.float64) ** flatten
    return raised / raised.sum()


def labels_of(verb: str, obj: str, both_hands: bool) -> list[int]:
    """Return the HOI ids of one physical pair; ``both_hands`` selects the pose variant with a second label."""
    also = ALSO.get((obj, verb))
    second = [HOI_ID[also[0], obj]] if also and (also[1] == 1.0 or both_hands) else []
    return [HOI_ID[verb, obj], *second]


def zero_shot_splits(train_counts: list[int]) -> dict[str, list[int]]:
    """Derive the unseen HOI ids of the five settings from the training counts of all classes.

    Rules of HICO-DET's settings (spec data-and-evaluation.md §4.1): compositions are taken tail first or head
    first such that every verb and object keeps a seen class; unseen object / verb take whole columns / rows.
    """
    order = sorted(range(len(HOIS)), key=lambda hoi: (train_counts[hoi], hoi))
    return {
        "default": [],
        "rare_first": _compositions(order),
        "non_rare_first": _compositions(order[::-1]),
        "unseen_object": [hoi for hoi, (_, obj) in enumerate(HOIS) if obj in UNSEEN_OBJECTS],
        "unseen_verb": [hoi for hoi, (verb, _) in enumerate(HOIS) if verb in UNSEEN_VERBS],
    }


def _compositions(order: list[int]) -> list[int]:
    seen, unseen = set(range(len(HOIS))), []
    for hoi in order:
        verb, obj = HOIS[hoi]
        rest = [HOIS[other] for other in seen - {hoi}]
        if any(v == verb for v, _ in rest) and any(o == obj for _, o in rest):
            seen.discard(hoi)
            unseen.append(hoi)
        if len(unseen) == NUM_UNSEEN_COMPOSITIONS:
            break
    return sorted(unseen)
