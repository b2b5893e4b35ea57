"""configs/defr: every named configuration of the paper's program loads, and says what it should reproduce."""

import re
from pathlib import Path

import pytest

from lib.config import load_config
from lib.defr.configurations import BACKBONES, ROWS, command, configurations, to_yaml
from lib.defr.heads import FAMILIES
from lib.defr.losses import LOSSES
from lib.engine.batch import select_notebooks
from lib.stages.recognition import UNTRAINED, variant_settings

FOLDER = Path(__file__).parents[2] / "configs" / "defr"
NAMED = configurations()


def test_thirty_five_of_theirs_and_two_of_ours():
    assert sum(not configuration.ours for configuration in NAMED.values()) == 35
    groups = [name.split("_")[0] for name, configuration in NAMED.items() if not configuration.ours]
    assert {group: groups.count(group) for group in set(groups)} == {"im1k": 12, "im21k": 12, "clip": 10, "p16": 1}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(NAMED) and set(NAMED) >= set(ROWS)


@pytest.mark.parametrize("name", NAMED)
def test_file_is_current_and_loads(name):
    path, configuration = FOLDER / f"{name}.yaml", NAMED[name]
    text = path.read_text()
    assert text == to_yaml(configuration), "mend: python -m lib.defr.configurations configs/defr"
    assert max(map(len, text.splitlines())) <= 120
    defr = load_config(path).defr
    assert defr.head in FAMILIES and defr.loss in LOSSES and defr.image_size == 672 and defr.epochs % 5 == 0
    published = configuration.published
    if published is not None:
        expected = re.search(r"# Expected: (.*?)\(", text, re.DOTALL)[1]
        assert [float(n) for n in re.findall(r"(?<!@)\b\d+\.\d+", expected)] == [published.full, *(published.few or ())]


@pytest.mark.parametrize("name", NAMED)
def test_the_command_runs_notebooks_whose_models_are_named(name):
    """There are no tiny models on real data: what the notebooks of the command load, the file has to name."""
    config, line = load_config(FOLDER / f"{name}.yaml"), command(NAMED[name])
    assert f"#   {line}\n" in (FOLDER / f"{name}.yaml").read_text() and f"CONFIG=configs/defr/{name}.yaml " in line
    chosen = [path.name[:2] for path in select_notebooks(re.search(r"--notebooks ([\d,]+)", line)[1])]
    boxes = config.defr.backbone == "clip"  # notebook 06 scores the detector's boxes for a CLIP tower only
    assert chosen == (["01", "06"] if boxes else ["06"]) and bool(config.detector.source) == boxes
    compared = [variant_settings(config.defr, variant) for variant in (*config.defr.variants, UNTRAINED)]
    needs_clip = boxes or any(FAMILIES[each.head].rows == "clip" for each in compared)
    assert bool(config.clip.source) == needs_clip


def test_recipes_by_hand():
    """(head, loss, lr, epochs, log_scale, min_samples, batch) of spec defr.md §7, §8."""
    expected = {
        "im1k_randlinear_bce": ("rand-linear", "bce", 1e-4, 20, 0.0, 40, 128),
        "im1k_clip_sign": ("clip", "sign", 1e-4, 10, 4.61, 40, 128),
        "im21k_bertlinear_sign": ("bert-linear", "sign", 1e-4, 10, 0.0, 40, 128),
        "clip_randlinear_bce": ("rand-linear", "bce", 1.5e-5, 40, 4.61, 40, 128),
        "clip_randlinear_sign": ("rand-linear", "sign", 1.5e-5, 20, 4.61, 40, 128),
        "clip_rand_sign": ("rand", "sign", 1.5e-5, 40, 4.61, 40, 128),
        "clip_rand512_bce": ("rand-512", "bce", 1.5e-5, 20, 4.61, 40, 128),
        "clip_clip_bce": ("clip", "bce", 1.5e-5, 40, 4.61, 40, 128),
        "clip_clip_sign": ("clip", "sign", 1.5e-5, 10, 4.61, 40, 128),
        "clip_clip_wbce": ("clip", "wbce", 1.5e-5, 40, 4.61, 40, 128),
        "clip_clip_wbce_baseline": ("clip", "wbce", 1.5e-5, 40, 4.61, 1, 128),
        "p16": ("clip", "sign", 5e-6, 10, 4.61, 40, 32),
        "clip_bert_bce": ("bert", "bce", 1.5e-5, 40, 4.61, 40, 128),
    }
    for name, values in expected.items():
        d = load_config(FOLDER / f"{name}.yaml").defr
        assert (d.head, d.loss, d.lr, d.epochs, d.log_scale, d.min_samples, d.batch_size) == values, name
    timm = {load_config(FOLDER / f"{group}_rand_bce.yaml").defr.backbone for group in ("im1k", "im21k")}
    assert timm == {BACKBONES["im1k"].timm, BACKBONES["im21k"].timm}
    assert load_config(FOLDER / "clip_clip_sign.yaml").defr.backbone == "clip"
