"""The tiny CLIP and DETR of the embedded world: training (`python -m lib.stages.tiny_models`), packing, unpacking.

    configs/tiny_clip/  open_clip_config.json  weights.safetensors  training.json
    configs/tiny_detr/  config.json  preprocessor_config.json  weights.safetensors  training.json

Matrices are stored in half precision; of CLIP's 49,408-row token table only the rows that the training texts use are
stored, with their token ids. `unpack_tiny_models` writes the folders that the loaders of the released models read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.ops import box_convert
from transformers import DetrForObjectDetection

from lib.clip.load import CONFIG_FILE, WEIGHTS_FILE, load_clip
from lib.clip.pretrain import CaptionedImages, ContrastiveTraining, train_clip
from lib.data.descriptions import read_descriptions
from lib.data.stick_labels import OBJECTS
from lib.data.stick_text import scene_captions
from lib.data.stick_world import WorldSettings, render_world, sample_detection_scenes, sample_pretraining_scenes
from lib.data.vocabulary import noun_phrase
from lib.detection.detr import load_detr
from lib.detection.losses import Boxes
from lib.detection.train import DetrTraining, tiny_config, train_detr
from lib.runs import append_jsonl, atomic_write, write_json
from lib.stages.tiny_quality import clip_quality, detr_quality

CONFIGS = Path(__file__).parents[2] / "configs"
CLIP_FOLDER, DETR_FOLDER = CONFIGS / "tiny_clip", CONFIGS / "tiny_detr"
CLIP_JSON = CONFIGS / "clip" / "tiny-clip.json"
PACKED, RECORD = "weights.safetensors", "training.json"
TABLE, TABLE_ROWS = "token_embedding.weight", "token_embedding.rows"
SCENES_SEED, WORLD_SEED = 2015, 0  # pre-training scenes; the world that quality is measured on
CLIP_NOTE = (
    "Words that the training texts never had keep random rows in the token table: sentences with other words than those"
    " of the stick world's captions, descriptions and object names mean little to this CLIP."
)


# ---------------------------------------------------------------- unpacking


def unpack_tiny_models(folder: Path | str) -> dict[str, str]:
    """Write `<folder>/clip` (for load_clip) and `<folder>/detr` (for load_detr); returns the two paths."""
    clip, detr = Path(folder) / "clip", Path(folder) / "detr"
    unpack_clip(clip)
    unpack_detr(detr)
    return {"clip": str(clip), "detr": str(detr)}


def unpack_clip(folder: Path) -> None:
    """Write a `local-dir` folder of open_clip; token rows that are not shipped become seeded normal(0, 0.02)."""
    state = _unpack(CLIP_FOLDER / PACKED)
    config = json.loads((CLIP_FOLDER / CONFIG_FILE).read_text())
    text = config["model_cfg"]["text_cfg"]
    table = torch.randn(text["vocab_size"], text["width"], generator=torch.Generator().manual_seed(0)) * 0.02
    table[state.pop(TABLE_ROWS)] = state[TABLE]
    gelu = {"quick_gelu": str(config["model_cfg"]["quick_gelu"]).lower()}
    _write_tensors(folder / WEIGHTS_FILE, state | {TABLE: table}, gelu)
    shutil.copyfile(CLIP_FOLDER / CONFIG_FILE, folder / CONFIG_FILE)


def unpack_detr(folder: Path) -> None:
    """Write a local folder for transformers."""
    _write_tensors(folder / "model.safetensors", _unpack(DETR_FOLDER / PACKED), {"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(DETR_FOLDER / name, folder / name)


def shipped_sha256() -> str:
    """SHA-256 over the shipped weights and configurations of both models."""
    digest = hashlib.sha256()
    for folder in (CLIP_FOLDER, DETR_FOLDER):
        for file in sorted(folder.iterdir()):
            if file.name != RECORD:
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _unpack(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: found no file, expected the shipped weights of a tiny model"
            "\n  mend: git checkout configs, or make tiny-weights"
        )
    return {name: value.float() if value.is_floating_point() else value for name, value in load_file(file).items()}


def _pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in half precision; vectors (norms, biases) stay as they are."""
    return {
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value for name, value in state.items()
    }


def _write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    content = save({name: value.contiguous() for name, value in state.items()}, metadata)
    atomic_write(path, lambda stream: stream.write(content))


# ---------------------------------------------------------------- CLIP


def captioned_scenes(count: int, world: Path, context_length: int) -> tuple[CaptionedImages, Tensor]:
    """Render pre-training scenes with their texts, and the sorted token ids [U] that the texts use.

    world: a rendered world, for its HOI descriptions. Texts of a scene: three captions of its pair, the description of
    its HOI class, and a naming of its object (which goes with a crop of the object).
    """
    descriptions = (world / "hoi_descriptions.txt").read_text().count("Description:")
    descriptions = read_descriptions(world / "hoi_descriptions.txt", descriptions)
    rng = np.random.default_rng(SCENES_SEED)
    pixels, texts, regions = [], [], []
    for sample in sample_pretraining_scenes(SCENES_SEED, count):
        scene, pair = sample.scene, sample.scene.pairs[0]
        human, item = scene.things[pair.person], scene.things[pair.item]
        frame = np.array([scene.width, scene.height] * 2)
        both = np.array([human.box, item.box]) / frame
        union = np.concatenate([both[:, :2].min(0), both[:, 2:].max(0)])
        pixels.append(torch.from_numpy(np.asarray(sample.image).copy()).permute(2, 0, 1))
        captions = scene_captions(replace(scene, pairs=[pair]), rng, count=3)
        texts += [*captions, descriptions[pair.hois[0]], f"a photo of {noun_phrase(item.category)}"]
        regions.append(np.stack([union] * 4 + [both[1]]))
    tokens = open_clip.SimpleTokenizer(context_length=context_length)(texts)
    whole = torch.tensor([True, True, True, True, False])
    weights = torch.tensor([0.25, 0.25, 0.25, 0.1, 0.15])
    data = CaptionedImages(
        torch.stack(pixels), tokens.view(count, 5, -1), torch.from_numpy(np.stack(regions)).float(), whole, weights
    )
    return data, tokens.unique()


def make_clip(world: Path, recipe: ContrastiveTraining, scenes: int, log: Callable[[dict], None]) -> dict[str, Any]:
    """Train, pack and measure the tiny CLIP; returns what training.json holds."""
    model_cfg = json.loads(CLIP_JSON.read_text())
    data, used = captioned_scenes(scenes, world, model_cfg["text_cfg"]["context_length"])
    open_clip.add_model_config(CLIP_JSON)
    torch.manual_seed(recipe.seed)
    model = open_clip.create_model(CLIP_JSON.stem, precision="fp32", load_weights=False)
    started = time.perf_counter()
    state = train_clip(model, data, recipe, log).state_dict()
    seconds = time.perf_counter() - started
    state |= {TABLE: state[TABLE][used], TABLE_ROWS: used}
    _write_tensors(CLIP_FOLDER / PACKED, _pack(state))
    preprocess = asdict(PreprocessCfg(size=model_cfg["vision_cfg"]["image_size"]))
    write_json(
        CLIP_FOLDER / CONFIG_FILE, {"name": CLIP_JSON.stem, "model_cfg": model_cfg, "preprocess_cfg": preprocess}
    )
    return _record(recipe, scenes, seconds, data.pixels.shape) | {"token_rows": len(used), "note": CLIP_NOTE}


# ---------------------------------------------------------------- DETR


def boxed_scenes(count: int) -> tuple[Tensor, Boxes]:
    """Render detection scenes: pixels [N, 3, H, W] uint8 and their boxes, padded."""
    pixels, boxes, labels = [], [], []
    for image, corners, ids in sample_detection_scenes(SCENES_SEED, count):
        pixels.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
        corners = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4) / torch.tensor([*image.size] * 2)
        boxes.append(box_convert(corners, "xyxy", "cxcywh"))
        labels.append(torch.tensor(ids, dtype=torch.int64))
    pad = torch.nn.utils.rnn.pad_sequence
    return torch.stack(pixels), Boxes(pad(boxes, batch_first=True), pad(labels, batch_first=True, padding_value=-1))


def make_detr(recipe: DetrTraining, scenes: int, log: Callable[[dict], None]) -> dict[str, Any]:
    """Train and pack the tiny DETR; returns what training.json holds."""
    pixels, targets = boxed_scenes(scenes)
    started = time.perf_counter()
    size = {"shortest_edge": min(pixels.shape[-2:]), "longest_edge": max(pixels.shape[-2:])}
    write_json(DETR_FOLDER / "preprocessor_config.json", {"size": size, "resample": 2})
    _save_detr(train_detr(tiny_config(OBJECTS), pixels, targets, recipe, log, _save_detr))
    return _record(recipe, scenes, time.perf_counter() - started, pixels.shape)


def _save_detr(model: DetrForObjectDetection) -> None:
    with tempfile.TemporaryDirectory() as folder:  # save_pretrained writes the names that every transformers reads
        model.save_pretrained(folder)
        _write_tensors(DETR_FOLDER / PACKED, _pack(load_file(Path(folder) / "model.safetensors")))
        write_json(DETR_FOLDER / "config.json", json.loads((Path(folder) / "config.json").read_text()))


# ---------------------------------------------------------------- the command


def _record(recipe: Any, scenes: int, seconds: float, shape: torch.Size) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "scenes": scenes,
        "scenes_seed": SCENES_SEED,
        "scene_size": [shape[-1], shape[-2]],
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Train the asked-for models, write them to configs/, measure what was written."""
    parser = argparse.ArgumentParser(
        description="Train the tiny CLIP and DETR again and write configs/tiny_{clip,detr}"
    )
    parser.add_argument("models", nargs="*", default=["clip", "detr"], help="clip, detr, or both (default)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clip-steps", type=int, default=ContrastiveTraining.steps)
    parser.add_argument("--detr-steps", type=int, default=DetrTraining.steps)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--log", type=Path, default=Path("runs/tiny_models.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)

    def log(row: dict[str, Any]) -> None:
        print(
            "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            ),
            flush=True,
        )
        append_jsonl(asked.log, row)

    with tempfile.TemporaryDirectory() as temporary:
        world = Path(temporary) / "world"
        render_world(world, WorldSettings(seed=WORLD_SEED, train_images=64))
        if "clip" in asked.models:
            record = make_clip(world, ContrastiveTraining(steps=asked.clip_steps), asked.scenes, log)
            unpack_clip(Path(temporary) / "clip")
            quality = clip_quality(load_clip(f"local-dir:{temporary}/clip"), world)
            write_json(CLIP_FOLDER / RECORD, record | {"quality": quality})
            log({"model": "clip"} | quality)
        if "detr" in asked.models:
            record = make_detr(DetrTraining(steps=asked.detr_steps), asked.scenes, log)
            unpack_detr(Path(temporary) / "detr")
            quality = detr_quality(load_detr(Path(temporary) / "detr"), world)
            write_json(DETR_FOLDER / RECORD, record | {"quality": quality})
            log({"model": "detr"} | quality)


if __name__ == "__main__":
    main()
