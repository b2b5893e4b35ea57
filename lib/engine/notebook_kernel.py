"""One notebook in one kernel, watched: its output in a log file, its memory, its death explained, nothing left behind.

Papermill executes; here is what it lacks: the notebook is replaced as a whole at every save, console output is thinned
to a line every few seconds, the kernel speaks over Unix sockets (no ports to clash), dies with its parent, and a dead
kernel is told apart from a failed cell.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError

from lib.engine import dead_process
from lib.runs import write_text

CONSOLE_SECONDS = 5.0
WATCH_SECONDS = 0.5
TRACE_CRASHES = "--IPKernelApp.exec_lines=import faulthandler; faulthandler.enable()"  # into the log, past Jupyter


class KernelDied(RuntimeError):
    """The kernel's process ended in the middle of a notebook; the text says how and what to do."""


@dataclass
class Executed:
    """What a notebook cost: wall seconds, and the most memory its kernel and their children held, bytes."""

    seconds: float
    peak_memory: int


def execute(
    notebook: Path, target: Path, parameters: Mapping[str, Any], log: Path, cwd: Path, verbose: bool = False
) -> Executed:
    """Execute a notebook into `target`, saved as a whole after every cell; its output is appended to `log`.

    verbose: every line also goes to the console, instead of one every few seconds.
    Raises papermill's PapermillExecutionError for a failed cell and KernelDied.
    """
    import papermill

    _save_atomically(target)
    log.parent.mkdir(parents=True, exist_ok=True)
    begun, oom_before, peak = time.perf_counter(), dead_process.oom_kills(), [0]
    with log.open("a", buffering=1) as stream:
        stream.write(f"---- {notebook.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        output, kernels = _Output(stream, 0.0 if verbose else CONSOLE_SECONDS), []
        try:
            with _watch(kernels, peak), TemporaryDirectory(prefix="hoi-kernel-") as sockets:
                papermill.execute_notebook(
                    str(notebook),
                    str(target),
                    dict(parameters),
                    cwd=str(cwd),
                    kernel_name="python3",
                    progress_bar=False,
                    log_output=False,
                    stdout_file=output,
                    stderr_file=output,
                    kernel_manager_class=_manager(stream, kernels, Path(sockets)),
                    extra_arguments=[TRACE_CRASHES],
                )
        except RuntimeError as error:  # nbclient's own for a dead kernel, jupyter_client's where it died in its start
            returncode = kernels[-1].poll() if kernels else None
            if returncode is None and not isinstance(error, DeadKernelError):
                raise
            why = dead_process.explain(returncode, peak[0], oom_before, output.last)
            stream.write(f"---- the kernel died: {why}\n")
            raise KernelDied(f"{notebook.stem}: the kernel died: {why}\n  log: {log}") from None
        finally:
            for kernel in kernels:
                _end(kernel)
    return Executed(round(time.perf_counter() - begun, 1), peak[0])


class _Output:
    """File-like: everything into the log, and to the console at most one line in `every` seconds."""

    def __init__(self, log: TextIO, every: float) -> None:
        self.log, self.every = log, every
        self.last, self._partial, self._shown = "", "", time.monotonic()

    def write(self, text: str) -> None:
        self.log.write(text)
        *lines, self._partial = (self._partial + text).split("\n")
        lines = [line.rpartition("\r")[2].rstrip() for line in lines]
        for line in filter(None, lines):
            self.last = line
            if time.monotonic() - self._shown >= self.every:
                print(f"   {line}", flush=True)
                self._shown = time.monotonic()

    def flush(self) -> None:
        self.log.flush()


@contextmanager
def _watch(kernels: list[subprocess.Popen], peak: list[int]) -> Iterator[None]:
    """Keep the largest memory of the last kernel in peak[0]."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(WATCH_SECONDS):
            if kernels:
                peak[0] = max(peak[0], dead_process.tree_memory(kernels[-1].pid))

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _manager(log: TextIO, kernels: list[subprocess.Popen], sockets: Path) -> type:
    """Kernel manager that notes the processes it starts; what they write past Jupyter (crashes) goes to the log.

    sockets: a folder of its own; Jupyter's default puts them where two batches of one project would meet.
    """
    prepare = _die_with_parent() if sys.platform == "linux" else None

    class Manager(AsyncKernelManager):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            if os.name == "posix":
                self.transport, self.ip = "ipc", str(sockets / "kernel")

        async def start_kernel(self, **settings: Any) -> None:
            await super().start_kernel(stdout=log, stderr=log, preexec_fn=prepare, **settings)
            kernels.append(self.provisioner.process)

    return Manager


def _die_with_parent() -> Any:
    """For the child, between fork and exec: the system kills it when its parent is gone (prctl, Linux)."""
    prctl, parent, set_death_signal = ctypes.CDLL(None).prctl, os.getpid(), 1

    def prepare() -> None:
        prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _end(kernel: subprocess.Popen) -> None:
    """Whatever happened, no process of the kernel's group stays."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(kernel.pid, signal.SIGKILL)  # it was started as the leader of its own group
    with contextlib.suppress(subprocess.TimeoutExpired):
        kernel.wait(timeout=5)


def _save_atomically(target: Path) -> None:
    """Papermill writes notebooks in place; a kill would leave half of one."""
    from papermill.iorw import LocalHandler, papermill_io

    class Whole(LocalHandler):
        def write(self, buf: str, path: str) -> None:
            write_text(path, buf)

    papermill_io.register(str(target), Whole())
