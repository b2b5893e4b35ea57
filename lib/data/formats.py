"""Which annotation file lies in a data folder, and the reader for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib.data.annotation_file import MissingAnnotationError
from lib.data.dataset import HoiDataset
from lib.data.hico_det import read_hico_det
from lib.data.hico_mat import read_hico_mat
from lib.data.hoia import read_hoia
from lib.data.vcoco import read_vcoco
from lib.data.vcoco_gupta import read_vcoco_gupta


@dataclass(frozen=True)
class Format:
    """One form of a data set's annotations; paths are below the data folder and hold {split}.

    family: hico | vcoco. annotations: where the file may lie, each also as .gz. images: the photographs' usual folder.
    train: what the training split is called in file names. comes_from: where the public file is found.
    """

    kind: str
    family: str
    read: Callable[[Path, Path, str], HoiDataset]
    annotations: tuple[str, ...]
    images: str
    train: str
    comes_from: str

    def name_of(self, split: str) -> str:
        """`train` or `test` as the file names say it."""
        return self.train if split == "train" else split


_HICO_IMAGES, _COCO_IMAGES = "hico_20160224_det/images/{split}2015", "mscoco2014"
FORMATS = (
    Format(
        "hico_json", "hico", read_hico_det, ("instances_{split}2015.json",), _HICO_IMAGES, "train",
        "fredzzhang/hicodet (any branch), or the hicodet folder of ChelsieLei/EZ-HOI, ADA-CM or CMMP",
    ),
    Format(
        "hico_mat", "hico", read_hico_mat, ("anno_bbox.mat", "hico_20160224_det/anno_bbox.mat"), _HICO_IMAGES, "train",
        "hico_20160224_det.tar.gz of HICO-DET's project page",
    ),
    Format(
        "hoia", "hico", read_hoia, ("{split}_hico.json", "annotations/{split}_hico.json"), _HICO_IMAGES, "trainval",
        "the annotation archive of PPDM, QPIC or GEN-VLKT",
    ),
    Format(
        "vcoco_json", "vcoco", read_vcoco, ("instances_vcoco_{split}.json",), _COCO_IMAGES, "trainval",
        "fredzzhang/vcoco, or the vcoco folder of EZ-HOI, ADA-CM or CMMP",
    ),
    Format(
        "vcoco_gupta", "vcoco", read_vcoco_gupta,
        ("vcoco_{split}.json", "vcoco/vcoco_{split}.json", "data/vcoco/vcoco_{split}.json"), _COCO_IMAGES, "trainval",
        "data/vcoco of s-gupta/v-coco, with instances_vcoco_all_2014.json cut from COCO by its script",
    ),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(each.family for each in FORMATS)) + tuple(each.kind for each in FORMATS)


def find_annotations(root: Path, kind: str, split: str) -> tuple[Format, Path]:
    """The format and the annotation file of a split below `root`.

    kind: hico | vcoco, the first form of that data set that lies there, or one form by name. Raises
    MissingAnnotationError, with every place looked at, where there is none; ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"data.kind: found {kind!r}, expected one of {', '.join(KINDS)}")
    wanted = [each for each in FORMATS if kind in (each.kind, each.family)]
    looked = []
    for each in wanted:
        for pattern in each.annotations:
            looked.append(pattern.format(split=each.name_of(split)))
            file = root / looked[-1]
            zipped = file.with_name(f"{file.name}.gz")
            if found := [path for path in (file, zipped) if path.is_file()]:
                return each, found[0]
    raise MissingAnnotationError(
        root / looked[0], f"no file, nor {', '.join(looked[1:])}" if looked[1:] else "no file",
        f"annotations of the {split} split ({wanted[0].comes_from})",
        "set data.root to the folder that holds them and data.kind to their form, or run notebook 00 for the embedded"
        " stick world",
    )  # fmt: skip


def read_dataset(root: Path, kind: str, split: str, images: str = "") -> HoiDataset:
    """The data set of `train` or `test` below `root`, in whichever form its annotations lie there.

    images: folder of the photographs below root, may hold {split}; empty = the form's usual one.
    """
    form, annotations = find_annotations(root, kind, split)
    folder = root / (images or form.images).format(split=form.name_of(split) if form.family == "vcoco" else split)
    return _read_once(form, annotations, folder, split, annotations.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read_once(form: Format, annotations: Path, images: Path, split: str, written: int) -> HoiDataset:
    """Stages ask for a split many times (once a variant); a file is parsed once until it is written again."""
    dataset = form.read(annotations, images, split)
    print(f"{split}: {len(dataset)} images from {annotations.name} ({dataset.version})")
    return dataset
