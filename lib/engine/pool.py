"""The same function on many arguments, several at a time: on processes of this machine, or through Ray on a cluster.

    for number, result in run_tasks(train, [(config, seed) for seed in range(8)], on="ray", jobs=4, gpus=1):

A process of this machine that dies (for memory, say) takes no other task with it, and all of them go when this process
goes. A result is what the function returned, or a `TaskFailed` that says why it did not.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from lib.engine import dead_process
from lib.errors import FoundExpected

PLACES = ("processes", "ray")
TICK_SECONDS = 5.0
ENDING_SECONDS = 10.0  # for a process to end after an interrupt, before it is killed


class TaskFailed(RuntimeError):
    """A task raised an error or its process died."""


def run_tasks(
    fn: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    *,
    on: str = "processes",
    jobs: int = 1,
    cpus: int = 1,
    gpus: float = 0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """(number of the task, result or TaskFailed) in the order in which they end.

    fn: importable. on: processes | ray; Ray joins the cluster that RAY_ADDRESS names, else it starts one here.
    jobs: tasks at a time on this machine. cpus, gpus: what each one needs; half a GPU shares it between two.
    tick: called every few seconds while waiting. Raises FoundExpected where the place or the GPUs are missing.
    """
    if on not in PLACES:
        raise FoundExpected("--on", repr(on), f"one of {PLACES}", "--on processes")
    run = _on_ray if on == "ray" else _on_processes
    yield from run(fn, tasks, jobs, cpus, gpus, tick)


# ---------------------------------------------------------------- processes


@dataclass
class _Worker:
    """A process that takes one task after another; `number` is the task it is at."""

    process: BaseProcess
    pipe: Connection
    devices: tuple[str, ...]
    oom_before: int
    number: int | None = None


def _on_processes(
    fn: Callable[..., Any], tasks: Sequence[tuple], jobs: int, cpus: int, gpus: float, tick: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    waiting, workers, free = deque(enumerate(tasks)), [], _devices(gpus)
    try:
        while waiting or any(worker.number is not None for worker in workers):
            while len(workers) < min(jobs, len(tasks)) and waiting and len(free) >= ceil(gpus):
                workers.append(_start(fn, tuple(free.pop(0) for _ in range(ceil(gpus)))))
            for worker in workers:
                if worker.number is None and waiting:
                    worker.number, arguments = waiting.popleft()
                    worker.pipe.send(arguments)
            busy = [worker for worker in workers if worker.number is not None]
            ready = wait([worker.pipe for worker in busy], timeout=TICK_SECONDS)
            if not ready:
                tick()
            for worker in [worker for worker in busy if worker.pipe in ready]:
                number, result = worker.number, _result(worker)
                worker.number = None
                if not worker.process.is_alive():
                    workers.remove(worker)
                    free.extend(worker.devices)
                yield number, result
    finally:
        _end(workers)


def _devices(gpus: float) -> list[str]:
    """GPU names as CUDA_VISIBLE_DEVICES wants them, each as often as tasks fit on it."""
    if not gpus:
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(names) < gpus:
        raise FoundExpected("gpus", f"{len(names)} GPUs here", f"{gpus:g} a task", "ask for fewer, or use --on ray")
    return names * max(1, int(1 / gpus))


def _start(fn: Callable[..., Any], devices: tuple[str, ...]) -> _Worker:
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, fn, devices))
    process.start()
    theirs.close()  # so that the pipe ends with the process
    return _Worker(process, pipe, devices, dead_process.oom_kills())


def _work(pipe: Connection, fn: Callable[..., Any], devices: tuple[str, ...]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)  # before CUDA starts in this process
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            arguments = pipe.recv()
            try:
                pipe.send((True, fn(*arguments)))
            except Exception as error:
                traceback.print_exc()
                pipe.send((False, f"{type(error).__name__}: {error}"))


def _die_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _result(worker: _Worker) -> Any:
    try:
        succeeded, value = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        why = dead_process.explain(worker.process.exitcode, 0, worker.oom_before)
        return TaskFailed(f"its process died: {why}")
    return value if succeeded else TaskFailed(value)


def _end(workers: Sequence[_Worker]) -> None:
    """Idle processes leave; busy ones are interrupted, so that runs note it in their status, then killed."""
    for worker in workers:
        worker.pipe.close()
        if worker.number is not None and worker.process.is_alive():
            os.kill(worker.process.pid, signal.SIGINT)
    for worker in workers:
        worker.process.join(ENDING_SECONDS)
        worker.process.kill()
        worker.process.join()


# ---------------------------------------------------------------- Ray


def _on_ray(
    fn: Callable[..., Any], tasks: Sequence[tuple], jobs: int, cpus: int, gpus: float, tick: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        mend = "pip install 'hoi-workbench[cluster]', or --on processes"
        raise FoundExpected("--on ray", "no Ray", "the package ray", mend) from None
    started = not ray.is_initialized()
    if started:
        local = {"num_cpus": jobs * cpus, "include_dashboard": False} if not os.environ.get("RAY_ADDRESS") else {}
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(fn)
    pending = {remote.remote(*arguments): number for number, arguments in enumerate(tasks)}
    try:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=TICK_SECONDS)
            if not ready:
                tick()
            for reference in ready:
                number = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    result = TaskFailed(f"{type(error.cause).__name__}: {error.cause}")
                except ray.exceptions.RayError as error:
                    result = TaskFailed(f"its process died: {error}")
                yield number, result
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()
