"""Human-object pairs of an image, their priors and the final weighting of scores (spec defr.md §11.1-3, 8, 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from lib.data.vocabulary import Vocabulary
from lib.detection.table import Detections


class BoxPairs(NamedTuple):
    """Pairs of an image; human, object: [P] rows of its detections, ordered by human, then object (§11.2)."""

    human: Tensor
    object: Tensor


def box_pairs(
    detections: Detections, person: int, *, threshold: float = 0.2, nms_iou: float = 0.5, most: int = 15
) -> BoxPairs:
    """Every kept human with every other kept instance: score from `threshold`, class-wise NMS, `most` of each kind."""
    boxes, scores, labels = detections
    kept = batched_nms(boxes, scores, labels, nms_iou)  # by falling score
    kept = kept[scores[kept] >= threshold]
    human = labels[kept] == person
    humans, others = kept[human][:most], kept[~human][:most]
    instances = torch.cat([humans, others])
    subject, thing = torch.meshgrid(torch.arange(len(humans)), torch.arange(len(instances)), indexing="ij")
    different = subject != thing
    return BoxPairs(instances[subject[different]], instances[thing[different]])


def box_pair_priors(detections: Detections, pairs: BoxPairs, valid: Tensor, power: float = 2.8) -> Tensor:
    """[2, P, C]: s_h^power and s_o^power on the HOI classes of the pair's object, 0 elsewhere (§11.3).

    valid: [objects, C] bool, classes of every object label.
    """
    scores = torch.stack([detections.scores[pairs.human], detections.scores[pairs.object]]) ** power  # (2, P)
    return scores[:, :, None] * valid[detections.labels[pairs.object]]


def classes_of_objects(vocabulary: Vocabulary) -> Tensor:
    """[objects, C] bool: which HOI classes have this object."""
    return torch.from_numpy(np.arange(len(vocabulary.objects))[:, None] == vocabulary.hoi_object)


def pair_scores(logits: Tensor, priors: Tensor) -> Tensor:
    """sigmoid(logit) * prior_h * prior_o; [P, C] from logits [P, C] and priors [2, P, C] (§11.8)."""
    return logits.sigmoid() * priors[0] * priors[1]


def rescored(scores: Tensor, priors: Tensor, powers: Sequence[float], prior_power: float = 2.8) -> Tensor:
    """Final weighting sigmoid^i s_h^h s_o^o of pair scores [n] and their priors [n, 2], none of them 0 (§11.9).

    powers: (h, o, i). The pair score is taken apart first, and `prior_power` taken back from the priors.
    """
    human, thing, interaction = powers
    sigmoid = scores / priors.prod(dim=1)
    s_h, s_o = (priors ** (1 / prior_power)).unbind(dim=1)
    return sigmoid**interaction * s_h**human * s_o**thing
