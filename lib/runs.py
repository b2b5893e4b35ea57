"""A run is a folder; an artefact is a sub-folder with a fingerprint.

    runs/<run>/{config.yaml, status.json, metrics.json, log.jsonl, environment.json, <artefact>/artifact.json}

A stage asks its run for an artefact (`Run.artifact`). The fingerprint is a hash of the kind, the settings that
shape it and the fingerprints of its parents, so a change anywhere upstream is seen here:

    complete, same fingerprint   -> reused, nothing runs
    absent, or left unfinished   -> made (an unfinished one with the same fingerprint is resumed)
    complete, other fingerprint  -> StaleArtifactError with both sides, unless `recompute` is set

While something is made its process holds the run's lock (`lib.engine.locks`): one writer a folder. Everything is
written to a temporary name, flushed, and renamed: a killed run leaves no half file that looks whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from lib.engine import locks, tracking
from lib.engine.cost import measured

SCHEMA = 1


class StaleArtifactError(RuntimeError):
    """An artefact exists but was made from other settings or parents than the ones asked for."""


# ---------------------------------------------------------------- writing


def atomic_write(path: Path | str, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that `path` holds either the old content or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Atomic UTF-8 text."""
    atomic_write(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path | str, value: Any) -> None:
    """Atomic, indented JSON; dataclasses, paths and numpy numbers are converted."""
    write_text(path, json.dumps(value, indent=1, default=_plain) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON file that holds a mapping; empty where there is none."""
    path = Path(path)
    return json.loads(path.read_text()) if path.is_file() else {}


def append_jsonl(path: Path | str, value: Mapping[str, Any]) -> None:
    """Append one JSON line; a single write call, so a kill can at worst cut the last line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(value, default=_plain) + "\n")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file; a last line cut by a kill is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


# ---------------------------------------------------------------- fingerprints


def fingerprint(kind: str, settings: Any, parents: Sequence[str] = ()) -> str:
    """16 hex digits of a SHA-256 over kind, settings (any JSON-able value or dataclass) and parents in order."""
    canonical = json.dumps([SCHEMA, kind, settings, list(parents)], sort_keys=True, default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------- artefacts and runs


@dataclass(frozen=True)
class Artifact:
    """A complete artefact folder."""

    kind: str
    path: Path
    fingerprint: str
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str) -> Artifact:
        """Read `artifact.json`; raises FileNotFoundError for a folder without one, RuntimeError for a partial one."""
        path = Path(path)
        record = _read_record(path)
        if record is None:
            raise FileNotFoundError(f"{path}: found no artifact.json, expected a folder written by a run's stage")
        if record["state"] != "complete":
            raise RuntimeError(f"{path}: the artefact is {record['state']}; run its stage again to finish it")
        return cls(record["kind"], path, record["fingerprint"], record.get("info", {}))


def _read_record(path: Path) -> dict[str, Any] | None:
    return read_json(path / "artifact.json") or None


