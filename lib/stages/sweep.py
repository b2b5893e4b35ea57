"""Many runs from one file, and one comparison at the end: tables with mean and spread over the seeds, figure, page.

    python -m lib.stages.sweep configs/sweeps/ezhoi_text.yaml --run runs/ezhoi_text [--jobs 2] [key=value ...]
    python -m lib.stages.sweep configs/sweeps/ezhoi_text.yaml --on ray

The file names a settings file, overrides for all points, `variants` (name -> overrides, or a list of them), a `grid`
(setting -> values), `seeds` (a list, or how many), what each point needs (`cpus`, `gpus`) and what to `measure`: a name
of `lib.stages.measures`, or notebooks (then also `notebooks: 01-04` and `metrics: ["*/mAP_full"]`).
What all points share is made once in <run>/shared and linked into every point's own run folder, so that each is an
ordinary run. A point that is done is not run again; one that was cut off resumes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from lib.analysis.sweep_report import write_sweep_report
from lib.config import ConfigError, load_config
from lib.engine import locks
from lib.engine.exit_codes import Exit
from lib.engine.ledger import library_fingerprint
from lib.engine.pool import PLACES, TaskFailed, run_tasks
from lib.engine.progress import HEADLESS
from lib.errors import FoundExpected
from lib.runs import Run, fingerprint, read_json, write_json, write_text
from lib.settings import Config
from lib.stages import inputs
from lib.stages.measures import MEASURES, Measure, Scores, chosen_metrics, features_and_detections

SHARED = ("world", "models", "features", "detections")
NOT_SHAPING = {  # settings that change neither images nor features nor detections
    *("zero_shot", "descriptions", "differences", "act_descriptors", "validation_images"),
    *("nms_iou", "score_threshold", "min_instances", "max_instances"),
}
KEYS = {"config", "overrides", "variants", "grid", "seeds", "measure", "notebooks", "metrics", "cpus", "gpus"}
NAMES = (*MEASURES, "notebooks")


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder name, what identifies it in the table, and its overrides."""

    name: str
    row: dict[str, str]
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read: settings file, overrides for all points, what is measured, and the points.

    cpus: 0 = this machine's, shared by the jobs. notebooks, metrics: of the measure `notebooks`.
    """

    config: str
    common: list[str]
    measure: str
    points: list[Point]
    cpus: int = 0
    gpus: float = 0
    notebooks: str = "all"
    metrics: list[str] = field(default_factory=lambda: ["*/mAP_*"])


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
    if measure not in NAMES:
        raise ConfigError(f"{path}: measure: found {measure!r}, expected one of {NAMES}")
    common = [*content.get("overrides", []), *overrides]
    points = _points(content, common)
    for point in points:
        _settings(content["config"], point.overrides)  # refuses a misspelt setting before hours are spent
    names = [point.name for point in points]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{path}: found points of the same name {sorted(twice)}, expected each variant once")
    more = {key: content[key] for key in ("cpus", "gpus", "notebooks", "metrics") if key in content}
    return Sweep(content["config"], common, measure, points, **more)


def _points(content: Mapping[str, Any], common: Sequence[str]) -> list[Point]:
    grid, variants = content.get("grid", {}), content.get("variants", {"base": []})
    if not isinstance(variants, dict):
        variants = {" ".join(change.rpartition(".")[2] for change in changes): changes for changes in variants}
    seeds = range(content["seeds"]) if isinstance(content["seeds"], int) else content["seeds"]
    points = []
    for (variant, changes), *values, seed in itertools.product(variants.items(), *grid.values(), seeds):
        chosen = dict(zip(grid, values, strict=True))
        name = re.sub(r"[^\w.=+-]+", "_", "-".join([variant, *map(str, values), f"seed{seed}"]))
        settings = [*common, *(f"{key}={value}" for key, value in chosen.items()), *changes, f"seed={seed}"]
        columns = {"variant": variant} | {key.rpartition(".")[2]: value for key, value in chosen.items()}
        points.append(Point(name, columns, seed, tuple(settings)))
    return points


def prepare(config: str, root: Path, overrides: Sequence[str], measure: str = "ezhoi") -> None:
    """What all points share, made once in `root`/shared."""
    cfg, run = inputs.open_run(config, str(root / "shared"), overrides)
    (MEASURES[measure].prepare if measure in MEASURES else features_and_detections)(cfg, run)


def link_shared(shared: Path, folder: Path) -> None:
    """Link what all points share into the run folder of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        if (shared / kind).exists() and not (folder / kind).exists():
            (folder / kind).symlink_to(os.path.relpath(shared / kind, folder), target_is_directory=True)


