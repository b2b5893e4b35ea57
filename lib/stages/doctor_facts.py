"""What the public files are: their counts, and the project that gives each of them away."""

from __future__ import annotations

from typing import NamedTuple

from lib.data.zero_shot import HICO_CLASSES


class Counts(NamedTuple):
    """A split as published: images listed, images without any pair, pair rows."""

    images: int
    empty: int
    rows: int


# (family of formats, split) -> counts (data-and-evaluation.md §1.4, §2.1)
COUNTS = {
    ("hico", "train"): Counts(38_118, 485, 117_871),
    ("hico", "test"): Counts(9_658, 112, 33_405),
    ("vcoco", "train"): Counts(5_400, 431, 13_817),
    ("vcoco", "test"): Counts(4_946, 414, 12_402),
}
CLASSES = {"hico": HICO_CLASSES, "vcoco": (236, 24, 80)}  # HOI classes, verbs, objects
TITLE = {"hico": "HICO-DET", "vcoco": "V-COCO"}

PHOTOGRAPHS = {
    "hico": "the HICO and HICO-DET page of Yu-Wei Chao (University of Michigan), archive hico_20160224_det.tar.gz",
    "vcoco": "the download page of COCO (cocodataset.org), 2014 Train images and 2014 Val images",
}
CAPTIONS = (
    "the download page of COCO (cocodataset.org), 2014 Train/Val annotations, file annotations/captions_train2014.json"
)
CLASS_TEXTS = "GitHub project ChelsieLei/EZ-HOI, folders hicodet and vcoco"
CLIP = "GitHub project openai/CLIP, file {name}.pt (the address in clip/clip.py holds its SHA-256)"
DETECTOR = {
    "detr-r50-hicodet": "GitHub project fredzzhang/upt, README, DETR weights fine-tuned on HICO-DET",
    "detr-r50-vcoco": "GitHub project fredzzhang/upt, README, DETR weights fine-tuned on V-COCO",
    "detr-r50-e632da11": "GitHub project facebookresearch/detr, README, model zoo",
}
EZHOI = "GitHub project ChelsieLei/EZ-HOI, README, model weights (ckpt_*.pt)"
RECOGNITION_LABELS = "the HICO page of Yu-Wei Chao (University of Michigan), anno.mat in the archive of the data set"
TEXT_MODEL = "the model card of bert-base-uncased, or GitHub project princeton-nlp/SimCSE"

DETR_R50_BYTES = 41_521_941 * 4  # fp32 weights with 81 outputs; the released file holds nothing else
