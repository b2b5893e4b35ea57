"""Evaluation of images by EZ-HOI against the public program at batch 1: from image file to scored detections.

    python -m benchmarks.ezhoi_evaluation --json evaluation.json

The case and the baseline of `ezhoi_training`, without gradients; both sides deliver the predictions table. Ours is
`predict_pairs` and `hoi_predictions`, as notebook 02 calls them. The baseline costs the same for every image, so it
takes one image where ours takes 8, and its seconds are multiplied.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.ezhoi_baseline import PublicProgram
from benchmarks.ezhoi_case import EzHoiCase, make_case
from benchmarks.measure import Comparison, arguments, compare, report
from lib.ezhoi.predict import hoi_predictions, predict_pairs
from lib.settings import EzHoiSettings

POWER = EzHoiSettings().prior_power


def our_predictions(case: EzHoiCase, batch_size: int) -> pd.DataFrame:
    """Every image of the case, in batches."""
    pairs = predict_pairs(case.model, case.samples, batch_size=batch_size, workers=0, device=case.device)
    return hoi_predictions(pairs.frame, pairs.logits, case.classes, POWER)


def same_predictions(ours: pd.DataFrame, baseline: pd.DataFrame) -> None:
    """Raises unless the images that the baseline did have the same rows: boxes, classes, scores."""
    mine = ours[ours["image"].isin(baseline["image"])].reset_index(drop=True)
    assert mine[["image", "hoi"]].equals(baseline[["image", "hoi"]].astype(mine[["image", "hoi"]].dtypes)), "other rows"
    np.testing.assert_allclose(mine["score"], baseline["score"], rtol=2e-3, atol=1e-5)
    boxes = [name for name in baseline if name[0] in "xy"]
    np.testing.assert_allclose(mine[boxes], baseline[boxes], atol=1e-2)


def evaluations(case: EzHoiCase, repeats: int, batch_size: int, baseline_images: int) -> list[Comparison]:
    """Ours over all images of the case against the baseline over the first of them."""
    program = PublicProgram(case)
    program.model.eval()
    return [
        compare(
            f"{len(case.samples)} images, batch {batch_size} against batch 1",
            lambda: our_predictions(case, batch_size),
            lambda: program.predictions(list(range(baseline_images)), POWER),
            same_predictions,
            repeats,
            baseline_share=baseline_images / len(case.samples),
        )
    ]


def main() -> None:
    options = arguments(
        __doc__, repeats=2, images=8, batch_size=8, baseline_images=1, rows=212, clip="random:ViT-B-16-quickgelu"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="ezhoi-evaluation-") as name:
        case = make_case(Path(name), options.clip, device, options.images, options.rows)
        rows = evaluations(case, options.repeats, options.batch_size, options.baseline_images)
    report(f"EZ-HOI evaluation on {device} against the public program, K = {options.rows}", rows, options.json)


if __name__ == "__main__":
    main()
