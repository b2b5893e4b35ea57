"""What a point of a sweep runs, and the scores it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pandas as pd

from lib.analysis.seeds import factor_differences, paired_differences
from lib.runs import Run
from lib.settings import Config
from lib.stages import bridging, detector, inputs, recognition, recognition_labels
from lib.stages.recognition import LOSSES, STARTS

Scores = dict[str, dict[str, float]]  # method -> score name -> value; mAP in percent


@dataclass(frozen=True)
class Measure:
    """One way to measure a point.

    prepare: makes what all points share, in a run of their own. run: stages and scores of one point. columns: what
    identifies a method in the table. differences: a second table, of paired differences, or None.
    """

    prepare: Callable[[Config, Run], None]
    run: Callable[[Config, Run], Scores]
    columns: Callable[[str], dict[str, str]] = lambda method: {"method": method}
    differences: Callable[[pd.DataFrame], pd.DataFrame] | None = None


def world_and_models(cfg: Config, run: Run) -> None:
    """The embedded world and tiny models, where the settings name no others."""
    if not cfg.data.root:
        inputs.world(cfg, run)
    if not (cfg.clip.source and cfg.detector.source):
        inputs.models(cfg, run)


def features_and_detections(cfg: Config, run: Run) -> None:
    """And what CLIP and the detector see in both splits."""
    world_and_models(cfg, run)
    for split in ("train", "test"):
        inputs.features(cfg, run, split)
        inputs.detections(cfg, run, split)


def ezhoi(cfg: Config, run: Run) -> Scores:
    """The detector alone."""
    bridging.before(cfg, run)
    detector.ezhoi(cfg, run)
    detector.pairs(cfg, run, "test")
    return {"ezhoi": detector.ezhoi_scores(cfg, run)}


def bridges(cfg: Config, run: Run) -> Scores:
    """The detector alone and with every headline variant of notebook 04."""
    scores = ezhoi(cfg, run)
    detector.pairs(cfg, run, "fit")
    for kind in bridging.BANKS:
        bridging.text_bank(cfg, run, kind)
        bridging.bridge(cfg, run, kind)
    bridging.comparison(cfg, run)
    for row in bridging.evaluate_comparison(cfg, run).to_dict("records"):
        if row["variant"].removesuffix("_alone") in bridging.HEADLINE:
            scores[row["variant"]] = {key: value for key, value in row.items() if key.startswith("mAP_")}
    return scores


def defr(cfg: Config, run: Run) -> Scores:
    """DEFR: every variant of defr.variants."""
    recognition_labels.labels(cfg, run)
    scores = {}
    for variant in cfg.defr.variants:
        recognition.defr(cfg, run, variant)
        recognition.scores(cfg, run, variant)
        scores[variant] = recognition.comparison(cfg, run, [variant]).loc[variant].add_prefix("mAP_").to_dict()
    return scores


def _start_and_loss(variant: str) -> dict[str, str]:
    start, _, loss = variant.rpartition("_")  # the start of other_language_sign is other_language
    return {"start": start, "loss": loss}


def chosen_metrics(metrics: Mapping[str, Any], patterns: list[str]) -> Scores:
    """`method/score` entries of metrics.json that match a pattern such as `*/mAP_full`."""
    scores: Scores = {}
    for key, value in metrics.items():
        if isinstance(value, int | float) and any(fnmatch(key, pattern) for pattern in patterns):
            method, _, score = key.rpartition("/")
            scores.setdefault(method, {})[score] = float(value)
    return scores


MEASURES = {
    "ezhoi": Measure(features_and_detections, ezhoi),
    "bridges": Measure(
        features_and_detections, bridges, differences=lambda table: paired_differences(table, reference="ezhoi")
    ),
    "defr": Measure(
        world_and_models, defr, columns=_start_and_loss,
        differences=lambda table: factor_differences(table, {"start": STARTS, "loss": LOSSES}),
    ),
}  # fmt: skip
