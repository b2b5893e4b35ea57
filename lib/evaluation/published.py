"""Published HICO-DET and V-COCO numbers, for comparison beside our own (spec data-and-evaluation.md §7).

HICO-DET's are Default-mode mAP in percent, V-COCO's AP_role over 24 roles in percent. Settings carry the names of
the split table (`rare_first` is RF-UC, `non_rare_first` NF-UC, `unseen_object` UO, `unseen_verb` UV, `default` fully
supervised). Authors report their own numbers; which evaluator each one used is seldom stated (two-stage CLIP methods:
the rule that `hico_det_ap` has as default).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import nan

import pandas as pd

README = "README of the method's repository"
LIST = "HOI-Learning-List, September 2025"
MEMORY = "remembered from the method's paper, not verified"

ZERO_SHOT_SETTINGS = ("rare_first", "non_rare_first", "unseen_object", "unseen_verb")
SETTINGS = (*ZERO_SHOT_SETTINGS, "default")


@dataclass(frozen=True)
class PublishedResult:
    """One line of a paper's table; groups that do not belong to the setting are nan."""

    method: str
    backbone: str  # CLIP image tower; "" where the source states none
    detector: str
    venue: str
    setting: str
    full: float
    unseen: float = nan
    seen: float = nan
    rare: float = nan
    non_rare: float = nan
    source: str = README


Triple = tuple[float, float, float]


def _zero_shot(
    method: str, backbone: str, detector: str, venue: str, *cells: Triple | None, source: str = README
) -> Iterator[PublishedResult]:
    """Rows from cells (unseen, seen, full) in the order RF-UC, NF-UC, UO, UV."""
    for setting, cell in zip(ZERO_SHOT_SETTINGS, cells, strict=True):
        if cell:
            unseen, seen, full = cell
            yield PublishedResult(
                method, backbone, detector, venue, setting, full, unseen=unseen, seen=seen, source=source
            )


def _supervised(
    method: str, backbone: str, detector: str, venue: str, cell: Triple, source: str = README
) -> PublishedResult:
    """Row from a cell (full, rare, non-rare)."""
    full, rare, non_rare = cell
    return PublishedResult(
        method, backbone, detector, venue, "default", full, rare=rare, non_rare=non_rare, source=source
    )


