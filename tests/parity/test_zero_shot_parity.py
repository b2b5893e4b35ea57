"""Zero-shot filter, target tables, ground-truth boxes and label assignment on real annotations (parity README §3)."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from lib.data.hico_det import HoiDataset, read_hico_det
from lib.data.zero_shot import unseen_hois
from lib.ezhoi.batches import as_fractions
from lib.ezhoi.classes import ScoredClasses, scored_classes
from lib.ezhoi.pairs import Instances, PairTargets, assign_labels, enumerate_pairs

from .recipe import BESIDE, arrays, close, content, folder_with, needs

FRAME = 224
ANNOTATIONS = "real/instances_test2015.json.gz"
pytestmark = needs("zero_shot.npz", "zero_shot.json")


@pytest.fixture(scope="module")
def annotations() -> dict:
    """The real annotation file that the set's image numbers refer to."""
    places = [folder_with("zero_shot.npz").parent / ANNOTATIONS, BESIDE / ANNOTATIONS]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        pytest.skip(f"no {ANNOTATIONS} beside the parity folder")
    return json.loads(gzip.decompress(found.read_bytes()))


@pytest.fixture(scope="module")
def dataset(annotations: dict, tmp_path_factory) -> HoiDataset:
    """The chosen images as a training set."""
    chosen = arrays("zero_shot")["in_images"].tolist()
    part = {key: [annotations[key][i] for i in chosen] for key in ("annotation", "filenames", "size")}
    file = tmp_path_factory.mktemp("annotations") / "instances_train2015.json"
    file.write_text(json.dumps(annotations | part))
    return read_hico_det(file, file.parent, "train")


def unseen_of(setting: str) -> np.ndarray:
    return unseen_hois("default" if setting == "none" else setting)


def settings() -> list[str]:
    return sorted(content("zero_shot.json")) if folder_with("zero_shot.json") else []


@pytest.mark.parametrize("setting", settings())
def test_filter(dataset: HoiDataset, setting: str) -> None:
    expected = content("zero_shot.json")[setting]
    kept = dataset.without_hois(unseen_of(setting))
    position = {image.name: index for index, image in enumerate(dataset.images)}
    assert [position[image.name] for image in kept.images] == expected["images"]
    assert [len(image.hoi) for image in kept.images] == expected["count"]
    assert [image.hoi.tolist() for image in kept.images] == expected["hoi"]
    assert kept.hoi_counts.sum() == expected["annotations"]


@pytest.mark.parametrize(("mode", "name"), [("verb", "out_table117"), ("hoi", "out_table600")])
def test_target_tables(dataset: HoiDataset, mode: str, name: str) -> None:
    data, vocabulary = arrays("zero_shot"), dataset.vocabulary
    classes = scored_classes(vocabulary, mode)
    expected = data[name].numpy()
    if expected.shape[-1] != classes.count:  # bits packed along the last axis
        expected = np.unpackbits(expected, axis=-1, count=classes.count)
    for setting, table in zip(data["in_settings"], expected, strict=True):
        seen = np.setdiff1d(np.arange(vocabulary.num_hois), unseen_of(str(setting)))
        assert np.array_equal(classes.valid(seen).numpy(), table.astype(bool)), (setting, mode)


def test_ground_truth_boxes(dataset: HoiDataset) -> None:
    data = arrays("zero_shot")
    images = [dataset[index] for index in dataset.annotated]
    assert [len(image.hoi) for image in images] == data["out_gt_count"].tolist()
    for part in ("boxes_h", "boxes_o"):
        boxes = torch.cat([as_fractions(getattr(image, part), image.size) for image in images])
        close("zero_shot", part, box_convert(boxes, "xyxy", "cxcywh"), data[f"out_gt_{part}"], 1e-6)


def truth_of(dataset: HoiDataset, positions: list[int], classes: ScoredClasses) -> PairTargets:
    """Unfiltered rows of images in the square frame; batch index = place in `positions`."""
    images = [dataset[index] for index in positions]
    owner = torch.repeat_interleave(torch.arange(len(images)), torch.tensor([len(image.hoi) for image in images]))
    hoi = torch.cat([torch.from_numpy(image.hoi) for image in images])
    boxes = [
        torch.cat([as_fractions(getattr(image, part), image.size) for image in images]) * FRAME
        for part in ("boxes_h", "boxes_o")
    ]
    return PairTargets(owner, *boxes, torch.from_numpy(classes.of_hoi)[hoi], hoi)


def positives(instances: Instances, targets: PairTargets, classes: ScoredClasses) -> tuple[Tensor, Tensor]:
    """[N, 3] (image, row of its pairs, class) of the positive labels, and the number of pairs of every image."""
    pairs = enumerate_pairs(instances)
    counts = torch.bincount(pairs.image, minlength=len(instances.count))
    pair, label = assign_labels(instances, pairs, targets, classes.count).nonzero(as_tuple=True)
    image = pairs.image[pair]
    return torch.stack([image, pair - (counts.cumsum(0) - counts)[image], label], dim=1), counts


@pytest.mark.parametrize(("mode", "name"), [("verb", "out_positive"), ("hoi", "out_positive600")])
def test_label_assignment(dataset: HoiDataset, mode: str, name: str) -> None:
    data = arrays("zero_shot")
    classes = scored_classes(dataset.vocabulary, mode)
    boxes = data["in_det_boxes"].split(data["in_det_count"].tolist())
    instances = Instances.collate(
        [
            (part, torch.ones(len(part)), torch.zeros(len(part), dtype=torch.long), humans)
            for part, humans in zip(boxes, data["in_det_humans"].tolist(), strict=True)
        ]
    )
    found, counts = positives(instances, truth_of(dataset, data["in_det_image"].tolist(), classes), classes)
    assert torch.equal(counts, data["out_pair_count"].long())
    assert sorted(found.tolist()) == sorted(data[name].tolist())


def test_iou_of_exactly_one_half_is_positive() -> None:
    data = arrays("zero_shot")
    humans, truth = data["in_edge_human_boxes"], box_convert(data["in_edge_gt_box"], "cxcywh", "xyxy") * FRAME
    objects = data["in_edge_object_box"].expand(len(humans), 4)
    detections = torch.stack([humans, objects], dim=1)  # (n, 2, 4): each candidate human with the object
    count = len(humans)
    instances = Instances(
        detections, torch.ones(count, 2), torch.zeros(count, 2, dtype=torch.long),
        torch.full((count,), 2), torch.ones(count, dtype=torch.long),
    )  # fmt: skip
    owner, none = torch.arange(count), torch.zeros(count, dtype=torch.long)
    targets = PairTargets(owner, truth.expand(count, 4), truth.expand(count, 4), none, none)
    labels = assign_labels(instances, enumerate_pairs(instances), targets, 1)  # (n, 1)
    assert labels[:, 0].bool().tolist() == data["out_edge_positive"].bool().tolist()
