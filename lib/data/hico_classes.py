"""HICO-DET's own classes: 600 HOIs, 117 verbs, 80 objects, and the object numberings that circulate (spec §1.5, §1.6).

Object names are spelt as in the instance files. `OFFICIAL` is what files without a class list mean (HOIA JSON,
anno_bbox.mat) and what instance files of every circulating version are turned into.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lib.data.vocabulary import GERUNDS, Vocabulary

FACTS: dict[str, list] = json.loads(Path(__file__).with_name("hico_facts.json").read_text())
OFFICIAL = Vocabulary(
    tuple(FACTS["objects"]), tuple(sorted(GERUNDS)), np.array(FACTS["hoi_object"]), np.array(FACTS["hoi_verb"])
)
# main branch of fredzzhang/hicodet, pocket, DEFR: person is 49
ALPHABETICAL = tuple(sorted(OFFICIAL.objects))
# COCO's category ids, which kept the numbers of an older list of 90: id of object 0..79
COCO91 = np.setdiff1d(np.arange(1, 91), [12, 26, 29, 30, 45, 66, 68, 69, 71, 83])


def coco80_of_coco91(ids: np.ndarray) -> np.ndarray:
    """Object ids 0..79 of COCO category ids, -1 where an id names no class."""
    place = np.searchsorted(COCO91, ids).clip(max=len(COCO91) - 1)
    return np.where(COCO91[place] == ids, place, -1)


def names_of(vocabulary: Vocabulary) -> dict[tuple[str, str], int]:
    """(object, verb) names, blanks as underscores -> HOI id."""
    pairs = zip(vocabulary.hoi_object.tolist(), vocabulary.hoi_verb.tolist(), strict=True)
    objects, verbs = ([name.replace(" ", "_") for name in names] for names in (vocabulary.objects, vocabulary.verbs))
    return {(objects[thing], verbs[verb]): hoi for hoi, (thing, verb) in enumerate(pairs)}


OFFICIAL_NAMES = names_of(OFFICIAL)
