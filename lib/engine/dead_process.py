"""Why a process died, in words: killed for memory, killed by someone, crashed, or left by itself."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)


def explain(returncode: int | None, peak: int, oom_before: int, last_line: str = "") -> str:
    """One paragraph: how it ended, the memory it had, the last line it wrote, and what to do.

    returncode: as subprocess gives it, negative for a signal. peak: largest memory seen, bytes (0 = not seen).
    oom_before: `oom_kills()` from before it started.
    """
    memory = psutil.virtual_memory().total
    held = f"; it held {peak / 2**30:.1f} of {memory / 2**30:.1f} GiB at most" if peak else ""
    smaller = "use smaller batches (clip.batch_size, ezhoi.batch_size, detector.batch_size) or fewer workers"
    again = "the same command resumes where it stopped"
    if returncode == -signal.SIGKILL:
        if oom_kills() > oom_before:
            ended, mend = "out of memory: the system killed it (its count of such kills rose)", f"{smaller}; {again}"
        else:
            ended = "killed by signal 9 (SIGKILL): somebody's kill -9, or a machine out of memory"
            mend = f"if nobody killed it, {smaller}; {again}"
    elif returncode is not None and -returncode in CRASHES:
        ended = f"crashed with signal {-returncode} ({signal.Signals(-returncode).name}) in compiled code"
        mend = f"the log holds the Python stack if there was time for one; {again}"
    elif returncode is not None and returncode < 0:
        ended, mend = f"ended by signal {-returncode} ({signal.Signals(-returncode).name})", again
    elif returncode is None:
        ended, mend = "lost: it no longer answers", again
    else:
        ended, mend = f"left by itself with exit code {returncode} (os._exit or sys.exit in a cell)", again
    said = f"\n  last line: {last_line}" if last_line else ""
    return f"{ended}{held}{said}\n  mend: {mend}"


def oom_kills() -> int:
    """How often the system has killed a process of this control group for memory; 0 where it does not tell."""
    for group in Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").is_file() else []:
        _, controllers, path = group.split(":", 2)
        root = Path("/sys/fs/cgroup") / ("memory" if controllers == "memory" else "")
        if controllers not in ("", "memory"):
            continue
        for folder in (root / path.lstrip("/"), root):  # inside a container the group is mounted as the root
            for name in ("memory.events", "memory.oom_control"):
                try:
                    counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                except (OSError, ValueError):
                    continue
                if "oom_kill" in counts:
                    return int(counts["oom_kill"])
    return 0


def tree_memory(pid: int) -> int:
    """Bytes of memory held by a process and everything below it (pages shared by several are counted in each)."""
    total = 0
    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in members:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total