# fmt: off
PUBLISHED: list[PublishedResult] = [
    *_zero_shot("EZ-HOI", "ViT-B/16", "DETR-R50", "NeurIPS 2024",
                (29.02, 34.15, 33.13), (33.66, 30.55, 31.17), (33.28, 32.06, 32.27), (25.10, 33.49, 32.32)),
    *_zero_shot("EZ-HOI", "ViT-L/14@336", "DETR-R50", "NeurIPS 2024",
                (34.24, 37.35, 36.73), (36.33, 34.47, 34.84), (38.17, 36.02, 36.38), (28.82, 38.15, 36.84)),
    *_zero_shot("CMMP", "ViT-B/16", "DETR-R50", "ECCV 2024",
                (29.45, 32.87, 32.18), (32.09, 29.71, 30.18), (33.76, 31.15, 31.59), (26.23, 32.75, 31.84)),
    *_zero_shot("CMMP", "ViT-L/14@336", "DETR-R50", "ECCV 2024",
                (35.98, 37.42, 37.13), (33.52, 35.53, 35.13), (39.67, 36.15, 36.74), (30.84, 37.28, 36.38)),
    *_zero_shot("HOIGen", "ViT-B/16", "DETR-R50", "ACM MM 2024",
                (31.01, 34.57, 33.86), (33.98, 32.86, 33.08), (36.35, 32.90, 33.48), (20.27, 34.31, 32.34)),
    *_zero_shot("LAIN", "ViT-B/16", "DETR-R50", "CVPR 2025",
                (32.34, 35.17, 34.60), (36.67, 32.63, 33.44), (37.65, 33.61, 34.28), (29.23, 33.95, 33.29)),
    *_zero_shot("HOLa", "ViT-B/16", "DETR-R50", "ICCV 2025",
                (30.61, 35.08, 34.19), (35.25, 31.64, 32.36), (36.45, 33.02, 33.59), (27.91, 35.09, 34.09)),
    *_zero_shot("VDRP", "ViT-B/16", "DETR-R50", "NeurIPS 2025",
                (31.29, 34.41, 33.78), (36.45, 31.60, 32.57), (36.13, 32.84, 33.39), (26.69, 33.72, 32.73)),
    *_zero_shot("CLIP4HOI", "ViT-B/16", "DETR-R50", "NeurIPS 2023",
                (28.47, 35.48, 34.08), (31.44, 28.26, 28.90), (31.79, 32.73, 32.58), (26.02, 31.14, 30.42),
                source=LIST),
    *_zero_shot("HOICLIP", "ViT-B/32", "one-stage R50", "CVPR 2023",
                (25.53, 34.85, 32.99), (26.39, 28.10, 27.75), (16.20, 30.99, 28.53), (24.30, 32.19, 31.09)),
    *_zero_shot("GEN-VLKT-S", "ViT-B/32", "one-stage R50", "CVPR 2022",
                (21.36, 32.91, 30.56), (25.05, 23.38, 23.71), (10.51, 28.92, 25.63), (20.96, 30.23, 28.74)),
    _supervised("EZ-HOI", "ViT-L/14@336", "DETR-R50", "NeurIPS 2024", (38.61, 37.70, 38.89)),
    _supervised("ADA-CM", "ViT-B/16", "DETR-R50", "ICCV 2023", (33.80, 31.72, 34.42)),
    _supervised("ADA-CM", "ViT-L/14@336", "DETR-R50", "ICCV 2023", (38.40, 37.52, 38.66)),
    _supervised("HOLa", "ViT-B/16", "DETR-R50", "ICCV 2025", (35.41, 34.35, 35.73)),
    _supervised("HOLa", "ViT-L/14@336", "DETR-R50", "ICCV 2025", (39.05, 38.66, 39.17)),
    _supervised("UPT", "", "DETR-R50", "CVPR 2022", (31.66, 25.94, 33.36)),
    _supervised("HOICLIP", "ViT-B/32", "one-stage R50", "CVPR 2023", (34.69, 31.12, 35.74)),
    _supervised("GEN-VLKT-S", "ViT-B/32", "one-stage R50", "CVPR 2022", (33.75, 29.25, 35.10)),
]
# fmt: on


@dataclass(frozen=True)
class PublishedRoleAp:
    """V-COCO AP_role over 24 roles, percent, in the two scenarios for invisible objects."""

    method: str
    backbone: str  # CLIP image tower; "" where there is none
    venue: str
    scenario_1: float
    scenario_2: float
    source: str = README


VCOCO: list[PublishedRoleAp] = [
    PublishedRoleAp("EZ-HOI", "ViT-L/14@336", "NeurIPS 2024", 60.5, 66.2, MEMORY),
    PublishedRoleAp("ADA-CM", "ViT-B/16", "ICCV 2023", 56.12, 61.45),
    PublishedRoleAp("ADA-CM", "ViT-L/14@336", "ICCV 2023", 58.57, 63.97),
    PublishedRoleAp("UPT", "", "CVPR 2022", 59.0, 64.5),
]


def published(setting: str, backbone: str | None = None) -> pd.DataFrame:
    """Rows of one setting, best full mAP first: the fields of `PublishedResult`.

    backbone: only this CLIP image tower ("ViT-B/16", "ViT-L/14@336"). Raises ValueError for a name the table
    does not know.
    """
    backbones = sorted({row.backbone for row in PUBLISHED} - {""})
    if setting not in SETTINGS:
        raise ValueError(f"published numbers: unknown setting {setting!r}, expected one of {list(SETTINGS)}")
    if backbone is not None and backbone not in backbones:
        raise ValueError(f"published numbers: unknown backbone {backbone!r}, expected one of {backbones} or None")
    rows = [asdict(row) for row in PUBLISHED if row.setting == setting and backbone in (None, row.backbone)]
    columns = list(PublishedResult.__dataclass_fields__)
    return pd.DataFrame(rows, columns=columns).sort_values("full", ascending=False, ignore_index=True)