class Run:
    """A run folder: `Run("runs/demo", config)`.

    config: the resolved settings (dataclass or mapping) saved as config.yaml, unless another process is writing the
    run; None opens an existing run.
    recompute: kinds (or "all") whose stale artefacts are replaced instead of refused.
    """

    def __init__(self, root: Path | str, config: Any = None, recompute: Sequence[str] = ()) -> None:
        self.root = Path(root)
        self.recompute = tuple(recompute)
        self.root.mkdir(parents=True, exist_ok=True)
        if config is not None and not locks.holder(self.root):
            from lib.config import to_yaml

            write_text(self.root / "config.yaml", to_yaml(config))
            write_json(self.root / "environment.json", environment())

    def __repr__(self) -> str:
        return f"Run({str(self.root)!r})"

    # -- artefacts

    def artifact(
        self,
        kind: str,
        settings: Any,
        make: Callable[[Path], Mapping[str, Any] | None],
        parents: Sequence[Artifact | str] = (),
    ) -> Artifact:
        """Reuse, make or refuse the artefact folder `<run>/<kind>`.

        make: called with the folder; must be able to resume what it left there; its returned mapping is kept as `info`.
        parents: artefacts (or bare hashes, e.g. of weights) that this one is computed from.
        Raises StaleArtifactError when a complete artefact was made from other settings or parents, LockedError when
        it would have to be made while another process writes the run.
        """
        path = self.root / kind
        ancestry = [parent.fingerprint if isinstance(parent, Artifact) else parent for parent in parents]
        wanted = fingerprint(kind, settings, ancestry)
        found = _read_record(path)
        if found and found["fingerprint"] == wanted and found["state"] == "complete":
            self.log("reused", artifact=kind, fingerprint=wanted)
            return Artifact(kind, path, wanted, found.get("info", {}))
        other = found is not None and found["fingerprint"] != wanted
        if other and found["state"] == "complete" and not {"all", kind} & set(self.recompute):
            raise StaleArtifactError(_stale_message(path, kind, found, wanted, settings, ancestry))
        with locks.hold(self.root, f"making {kind}"):
            if other:
                shutil.rmtree(path)
            record = {
                "kind": kind,
                "schema": SCHEMA,
                "state": "partial",
                "fingerprint": wanted,
                "settings": settings,
                "parents": ancestry,
                "code": code_revision(),
                "started": _now(),
            }
            write_json(path / "artifact.json", record)
            with self.status(f"making {kind}"), measured() as cost:
                info = dict(make(path) or {})
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            record |= {"state": "complete", **cost, "bytes": size, "info": info}
            write_json(path / "artifact.json", record)
            self.log("made", artifact=kind, fingerprint=wanted, seconds=cost["seconds"], bytes=size)
        return Artifact(kind, path, wanted, info)

    def existing(self, kind: str) -> Artifact:
        """The complete artefact `kind` of this run, whatever made it; the error names the notebook order."""
        try:
            return Artifact.load(self.root / kind)
        except (FileNotFoundError, RuntimeError) as error:
            raise type(error)(
                f"{error}\n  mend: run the notebooks of this run in order: make run RUN={self.root}"
            ) from None

    # -- records

    @property
    def metrics(self) -> dict[str, Any]:
        """Flat names to numbers, as recorded so far."""
        return read_json(self.root / "metrics.json")

    def record(self, prefix: str = "", **values: Any) -> None:
        """Merge numbers into metrics.json under `prefix/name`, and hand them to the trackers."""
        flat = {f"{prefix}/{name}" if prefix else name: value for name, value in values.items()}
        tracking.summary(flat)
        write_json(self.root / "metrics.json", dict(sorted((self.metrics | flat).items())))

    def log(self, event: str, **values: Any) -> None:
        """One line of log.jsonl."""
        append_jsonl(self.root / "log.jsonl", {"time": _now(), "event": event, **values})

    @contextmanager
    def status(self, doing: str):
        """Record what the run is doing, and its progress; a raised error is recorded as failed or interrupted."""
        self.write_status("running", doing)
        _doing.append((self, doing))
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # a full disk must not hide the error
                self.write_status(state, doing, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            _doing.pop()
        self.write_status("running" if locks.held_by_parent(self.root) else "idle", doing)

    def read_status(self) -> dict[str, Any]:
        """status.json as it is now; it is replaced as a whole, so it can be read at any time."""
        return read_json(self.root / "status.json")

    def write_status(self, state: str, doing: str, **more: Any) -> None:
        """Replace status.json but for the batch runner's list of notebooks.

        state: running | idle (between two stages) | failed | interrupted | finished.
        """
        kept = {"notebooks": found} if (found := self.read_status().get("notebooks")) else {}
        who = {"pid": os.getpid(), "host": socket.gethostname()}
        write_json(self.root / "status.json", {"state": state, "doing": doing, "time": _now()} | who | kept | more)

    def save_figure(self, name: str, figure: Any, caption: str = "") -> Any:
        """Keep a matplotlib figure as figures/<name>.png with its caption beside it; returns a picture for display."""
        from IPython.display import Image

        path = self.root / "figures" / f"{name}.png"
        atomic_write(path, lambda stream: figure.savefig(stream, format="png", dpi=150))
        if caption:
            write_text(path.with_suffix(".txt"), caption)
        width = int(90 * figure.get_figwidth())
        return Image(_preview(path, width), width=width)


def _preview(path: Path, width: int) -> bytes:
    """What an executed notebook holds of a PNG: 1.2 times the width it is shown at, 256 colours."""
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(path) as full:
        wide = min(full.width, round(1.2 * width))
        small = full.convert("RGB").resize((wide, round(full.height * wide / full.width)), Image.Resampling.LANCZOS)
        # maximum coverage keeps the colour of a single point, which the usual median cut gives up
        few = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(stream, "png", optimize=True)
    return stream.getvalue()


_doing: list[tuple[Run, str]] = []  # what this process is making, innermost last


def report_progress(text: str) -> None:
    """Put a line on how far it is into the status.json of the run that this process makes something for, if any."""
    if _doing:
        run, doing = _doing[-1]
        with suppress(OSError):  # progress never stops the work
            run.write_status("running", doing, progress=text)


def _stale_message(
    path: Path, kind: str, found: Mapping[str, Any], wanted: str, settings: Any, ancestry: Sequence[str]
) -> str:
    old = _flatten(found["settings"])
    new = _flatten(json.loads(json.dumps(settings, default=_plain)))
    lines = [
        f"  {key}: on disk {old.get(key, '(absent)')!r}, asked for {new.get(key, '(absent)')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "(absent)") != new.get(key, "(absent)")
    ]
    if found["parents"] != list(ancestry):
        lines.append(f"  made from other parents: on disk {found['parents']}, asked for {list(ancestry)}")
    return "\n".join(
        [
            f"{path}: found fingerprint {found['fingerprint']}, expected {wanted}",
            *lines,
            f"  mend: use another run folder, restore the settings, or replace it: recompute='[{kind}]'"
            " (everything downstream: recompute='[all]')",
        ]
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix or "settings": value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def code_revision() -> str:
    """Git commit of the working tree with `+` when it has changes; `unknown` outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment() -> dict[str, Any]:
    """What the numbers of a run were made with: versions, device, code revision."""
    import torch

    packages = ("torch", "torchvision", "open_clip_torch", "transformers", "numpy", "pandas", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in packages},
        "code": code_revision(),
    }


def table_of_runs(folder: Path | str = "runs") -> str:
    """One line a run: state, what it did last, full / unseen / seen mAP of EZ-HOI and of the bridge."""
    lines = [f"{'run':24} {'state':9} {'doing':36} {'ezhoi full/unseen/seen':24} bridge"]
    for path in sorted(Path(folder).glob("*/status.json")):
        status, metrics = json.loads(path.read_text()), Run(path.parent).metrics
        scores = [
            " / ".join(f"{metrics[key]:.1f}" if key in metrics else "-" for key in _score_keys(method))
            for method in ("ezhoi", "bridge")
        ]
        lines.append(f"{path.parent.name:24} {status['state']:9} {status['doing']:36} {scores[0]:24} {scores[1]}")
    return "\n".join(lines) if len(lines) > 1 else f"{folder}: no run yet; `make demo` makes one"


def _score_keys(method: str) -> list[str]:
    return [f"{method}/mAP_{group}" for group in ("full", "unseen", "seen")]


if __name__ == "__main__":
    print(table_of_runs())
