"""Conversion of DETR checkpoints with facebookresearch's names (spec clip-features-and-detr.md §8)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection

from lib.detection import released
from lib.detection.detr import DetectorError, load_detr
from lib.detection.released import COCO_CLASSES, ROWS_OF_92, convert_detr, head_of_81, to_transformers, unprefixed


def layer(prefix: str, attentions: list[str], norms: int, d: int = 256, ffn: int = 2048) -> dict[str, tuple[int, ...]]:
    """Shapes of one encoder or decoder layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in attentions:
        shapes |= {f"{prefix}.{name}.in_proj_weight": (3 * d, d), f"{prefix}.{name}.in_proj_bias": (3 * d,)}
        shapes |= {f"{prefix}.{name}.out_proj.weight": (d, d), f"{prefix}.{name}.out_proj.bias": (d,)}
    shapes |= {f"{prefix}.linear1.weight": (ffn, d), f"{prefix}.linear1.bias": (ffn,)}
    shapes |= {f"{prefix}.linear2.weight": (d, ffn), f"{prefix}.linear2.bias": (d,)}
    for norm in range(1, norms + 1):
        shapes |= {f"{prefix}.norm{norm}.weight": (d,), f"{prefix}.norm{norm}.bias": (d,)}
    return shapes


def resnet(blocks: tuple[int, ...], prefix: str = "backbone.0.body") -> dict[str, tuple[int, ...]]:
    """Shapes of a bottleneck ResNet with frozen batch norms, in torchvision's names."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}.{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}

    shapes = {f"{prefix}.conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        for block in range(count):
            name = f"layer{stage}.{block}"
            convolutions = ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for index, shape in enumerate(convolutions, start=1):
                shapes |= {f"{prefix}.{name}.conv{index}.weight": shape} | norm(f"{name}.bn{index}", shape[0])
            if block == 0:
                shapes |= {f"{prefix}.{name}.downsample.0.weight": (4 * width, inputs, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes


def checkpoint(blocks: tuple[int, ...] = (3, 4, 6, 3), outputs: int = 81) -> dict[str, Tensor]:
    """A random state dict of a released detector."""
    d = 256
    shapes = resnet(blocks) | {"input_proj.weight": (d, 2048, 1, 1), "input_proj.bias": (d,)}
    for index in range(6):
        shapes |= layer(f"transformer.encoder.layers.{index}", ["self_attn"], norms=2)
        shapes |= layer(f"transformer.decoder.layers.{index}", ["self_attn", "multihead_attn"], norms=3)
    shapes |= {"transformer.decoder.norm.weight": (d,), "transformer.decoder.norm.bias": (d,)}
    shapes |= {"query_embed.weight": (100, d), "class_embed.weight": (outputs, d), "class_embed.bias": (outputs,)}
    for index, width in enumerate((d, d, 4)):
        shapes |= {f"bbox_embed.layers.{index}.weight": (width, d), f"bbox_embed.layers.{index}.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: value.abs() + 0.5 if name.endswith("running_var") else value for name, value in state.items()}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path) -> Iterator[None]:
    """Every test writes some hundred megabytes, which pytest would keep."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return checkpoint()


@pytest.mark.parametrize(("depth", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))])
def test_mapping_is_a_bijection(depth: int, blocks: tuple[int, ...]) -> None:
    state = checkpoint(blocks)
    with torch.device("meta"):
        model = DetrForObjectDetection(DetrConfig(num_labels=80, backbone=f"resnet{depth}"))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    converted = to_transformers(state)
    assert {name: tuple(value.shape) for name, value in converted.items()} == expected
    assert sum(value.numel() for value in converted.values()) == sum(value.numel() for value in state.values())
    if depth == 50:
        assert (len(state), len(converted)) == (458, 530)
        assert sum(p.numel() for p in model.parameters()) == 41_521_941


def test_rows_and_norms_go_where_the_equations_want_them(state: dict[str, Tensor]) -> None:
    converted = to_transformers(state)
    packed = state["transformer.decoder.layers.2.multihead_attn.in_proj_weight"]
    for part, rows in zip("qkv", packed.split(256), strict=True):
        assert torch.equal(converted[f"model.decoder.layers.2.encoder_attn.{part}_proj.weight"], rows)
    pairs = {
        "transformer.encoder.layers.1.norm2.weight": "model.encoder.layers.1.final_layer_norm.weight",
        "transformer.decoder.layers.1.norm2.weight": "model.decoder.layers.1.encoder_attn_layer_norm.weight",
        "transformer.decoder.layers.1.norm3.weight": "model.decoder.layers.1.final_layer_norm.weight",
        "transformer.decoder.norm.bias": "model.decoder.layernorm.bias",
        "backbone.0.body.layer4.2.bn3.running_var": "model.backbone.model.layer4.2.bn3.running_var",
    }
    for source, target in pairs.items():
        assert torch.equal(converted[target], state[source]), target


def test_head_of_92_keeps_the_80_classes_and_background() -> None:
    assert len(ROWS_OF_92) == 81 and ROWS_OF_92[-1] == 91
    ids = [
        *range(1, 12),
        *range(13, 26),
        27,
        28,
        *range(31, 45),
        *range(46, 66),
        67,
        70,
        *range(72, 83),
        *range(84, 91),
    ]
    assert ROWS_OF_92[:-1] == ids  # ez-hoi.md §7.3
    state = {"class_embed.bias": torch.arange(92.0), "input_proj.bias": torch.arange(92.0)}
    reduced = head_of_81(state)
    assert reduced["class_embed.bias"].tolist() == ROWS_OF_92 and len(reduced["input_proj.bias"]) == 92
    assert head_of_81(reduced)["class_embed.bias"].tolist() == ROWS_OF_92
    assert len(COCO_CLASSES) == 80 and (COCO_CLASSES[0], COCO_CLASSES[79]) == ("person", "toothbrush")


