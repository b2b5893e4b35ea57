"""Any function on N processes of this machine, or of M machines, from a notebook or from the shell.

    launch(fn, *args, settings=LaunchSettings(processes=4))            # fn(*args) in each of them

    python -m lib.engine.launch configs/x.yaml runs/x ezhoi pairs:test launch.processes=4
    torchrun --nproc-per-node 4 -m lib.engine.launch configs/x.yaml runs/x ezhoi pairs:test

Processes are spawned by torch's elastic launcher (the engine behind torchrun), so the caller may have used CUDA.
Progress of the first process is shown here; a failure comes back with its rank and traceback; Ctrl-C, and the death of
this process, end all of them. docs/cluster.md has the commands for several machines.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lib.engine.distributed import device_named, hand_out, is_first, lead_or_serve
from lib.engine.failures import explain
from lib.engine.mirror import mirrored
from lib.engine.progress import listen
from lib.engine.worker import Job, join, leave, work
from lib.errors import FoundExpected
from lib.settings import LaunchSettings

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
NOISY = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")
SHUTDOWN_SECONDS = 5  # for processes to end by themselves before they are killed


class WorkerError(RuntimeError):
    """A process of a launch failed; the text has its rank and traceback."""


def launch(
    fn: Callable[..., Any], *args: Any, settings: LaunchSettings, device: torch.device | str = "cpu"
) -> list[Any]:
    """fn(*args) in every process; the results of this machine's processes in order of rank.

    One process is this one; inside a launch the processes are those that are there. fn must be importable (a function
    of a module, not of a notebook cell), its arguments and result must pickle. device: cpu or cuda; every process takes
    a GPU of its own.
    Raises WorkerError with the traceback of the process that failed first, KeyboardInterrupt after Ctrl-C.
    """
    if dist.is_initialized():
        return hand_out(fn, *args)
    count = process_count(settings)
    if count * settings.nodes == 1:
        return [fn(*args)]
    cuda = _check(fn, settings, torch.device(device))
    address = _address_towards(settings.rendezvous) if settings.nodes > 1 else None
    with TemporaryDirectory(prefix="hoi-launch-") as folder:
        job = Job(
            fn, args, _backend(settings, cuda), cuda, max(1, torch.get_num_threads() // count),
            settings.timeout_minutes, Path(folder, "progress.jsonl"), os.getpid(), address,
        )  # fmt: skip
        # a restart finds the addresses of lost processes in a store that outlives them
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = str(int(settings.max_restarts > 0))
        with mirrored(job.relay), _own_signals(), _quiet():
            try:
                found = elastic_launch(_configuration(settings, count, address, folder), work)(job)
            except ChildFailedError as error:
                raise WorkerError(explain(error.failures, count * settings.nodes, Path(folder))) from None
            except SignalException as error:
                if error.sigval == signal.SIGINT:
                    raise KeyboardInterrupt("launch: interrupted; its processes have ended") from None
                raise SystemExit(128 + error.sigval) from None
    return [found[rank] for rank in sorted(found)]


def process_count(settings: LaunchSettings) -> int:
    """Processes on this machine; `launch.processes` 0 means one a GPU, or one."""
    return settings.processes or torch.cuda.device_count() or 1


def _check(fn: Callable[..., Any], settings: LaunchSettings, device: torch.device) -> bool:
    """Whether processes take GPUs; FoundExpected for what cannot work."""
    if fn.__module__ == "__main__":
        raise FoundExpected(
            "launch", f"the function {fn.__qualname__} of this notebook or script",
            "one that other processes can import", "move it into a module",
        )  # fmt: skip
    if settings.nodes > 1 and ":" not in settings.rendezvous:
        raise FoundExpected(
            "launch.rendezvous", repr(settings.rendezvous), f"host:port for {settings.nodes} machines",
            "launch.rendezvous=<name of the first machine>:29400 on all of them",
        )  # fmt: skip
    if device.type == "cuda" and device.index is not None:
        raise FoundExpected(
            "device", str(device), "cuda or auto: every process takes a GPU of its own", "device=cuda, and choose GPUs"
            " with CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return device.type == "cuda"


def _backend(settings: LaunchSettings, cuda: bool) -> str:
    backend = settings.backend if settings.backend != "auto" else ("nccl" if cuda else "gloo")
    if backend not in ("nccl", "gloo"):
        raise FoundExpected("launch.backend", repr(backend), "auto, nccl or gloo", "launch.backend=auto")
    return "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"  # objects travel over the CPU


def _configuration(settings: LaunchSettings, count: int, address: str | None, folder: str) -> LaunchConfig:
    several = settings.nodes > 1
    return LaunchConfig(
        min_nodes=settings.nodes,
        max_nodes=settings.nodes,
        nproc_per_node=count,
        run_id=settings.id if several else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=settings.rendezvous if several else "localhost:0",
        rdzv_configs=_meeting(settings) if several else {},
        max_restarts=settings.max_restarts,
        local_addr=address or "localhost",
        logs_specs=DefaultLogsSpecs(folder, {rank: Std.ALL for rank in range(1, count)}),  # one process speaks
        shutdown_timeout=SHUTDOWN_SECONDS,
    )


def _address_towards(rendezvous: str) -> str:
    """This machine's address on the way to the meeting point: names of machines often lead to the loopback."""
    host, _, port = rendezvous.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect((host, int(port)))
        return probe.getsockname()[0]


def _meeting(settings: LaunchSettings) -> dict[str, int | bool]:
    """How long to wait for the others, and who holds the meeting: torch compares names, but the address decides."""
    waiting = {"join_timeout": round(60 * settings.timeout_minutes)}
    address = socket.gethostbyname(settings.rendezvous.rpartition(":")[0])
    if address.startswith("127."):
        return waiting  # groups of one machine: torch lets the first of them hold it
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return waiting | {"is_host": False}
    return waiting | {"is_host": True}


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back the signal handlers that the launcher replaces and leaves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {each: signal.getsignal(each) for each in ENDING}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Failures are told once, by `explain`."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(NOISY)]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    from lib.config import ConfigError, load_config
    from lib.stages.by_name import run_stages  # the one place that reaches up, to find stages by name

    parser = argparse.ArgumentParser(prog="python -m lib.engine.launch", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="settings file, such as configs/tiny.yaml")
    parser.add_argument("run", help="run folder; on several machines one that all of them see")
    parser.add_argument("words", nargs="+", help="stages (functions of lib/stages, such as pairs:test) and settings")
    options = parser.parse_args(arguments)  # no option: torchrun would take those that look like its own
    stages = [word for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    job = (options.config, str(Path(options.run).resolve()), stages, overrides)
    try:
        cfg = load_config(options.config, overrides)
        device = device_named(cfg.device)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process, and the others
            join(_backend(cfg.launch, device.type == "cuda"), device.type == "cuda", cfg.launch.timeout_minutes)
            listen(None if is_first() else lambda state: None)
            lead_or_serve(run_stages, *job)
            leave()
        elif cfg.launch.nodes > 1:
            launch(lead_or_serve, run_stages, *job, settings=cfg.launch, device=device)
        else:
            run_stages(*job)
    except (ConfigError, FoundExpected) as error:
        print(error, file=sys.stderr)
        return 2
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
