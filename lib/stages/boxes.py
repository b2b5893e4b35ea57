"""Is the object detector at fault? Box AP, oracles in its place, and the mAP it leaves within reach (notebook 01)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lib.data.hico_det import HoiDataset
from lib.detection.box_ap import BoxAp, BoxRule, box_ap
from lib.detection.ceiling import perfect_recognition
from lib.detection.proposals import Proposals
from lib.detection.table import DetectionTable
from lib.detection.truth import instance_boxes
from lib.ezhoi.batches import HoiSamples
from lib.ezhoi.predict import hoi_predictions, predict_pairs
from lib.runs import Artifact, Run, atomic_write
from lib.settings import Config
from lib.stages import detector, inputs


def box_quality(cfg: Config, run: Run, split: str = "test", rule: BoxRule = "coco") -> BoxAp:
    """Box AP of the run's detections; the means go to the run's metrics as `boxes/<split>_AP50` and so on."""
    data = inputs.dataset(cfg, run, split)
    table = DetectionTable.open(run.existing(f"detections/{split}").path)
    found = box_ap(table, instance_boxes(data), data.vocabulary.objects, rule)
    run.record("boxes", **{f"{split}_{name}": value for name, value in found.means.items()})
    return found


def detector_limits(cfg: Config, run: Run, sources: Sequence[str] = inputs.ORACLES) -> pd.DataFrame:
    """What the test proposals of the run's detector, and of oracles in its place, leave within reach; percent.

    One row a source: share of annotated people, objects and pairs that are proposed, and the mAP of a recogniser that
    names every proposed pair rightly. Between the first row and `oracle` lies what a better detector could give.
    """
    data = inputs.dataset(cfg, run, "test")
    rows = {name: _limits(cfg, run, data, found) for name, found in _proposals(cfg, run, data, sources).items()}
    table = pd.DataFrame(rows).T
    run.record("detector_limit", **{f"{source}_mAP": value for source, value in table["mAP_if_perfect"].items()})
    return table


def detector_costs(cfg: Config, run: Run, sources: Sequence[str] = inputs.ORACLES) -> pd.DataFrame:
    """mAP of the trained EZ-HOI on the run's detections and on oracles in their place, without training it again."""
    data = inputs.dataset(cfg, run, "test")
    table = pd.DataFrame(
        {
            name: detector.evaluate(cfg, run, pd.read_parquet(_predictions(cfg, run, data, name, found).path / _FILE))
            for name, found in _proposals(cfg, run, data, sources).items()
        }
    ).T
    run.record("detector_cost", **{f"{source}_mAP_full": value for source, value in table["mAP_full"].items()})
    return table


_OWN, _FILE = "detector", "predictions.parquet"


def _proposals(cfg: Config, run: Run, data: HoiDataset, sources: Sequence[str]) -> dict[str, list[Proposals]]:
    """Test proposals by source, the run's own detector first."""
    found = {_OWN: inputs.proposals(cfg, run, data)}
    for source in sources:
        inputs.detections(cfg, run, data.split, source)
        found[source] = inputs.proposals(cfg, run, data, f"detections_{source}")
    return found


def _limits(cfg: Config, run: Run, data: HoiDataset, found: Sequence[Proposals]) -> dict[str, float]:
    recall = {name: 100 * value for name, value in inputs.proposal_recall(data, found).items()}
    scores = detector.evaluate(cfg, run, perfect_recognition(data, found))
    return recall | {"mAP_if_perfect": scores["mAP_full"]}


def _predictions(cfg: Config, run: Run, data: HoiDataset, source: str, found: list[Proposals]) -> Artifact:
    kind = "detections" if source == _OWN else f"detections_{source}"
    parents = [run.existing(name) for name in ("ezhoi", "features/test", f"{kind}/test")]

    def make(folder: Path) -> dict:
        model, classes = detector.load_ezhoi(cfg, run), detector.classes_of(cfg, data)
        samples = HoiSamples(data, found, inputs.feature_store(cfg, run, "test"), model.size, classes)
        table = predict_pairs(
            model, samples, batch_size=32, workers=cfg.ezhoi.workers, device=inputs.device(cfg),
            bridge=detector.evaluation_bridge(cfg, run),
        )  # fmt: skip
        predictions = hoi_predictions(table.frame, table.logits, classes, cfg.ezhoi.prior_power)
        atomic_write(folder / _FILE, lambda stream: predictions.to_parquet(stream))
        return {"pairs": len(table.frame)}

    settings = {"proposals": inputs.proposal_rule(cfg), "prior_power": cfg.ezhoi.prior_power}
    return run.artifact(f"predictions/by_{source}", settings, make, parents)
