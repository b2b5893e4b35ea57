"""configs/: one file a published setting, each loads strictly and states the numbers that were published for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib.config import ConfigError, load_config
from lib.evaluation.published import ZERO_SHOT_SETTINGS, published

CONFIGS = Path(__file__).parents[1] / "configs"
TOWERS = {
    "vitb16": ("ViT-B/16", "local-dir:weights/ViT-B-16", 32),
    "vitl14_336": ("ViT-L/14@336", "local-dir:weights/ViT-L-14-336px", 16),
}
HICO_DET = [(tower, setting) for tower in TOWERS for setting in (*ZERO_SHOT_SETTINGS, "default")]
HEAD = ("# EZ-HOI with CLIP ", "#   make run CONFIG=", "# Hardware: ", "# Needs: ", "# Expected: ")


def head_of(path: Path) -> str:
    return "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))


def numbers(head: str, names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(re.search(rf"(?<![\w-]){name} (\d+\.\d+)", head)[1]) for name in names)


def test_every_published_setting_has_its_file():
    expected = {f"hico_det_{tower}_{setting}.yaml" for tower, setting in HICO_DET}
    expected |= {f"vcoco_{tower}.yaml" for tower in TOWERS}
    assert {path.name for pattern in ("hico_det_*", "vcoco_*") for path in CONFIGS.glob(pattern)} == expected


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_loads(path):
    assert load_config(path)


@pytest.mark.parametrize(("tower", "setting"), [*HICO_DET, *((tower, "vcoco") for tower in TOWERS)])
def test_recipe_and_head(tower, setting):
    name = f"vcoco_{tower}.yaml" if setting == "vcoco" else f"hico_det_{tower}_{setting}.yaml"
    config, head = load_config(CONFIGS / name), head_of(CONFIGS / name)
    backbone, source, batch = TOWERS[tower]
    assert config.clip.source == source and config.ezhoi.batch_size == batch and config.ezhoi.accumulate == 1
    assert config.ezhoi.preset == "released" and config.ezhoi.round_prompts
    released = load_config(None, ["ezhoi.preset=released", f"ezhoi.batch_size={batch}"])
    assert config.ezhoi == released.ezhoi  # nothing else is changed
    lines = head.splitlines()
    for start in HEAD:
        assert any(line.startswith(start) for line in lines), start
    assert backbone in lines[0] and f"CONFIG=configs/{name} " in lines[1]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(("tower", "setting"), HICO_DET)
def test_hico_det_numbers(tower, setting):
    name = f"hico_det_{tower}_{setting}.yaml"
    config, head = load_config(CONFIGS / name), head_of(CONFIGS / name)
    assert config.data.zero_shot == setting and config.data.kind == "hico"
    read = setting if setting != "default" else "rare_first"  # the public program without --zs
    assert config.data.differences == f"data/hicodet/zs_possibility/{read}_diff.txt"
    found = {row.method: row for row in published(setting, TOWERS[tower][0]).itertuples()}
    row = found.get("EZ-HOI") or found["ADA-CM"]
    assert ("no number of EZ-HOI was published" in head) == ("EZ-HOI" not in found)
    assert row.method in head and row.venue.split()[0] in head
    if setting == "default":
        assert numbers(head, ("full", "rare", "non-rare")) == (row.full, row.rare, row.non_rare)
    else:
        assert numbers(head, ("full", "unseen", "seen")) == (row.full, row.unseen, row.seen)


@pytest.mark.parametrize("tower", TOWERS)
def test_vcoco_numbers(tower):
    config, head = load_config(CONFIGS / f"vcoco_{tower}.yaml"), head_of(CONFIGS / f"vcoco_{tower}.yaml")
    assert (config.data.kind, config.data.zero_shot) == ("vcoco", "default")
    found = {row.method: row for row in published("vcoco", TOWERS[tower][0]).itertuples()}
    row = found.get("EZ-HOI") or found["ADA-CM"]
    assert f"AP_role {row.scenario_1} (scenario 1) / {row.scenario_2} (scenario 2)" in head
    assert row.method in head and (row.source == "memory") == ("not verified" in head)


def test_a_strategy_sets_several_sections_below_what_is_written_beside_it(tmp_path):
    config = load_config(None, ["strategy=train_with_public"])
    assert (config.ezhoi.bridge, config.ezhoi.bridge_grad, config.ezhoi.text_prompts) == ("captions", "none", "off")
    assert (config.bridge.center, config.bridge.num_steps) == ("text", 600)
    assert config.ezhoi.round_prompts  # the preset that the strategy names
    file = tmp_path / "mine.yaml"
    file.write_text("strategy: fine_tune\nezhoi:\n  epochs: 5\n")
    assert (load_config(file).ezhoi.epochs, load_config(file).ezhoi.lr_head) == (5, 1e-5)
    assert load_config(file, ["strategy=exact_gradient"]).ezhoi.bridge_grad == "full"
    with pytest.raises(ConfigError, match="strategy: found 'train_wth', expected one of .*'train_with'"):
        load_config(None, ["strategy=train_wth"])
