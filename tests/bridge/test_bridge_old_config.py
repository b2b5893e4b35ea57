"""The fork's YAML file: read as it stands, explained, and turned into settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lib.bridge.old_config import OldConfig, main, read_old_config
from lib.bridge.samplers import check_sampler
from lib.config import load_config
from lib.settings import STRATEGIES

GUIDE = """
# Paths to your MS-COCO diffusion training artifacts
model_path: 'coco_diffusion_results/model-300.pt'
text_mean_path: 'coco_diffusion_results/coco_text_mean.pkl'

# Step configuration
inference_steps: 600      # Full steps at inference (best quality)
training_steps: 100       # Reduced steps during training (for speed)
scale_factor: 5.0         # Scaling factor (keep from COCO training)
"""


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    (tmp_path / "old.yaml").write_text(GUIDE)
    return tmp_path / "old.yaml"


def test_the_guides_file_is_read_as_it_stands(guide: Path) -> None:
    config = read_old_config(guide)
    assert config == OldConfig("coco_diffusion_results/model-300.pt", "coco_diffusion_results/coco_text_mean.pkl")
    guide.write_text(GUIDE + "embed_dim: 512\n")
    assert read_old_config(guide) == replace(config, embed_dim=512)


@pytest.mark.parametrize("reading", ["cheap", "executed"])
@pytest.mark.parametrize("steps", [1, 50, 600, 1000])
def test_settings_are_valid_and_say_depth_and_count_apart(
    guide: Path, reading: str, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide.write_text(GUIDE.replace("600", str(steps)))
    assert main([f"{guide}", "--as", reading]) == 0
    (tmp_path / "new.yaml").write_text(capsys.readouterr().out)
    bridge, ezhoi = (load_config(tmp_path / "new.yaml").bridge, load_config(tmp_path / "new.yaml").ezhoi)
    assert (bridge.entry_step, bridge.center, bridge.scale) == (steps, "text", 5.0)
    expected = (min(12, steps), "sphere_pc") if reading == "cheap" else (600, "public")
    assert (bridge.num_steps, bridge.solver) == expected
    assert ezhoi.bridge == "weights/model-300"
    assert ezhoi.bridge_grad == {"cheap": "straight_through", "executed": "none"}[reading]
    check_sampler(bridge.solver, bridge.entry_step, bridge.num_steps, 1000)


def test_evaluate_only_leaves_training_alone(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{guide}", "--evaluate-only"]) == 0
    assert "ezhoi:" not in capsys.readouterr().out


def test_explanation_says_what_the_numbers_did() -> None:
    told = " ".join(OldConfig().explain())
    for part in ("inference_steps: 600 is M", "S = 600", "500 do nothing", "scale_factor: 5", "no real model"):
        assert part in told
    assert "do nothing." not in OldConfig().explain()[1] and "never reached" not in told
    shallow = " ".join(OldConfig(inference_steps=100, training_steps=50).explain())
    assert "500 of which repeat a timestep" in shallow and "The 50 here never reached the program" in shallow
    assert "depth is the wrong number to turn" in shallow
    command = OldConfig("a/model-30.pt", "b/mean.pkl", scale_factor=6.0).import_command
    assert command.startswith("python -m lib.bridge.released a/model-30.pt --text-mean b/mean.pkl --scale 6 --clip ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("inference_steps", "inference_step", "unknown key 'inference_step', did you mean 'inference_steps'"),
        ("600", "'many'", "inference_steps: found 'many', expected int"),
        ("600", "2000", "inference_steps: found 2000, expected 1 to 1000"),
        ("600", "true", "found True"),
        ("5.0", "0", "expected a radius above 0"),
        ("'coco_diffusion_results/model-300.pt'", "3", "model_path: found 3, expected str"),
        (GUIDE, "- 1\n- 2", "found no keys"),
        (GUIDE, "a: [", "found no YAML"),
    ],
)
def test_other_files_are_refused(
    guide: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    guide.write_text(GUIDE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_old_config(guide)
    assert main([f"{guide}"]) == 2
    assert message.split("(")[0][:20] in capsys.readouterr().err


def test_every_override_in_the_guide_is_a_setting() -> None:
    """docs/bridge.md names the strategies as overrides; a renamed setting must not survive there."""
    page = Path("docs/bridge.md").read_text()
    pattern = r"(?:[a-z_]+\.[a-z_]+|strategy)=\S+"
    overrides = [word for code in re.findall(r"`([^`]*)`", page) for word in re.findall(pattern, code)]
    assert {f"strategy={name}" for name in STRATEGIES if name} <= set(overrides)
    for override in overrides:
        load_config(None, [override])
