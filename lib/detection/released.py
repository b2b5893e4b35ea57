"""DETR checkpoints with facebookresearch's names -> the folder that `lib.detection.detr` reads (spec §8, §9).

    python -m lib.detection.released detr-r50-hicodet.pth weights/detr-r50   # then: detector.source: weights/detr-r50

It takes the detectors of UPT and EZ-HOI (81 outputs), facebookresearch's own (92 outputs, cut to 81) and EZ-HOI
checkpoints, which carry their detector (`detector.*`). Files are read without running code.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lib.data.hico_classes import COCO91, OFFICIAL
from lib.detection.detr import FILES, DetectorError
from lib.runs import atomic_write, write_json, write_text

COCO_CLASSES = OFFICIAL.objects  # by contiguous label
ROWS_OF_92 = [*COCO91.tolist(), 91]  # rows of the COCO head that name a class, and background

_FILTERS = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_MEND = "pass the released .pth file itself; download it again if it is damaged"

# facebookresearch -> transformers 5 (spec §8.2), applied in this order
_RENAMES = (
    (r"^backbone\.0\.body\.", "model.backbone.model."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^transformer\.(encoder|decoder)\.", r"model.\1."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"^(model\.encoder\..*)\.norm2\.", r"\1.final_layer_norm."),
    (r"^(model\.decoder\..*)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
)


def convert_detr(source: Path | str, folder: Path | str, *, resample: str = "bicubic", dc5: bool = False) -> Path:
    """Convert a checkpoint; returns `folder` with config.json, model.safetensors and preprocessor_config.json.

    source: a torch file with the state dict under `model_state_dict` or `model`. R50 and R101 are told apart by their
    tensors; dc5: the last stage is dilated, which no tensor shows. resample: filter of the test resize, bicubic as in
    EZ-HOI or bilinear as in UPT and facebookresearch (spec §9).
    Raises DetectorError for a damaged or foreign file; nothing is written then.
    """
    from transformers import DetrConfig, DetrForObjectDetection  # imported here: it takes seconds

    source, folder = Path(source), Path(folder)
    if resample not in _FILTERS:
        raise DetectorError("resample", repr(resample), "bilinear or bicubic", "set resample")
    state = _read(source)
    _check_family(source, state)
    config = DetrConfig(
        backbone=f"resnet{_depth(source, state)}",
        dilation=dc5,
        num_queries=len(state["query_embed.weight"]),
        id2label=dict(enumerate(COCO_CLASSES)),
        label2id={name: label for label, name in enumerate(COCO_CLASSES)},
        architectures=["DetrForObjectDetection"],
    )
    with torch.device("meta"):
        expected = DetrForObjectDetection(config).state_dict()
    converted = to_transformers(head_of_81(state))
    _check_tensors(source, converted, expected)

    config_file, weights_file, processing_file = (folder / name for name in FILES)
    config_file.unlink(missing_ok=True)  # last out, last in: a killed conversion leaves no whole folder
    stored = safetensors.torch.save(converted, metadata={"format": "pt"})
    atomic_write(weights_file, lambda stream: stream.write(stored))
    size = {"shortest_edge": 800, "longest_edge": 1333}
    write_json(processing_file, {"size": size, "resample": _FILTERS[resample]})
    write_text(config_file, config.to_json_string(use_diff=False))
    return folder


def unprefixed(state: Mapping[str, Tensor], prefix: str = "detector.") -> dict[str, Tensor]:
    """The detector inside the state dict of an EZ-HOI or UPT checkpoint, under the detector's own names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def head_of_81(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with a 92-way head (COCO ids 0..90, background 91) cut to 80 classes and background; else unchanged."""
    return {
        name: value[ROWS_OF_92] if name.startswith("class_embed.") and len(value) == 92 else value
        for name, value in state.items()
    }


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch's tensors under the names of transformers' DetrForObjectDetection, fp32.

    A packed attention projection [3d, ...] becomes its q, k and v rows. Names without a counterpart are kept.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if ".in_proj_" in name:
            parts = zip((name.replace("in_proj_", f"{part}_proj.") for part in "qkv"), value.chunk(3), strict=True)
        else:
            parts = [(name, value)]
        converted |= {key: part.float().clone(memory_format=torch.contiguous_format) for key, part in parts}
    return converted


