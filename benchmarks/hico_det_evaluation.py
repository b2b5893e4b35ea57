"""HICO-DET evaluation of 62 thousand and a million detections against the loops of the public evaluator.

    python -m benchmarks.hico_det_evaluation --json evaluation.json

9,546 made-up images, 600 classes, 3.5 annotated pairs an image; a third of the detections lie on an annotated pair. The
baseline follows UPT's evaluator (spec data-and-evaluation.md §5.1, §5.4, §8): image by image, class by class, with box
overlaps in torch and scores in Python lists, then class by class precision at eleven recalls. It gets the detections
already split by image. Of the million it takes every eighth image, where ours takes all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.measure import Comparison, arguments, compare, report
from lib.evaluation.hico_det import BOX_COLUMNS, ApResult, hico_det_ap

CLASSES = 600


@dataclass
class Found:
    """What the baseline finds: true positives [M] of the rows it did (done [M] bool), AP [C] if it did them all."""

    positive: np.ndarray
    done: np.ndarray
    ap: np.ndarray | None


def made_truth(images: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Annotated pairs, classes with the long tail of HICO-DET."""
    count = round(3.5 * images)
    frequency = 1 / np.arange(1, CLASSES + 1)
    return {
        "image": np.sort(rng.integers(0, images, count)),
        "hoi": rng.permutation(
            np.concatenate([np.arange(CLASSES), rng.choice(CLASSES, count, p=frequency / frequency.sum())])[:count]
        ),
        "boxes_h": _boxes(rng, count),
        "boxes_o": _boxes(rng, count),
    }


def made_predictions(truth: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> pd.DataFrame:
    """`count` rows: a third near an annotated pair with its class, the others anywhere, with classes of their image."""
    near, chosen = count // 3, rng.integers(0, len(truth["hoi"]), count)
    boxes = np.concatenate([truth["boxes_h"], truth["boxes_o"]], axis=1)[chosen]
    boxes[:near] += rng.normal(0, 12, (near, 8))
    boxes[near:] = np.concatenate([_boxes(rng, count - near) for _ in range(2)], axis=1)
    hoi = truth["hoi"][chosen]
    hoi[near:] = np.where(rng.random(count - near) < 0.3, hoi[near:], rng.integers(0, CLASSES, count - near))
    table = pd.DataFrame(boxes.astype(np.float32), columns=list(BOX_COLUMNS))
    table = table.assign(image=truth["image"][chosen].astype(np.int32), hoi=hoi.astype(np.int16))
    table = table.assign(score=rng.random(count).astype(np.float32))
    return table.sort_values("image", kind="stable", ignore_index=True)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 400, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(40, 200, (count, 2))], axis=1).round(1)


def split_by_image(predictions: pd.DataFrame, truth: dict[str, np.ndarray], every: int) -> list[dict[str, Tensor]]:
    """Detections and annotated pairs of every `every`-th image with annotations, as a detector's loop holds them."""
    rows = predictions.groupby("image").indices
    annotated = pd.Series(truth["image"]).groupby(truth["image"]).indices
    boxes, owner = torch.tensor(predictions[list(BOX_COLUMNS)].to_numpy(np.float64)), []
    labels, scores = (
        torch.tensor(predictions["hoi"].to_numpy(np.int64)),
        torch.tensor(predictions["score"].to_numpy()),
    )
    true_h, true_o, true_hoi = (torch.from_numpy(np.asarray(truth[name])) for name in ("boxes_h", "boxes_o", "hoi"))
    for image in sorted(rows)[::every]:
        mine, there = torch.from_numpy(rows[image]), torch.from_numpy(annotated[image])
        owner.append(
            {"row": mine, "boxes_h": boxes[mine, :4], "boxes_o": boxes[mine, 4:], "hoi": labels[mine]}
            | {"score": scores[mine], "true_h": true_h[there], "true_o": true_o[there], "true_hoi": true_hoi[there]}
        )
    return owner


