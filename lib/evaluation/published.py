"""Published HICO-DET and V-COCO numbers, for comparison beside our own (published.csv; spec data-and-evaluation.md §7).

HICO-DET's are Default-mode mAP in percent, V-COCO's (setting `vcoco`) AP_role over 24 roles in percent. Settings carry
the names of the split table (`rare_first` is RF-UC, `non_rare_first` NF-UC, `unseen_object` UO, `unseen_verb` UV,
`default` fully supervised). Authors report their own numbers; which evaluator each one used is seldom stated (two-stage
CLIP methods: the rule that `hico_det_ap` has as default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

import pandas as pd

ZERO_SHOT_SETTINGS = ("rare_first", "non_rare_first", "unseen_object", "unseen_verb")
SETTINGS = (*ZERO_SHOT_SETTINGS, "default", "vcoco")
SOURCES = {
    "readme": "README of the method's repository",
    "list": "HOI-Learning-List, September 2025",
    "memory": "remembered from the method's paper, not verified",
}
_GROUPS = {"default": ["full", "rare", "non_rare"], "vcoco": ["scenario_1", "scenario_2"]}


@lru_cache(maxsize=1)
def _table() -> pd.DataFrame:
    """Every row: setting, method, backbone (CLIP image tower, "" where there is none or the source states none), ..."""
    with resources.as_file(resources.files("lib.evaluation") / "published.csv") as path:
        table = pd.read_csv(path)
    words = ["method", "backbone", "detector", "venue", "source"]
    return table.fillna(dict.fromkeys(words, ""))


def groups_of(setting: str) -> list[str]:
    """Names of the numbers that papers give in a setting."""
    if setting not in SETTINGS:
        raise ValueError(f"published numbers: unknown setting {setting!r}, expected one of {list(SETTINGS)}")
    return _GROUPS.get(setting, ["full", "unseen", "seen"])


def published(setting: str, backbone: str | None = None) -> pd.DataFrame:
    """Rows of one setting, best first: method, backbone, detector, venue, the numbers of the setting, source.

    backbone: only this CLIP image tower ("ViT-B/16", "ViT-L/14@336"). Raises ValueError for a name the table
    does not know.
    """
    groups, table = groups_of(setting), _table()
    backbones = sorted(set(table["backbone"]) - {""})
    if backbone is not None and backbone not in backbones:
        raise ValueError(f"published numbers: unknown backbone {backbone!r}, expected one of {backbones} or None")
    chosen = table[(table["setting"] == setting) & (backbone is None or table["backbone"].eq(backbone))]
    chosen = chosen[["method", "backbone", "detector", "venue", *groups, "source"]]
    return chosen.sort_values(groups[0], ascending=False, ignore_index=True)


def beside_published(
    ours: Mapping[str, float], setting: str, backbone: str | None = None, name: str = "ours"
) -> pd.DataFrame:
    """`published` with a row of our own numbers in its place by the first of them.

    ours: means of `summarise` (`mAP_full`, ... in percent), or `scenario_1` and `scenario_2`; others are left out.
    """
    groups, table = groups_of(setting), published(setting, backbone)
    own = {group: ours.get(f"mAP_{group}", ours.get(group, math.nan)) for group in groups}
    row = dict.fromkeys(table.columns, "") | own | {"method": name, "source": "this run"}
    both = pd.concat([pd.DataFrame([row]), table], ignore_index=True)
    return both.sort_values(groups[0], ascending=False, ignore_index=True, kind="stable")