def _read(source: Path) -> dict[str, Tensor]:
    """The detector's state dict without `num_batches_tracked`."""
    if not source.is_file():
        raise DetectorError(source, "no file", "a DETR checkpoint", "correct the path")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, not a checkpoint, or a pickle that wants to run code
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DetectorError(
            source,
            f"a file that cannot be read as tensors ({type(error).__name__}: {reason})",
            "a whole torch file of tensors and plain containers (it is read without running code)",
            _MEND,
        ) from error
    top = sorted(map(str, content)) if isinstance(content, Mapping) else [type(content).__name__]
    state = content.get("model_state_dict", content.get("model")) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DetectorError(source, f"no state dict among {top[:6]}", "one under model_state_dict or model", _MEND)
    state = unprefixed(state) or state
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def _check_family(source: Path, state: Mapping[str, Tensor]) -> None:
    """A detector of facebookresearch's layout with a usable number of outputs."""
    missing = {"class_embed.weight", "query_embed.weight", "backbone.0.body.conv1.weight"} - state.keys()
    if missing:
        found = f"{len(state)} tensors ({', '.join(sorted(state)[:3])}, ...) without {', '.join(sorted(missing))}"
        raise DetectorError(source, found, "a DETR with facebookresearch's names", _MEND)
    outputs = len(state["class_embed.weight"])
    if outputs not in (81, 92):
        expected = "81 (COCO's 80 classes and background) or 92 (COCO ids and background)"
        raise DetectorError(source, f"{outputs} outputs", expected, "use a detector of the COCO classes")


def _depth(source: Path, state: Mapping[str, Tensor]) -> int:
    """50 or 101, from the blocks of stage 3."""
    stage = "backbone.0.body.layer3."
    blocks = len({name.removeprefix(stage).split(".")[0] for name in state if name.startswith(stage)})
    kind = "bottleneck" if f"{stage}0.conv3.weight" in state else "basic"
    if kind == "basic" or blocks not in (6, 23):
        found = f"a backbone with {blocks} {kind} blocks in stage 3"
        raise DetectorError(source, found, "ResNet-50 (6 bottleneck blocks) or ResNet-101 (23)", _MEND)
    return {6: 50, 23: 101}[blocks]


def _check_tensors(source: Path, converted: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every tensor of the model, none besides, all of the right shape and finite."""
    shared = converted.keys() & expected.keys()
    differing = {
        "missing": sorted(expected.keys() - shared),
        "unknown": sorted(converted.keys() - shared),
        "of another shape": sorted(name for name in shared if converted[name].shape != expected[name].shape),
        "not finite": sorted(name for name in shared if not converted[name].isfinite().all()),
    }
    told = [f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in differing.items() if names]
    if told:
        raise DetectorError(
            source, f"tensors that do not fit ({'; '.join(told)})", f"the {len(expected)} of transformers' DETR", _MEND
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.detection.released", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="detr-r50-hicodet.pth and its kin, or an EZ-HOI checkpoint")
    parser.add_argument("folder", type=Path, help="receives the converted detector")
    parser.add_argument("--resample", choices=_FILTERS, default="bicubic", help="bicubic: EZ-HOI; bilinear: UPT")
    parser.add_argument("--dc5", action="store_true", help="the last stage of the backbone is dilated")
    arguments = parser.parse_args()
    try:
        convert_detr(arguments.source, arguments.folder, resample=arguments.resample, dc5=arguments.dc5)
    except DetectorError as error:
        raise SystemExit(str(error)) from None
    print(f"{arguments.folder}: converted\nset detector.source: {arguments.folder}")


if __name__ == "__main__":
    main()
