"""Which process of a launch failed, why, and what to do about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

LAST_LINES = 15
OUR_FRAMES = re.compile(r'  File "[^"]*errors/__init__\.py".*?job\.fn\(\*job\.args\)\n[ ^]*\n', re.DOTALL)
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "DistBackendError", "DistNetworkError")


def explain(failures: Mapping[int, ProcessFailure], world: int, logs: Path) -> str:
    """What the process that failed first had to say. failures: by rank. logs: folder of the launch's output files."""
    rank = min(failures, key=lambda rank: _lateness(failures[rank]))
    failure = failures[rank]
    where = f"launch: rank {rank} of {world} (process {failure.pid})"
    details = failure.error_file_data.get("message")
    if isinstance(details, dict):
        trace = OUR_FRAMES.sub("", details["extraInfo"]["py_callstack"].rstrip())
        return f"{where} failed: {details['message']}\n\n{trace}"
    last = _last_lines(logs, failure.local_rank)
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        mend = (
            "SIGKILL is mostly the machine's answer to a lack of memory: lower the batch size or the workers"
            if failure.exitcode == -signal.SIGKILL
            else "start it again: it resumes from the last checkpoint"
        )
        return f"{where} was ended by {name}\n  mend: {mend}; launch.max_restarts=3 restarts by itself{last}"
    return f"{where} ended with exit code {failure.exitcode}{last}"


def _lateness(failure: ProcessFailure) -> tuple[bool, bool, int]:
    """Smallest for the cause: not one that the launcher ended, nor one that only lost another."""
    said = str(failure.error_file_data.get("message", ""))
    return failure.exitcode == -signal.SIGTERM, any(sign in said for sign in LOST_PEER), failure.timestamp


def _last_lines(logs: Path, local_rank: int) -> str:
    """The end of what the process printed, where that went to files."""
    files = sorted(logs.glob(f"*/attempt_*/{local_rank}/std*.log"))
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return "\nIts last lines:\n" + "\n".join(lines[-LAST_LINES:]) if lines else ""
