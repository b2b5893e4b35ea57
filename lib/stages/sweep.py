"""Many EZ-HOI runs from one file, and one table with mean and spread over the seeds.

    python -m lib.stages.sweep configs/sweeps/ezhoi_text.yaml --run runs/ezhoi_text [--jobs 2] [key=value ...]

The file names a settings file, overrides for all points, `variants` (name -> overrides), a `grid` (setting -> values)
and `seeds`. World, models, features and detections are made once in <run>/shared and linked into every point's own run
folder, so each point is an ordinary run that notebooks can open. A point that is done is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf

from lib.config import ConfigError, load_config
from lib.engine.progress import HEADLESS
from lib.runs import write_text
from lib.stages import detector, inputs

SHARED = ("world", "models", "features", "detections")
KEYS = {"config", "overrides", "variants", "grid", "seeds"}


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder name, what identifies it in the table, and its overrides."""

    name: str
    row: dict[str, str | int]
    overrides: tuple[str, ...]


def read_sweep(path: Path | str, overrides: Sequence[str] = ()) -> tuple[str, list[str], list[Point]]:
    """Settings file, common overrides and points of a sweep file; every point's settings are checked.

    overrides: from the command line; they come after the file's common ones. Raises ConfigError.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: found no sweep file; expected one such as configs/sweeps/ezhoi_text.yaml")
    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict) or not {"config", "seeds"} <= content.keys() <= KEYS:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path}: found keys {found}, expected config and seeds, and maybe overrides, variants, grid")
    common = [*content.get("overrides", []), *overrides]
    grid = content.get("grid", {})
    points = []
    for variant, changes in content.get("variants", {"base": []}).items():
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            for seed in content["seeds"]:
                name = "-".join([variant, *map(str, values), f"seed{seed}"])
                settings = [*common, *(f"{key}={value}" for key, value in chosen.items()), *changes, f"seed={seed}"]
                load_config(content["config"], settings)  # refuses a misspelt setting before hours are spent
                columns = {"variant": variant} | {key.rpartition(".")[2]: value for key, value in chosen.items()}
                points.append(Point(name, columns | {"seed": seed}, tuple(settings)))
    return content["config"], common, points


def prepare(config: str, root: Path, overrides: Sequence[str]) -> None:
    """What all points share, made once in `root`/shared."""
    cfg, run = inputs.open_run(config, str(root / "shared"), overrides)
    if not cfg.data.root:
        inputs.world(cfg, run)
    if not (cfg.clip.source and cfg.detector.source):
        inputs.models(cfg, run)
    for split in ("train", "test"):
        inputs.features(cfg, run, split)
        inputs.detections(cfg, run, split)


def run_point(config: str, root: Path, point: Point, threads: int) -> dict[str, float]:
    """Train and evaluate one point in `root`/<name>; returns its mAP groups in percent."""
    os.environ[HEADLESS] = "1"
    torch.set_num_threads(threads)
    folder = root / point.name
    folder.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        source = root / "shared" / kind
        if source.exists() and not (folder / kind).exists():
            (folder / kind).symlink_to(os.path.relpath(source, folder), target_is_directory=True)
    cfg, run = inputs.open_run(config, str(folder), point.overrides)
    detector.ezhoi(cfg, run)
    detector.pairs(cfg, run, "test")
    return detector.ezhoi_scores(cfg, run)


def run_sweep(path: Path | str, root: Path, jobs: int = 1, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Run every point, `jobs` at a time, and write points.csv and summary.csv into `root`.

    A failed point is named at the end (RuntimeError) after all others have run. Returns the summary.
    """
    config, common, points = read_sweep(path, overrides)
    root = root.resolve()
    prepare(config, root, common)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    found, failed = {}, {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        tasks = {pool.submit(run_point, config, root, point, threads): point for point in points}
        for number, task in enumerate(as_completed(tasks), start=1):
            point = tasks[task]
            if task.exception():
                failed[point.name] = task.exception()
                print(f"{number}/{len(points)} {point.name}: FAILED {task.exception()}", flush=True)
                continue
            found[point.name] = task.result()
            scores = " ".join(f"{key.removeprefix('mAP_')} {value:.2f}" for key, value in task.result().items())
            print(f"{number}/{len(points)} {point.name}: {scores}", flush=True)
    table = pd.DataFrame([point.row | found[point.name] for point in points if point.name in found])
    write_text(root / "points.csv", table.to_csv(index=False, float_format="%.3f"))
    if failed:
        raise RuntimeError(f"{root}: {len(failed)} of {len(points)} points failed: {failed}")
    summary = summarise_seeds(table)
    write_text(root / "summary.csv", summary.to_csv(index=False, float_format="%.2f"))
    return summary


def summarise_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation of every score over the seeds, one row a setting, in order of appearance.

    table: columns that name the setting, then `seed`, then the scores.
    """
    border = list(table).index("seed")
    by, scores = list(table)[:border], list(table)[border + 1 :]
    grouped = table.groupby(by, sort=False)[scores]
    parts = [grouped.agg(kind).add_suffix(f"_{kind}") for kind in ("mean", "std")]
    merged = pd.concat(parts, axis=1)[[f"{score}_{kind}" for score in scores for kind in ("mean", "std")]]
    return merged.assign(seeds=grouped.size()).reset_index()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.stages.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="sweep file, such as configs/sweeps/ezhoi_text.yaml")
    parser.add_argument("--run", help="folder of the sweep; default runs/<name of the file>")
    parser.add_argument("--jobs", type=int, default=1, help="points at a time; each gets its share of the cores")
    parser.add_argument("overrides", nargs="*", help="settings for every point, such as ezhoi.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    try:
        summary = run_sweep(
            options.sweep, Path(options.run or f"runs/{Path(options.sweep).stem}"), options.jobs, options.overrides
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(summary.round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
