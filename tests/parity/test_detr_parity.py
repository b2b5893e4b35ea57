"""A converted DETR against the public program's numbers: one image alone, two padded to a batch (parity README §3)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from lib.detection.detr import Detr, best_class, load_detr
from lib.detection.released import convert_detr, unprefixed

from .recipe import arrays, close, digest_close, needs, state

pytestmark = needs("detr_r50.npz", "keys.json")


@pytest.fixture(scope="module")
def detr(tmp_path_factory) -> Iterator[Detr]:
    folder = tmp_path_factory.mktemp("detr")
    torch.save({"model_state_dict": state("detr_r50")}, folder / "detr.pth")
    yield load_detr(convert_detr(folder / "detr.pth", folder / "converted"))
    shutil.rmtree(folder)


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images of any size zero-padded to the largest, and a mask that is 1 on their pixels."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for slot, image in enumerate(images):
        pixels[slot, :, : image.shape[1], : image.shape[2]] = image
        mask[slot, : image.shape[1], : image.shape[2]] = 1
    return pixels, mask


@pytest.mark.parametrize("batch", ["single", "padded"])
@torch.no_grad()
def test_detr(detr: Detr, batch: str) -> None:
    data, case = arrays("detr_r50"), f"detr {batch}"
    names = sorted(name for name in data if re.fullmatch(r"in_image_\d+", name))
    pixels, mask = padded([data[name] for name in names[: len(data[f"out_{batch}_labels"])]])
    expected = {name.split(f"_{batch}_")[1]: value for name, value in data.items() if name.startswith(f"out_{batch}_")}
    digests = {name.split(f"_{batch}_")[1]: value for name, value in data.items() if name.startswith(f"dig_{batch}_")}

    output = detr.model(pixel_values=pixels, pixel_mask=mask)
    backbone_map, _ = detr.model.model.backbone(pixels, mask)[-1]  # (B, 2048, h, w)
    scores, labels = best_class(output.logits)
    boxes224 = box_convert(output.pred_boxes, "cxcywh", "xyxy") * 224

    def first(values: Tensor, name: str) -> Tensor:
        return values[:, : expected[name].shape[1]]

    close(case, "backbone", first(backbone_map, "backbone_first"), expected["backbone_first"], 2e-4)
    close(case, "hidden", first(output.last_hidden_state, "hidden"), expected["hidden"], 2e-4)
    close(case, "logits", first(output.logits, "logits"), expected["logits"], 2e-4)
    close(case, "boxes", first(output.pred_boxes, "boxes"), expected["boxes"], 4e-5)
    close(case, "boxes x 224", first(boxes224, "boxes224"), expected["boxes224"], 1e-2)
    close(case, "scores", first(scores, "scores224"), expected["scores224"], 2e-5)
    assert torch.equal(first(labels, "labels"), expected["labels"].long())

    digest_close(case, "backbone", backbone_map, digests["backbone"])
    digest_close(case, "memory", output.encoder_last_hidden_state, digests["memory"])
    digest_close(case, "logits", output.logits, digests["logits"])
    digest_close(case, "boxes", output.pred_boxes, digests["boxes"])


@needs("ezhoi_tiny.npz")
def test_detector_of_an_ezhoi_checkpoint_is_the_detr_file() -> None:
    """The set describes one consistent group of files: what an EZ-HOI checkpoint carries is the released detector."""
    detector, released = unprefixed(state("ezhoi_tiny")), state("detr_r50")
    assert detector.keys() == released.keys()
    assert all(torch.equal(detector[name], released[name]) for name in released)
