"""One writer a folder: a lock file that names its holder, and that a dead holder does not keep.

    with hold(folder, "running notebooks"):
        ...

`<folder>/lock.json` holds process, machine and start; its modification time is renewed every few seconds. A second
process gets `LockedError` with all of that. The lock of a process that is gone is taken over: on this machine its
process id and start time tell, from another machine (a shared file system) only the missing heartbeat does, after
`SILENT_SECONDS`. What the holder starts (kernels, workers) inherits the lock through the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from lib.errors import FoundExpected

HELD = "HOI_LOCKS"  # tokens of the locks that this process or one of its parents holds
NAME = "lock.json"
HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0  # without a heartbeat for so long, a holder on another machine is taken for dead


class LockedError(FoundExpected):
    """Another process writes this folder."""


@contextmanager
def hold(folder: Path | str, doing: str) -> Iterator[None]:
    """Hold the folder's lock; free of charge where this process or a parent holds it already.

    Ranks above 0 of a distributed job take none: their rank 0 does. Raises LockedError.
    """
    folder = Path(folder)
    if int(os.environ.get("RANK", "0")) > 0 or _mine(read(folder)):
        yield
        return
    token, before = secrets.token_hex(8), os.environ.get(HELD, "")
    _acquire(folder, token, doing)
    os.environ[HELD] = f"{before} {token}".strip()
    stop = threading.Event()
    threading.Thread(target=_beat, args=(folder / NAME, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        os.environ[HELD] = before
        with FileLock(folder / f".{NAME}.guard"):
            if (read(folder) or {}).get("token") == token:
                (folder / NAME).unlink(missing_ok=True)


def holder(folder: Path | str) -> dict[str, Any] | None:
    """The living process other than ours that holds the folder: pid, host, since, doing. None where it is free."""
    found = read(Path(folder))
    return None if found is None or _mine(found) or _dead(Path(folder), found) else found


def held_by_parent(folder: Path | str) -> bool:
    """True where the batch runner or sweep that started this process holds the folder."""
    found = read(Path(folder))
    return _mine(found) and found["pid"] != os.getpid()


def read(folder: Path) -> dict[str, Any] | None:
    """The folder's lock as it stands, whoever holds it, dead or alive."""
    try:
        return json.loads((folder / NAME).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _acquire(folder: Path, token: str, doing: str) -> None:
    from lib.runs import write_json  # runs.py locks folders too

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{NAME}.guard"):  # only while deciding, so that two newcomers cannot both take over
        found = read(folder)
        if found:
            reason = _dead(folder, found)
            if not reason:
                raise LockedError(folder, *_refusal(found))
            print(f"{folder}: took over the lock of process {found['pid']} on {found['host']}: {reason}", flush=True)
        place, pid = _place(), os.getpid()
        started = psutil.Process().create_time()
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        record = {"pid": pid, "started": started, "host": socket.gethostname(), "place": place}
        write_json(folder / NAME, record | {"doing": doing, "since": since, "token": token})


def _refusal(found: dict[str, Any]) -> tuple[str, str, str]:
    here = found["place"] == _place()
    stop = f"stop it with: kill -INT {found['pid']}" if here else f"stop it on {found['host']}"
    after = "" if here else f"; its lock is free {SILENT_SECONDS:.0f} s after its last sign of life"
    return (
        f"process {found['pid']} on {found['host']} ({found['doing']} since {found['since']})",
        "no other process that writes this folder",
        f"wait for it, {stop}{after}, or use another run folder",
    )


def _mine(found: dict[str, Any] | None) -> bool:
    return bool(found) and found["token"] in os.environ.get(HELD, "").split()


def _dead(folder: Path, found: dict[str, Any]) -> str:
    """Why the holder is gone; empty while it may be alive."""
    if found["place"] == _place():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(found["pid"])
            if process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - found["started"]) < 2:
                return ""
        return "that process is no longer there"
    clock = folder / f".{NAME}.clock"  # the file system's own clock: other machines' may differ from ours
    clock.touch()
    silent = clock.stat().st_mtime - (folder / NAME).stat().st_mtime
    clock.unlink(missing_ok=True)
    return f"no sign of life for {silent:.0f} s" if silent > SILENT_SECONDS else ""


def _place() -> str:
    """Where a process id means something: this host, this boot, this container."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text().strip() if boot.is_file() else ""]
    with contextlib.suppress(OSError):
        parts.append(str(space.readlink()))
    return " ".join(parts)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
