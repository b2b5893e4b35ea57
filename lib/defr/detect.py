"""From image labels to detections without training (spec defr.md §11): every pair of boxes is scored as an image."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.defr.box_mask import detection_view, hidden_cells, masked_features
from lib.defr.model import DefrClassifier
from lib.defr.pairs import BoxPairs, box_pair_priors, box_pairs, classes_of_objects, pair_scores, rescored
from lib.defr.towers import ClipTower
from lib.detection.table import Detections, DetectionTable
from lib.engine.progress import Progress
from lib.settings import DefrSettings

COLUMNS = ["image", "x1h", "y1h", "x2h", "y2h", "x1o", "y1o", "x2o", "y2o", "hoi", "score"]


@torch.inference_mode()
def detect_pairs(
    model: DefrClassifier,
    data: HoiDataset,
    table: DetectionTable,
    settings: DefrSettings,
    *,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Scored pairs of all images, as `lib.evaluation.hico_det.hico_det_ap` reads them.

    table: detections of the same images; labels are matched to the data's objects by name. Columns: image, human and
    object boxes (pixels of the original image), hoi, score (after the final weighting).
    """
    tower = model.tower
    if not isinstance(tower, ClipTower):
        raise ValueError("DEFR detection: found a timm backbone, expected CLIP's tower; mend: defr.backbone=clip")
    model.eval().to(device)
    vocabulary, valid = data.vocabulary, classes_of_objects(data.vocabulary)
    table = table.in_label_space(vocabulary.objects)
    frames = []
    with Progress("DEFR detections", len(data)) as progress:
        for index, record in enumerate(data.images):
            detections = table.of(index)
            pairs = box_pairs(detections, vocabulary.person)
            image = TF.to_tensor(read_image(record.path).convert("RGB"))
            pixels, boxes = detection_view(image, detections.boxes, tower)
            hidden = hidden_cells(boxes[pairs.human], boxes[pairs.object], tower.grid, tower.patch_size).to(device)
            features = masked_features(
                tower, pixels.to(device), hidden, mode=settings.mask_mode, layers=settings.mask_layers
            )
            priors = box_pair_priors(detections, pairs, valid, settings.prior_power)
            scores = pair_scores(model.head(features).float().cpu(), priors)  # (P, C)
            frames.append(_rows(index, detections, pairs, scores, priors, settings))
            progress.step()
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _rows(
    index: int, detections: Detections, pairs: BoxPairs, scores: Tensor, priors: Tensor, settings: DefrSettings
) -> pd.DataFrame:
    """One row a (pair, HOI class that its object has)."""
    pair, hoi = (priors.prod(0) > 0).nonzero(as_tuple=True)
    score = rescored(scores[pair, hoi], priors[:, pair, hoi].T, settings.rescore, settings.prior_power)
    boxes = torch.cat([detections.boxes[pairs.human[pair]], detections.boxes[pairs.object[pair]]], dim=1).numpy()
    frame = pd.DataFrame(boxes, columns=COLUMNS[1:9])
    return frame.assign(hoi=hoi.numpy(), score=score.double().numpy(), image=index)[COLUMNS]