def public_evaluation(images: list[dict[str, Tensor]], num_gt: np.ndarray, rows: int) -> Found:
    """The public evaluator's loops; num_gt [C]."""
    scores: list[list[float]] = [[] for _ in num_gt]
    labels: list[list[float]] = [[] for _ in num_gt]
    positive, done = np.zeros(rows, bool), np.zeros(rows, bool)
    for image in images:
        found = torch.zeros(len(image["hoi"]))
        for hoi in image["hoi"].unique():
            mine, there = torch.nonzero(image["hoi"] == hoi)[:, 0], torch.nonzero(image["true_hoi"] == hoi)[:, 0]
            if len(there):
                found[mine] = _associate(image, mine, there)
        for hoi in image["hoi"].unique():
            mine = torch.nonzero(image["hoi"] == hoi)[:, 0]
            scores[hoi.item()] += [image["score"][i].item() for i in mine]
            labels[hoi.item()] += [found[i].item() for i in mine]
        positive[image["row"]], done[image["row"]] = found.bool().numpy(), True
    ap = np.array([_eleven_points(*each) for each in zip(scores, labels, num_gt.tolist(), strict=True)])
    return Found(positive, done, ap if done.all() else None)


def _associate(image: dict[str, Tensor], mine: Tensor, there: Tensor) -> Tensor:
    overlap = torch.minimum(
        box_iou(image["true_h"][there], image["boxes_h"][mine]), box_iou(image["true_o"][there], image["boxes_o"][mine])
    )  # (G, N)
    best, owner = overlap.max(dim=0)
    labels, scores = torch.zeros(len(mine)), image["score"][mine]
    for truth in range(len(there)):
        claims = torch.nonzero((owner == truth) & (best > 0.5))[:, 0]
        if len(claims):
            labels[claims[scores[claims].argmax()]] = 1
    return labels


def _eleven_points(scores: list[float], labels: list[float], num_gt: int) -> float:
    if not num_gt or not scores:
        return 0.0 if num_gt else float("nan")
    order = torch.tensor(scores, dtype=torch.float64).argsort(descending=True, stable=True)
    hits = torch.tensor(labels, dtype=torch.float64)[order].cumsum(0)
    precision, recall = hits / torch.arange(1, len(hits) + 1), hits / num_gt
    total = 0.0
    for threshold in torch.linspace(0, 1, 11, dtype=torch.float64):
        reached = precision[recall >= threshold]
        total += reached.max().item() if len(reached) else 0.0
    return total / 11


def same_labels(ours: ApResult, baseline: Found) -> None:
    """Raises unless the true positives, and the AP of every class where all images were done, are equal."""
    different = int((ours.true_positive[baseline.done] != baseline.positive[baseline.done]).sum())
    assert different == 0, f"{different} labels differ"
    if baseline.ap is not None:
        np.testing.assert_allclose(ours.ap, baseline.ap, atol=1e-12)


def evaluation(images: int, detections: int, every: int, repeats: int) -> Comparison:
    """Ours over all images against the loops over every `every`-th."""
    rng = np.random.default_rng(0)
    truth = made_truth(images, rng)
    predictions = made_predictions(truth, detections, rng)
    split = split_by_image(predictions, truth, every)
    num_gt = np.bincount(truth["hoi"], minlength=CLASSES)
    return compare(
        f"{detections:,} detections, {images:,} images",
        lambda: hico_det_ap(predictions, truth, CLASSES),
        lambda: public_evaluation(split, num_gt, len(predictions)),
        same_labels,
        repeats,
        baseline_share=sum(len(image["hoi"]) for image in split) / len(predictions),
    )


def main() -> None:
    options = arguments(__doc__, repeats=2, images=9546, small=62_000, large=1_000_000, every=8)
    rows = [
        evaluation(options.images, options.small, 1, options.repeats),
        evaluation(options.images, options.large, options.every, options.repeats),
    ]
    report("HICO-DET evaluation against the public evaluator's loops", rows, options.json)


if __name__ == "__main__":
    main()
