"""Published numbers: the arithmetic of the tables holds, and lookups are strict."""

from __future__ import annotations

import pytest

from lib.evaluation.published import MEMORY, PUBLISHED, SETTINGS, VCOCO, published

UNSEEN = {"rare_first": 120, "non_rare_first": 120, "unseen_object": 100, "unseen_verb": 84}

# The sources' own numbers violate the identity here (rounding or averaging there, data-and-evaluation.md §7).
INCONSISTENT = {("GEN-VLKT-S", setting) for setting in ("rare_first", "unseen_object", "unseen_verb")}


def test_full_is_the_weighted_mean_of_its_groups():
    violating = set()
    for row in PUBLISHED:
        if row.setting == "default":
            mixed = (138 * row.rare + 462 * row.non_rare) / 600
        else:
            count = UNSEEN[row.setting]
            mixed = (count * row.unseen + (600 - count) * row.seen) / 600
        if abs(mixed - row.full) > 0.03:
            violating.add((row.method, row.setting))
    assert violating == INCONSISTENT


def test_ez_hoi_rows():
    for backbone, full in (("ViT-B/16", 32.32), ("ViT-L/14@336", 36.84)):
        table = published("unseen_verb", backbone)
        assert set(table["backbone"]) == {backbone}
        assert table.set_index("method").loc["EZ-HOI", "full"] == full
        assert table["full"].is_monotonic_decreasing
    assert published("default").set_index(["method", "backbone"]).loc[("EZ-HOI", "ViT-L/14@336"), "rare"] == 37.70
    assert all((published(setting)["source"] != "").all() for setting in SETTINGS)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown setting 'UV'"):
        published("UV")
    with pytest.raises(ValueError, match="unknown backbone 'resnet50'"):
        published("default", "resnet50")


def test_vcoco_rows():
    assert all(0 < row.scenario_1 < row.scenario_2 < 100 for row in VCOCO)
    assert [(row.method, row.scenario_1, row.scenario_2) for row in VCOCO if row.source == MEMORY] == [
        ("EZ-HOI", 60.5, 66.2)
    ]
