"""The second `make demo` against the first: how much of a finished run is done again?

    python -m benchmarks.demo_rerun --run runs/demo --json rerun.json

The first run is not repeated: its seconds are those that the run folder recorded of its notebooks. Later ones are timed
here, by the two commands of `make demo`, on a copy of the folder: one that executes every notebook again (as happens
after the library was changed) and finds its artefacts, and one that finds the notebooks finished. The check: every
artefact still has the fingerprint that it had. Seconds of the processor are not known: both columns are of the clock.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Comparison, arguments, compare, report
from lib.runs import read_json

CONFIG = "configs/tiny.yaml"


def first_seconds(run: Path) -> float:
    """Seconds that the notebooks of a run took when they were executed. SystemExit where the run is not finished."""
    if read_json(run / "status.json").get("state") != "finished":
        raise SystemExit(f"{run}: found no finished run; mend: make demo RUN={run}")
    metrics = read_json(run / "metrics.json")
    return sum(value for name, value in metrics.items() if name[:2].isdigit() and name.endswith("/seconds"))


def made(run: Path) -> dict[str, str]:
    """Fingerprint of every artefact of a run."""
    files = sorted(run.rglob("artifact.json"))
    return {str(file.parent.relative_to(run)): json.loads(file.read_text())["fingerprint"] for file in files}


def again(config: str, run: Path, *options: str) -> dict[str, str]:
    """What `make demo` does, into a folder that exists; fingerprints afterwards."""
    batch = ["lib.engine.batch", "run", config, "--run", str(run), *options]
    for command in (batch, ["lib.analysis.report", str(run)]):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return made(run)


def reruns(run: Path, folder: Path, config: str) -> list[Comparison]:
    """Two later runs in `folder`, in a copy; the baseline's seconds are read, not measured."""
    first, before, copy = first_seconds(run), made(run), Path(shutil.copytree(run, folder / run.name))

    def same(ours: dict[str, str], _: None) -> None:
        changed = [name for name in before if ours.get(name) != before[name]]
        assert not changed, f"artefacts made again: {changed}"

    rows = []
    for name, options in (("notebooks executed again", ["--again"]), ("second run", [])):
        found = compare(name, lambda options=options: again(config, copy, *options), lambda: None, same, repeats=0)
        read = {"baseline": [first], "ours_cpu": found.ours, "baseline_cpu": [first]}
        rows.append(replace(found, **read, numbers={"artefacts": len(before)}))
    return rows


def main() -> None:
    options = arguments(__doc__, run="runs/demo", config=CONFIG)
    with tempfile.TemporaryDirectory(prefix="demo-rerun-") as name:
        rows = reruns(Path(options.run), Path(name), options.config)
    report("The second `make demo` against the first (its recorded seconds)", rows, options.json)


if __name__ == "__main__":
    main()
