"""Exit codes of the commands that run for long (docs/long_runs.md)."""

from __future__ import annotations

import signal
from enum import IntEnum


class Exit(IntEnum):
    """How a batch of notebooks or a sweep ended."""

    FINISHED = 0
    FAILED = 1
    SETTINGS = 2
    LOCKED = 3
    KERNEL_DIED = 4
    DISK_FULL = 5
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM
