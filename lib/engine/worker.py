"""What runs in a process that `lib.engine.launch` started: join the group, work, tell the parent how far it is."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from lib.engine.distributed import is_first
from lib.engine.progress import listen
from lib.runs import append_jsonl


@dataclass(frozen=True)
class Job:
    """A function with its arguments, and what a process needs to run it.

    backend: of torch.distributed. cuda: whether the process takes a GPU. threads: of torch on the CPU. relay: JSON
    lines file for progress. parent: process id of the launcher, without which the process ends. address: of this
    machine, among several.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    backend: str
    cuda: bool
    threads: int
    timeout_minutes: float
    relay: Path
    parent: int
    address: str | None = None


def work(job: Job) -> Any:
    """Entry of a started process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal's Ctrl-C reaches every process: no traceback from each
    threading.Thread(target=_leave_with, args=(job.parent,), daemon=True).start()
    torch.set_num_threads(job.threads)
    _use_interface_of(job.address)
    join(job.backend, job.cuda, job.timeout_minutes)
    listen(partial(append_jsonl, job.relay) if is_first() else lambda state: None)
    result = job.fn(*job.args)
    leave()
    return result


def join(backend: str, cuda: bool, timeout_minutes: float) -> None:
    """Enter the process group that the environment describes (as torchrun sets it), with a GPU of its own."""
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))


def leave() -> None:
    """Leave the process group after the last of the work."""
    dist.barrier()
    dist.destroy_process_group()


def _use_interface_of(address: str | None) -> None:
    """Let gloo and nccl talk over the network card of this address: by themselves they may pick the loopback."""
    cards = psutil.net_if_addrs().items() if address else ()
    for name, addresses in cards:
        if address in {each.address for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6)}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _leave_with(parent: int) -> None:
    """A killed launcher cannot end its processes: they watch for it themselves."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
