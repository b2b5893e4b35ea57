"""DEFR with language or random start, LSE-Sign or BCE, over several seeds: the table, and what each of the two gains.

    python -m lib.stages.recognition_sweep configs/sweeps/defr.yaml --run runs/defr [key=value ...]

The file is one of `lib.stages.sweep` without `measure`; every point trains all of its defr.variants.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lib.config import ConfigError
from lib.engine.progress import HEADLESS
from lib.runs import write_text
from lib.stages import inputs, recognition, sweep
from lib.stages.recognition import LOSSES, STARTS


def run_table(path: Path | str, root: Path, overrides: Sequence[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All variants of a sweep file's points, one after another; points.csv, summary.csv, differences.csv in `root`.

    Returns the summary over the seeds and the paired differences: language less random, LSE-Sign less BCE. World and
    models are made once in `root`/shared; a point is an ordinary run, and what is done is not run again.
    """
    os.environ[HEADLESS] = "1"
    plan, root, rows = sweep.read_sweep(path, overrides), root.resolve(), []
    cfg, run = inputs.open_run(plan.config, str(root / "shared"), plan.common)
    if not cfg.clip.source:
        inputs.models(cfg, run)
    if not cfg.data.root:
        inputs.world(cfg, run)
    for point in plan.points:
        sweep.link_shared(root / "shared", root / point.name)
        cfg, run = inputs.open_run(plan.config, str(root / point.name), point.overrides)
        recognition.labels(cfg, run)
        for variant in cfg.defr.variants:
            recognition.defr(cfg, run, variant)
            recognition.scores(cfg, run, variant)
            found = recognition.comparison(cfg, run, [variant]).loc[variant].add_prefix("mAP_").to_dict()
            start, _, loss = variant.partition("_")
            rows.append({**point.row, "start": start, "loss": loss, "seed": point.seed, **found})
            print(f"{point.name}, {variant}: {' '.join(f'{key} {value:.2f}' for key, value in found.items())}")
        write_text(root / "points.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.3f"))
    table = pd.DataFrame(rows)
    summary, differences = sweep.summarise_seeds(table), factor_differences(table)
    write_text(root / "summary.csv", summary.to_csv(index=False, float_format="%.2f"))
    write_text(root / "differences.csv", differences.to_csv(index=False, float_format="%.2f"))
    return summary, differences


def factor_differences(table: pd.DataFrame) -> pd.DataFrame:
    """What each factor changes with the other one and the seed held fixed, with intervals over the seeds.

    table: columns start, loss, seed and mAP_*. Returned: factor ("language less random"), given (the other factor),
    score, difference, low, high, seeds, verdict (`lib.stages.sweep.paired_differences`).
    """
    parts = []
    for factor, other, (high, low) in (("start", "loss", STARTS), ("loss", "start", LOSSES)):
        pairs = table[table[factor].isin([high, low])].rename(columns={factor: "method"})
        if set(pairs["method"]) == {high, low}:
            found = sweep.paired_differences(pairs, low).drop(columns="method").rename(columns={other: "given"})
            parts.append(found.assign(factor=f"{high} less {low}"))
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    return found[["factor", *(name for name in found if name != "factor")]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.stages.recognition_sweep", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="sweep file, such as configs/sweeps/defr.yaml")
    parser.add_argument("--run", help="folder of the sweep; default runs/<name of the file>")
    parser.add_argument("overrides", nargs="*", help="settings for every point, such as defr.epochs=3")
    options = parser.parse_intermixed_args(arguments)
    try:
        tables = run_table(options.sweep, Path(options.run or f"runs/{Path(options.sweep).stem}"), options.overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for table in tables:
        print(table.round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
