"""Lists of images to extract: annotation files of either data set, plain lists, folders; and the old folder names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lib.errors import FoundExpected

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_OLD_MODELS = {"ViT-B-16": "clipbase", "ViT-L-14-336": "clip336"}


class ImageListError(FoundExpected):
    """A list of images cannot be read, or an image that it names is nowhere."""


def read_image_list(path: Path | str) -> list[str]:
    """File names in the order of a list (spec clip-features-and-detr.md §7).

    A list is a JSON list of names or of records with `file_name` (trainval_hico.json, test_hico.json), a JSON object
    with such records under `annotations` (instances_vcoco_*.json) or with `filenames` (instances_train2015.json), or
    text with a name a line.
    """
    path = Path(path)
    expected = "records with file_name, a list of names, an object with `annotations` or `filenames`, or a name a line"
    mend = "use the data set's annotation file or write a name a line"
    if not path.is_file():
        raise ImageListError(path, "no file", expected, mend)
    if path.suffix != ".json":
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ImageListError(path, f"broken JSON ({error})", expected, "copy it again") from None
    if isinstance(content, dict):
        content = content.get("filenames", content.get("annotations"))
    if not isinstance(content, list):
        raise ImageListError(path, "no list of images", expected, mend)
    names = [record.get("file_name") if isinstance(record, dict) else record for record in content]
    if wrong := [i for i, name in enumerate(names) if not isinstance(name, str)]:
        raise ImageListError(
            path, f"{len(wrong)} entries without a file name, first: number {wrong[0]}", expected, mend
        )
    return names


def find_images(folder: Path | str, names: Sequence[str] | None = None) -> list[Path]:
    """Paths of images below a folder: those named, each in the folder or a sub-folder of it, or all (sorted by name).

    V-COCO's photographs lie in train2014 and val2014 below one folder. Raises ImageListError for a missing folder, for
    names found nowhere, and for a name in two places.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageListError(folder, "no folder", "a folder of images", "correct --images")
    if names is not None and all((folder / name).is_file() for name in names):
        return [folder / name for name in names]
    wanted = None if names is None else {Path(name).name for name in names}
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or (wanted is not None and path.name not in wanted):
            continue
        if path.name in found:
            two = f"{path.name} in {found[path.name].parent} and in {path.parent}"
            raise ImageListError(folder, two, "one image a name", "name the sub-folder that is meant")
        found[path.name] = path
    if names is None:
        return sorted(found.values(), key=lambda path: path.name)
    if absent := [name for name in names if Path(name).name not in found]:
        told = f"none of {len(absent)} listed images, e.g. {absent[:3]}"
        raise ImageListError(folder, told, "every image of the list", "correct --images or copy the images")
    return [found[Path(name).name] for name in names]


def legacy_folder(clip_name: str, data: str, split: str) -> str:
    """Folder that EZ-HOI's programs read: `clipbase_img_hicodet_train`; V-COCO's test split is called `val` there."""
    model = next((old for name, old in _OLD_MODELS.items() if clip_name.startswith(name)), None)
    if model is None or data not in ("hicodet", "vcoco"):
        raise ImageListError(
            f"old folder of {clip_name}, {data}", "no name for it", f"a CLIP among {', '.join(_OLD_MODELS)} and the"
            " data set hicodet or vcoco", "name the folder itself and leave --data out",
        )  # fmt: skip
    return f"{model}_img_{data}_{'val' if (data, split) == ('vcoco', 'test') else split}"