def shares_inputs(common: Config, point: Config) -> bool:
    """Whether a point reads the same images with the same CLIP and detector as the common settings."""

    def shaping(cfg: Config) -> dict[str, Any]:
        tree = asdict(cfg)
        sections = {name: tree[name] for name in ("data", "clip", "detector", "features")}
        return {name: {k: v for k, v in keys.items() if k not in NOT_SHAPING} for name, keys in sections.items()}

    return shaping(common) == shaping(point)


def run_point(plan: Sweep, root: Path, point: Point, threads: int) -> Scores:
    """Run and measure one point in `root`/<name>; method -> score -> value, also kept in its scores.json."""
    os.environ[HEADLESS] = "1"
    torch.set_num_threads(threads)
    folder = root / point.name
    settings = _settings(plan.config, point.overrides)
    if shares_inputs(_settings(plan.config, tuple(plan.common)), settings):
        link_shared(root / "shared", folder)
    with locks.hold(folder, f"point {point.name}"):
        if plan.measure == "notebooks":
            from lib.engine import batch  # Jupyter takes seconds to import, which other measures need not wait for

            chosen = batch.select_notebooks(plan.notebooks)
            batch.run_notebooks(plan.config, str(folder), chosen, point.overrides)
            scores = chosen_metrics(Run(folder).metrics, plan.metrics)
        else:
            cfg, run = inputs.open_run(plan.config, str(folder), point.overrides)
            scores = MEASURES[plan.measure].run(cfg, run)
            run.write_status("finished", point.name)
        write_json(folder / "scores.json", {"fingerprint": _wanted(plan, settings), "scores": scores})
    return scores


def _wanted(plan: Sweep, settings: Config) -> str:
    """Fingerprint of a point's scores."""
    measured = [plan.measure, plan.notebooks, plan.metrics]
    return fingerprint("scores", {"settings": asdict(settings), "measure": measured}, [library_fingerprint()])


