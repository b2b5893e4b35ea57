"""What gets a logit: verbs (the published mode) or HOI classes (spec ez-hoi.md §2.7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.data.vocabulary import Vocabulary

MODES = ("verb", "hoi")


@dataclass(frozen=True)
class ScoredClasses:
    """C scored classes over H HOI classes.

    of_hoi: [H] scored class of each HOI. hoi_of: [objects, C] HOI that a scored class means on an object, -1 for none.
    """

    of_hoi: np.ndarray
    hoi_of: np.ndarray

    @property
    def count(self) -> int:
        return self.hoi_of.shape[1]

    def valid(self, hois: np.ndarray | None = None) -> Tensor:
        """[objects, C] bool affordances built from `hois`: the seen ones in zero-shot training, all in evaluation."""
        allowed = self.hoi_of >= 0 if hois is None else np.isin(self.hoi_of, hois)
        return torch.from_numpy(allowed)


def scored_classes(vocabulary: Vocabulary, mode: str = "verb") -> ScoredClasses:
    """`verb`: 117 for HICO-DET, 24 for V-COCO; the detected object makes it an HOI. `hoi`: each HOI is its own class.

    The public program's 600-class mode keeps a verb-level label matrix and divides 0 by 0 (quirk Q11); here the label
    matrix is the identity and targets are HOI ids.
    """
    if mode not in MODES:
        raise ValueError(f"ezhoi.classes: found {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "verb":
        return ScoredClasses(vocabulary.hoi_verb, vocabulary.hoi_of)
    ids = np.arange(vocabulary.num_hois)
    objects = np.arange(len(vocabulary.objects))[:, None]
    return ScoredClasses(ids, np.where(vocabulary.hoi_object[None] == objects, ids[None], -1))
