"""Side-by-side timing: ours and a stated baseline, interleaved in one process, checked to compute the same.

    result = compare("random reads, warm", ours, baseline, same, repeats=5)
    report("Feature store against pickles", [result], json_path)

Run a benchmark from the project folder: `python -m benchmarks.feature_store --json out.json`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lib.runs import environment, write_json


@contextmanager
def _quick_collection() -> Iterator[None]:
    """Garbage collection before every run looks at what is new only: of all modules it takes longer than many a run."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Comparison:
    """Seconds of every repeat of both sides, by the clock and of the processor, and the memory each adds at its peak.

    baseline: for all of ours' work; where the baseline did a share of it, what that took divided by the share.
    """

    name: str
    ours: list[float]
    baseline: list[float]
    ours_cpu: list[float]
    baseline_cpu: list[float]
    ours_peak_mb: float
    baseline_peak_mb: float
    numbers: dict[str, float] = field(default_factory=dict)  # what else was found, such as sizes and differences
    baseline_share: float = 1.0
    ours_peak_gpu_mb: float = 0.0
    baseline_peak_gpu_mb: float = 0.0

    @property
    def ratio(self) -> float:
        """Baseline's median over ours: how many times faster ours is."""
        return statistics.median(self.baseline) / statistics.median(self.ours)

    @property
    def cpu_ratio(self) -> float:
        """The same in processor seconds, which a busy machine disturbs less; waiting for a disk or GPU is not in it."""
        return statistics.median(self.baseline_cpu) / statistics.median(self.ours_cpu)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Least and greatest ratio of two runs that stood next to each other."""
        ratios = [baseline / ours for baseline, ours in zip(self.baseline, self.ours, strict=True)]
        return min(ratios), max(ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the fields, medians and ratio."""
        medians = {f"{side}_median_s": statistics.median(getattr(self, side)) for side in ("ours", "baseline")}
        ratios = {"ratio": self.ratio, "cpu_ratio": self.cpu_ratio, "ratio_range": self.ratio_range}
        return asdict(self) | medians | ratios


@_quick_collection()
def compare(
    name: str,
    ours: Callable[[], Any],
    baseline: Callable[[], Any],
    same: Callable[[Any, Any], None],
    repeats: int = 5,
    *,
    prepare: Callable[[], None] | None = None,
    numbers: Mapping[str, float] | None = None,
    baseline_share: float = 1.0,
) -> Comparison:
    """Time two ways to the same result.

    Both run once untimed (warm-up and peak memory); `same(result of ours, result of baseline)` raises if they differ.
    Then they alternate `repeats` times, the one that begins changing each time; with no repeats the first runs are what
    is timed, for what takes minutes. prepare: called untimed before every run, for example to empty caches. numbers:
    more findings for the table and the JSON. baseline_share: the baseline does this share of ours' work, because all of
    it would take hours and its parts (images, say) cost the same; its seconds are divided by it.
    """
    sides = {"ours": ours, "baseline": baseline}
    results, peaks, clock = {}, {}, {}
    for side, run in sides.items():
        if prepare:
            prepare()
        started = _clocks()
        results[side], peaks[side] = _with_peak_memory(run)
        clock[side] = [] if repeats else [_since(started)]
    same(results["ours"], results["baseline"])
    results.clear()
    for repeat in range(repeats):
        for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            if prepare:
                prepare()
            clock[side].append(_seconds(sides[side]))
    share = {"ours": 1.0, "baseline": baseline_share}
    seconds = {
        side + kind: [taken[place] / share[side] for taken in clock[side]]
        for side in sides
        for place, kind in enumerate(("", "_cpu"))
    }
    memory = {f"{side}_{kind}": value for side in sides for kind, value in peaks[side].items()}
    return Comparison(name, **seconds, **memory, numbers=dict(numbers or {}), baseline_share=baseline_share)


@_quick_collection()
def timed(run: Callable[[], Any], repeats: int = 3) -> tuple[float, dict[str, float]]:
    """Median seconds of `repeats` runs after one untimed, and the peaks of memory in MB that this one added."""
    _, peaks = _with_peak_memory(run)
    return statistics.median(_seconds(run)[0] for _ in range(repeats)), peaks


def report(title: str, comparisons: Sequence[Comparison], json_path: Path | str | None = None) -> dict[str, Any]:
    """Print one line a comparison; return the same as a dict and write it as JSON if asked."""
    width = max(len(row.name) for row in comparisons)
    print(f"\n{title}\n{machine()}; median of {len(comparisons[0].ours)}, interleaved in one process\n")
    head = f"{'':{width}}  {'ours':>10} {'baseline':>10} {'ratio':>7}  {'range':12} {'CPU':>6} {'peak RAM':>15}"
    print(f"{head}\n{'-' * len(head)}")
    for row in comparisons:
        ours, baseline = (_duration(statistics.median(values)) for values in (row.ours, row.baseline))
        low, high = row.ratio_range
        memory = f"{row.ours_peak_mb:.0f} / {row.baseline_peak_mb:.0f} MB"
        spread = f"{low:.2f}-{high:.2f}"
        times = f"{ours:>10} {baseline:>10} {row.ratio:>6.2f}x  {spread:12} {row.cpu_ratio:>5.2f}x"
        print(f"{row.name:{width}}  {times} {memory:>15}")
        numbers = dict(row.numbers)
        if row.baseline_share != 1:
            numbers["share of the work that the baseline did"] = row.baseline_share
        if row.ours_peak_gpu_mb:
            numbers |= {"peak GPU MB, ours": row.ours_peak_gpu_mb, "peak GPU MB, baseline": row.baseline_peak_gpu_mb}
        for key, value in numbers.items():
            print(f"{'':{width}}    {key}: {value:.4g}")
    print("\nratio = baseline / ours (above 1: ours is faster), CPU = the same in processor seconds;")
    print("peak RAM = added by ours / by the baseline\n")
    result = {
        "title": title,
        "environment": measured_on(),
        "comparisons": [row.to_dict() for row in comparisons],
    }
    if json_path:
        write_json(json_path, result)
        print(f"written: {json_path}")
    return result


def arguments(doc: str, **options: Any) -> argparse.Namespace:
    """Command line of a benchmark: --json OUT, --repeats N, and one option for each keyword, typed by its default."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    for name, default in {"repeats": 5, **options}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}")
    return parser.parse_args()


def _clocks() -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    _synchronize()
    return time.perf_counter(), time.process_time()


def _since(started: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - started[0], now[1] - started[1]


def _seconds(run: Callable[[], Any]) -> tuple[float, float]:
    gc.collect()
    started = _clocks()
    result = run()
    elapsed = _since(started)
    del result
    return elapsed


def _with_peak_memory(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Result, and the peaks of resident memory (nan where /proc is absent) and of GPU memory in MB above the start."""
    gc.collect()
    on_gpu, before, gpu_before = torch.cuda.is_available(), None, 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        gpu_before = torch.cuda.memory_allocated()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak mark starts again at the present value
        before = _status_kb("VmRSS")
    result = run()
    _synchronize()
    resident = float("nan") if before is None else (_status_kb("VmHWM") - before) / 1e3
    gpu = (torch.cuda.max_memory_allocated() - gpu_before) / 1e6 if on_gpu else 0.0
    return result, {"peak_mb": resident, "peak_gpu_mb": gpu}


def _status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def measured_on() -> dict[str, Any]:
    """`lib.runs.environment`, threads and processor."""
    return environment() | {"threads": torch.get_num_threads(), "cpu": _cpu()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def machine() -> str:
    """The device, threads and torch that something was measured with."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _cpu()
    return f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