@pytest.mark.parametrize("form", ["upt", "coco", "ezhoi"])
def test_released_forms(state: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    tracked = {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(7)}
    if form == "upt":
        content = {"model_state_dict": state | tracked, "iteration": 5, "epoch": 1}
    elif form == "coco":
        content = {"model": checkpoint(outputs=92)}
    else:
        prefixed = {f"detector.{name}": value for name, value in state.items()}
        content = {"model_state_dict": prefixed | {"logit_scale_HO": torch.tensor(1.0)}, "epoch": 1}
        assert unprefixed(content["model_state_dict"]).keys() == state.keys()
    torch.save(content, tmp_path / "detr.pth")
    detr = load_detr(convert_detr(tmp_path / "detr.pth", tmp_path / "converted"))
    assert detr.labels == COCO_CLASSES and (detr.short_side, detr.long_side, detr.resample) == (800, 1333, "bicubic")
    head = detr.model.class_labels_classifier.weight
    expected = content["model"]["class_embed.weight"][ROWS_OF_92] if form == "coco" else state["class_embed.weight"]
    assert torch.equal(head, expected) and len(head) == 81


def test_another_depth_dilation_and_filter(tmp_path: Path) -> None:
    torch.save({"model": checkpoint((3, 4, 23, 3))}, tmp_path / "detr.pth")
    convert_detr(tmp_path / "detr.pth", tmp_path / "converted", resample="bilinear", dc5=True)
    detr = load_detr(tmp_path / "converted")
    assert detr.resample == "bilinear" and detr.model.config.backbone_config.backbone == "resnet101"
    pixels, mask = torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64)
    with torch.no_grad():
        assert detr.model.model.backbone(pixels, mask)[-1][0].shape == (1, 2048, 4, 4)  # stride 16, not 32
    with pytest.raises(DetectorError, match="found 'nearest', expected bilinear or bicubic"):
        convert_detr(tmp_path / "detr.pth", tmp_path / "converted", resample="nearest")


LAYER3 = "backbone.0.body.layer3"
REFUSALS = {
    "1 missing: model.decoder.layernorm.bias": lambda s: s.pop("transformer.decoder.norm.bias"),
    "1 unknown: mask_head.weight": lambda s: s.update({"mask_head.weight": torch.zeros(2)}),
    "1 of another shape: model.query_position": lambda s: s.update({"query_embed.weight": torch.zeros(100, 128)}),
    "1 not finite: model.input_projection.bias": lambda s: s.update({"input_proj.bias": torch.full((256,), torch.nan)}),
    "21 outputs": lambda s: s.update({"class_embed.weight": torch.zeros(21, 256)}),
    "a backbone with 6 basic blocks": lambda s: s.pop(f"{LAYER3}.0.conv3.weight"),
    "a backbone with 7 bottleneck blocks": lambda s: s.update({f"{LAYER3}.6.conv1.weight": torch.zeros(2)}),
    "without .*query_embed.weight": lambda s: s.pop("query_embed.weight"),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_foreign_weights_are_refused(state: dict[str, Tensor], tmp_path: Path, message: str) -> None:
    changed = dict(state)
    REFUSALS[message](changed)
    torch.save({"model_state_dict": changed}, tmp_path / "detr.pth")
    with pytest.raises(DetectorError, match=f"(?s)detr.pth: found .*{message}.*expected.*mend"):
        convert_detr(tmp_path / "detr.pth", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


class Malicious:
    """A pickle of it makes a folder when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_damaged_files_are_refused(state: dict[str, Tensor], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"query_embed.weight": Malicious()}}, tmp_path / "evil.pth")
    with pytest.raises(DetectorError, match="(?s)evil.pth: found a file that cannot be read.*without running code"):
        convert_detr(tmp_path / "evil.pth", tmp_path / "converted")
    assert not (tmp_path / "ran").exists()
    torch.save({"model": state}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DetectorError, match="(?s)cut.pth: found a file that cannot be read.*mend"):
        convert_detr(tmp_path / "cut.pth", tmp_path / "converted")
    torch.save({"weights": state["query_embed.weight"]}, tmp_path / "other.pth")
    with pytest.raises(DetectorError, match=r"no state dict among \['weights'\], expected .*model_state_dict or model"):
        convert_detr(tmp_path / "other.pth", tmp_path / "converted")
    with pytest.raises(DetectorError, match="found no file"):
        convert_detr(tmp_path / "absent.pth", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_killed_conversion_leaves_no_whole_folder(state: dict[str, Tensor], tmp_path: Path, monkeypatch) -> None:
    torch.save({"model": state}, tmp_path / "detr.pth")
    convert_detr(tmp_path / "detr.pth", tmp_path / "converted")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(released, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_detr(tmp_path / "detr.pth", tmp_path / "converted")
    with pytest.raises(DetectorError, match="config.json: found no file"):
        load_detr(tmp_path / "converted")


def test_command(state: dict[str, Tensor], tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["released", str(tmp_path / "detr.pth"), str(tmp_path / "converted"), "--resample", "bilinear"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="found no file"):
        released.main()
    torch.save({"model": state}, tmp_path / "detr.pth")
    released.main()
    assert f"detector.source: {tmp_path / 'converted'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "converted" / "preprocessor_config.json").read_text())["resample"] == 2
