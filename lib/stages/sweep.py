"""Many EZ-HOI runs from one file, and one table with mean and spread over the seeds.

    python -m lib.stages.sweep configs/sweeps/ezhoi_text.yaml --run runs/ezhoi_text [--jobs 2] [key=value ...]

The file names a settings file, overrides for all points, `variants` (name -> overrides), a `grid` (setting -> values),
`seeds`, and what to `measure`: ezhoi (the detector alone) or bridges (every headline variant of notebook 04 on it).
World, models, features and detections are made once in <run>/shared and linked into every point's own run folder, so
each point is an ordinary run that notebooks can open. A point that is done is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from math import nan
from multiprocessing import get_context, parent_process
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf
from scipy import stats

from lib.config import ConfigError, load_config
from lib.engine.progress import HEADLESS
from lib.runs import write_text
from lib.stages import bridging, detector, inputs

SHARED = ("world", "models", "features", "detections")
KEYS = {"config", "overrides", "variants", "grid", "seeds", "measure"}
MEASURES = ("ezhoi", "bridges")


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read: settings file, overrides for all points, what is measured, and the points."""

    config: str
    common: list[str]
    measure: str
    points: list[Point]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder name, what identifies it in the table, and its overrides."""

    name: str
    row: dict[str, str]
    seed: int
    overrides: tuple[str, ...]


def read_sweep(path: Path | str, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file; every point's settings are checked.

    overrides: from the command line; they come after the file's common ones. Raises ConfigError.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: found no sweep file; expected one such as configs/sweeps/ezhoi_text.yaml")
    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict) or not {"config", "seeds"} <= content.keys() <= KEYS:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path}: found keys {found}, expected config and seeds, and maybe {sorted(KEYS)}")
    measure = content.get("measure", "ezhoi")
    if measure not in MEASURES:
        raise ConfigError(f"{path}: measure: found {measure!r}, expected one of {MEASURES}")
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
                points.append(Point(name, columns, seed, tuple(settings)))
    return Sweep(content["config"], common, measure, points)


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


def link_shared(shared: Path, folder: Path) -> None:
    """Link what all points share into the run folder of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        if (shared / kind).exists() and not (folder / kind).exists():
            (folder / kind).symlink_to(os.path.relpath(shared / kind, folder), target_is_directory=True)


def run_point(
    config: str, root: Path, point: Point, threads: int, measure: str = "ezhoi"
) -> dict[str, dict[str, float]]:
    """Train and evaluate one point in `root`/<name>; returns mAP groups in percent of each method measured."""
    os.environ[HEADLESS] = "1"
    torch.set_num_threads(threads)
    folder = root / point.name
    link_shared(root / "shared", folder)
    cfg, run = inputs.open_run(config, str(folder), point.overrides)
    bridging.before(cfg, run)
    detector.ezhoi(cfg, run)
    detector.pairs(cfg, run, "test")
    scores = {"ezhoi": detector.ezhoi_scores(cfg, run)}
    if measure == "bridges":
        detector.pairs(cfg, run, "fit")
        for kind in bridging.BANKS:
            bridging.text_bank(cfg, run, kind)
            bridging.bridge(cfg, run, kind)
        bridging.comparison(cfg, run)
        for row in bridging.evaluate_comparison(cfg, run).to_dict("records"):
            if row["variant"].removesuffix("_alone") in bridging.HEADLINE:
                scores[row["variant"]] = {key: value for key, value in row.items() if key.startswith("mAP_")}
    return scores


def run_sweep(path: Path | str, root: Path, jobs: int = 1, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Run every point, `jobs` at a time, and write points.csv, summary.csv and differences.csv into `root`.

    A failed point is named at the end (RuntimeError) after all others have run. Returns the summary.
    """
    sweep = read_sweep(path, overrides)
    points, root = sweep.points, root.resolve()
    prepare(sweep.config, root, sweep.common)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    found, failed = {}, {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_die_with_parent) as pool:
        tasks = {pool.submit(run_point, sweep.config, root, point, threads, sweep.measure): point for point in points}
        for number, task in enumerate(as_completed(tasks), start=1):
            point = tasks[task]
            if task.exception():
                failed[point.name] = task.exception()
                print(f"{number}/{len(points)} {point.name}: FAILED {task.exception()}", flush=True)
                continue
            found[point.name] = task.result()
            for method, scores in task.result().items():
                shown = " ".join(f"{key.removeprefix('mAP_')} {value:.2f}" for key, value in scores.items())
                print(f"{number}/{len(points)} {point.name}, {method}: {shown}", flush=True)
    rows = [
        {**point.row, "method": method, "seed": point.seed, **scores}
        for point in points
        for method, scores in found.get(point.name, {}).items()
    ]
    table = pd.DataFrame(rows)
    write_text(root / "points.csv", table.to_csv(index=False, float_format="%.3f"))
    if failed:
        raise RuntimeError(f"{root}: {len(failed)} of {len(points)} points failed: {failed}")
    summary = summarise_seeds(table)
    write_text(root / "summary.csv", summary.to_csv(index=False, float_format="%.2f"))
    if sweep.measure == "bridges":
        differences = paired_differences(table, "ezhoi")
        write_text(root / "differences.csv", differences.to_csv(index=False, float_format="%.2f"))
        return differences
    return summary


def _die_with_parent() -> None:
    """A worker in the middle of a point would outlive a killed sweep; it resumes from its checkpoint next time."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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


def paired_differences(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each method less the reference method of the same setting and seed, with a 95 % interval over the seeds.

    The interval is Student's, n - 1 degrees of freedom: 3 seeds are the least that give a usable one. verdict: helps
    where it lies above 0, hurts below, else no difference; a single seed gives none.
    """
    border = list(table).index("seed")
    scores = [name for name in list(table)[border + 1 :] if name.startswith("mAP_")]
    setting = [name for name in list(table)[:border] if name != "method"]
    base = table[table["method"] == reference].set_index([*setting, "seed"])[scores]
    others = table[table["method"] != reference].set_index([*setting, "seed"])
    long = (others[scores] - base.reindex(others.index)).assign(method=others["method"]).reset_index()
    long = long.melt([*setting, "method", "seed"], scores, "score", "difference").dropna(subset="difference")
    rows = []
    for key, group in long.groupby([*setting, "method", "score"], sort=False):
        values = group["difference"].to_numpy()
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else nan
        low, high = values.mean() - half, values.mean() + half
        word = "one seed" if half != half else "helps" if low > 0 else "hurts" if high < 0 else "no difference"
        rows.append(
            {**dict(zip([*setting, "method", "score"], key, strict=True)), "difference": values.mean(),
             "low": low, "high": high, "seeds": len(values), "verdict": word}
        )  # fmt: skip
    return pd.DataFrame(rows)


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
