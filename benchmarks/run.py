"""All benchmarks in turn, each in a process of its own, and one file of results.

    python -m benchmarks.run [--gpu] [--only bridge,growth] [--run runs/demo] [--out benchmarks/results]

Writes <date>-<device>.json and prints each ratio beside its target. The CPU set takes under 15 minutes on two idle
cores and hides any GPU; `--gpu` refuses to start without one. Benchmarks of a finished demo run are left out where
there is none. The exit code is 1 if a benchmark failed (its results differ, or it broke), not for a missed target.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import measured_on
from lib.runs import read_json, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Benchmark:
    """One script. cpu, gpu: its options, None where it is no part of that set. targets: start of a row's name ->
    smallest ratio wanted on (CPU, GPU). needs_run: reads a finished demo run."""

    name: str
    cpu: str | None = ""
    gpu: str | None = None
    targets: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    needs_run: bool = False


BENCHMARKS = (
    Benchmark("ezhoi_training", "--repeats 1", "--repeats 10 --precisions fp32,bf16", {"step": (3, 6)}),
    Benchmark("ezhoi_evaluation", "--repeats 1", "--repeats 10 --images 64 --batch-size 64", {"": (8, 20)}),
    Benchmark("bridge", "--repeats 1", "--repeats 5", {"": (100, 500)}),
    Benchmark("bridge_share", "", "--repeats 10 --images 64", {"": (1 / 0.15, 1 / 0.05)}),
    Benchmark("extraction", "", "--images 256 --batch-size 64", {"": (1.3, 15)}),
    Benchmark("feature_store", "--records 2000", None, {"": (2, None)}),
    Benchmark("hico_det_evaluation", "--repeats 1", None, {"": (20, None)}),
    Benchmark("projections", "", None, {"": (3, None)}),
    Benchmark("demo_rerun", "", None, {"": (10, None)}, needs_run=True),
    Benchmark("growth", "", ""),
)


def finished(run: Path) -> bool:
    """Whether the folder holds a run that came to its end."""
    return read_json(run / "status.json").get("state") == "finished"


def chosen(only: str, gpu: bool, run: Path) -> list[tuple[Benchmark, str]]:
    """The benchmarks of a set with their options. Raises SystemExit for an unknown name."""
    names = only.split(",") if only else [each.name for each in BENCHMARKS]
    unknown = set(names) - {each.name for each in BENCHMARKS}
    if unknown:
        raise SystemExit(f"--only: found {sorted(unknown)}, expected some of {[each.name for each in BENCHMARKS]}")
    found = []
    for each in BENCHMARKS:
        options = each.gpu if gpu else each.cpu
        if each.name not in names or options is None:
            continue
        if each.needs_run and not finished(run):
            print(f"{each.name}: left out, no finished run in {run} (make demo)")
            continue
        if finished(run) and each.name in ("bridge", "demo_rerun"):
            options = f"{options} --run {run}"
        found.append((each, options))
    return found


def carried_out(benchmark: Benchmark, options: str, folder: Path, gpu: bool) -> dict[str, Any]:
    """Run one script; its results with the seconds that all of it took, or what it printed last."""
    out = folder / f"{benchmark.name}.json"
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", "--json", str(out), *options.split()]
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    print(f"\n== {benchmark.name} {options}", flush=True)
    started = time.monotonic()
    done = subprocess.run(command, env=os.environ | hidden, stderr=subprocess.PIPE, text=True)
    seconds = round(time.monotonic() - started, 1)
    if done.returncode or not out.is_file():
        sys.stderr.write(done.stderr)
        return {"failed": done.stderr[-2000:], "seconds": seconds}
    return json.loads(out.read_text()) | {"options": options, "seconds": seconds}


def verdicts(benchmark: Benchmark, result: dict[str, Any], gpu: bool) -> list[dict[str, Any]]:
    """One entry a comparison: name, ratio, target (None: no target) and whether it is met."""
    rows = []
    for row in result.get("comparisons", []):
        wanted = next((pair[gpu] for start, pair in benchmark.targets.items() if row["name"].startswith(start)), None)
        met = None if wanted is None else row["ratio"] >= wanted
        rows.append(
            {"benchmark": benchmark.name, "row": row["name"], "ratio": row["ratio"], "target": wanted, "met": met}
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Ratios beside targets."""
    width = max([len(row["row"]) for row in rows], default=0)
    print(f"\n{'':20} {'':{width}} {'ratio':>9} {'target':>9}")
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.1f}x"
        word = {None: "", True: "met", False: "missed"}[row["met"]]
        print(f"{row['benchmark']:20} {row['row']:{width}} {row['ratio']:>8.1f}x {target:>9} {word}")


def device_name(environment: dict[str, Any], gpu: bool) -> str:
    """Of the GPU, or of the processor with its number of cores, fit for a file name."""
    name = environment["cuda"][0] if gpu else f"{environment['cpu']} {environment['cpu_count']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="the CUDA set")
    parser.add_argument("--only", default="", help="names, comma-separated")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished demo run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        print("bench-gpu: found no CUDA device, expected one; mend: run it on a machine with a GPU, or `make bench`")
        return 2
    environment, results, rows = measured_on(), {}, []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        for benchmark, given in chosen(options.only, options.gpu, options.run):
            results[benchmark.name] = carried_out(benchmark, given, Path(name), options.gpu)
            rows += verdicts(benchmark, results[benchmark.name], options.gpu)
    show(rows)
    failed = [name for name, result in results.items() if "failed" in result]
    total = round(sum(result["seconds"] for result in results.values()), 1)
    load = os.getloadavg()[0]
    path = options.out / f"{date.today()}-{device_name(environment, options.gpu)}.json"
    told = {"date": str(date.today()), "load_at_the_end": load, "seconds": total, "environment": environment}
    write_json(path, told | {"verdicts": rows, "benchmarks": results})
    print(f"\n{total / 60:.1f} minutes, load {load:.1f}; written: {path}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
