"""The numbers of a run's embedding table: metrics with intervals, baselines, classes, gap vector, the bridge's way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib.analysis.baselines import Baseline, fit_baselines
from lib.analysis.embeddings import EmbeddingTable
from lib.analysis.gap_report import changes_of, measure, report_of
from lib.analysis.gap_sets import class_texts, own_state, truth_of
from lib.analysis.movement import class_changes, group_changes, landscape, trajectory_summary
from lib.ezhoi.predict import PairTable
from lib.runs import Run, atomic_write
from lib.settings import Config
from lib.stages import inputs
from lib.stages.detector import classes_of
from lib.stages.embeddings import labelled_pairs


@dataclass
class GapStudy:
    """Everything notebook 05 measures, as tidy tables (the columns: where each is made)."""

    report: pd.DataFrame  # `gap_report.report_of`: states and baselines
    change: pd.DataFrame  # `gap_report.changes_of`: centred -> bridged
    adaptation: pd.DataFrame  # the same of raw -> adapted; empty where the table has no raw state
    classes: pd.DataFrame  # `movement.class_changes`: centred -> bridged
    groups: pd.DataFrame  # `movement.group_changes` of them
    landscape: pd.DataFrame  # `movement.landscape` of the detector's features
    trajectory: pd.DataFrame  # `movement.trajectory_summary`


def gap_study(cfg: Config, run: Run) -> GapStudy:
    """Measure the run's embedding table; computed once."""
    parents = [run.existing(kind) for kind in ("embeddings", "pairs/fit")]
    names = ("metric_pairs", "knn", "folds", "slices", "bootstrap", "seed")
    settings = {"analysis": {name: getattr(cfg.analysis, name) for name in names}}

    def make(folder: Path) -> dict:
        table = EmbeddingTable.load(parents[0].path)
        way = pd.read_parquet(parents[0].path / "trajectory.parquet")
        study = study_of(table, way, run_baselines(cfg, run, table), cfg)
        for name, frame in vars(study).items():
            atomic_write(folder / f"{name}.parquet", lambda stream, frame=frame: frame.to_parquet(stream))
        return {"states": table.states, "rows": len(study.report)}

    folder = run.artifact("gap", settings, make, parents).path
    return GapStudy(**{name: pd.read_parquet(folder / f"{name}.parquet") for name in GapStudy.__annotations__})


def study_of(table: EmbeddingTable, way: pd.DataFrame, baselines: dict[str, Baseline], cfg: Config) -> GapStudy:
    """The study of a table and a trajectory."""
    chosen = cfg.analysis
    measured = measure(table, chosen, baselines)
    classes = class_changes(table, "centred", "bridged")
    return GapStudy(
        report=report_of(measured),
        change=changes_of(measured, "centred", "bridged"),
        adaptation=changes_of(measured, "raw", "adapted"),
        classes=classes,
        groups=group_changes(classes),
        landscape=landscape(table, resamples=chosen.bootstrap, seed=chosen.seed),
        trajectory=trajectory_summary(way, chosen.bootstrap, chosen.seed),
    )


def run_baselines(cfg: Config, run: Run, table: EmbeddingTable) -> dict[str, Baseline]:
    """The closed-form baselines, fitted on the labelled fit pairs (training images, seen classes only)."""
    fit = PairTable.load(run.existing("pairs/fit").path)
    frame = labelled_pairs(fit, classes_of(cfg, inputs.dataset(cfg, run, "train")).hoi_of)
    ids, texts, _ = class_texts(table, own_state(table))
    return fit_baselines(fit.features[frame.index], texts, truth_of(frame, ids))
