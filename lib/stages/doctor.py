"""Is everything there that a configuration will need? Asked in seconds, before hours are spent.

    make doctor CONFIG=configs/hico_det_vitb16_unseen_verb.yaml RUN=runs/uv_b16 SET="data.root=/data/hicodet"
    python -m lib.stages.doctor configs/tiny.yaml [--run runs/demo] [--notebooks 01-02] [--json] [key=value ...]

Data, weights, memory, disk and run folder go through the very readers, loaders and stages that the notebooks use, so
that what passes here is what they will find. Nothing is written. Exit code 0: ready, 1: not ready, 2: bad settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lib.config import ConfigError, load_config
from lib.engine.batch import select_notebooks
from lib.engine.progress import HEADLESS
from lib.runs import Run
from lib.settings import Config
from lib.stages import doctor_boxes, doctor_data, doctor_machine, doctor_models
from lib.stages.doctor_case import Case, run_checks
from lib.stages.doctor_report import ALL, Report

PARTS = (
    ("data", doctor_data.CHECKS),
    ("models", (*doctor_models.CHECKS, *doctor_boxes.CHECKS)),
    ("machine and run folder", doctor_machine.CHECKS),
)


def examine(
    cfg: Config, run: Run | Path | str, notebooks: Sequence[str] = ALL, title: str = "", recompute: Sequence[str] = ()
) -> Report:
    """Look at everything that notebooks 01 to 06 (or those named) will need.

    run: the run, or its folder, which need not exist and is not made. recompute: artefacts that are to be replaced, in
    addition to those of the run.
    """
    started, folder = time.perf_counter(), run.root if isinstance(run, Run) else Path(run)
    recompute = (*recompute, *(run.recompute if isinstance(run, Run) else ()))
    with tempfile.TemporaryDirectory() as empty, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters becomes a finding
        problem = doctor_machine.device_problem(cfg)
        usable = replace(cfg, device="cpu") if problem else cfg
        opened = Run(folder if folder.is_dir() else empty, recompute=recompute)
        case = Case(usable, folder, opened, problem)
        findings = [each for part, checks in PARTS for each in run_checks(case, part, checks)]
    report = Report(title or f"{cfg.data.root or 'stick world'} -> {folder}", tuple(findings))
    return Report(report.title, report.limited(notebooks).findings, tuple(notebooks), time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.stages.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="settings file, such as configs/tiny.yaml")
    parser.add_argument("--run", help="run folder; default runs/<name of the settings file>")
    parser.add_argument("--notebooks", default="all", help="only what these need, such as 01-02 (default: all)")
    parser.add_argument("--recompute", default="", help="artefacts to be replaced, as for the batch runner")
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    parser.add_argument("overrides", nargs="*", help="settings, such as data.root=/data/hicodet")
    options = parser.parse_intermixed_args(arguments)
    run = Path(options.run or f"runs/{Path(options.config).stem}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault(HEADLESS, "1")
    try:
        cfg = load_config(options.config, options.overrides)
        notebooks = [path.name[:2] for path in select_notebooks(options.notebooks)]
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    with contextlib.redirect_stdout(sys.stderr):  # progress; what is asked for alone goes to stdout
        recompute = [kind for kind in options.recompute.split(",") if kind]
        report = examine(cfg, run, notebooks, f"{options.config} -> {run}", recompute)
    if options.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print(report.text(colour=sys.stdout.isatty(), width=min(shutil.get_terminal_size((120, 0)).columns, 140)))
    return 0 if report.ready else 1


if __name__ == "__main__":
    sys.exit(main())