def run_sweep(
    path: Path | str, root: Path | str, jobs: int = 1, overrides: Sequence[str] = (), on: str = "processes"
) -> pd.DataFrame:
    """Run every point, `jobs` at a time; writes points.csv, summary.csv, differences.csv, sweep.png, sweep.html.

    on: processes (of this machine) | ray. Returns the differences where the measure has them, else the summary.
    A failed point is named at the end (RuntimeError) after all others have run. Raises LockedError, ConfigError.
    """
    plan, root = read_sweep(path, overrides), Path(root).resolve()
    points, record = plan.points, Run(root)
    cpus = plan.cpus or max(1, (os.cpu_count() or 1) // jobs)
    with locks.hold(root, f"sweep {path}"):
        prepare(plan.config, root, plan.common, plan.measure)
        scores = {point.name: done for point in points if (done := _done(plan, root, point)) is not None}
        if scores:
            print(f"{len(scores)} of {len(points)} points were done before", flush=True)
        todo, failed = [point for point in points if point.name not in scores], {}
        record.write_status("running", f"{len(scores)}/{len(points)} points")
        tasks = [(plan, root, point, cpus) for point in todo]
        tick = lambda: print(_doing(root, todo), flush=True)  # noqa: E731
        try:
            for number, result in run_tasks(run_point, tasks, on=on, jobs=jobs, cpus=cpus, gpus=plan.gpus, tick=tick):
                name = todo[number].name
                (failed if isinstance(result, TaskFailed) else scores)[name] = result
                _tell(f"{len(scores) + len(failed)}/{len(points)} {name}", result)
                record.write_status("running", f"{len(scores) + len(failed)}/{len(points)} points")
                _table(plan, scores, root)
        except KeyboardInterrupt:
            record.write_status("interrupted", f"{len(scores)}/{len(points)} points")
            raise
        table = _table(plan, scores, root)
        if failed:
            record.write_status("failed", f"{len(failed)} of {len(points)} points failed")
            told = "".join(f"\n  {name}: {error}" for name, error in failed.items())
            raise RuntimeError(f"{root}: {len(failed)} of {len(points)} points failed{told}")
        found = write_sweep_report(root, Path(path).stem, table, _measure(plan).differences)
        record.write_status("finished", f"{len(points)}/{len(points)} points")
    return found


def _measure(plan: Sweep) -> Measure:
    return MEASURES.get(plan.measure, MEASURES["ezhoi"])


def _done(plan: Sweep, root: Path, point: Point) -> Scores | None:
    """The scores of a point that was finished with the same settings and code."""
    found = read_json(root / point.name / "scores.json")
    wanted = _wanted(plan, _settings(plan.config, point.overrides))
    return found["scores"] if found.get("fingerprint") == wanted else None


@lru_cache(maxsize=1024)
def _settings(config: str, overrides: tuple[str, ...]) -> Config:
    return load_config(config, overrides)


def _table(plan: Sweep, scores: Mapping[str, Scores], root: Path) -> pd.DataFrame:
    """One row a point and method, in the order of the file; also points.csv."""
    rows = [
        {**point.row, **_measure(plan).columns(method), "seed": point.seed, **values}
        for point in plan.points
        for method, values in scores.get(point.name, {}).items()
    ]
    table = pd.DataFrame(rows)
    write_text(root / "points.csv", table.to_csv(index=False, float_format="%.3f"))
    return table


def _tell(what: str, result: Scores | TaskFailed) -> None:
    if isinstance(result, TaskFailed):
        print(f"{what}: FAILED {result}", flush=True)
        return
    for method, values in result.items():
        shown = " ".join(f"{key.removeprefix('mAP_')} {value:.2f}" for key, value in values.items())
        print(f"{what}, {method}: {shown}", flush=True)


def _doing(root: Path, points: Sequence[Point]) -> str:
    """What the points that run are doing, from their status files."""
    states = [(point.name, Run(root / point.name).read_status()) for point in points if (root / point.name).is_dir()]
    running = [(name, status) for name, status in states if status.get("state") == "running"]
    return "   " + "; ".join(f"{name}: {status.get('progress') or status['doing']}" for name, status in running)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, that of the batch runner (`lib.engine.Exit`)."""
    parser = argparse.ArgumentParser(prog="python -m lib.stages.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="sweep file, such as configs/sweeps/ezhoi_text.yaml")
    parser.add_argument("--run", help="folder of the sweep; default runs/<name of the file>")
    parser.add_argument("--jobs", type=int, default=1, help="points at a time; each gets its share of the cores")
    parser.add_argument("--on", choices=PLACES, default="processes", help="ray: on the cluster of RAY_ADDRESS, or here")
    parser.add_argument("overrides", nargs="*", help="settings for every point, such as ezhoi.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    root = Path(options.run or f"runs/{Path(options.sweep).stem}")
    try:
        found = run_sweep(options.sweep, root, options.jobs, options.overrides, options.on)
    except locks.LockedError as error:
        print(error, file=sys.stderr)
        return Exit.LOCKED
    except (ConfigError, FoundExpected) as error:
        print(error, file=sys.stderr)
        return Exit.SETTINGS
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        print("\ninterrupted: no point is left running; the same command resumes", file=sys.stderr)
        return Exit.INTERRUPTED
    print(f"{found.round(2).to_string(index=False)}\n\n{root / 'sweep.html'}")
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
