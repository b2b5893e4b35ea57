"""Train the detector on the boxes of the training split.

    python -m lib.stages.train_detector --config configs/mine.yaml --run runs/mine detector.source=weights/detr-r50

The start is detector.source, or the run's tiny DETR. The result is a detector folder, RUN/detr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lib.detection.finetune import finetune, save_detr, start_from
from lib.detection.samples import BoxSamples
from lib.detection.truth import instance_boxes
from lib.runs import Artifact, Run, file_sha256
from lib.settings import Config
from lib.stages import inputs

_NOT_SHAPING = {"workers", "log_every"}


def trained_detector(cfg: Config, run: Run) -> Artifact:
    """A DETR trained on the annotated people and objects of the training split, unseen classes included.

    (The published detectors saw the boxes of the whole training split too; data-and-evaluation.md §4.2.)
    """
    start, data = inputs.detector_folder(cfg, run), inputs.dataset(cfg, run, "train")
    recipe = cfg.detector.train
    shaping = {name: value for name, value in asdict(recipe).items() if name not in _NOT_SHAPING}
    settings = {"train": shaping, "seed": cfg.seed, "images": len(data)}
    parents = [file_sha256(data.source), file_sha256(start / "model.safetensors")]

    def make(folder: Path) -> dict:
        model = start_from(start, data.vocabulary.objects)
        processing = json.loads((start / "preprocessor_config.json").read_text())
        truth = instance_boxes(data)
        samples = BoxSamples(
            [data[index].path for index in data.annotated],
            [truth[index] for index in data.annotated],
            processing["size"]["shortest_edge"],
            processing["size"]["longest_edge"],
            cfg.detector.resample,
            recipe.augment,
            cfg.seed,
        )
        info = finetune(
            model, samples, recipe, folder, seed=cfg.seed, device=inputs.device(cfg), checkpoints=cfg.checkpoints
        )
        save_detr(model, start, folder)
        return info | {"images": len(samples)}

    return run.artifact("detr", settings, make, parents)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and say how to use the result; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(prog="python -m lib.stages.train_detector", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="settings file")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="e.g. detector.train.epochs=20")
    asked = parser.parse_args(arguments)
    try:
        cfg, run = inputs.open_run(asked.config, asked.run, asked.settings)
        made = trained_detector(cfg, run)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{made.path}: {made.info}")
    print(f"use it: detector.source={made.path}   how good it is: python -m lib.detection.box_ap, or notebook 01")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
