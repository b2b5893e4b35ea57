"""What a piece of work costs: seconds, the most memory its process held, the most GPU memory it allocated."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fills the mapping it yields at the end: seconds, peak_memory and, where CUDA was used, gpu_memory (bytes).

    peak_memory is this process's resident memory. Linux lets it start anew with every piece of work; elsewhere it is
    the peak since the process began. Worker processes are not in it.
    """
    cost: dict[str, float] = {}
    torch = sys.modules.get("torch")
    cuda = torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    if cuda:
        cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    try:
        yield cost
    finally:
        cost["seconds"] = round(time.perf_counter() - begun, 3)
        cost["peak_memory"] = _peak_memory()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            cost["gpu_memory"] = torch.cuda.max_memory_allocated()


def _peak_memory() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
