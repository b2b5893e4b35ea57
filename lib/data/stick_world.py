"""The embedded default data set: a small rendered world in the file formats of HICO-DET and COCO.

``render_world`` writes below a folder

| file | content |
|---|---|
| ``images/{train,test}2015/HICO_{train,test}2015_%08d.jpg`` | RGB photographs |
| ``instances_{train,test}2015.json`` | HOI annotation (spec data-and-evaluation.md §1.2, §1.3) |
| ``instances_boxes_{train,test}2015.json`` | COCO instances: all visible people and objects |
| ``captions_train2015.json`` | COCO captions |
| ``hoi_descriptions.txt`` | one description an HOI class (spec ez-hoi.md §4.1) |
| ``zero_shot.json`` | unseen HOI ids of the five settings (spec data-and-evaluation.md §4.1) |

Every scene has its own random stream, seeded by (seed, stream, index): picture i is the same however many are
rendered, and training, test, CLIP and detector scenes never share a stream.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lib.data.stick_draw import draw_scene
from lib.data.stick_labels import HOIS, OBJECTS, VERBS, correspondence, zero_shot_splits
from lib.data.stick_scene import Scene, SceneRecipe, build_scene
from lib.data.stick_shapes import Box
from lib.data.stick_text import description_file, scene_captions
from lib.runs import write_text
from lib.settings import WorldSettings

__all__ = [
    "PretrainingSample", "WorldSettings", "annotate", "build_scene", "draw_scene", "render_world",
    "sample_detection_scenes", "sample_pretraining_scenes", "scene_boxes", "world_scene",
]  # fmt: skip

STREAMS = {"train": 0, "test": 1, "clip": 2, "detector": 3}
TEST_FLATTEN = 0.55  # the test split has a shorter tail than training, so that every class can be measured
LEADS_PER_CLASS = {"train": 1, "test": 3}  # the first images of a split lead with every class in turn
JPEG_QUALITY = 92

IntBox = list[int]


@dataclass
class PretrainingSample:
    """One captioned picture for contrastive training."""

    image: Image.Image
    caption: str
    hoi_id: int  # what the (first) pair was posed as
    scene: Scene


def world_scene(settings: WorldSettings, split: str, index: int) -> Scene:
    """Build scene ``index`` of ``train`` or ``test`` without drawing it."""
    recipe = SceneRecipe(settings.width, settings.height, TEST_FLATTEN if split == "test" else 1.0)
    lead = None
    if index < LEADS_PER_CLASS[split] * len(HOIS):
        order = np.random.default_rng([settings.seed, STREAMS[split]]).permutation(len(HOIS))
        lead = int(order[index % len(HOIS)])
    return build_scene(_rng(settings.seed, split, index), recipe, lead)


def sample_pretraining_scenes(
    seed: int, count: int, width: int = 160, height: int = 128, crowd: float = 0.3
) -> Iterator[PretrainingSample]:
    """Yield captioned single-pair scenes with nearly uniform classes, from a stream of their own.

    ``crowd`` is the chance of a bystander, and of an unused object, in the picture.
    """
    others = (1 - crowd, crowd)
    heights = ((54, 94),) * 2
    recipe = SceneRecipe(
        width, height, 0.0, num_pairs=(0.0, 1.0), bystanders=others, distractors=others, heights=heights
    )
    for index in range(count):
        rng = _rng(seed, "clip", index)
        lead = int(rng.integers(len(HOIS)))
        scene = build_scene(rng, recipe, lead)
        posed = replace(scene, pairs=scene.pairs[:1])
        yield PretrainingSample(draw_scene(scene), scene_captions(posed, rng, count=1)[0], lead, scene)


def sample_detection_scenes(
    seed: int, count: int, width: int = 160, height: int = 128
) -> Iterator[tuple[Image.Image, list[Box], list[int]]]:
    """Yield (image, boxes x1 y1 x2 y2 in 0-based pixels, object ids) from a stream of their own, flat classes."""
    recipe = SceneRecipe(width, height, 0.3)
    for index in range(count):
        scene = build_scene(_rng(seed, "detector", index), recipe)
        yield draw_scene(scene), *scene_boxes(scene)


def scene_boxes(scene: Scene) -> tuple[list[Box], list[int]]:
    """Return the visible boxes (0-based pixels) and object ids of everything in a scene."""
    return [thing.box for thing in scene.things], [OBJECTS.index(thing.category) for thing in scene.things]


def annotate(scene: Scene, rng: np.random.Generator) -> dict[str, list]:
    """Return the HICO-DET annotation of a scene: one row an HOI label, boxes 1-based with inclusive ends.

    As in HICO-DET a pair with two labels is boxed again for each: no two rows share both boxes, repeats of one
    box keep IoU >= 0.8.
    """
    rows: dict[str, list] = {key: [] for key in ("boxes_h", "boxes_o", "hoi", "object", "verb")}
    used: set[tuple[int, ...]] = set()
    table = correspondence()
    for pair in scene.pairs:
        human = _inclusive(scene.things[pair.person].box, scene)
        item = _inclusive(scene.things[pair.item].box, scene)
        for hoi in pair.hois:
            box_h, box_o = human, item
            while (*box_h, *box_o) in used:
                box_h, box_o = _redraw(human, scene, rng), _redraw(item, scene, rng)
            used.add((*box_h, *box_o))
            _, object_id, verb_id = table[hoi]
            for key, value in zip(rows, (box_h, box_o, hoi, object_id, verb_id), strict=True):
                rows[key].append(value)
    return rows


def render_world(folder: Path, settings: WorldSettings, progress: Callable[[int], None] | None = None) -> None:
    """Render and annotate the world into ``folder``.

    The JSON files are written after all pictures and ``zero_shot.json`` last of all, so its presence says that
    the world is whole; a killed render is simply run again. ``progress`` is called with 1 after every
    picture.
    """
    folder = Path(folder)
    (folder / "zero_shot.json").unlink(missing_ok=True)
    written: dict[str, str] = {"hoi_descriptions.txt": description_file()}
    for split, count in (("train", settings.train_images), ("test", settings.test_images)):
        name = f"{split}2015"
        pictures = folder / "images" / name
        pictures.mkdir(parents=True, exist_ok=True)
        hico, coco, captions = _empty_hico(), _empty_coco(), {"images": [], "annotations": []}
        for index in range(count):
            scene = world_scene(settings, split, index)
            rng = np.random.default_rng(scene.paint_seed + 1)
            file_name = f"HICO_{name}_{index + 1:08d}.jpg"
            draw_scene(scene).save(pictures / file_name, quality=JPEG_QUALITY)
            _add_hico(hico, scene, file_name, rng)
            _add_coco(coco, scene, file_name, index + 1)
            captions["images"].append(coco["images"][-1])
            for text in scene_captions(scene, rng):
                entry = {"image_id": index + 1, "id": len(captions["annotations"]) + 1, "caption": text}
                captions["annotations"].append(entry)
            if progress is not None:
                progress(1)
        written[f"instances_{name}.json"] = json.dumps(hico)
        written[f"instances_boxes_{name}.json"] = json.dumps(coco)
        if split == "train":
            written[f"captions_{name}.json"] = json.dumps(captions)
            rows = [hoi for image in hico["annotation"] for hoi in image["hoi"]]
            written["zero_shot.json"] = _zero_shot_json(np.bincount(rows, minlength=len(HOIS)).tolist())
    for file_name in sorted(written, key=lambda key: key == "zero_shot.json"):
        write_text(folder / file_name, written[file_name])


def _rng(seed: int, stream: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, STREAMS[stream], index])


# --- boxes ----------------------------------------------------------------------------------------------------


def _inclusive(box: Box, scene: Scene) -> IntBox:
    """Turn continuous 0-based coordinates into 1-based pixels with inclusive ends, inside the image."""
    x1, y1, x2, y2 = box
    right, bottom = min(math.ceil(x2), scene.width), min(math.ceil(y2), scene.height)
    return [min(math.floor(x1) + 1, right), min(math.floor(y1) + 1, bottom), right, bottom]


def _redraw(box: IntBox, scene: Scene, rng: np.random.Generator) -> IntBox:
    """Box the same thing again: sides move by up to 3 % (at least a pixel) while IoU stays >= 0.9."""
    reach = [max(1, round(0.03 * side)) for side in (box[2] - box[0], box[3] - box[1])] * 2
    limits = (scene.width, scene.height) * 2
    new = [
        int(np.clip(value + rng.integers(-r, r + 1), 1, limit))
        for value, r, limit in zip(box, reach, limits, strict=True)
    ]
    return new if _iou(box, new) >= 0.9 else list(box)


def _iou(a: IntBox, b: IntBox) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
    high = min(a[3], b[3]) - max(a[1], b[1]) + 1
    both = max(wide, 0) * max(high, 0)
    area_a, area_b = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return both / (area_a + area_b - both)


# --- files ----------------------------------------------------------------------------------------------------


def _empty_hico() -> dict:
    return {
        "annotation": [], "filenames": [], "empty": [], "size": [],
        "objects": OBJECTS, "verbs": VERBS, "correspondence": correspondence(),
    }  # fmt: skip


def _add_hico(hico: dict, scene: Scene, file_name: str, rng: np.random.Generator) -> None:
    rows = annotate(scene, rng)
    if not rows["hoi"]:
        hico["empty"].append(len(hico["filenames"]))
    hico["annotation"].append(rows)
    hico["filenames"].append(file_name)
    hico["size"].append([scene.width, scene.height])


def _empty_coco() -> dict:
    categories = [{"id": index, "name": name} for index, name in enumerate(OBJECTS)]
    return {"images": [], "annotations": [], "categories": categories}


def _add_coco(coco: dict, scene: Scene, file_name: str, image_id: int) -> None:
    coco["images"].append({"id": image_id, "file_name": file_name, "width": scene.width, "height": scene.height})
    for (x1, y1, x2, y2), category in zip(*scene_boxes(scene), strict=True):
        box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        entry = {"image_id": image_id, "category_id": category, "bbox": box}
        entry |= {"id": len(coco["annotations"]) + 1, "area": round(box[2] * box[3], 2), "iscrowd": 0}
        coco["annotations"].append(entry)


def _zero_shot_json(train_counts: list[int]) -> str:
    settings = {
        name: {"n_unseen": len(unseen), "n_seen": len(HOIS) - len(unseen), "unseen_hoi": unseen}
        for name, unseen in zero_shot_splits(train_counts).items()
    }
    note = "unseen_hoi = zero-based hoi ids withheld from training, ascending; the other classes are seen"
    return json.dumps({"note": note, "settings": settings}, indent=1)
