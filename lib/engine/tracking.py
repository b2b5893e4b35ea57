"""Numbers of a run to TensorBoard, trackio or Weights & Biases, beside the JSON lines that are always written.

`start` says where to; `Progress.record` and `Run.record` then pass on what they are given. A backend opens with the
first number, writes below the run folder and sends nothing anywhere, unless `tracking.online` says so. Every loop has
its own steps: numbers are named `<loop>/<name>`. A resumed run goes on in the same place.
"""

from __future__ import annotations

import atexit
import difflib
import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lib.errors import FoundExpected
from lib.settings import TrackingSettings


class TrackingError(FoundExpected):
    """A tracker that does not exist or is not installed."""


class Tracker(Protocol):
    """What a backend must do."""

    def log(self, title: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of a loop."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Results of the run, which have no step."""

    def close(self) -> None:
        """Write out what is buffered."""


class TensorBoard:
    """Event files in one folder a loop, so that a resumed loop replaces the steps it repeats and no others."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], settings: TrackingSettings) -> None:
        self.folder, self._writers = folder, {}

    def log(self, title: str, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if title not in self._writers:
            slug = re.sub(r"[^\w.-]+", "_", title)
            self._writers[title] = SummaryWriter(str(self.folder / slug), purge_step=step, flush_secs=10)
        for name, value in values.items():
            self._writers[title].add_scalar(f"{title}/{name}", value, step)

    def summary(self, values: Mapping[str, float]) -> None:
        self.log("results", 0, values)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class Trackio:
    """trackio's own database, in this folder; `trackio show` looks at it."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], settings: TrackingSettings) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder))  # read by trackio when it is imported
        import trackio

        local = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.run = trackio.init(settings.project, name=name, config=dict(config), resume="allow", **local)

    def log(self, title: str, step: int, values: Mapping[str, float]) -> None:
        self.run.log({f"{title}/{name}": value for name, value in values.items()}, step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.log(dict(values))

    def close(self) -> None:
        self.run.finish()


class WandB:
    """Weights & Biases; offline it leaves folders for `wandb sync`."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], settings: TrackingSettings) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=settings.project,
            name=name,
            id=re.sub(r"\W+", "-", f"{settings.project}-{name}"),
            dir=str(folder),
            config=dict(config),
            mode="online" if settings.online else "offline",
            resume="allow" if settings.online else None,
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )

    def log(self, title: str, step: int, values: Mapping[str, float]) -> None:
        self.run.define_metric(f"{title}/*", step_metric=f"{title}/step")
        self.run.log({f"{title}/step": step} | {f"{title}/{name}": value for name, value in values.items()})

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def close(self) -> None:
        self.run.finish(quiet=True)


BACKENDS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}

_waiting: list[Callable[[], Tracker]] = []  # chosen backends that have had no number yet
_open: list[Tracker] = []


def start(settings: TrackingSettings, run: Path, config: Mapping[str, Any]) -> None:
    """Send numbers from now on to the backends of the settings, for this run folder; earlier ones are closed.

    Of a distributed job only rank 0 tracks. Raises TrackingError for a name that is unknown or not installed.
    """
    stop()
    if int(os.environ.get("RANK", "0")) > 0:
        return
    folder = Path(settings.folder or run / "tracking")
    for name in settings.backends:
        if name not in BACKENDS:
            near = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.0)[0]
            raise TrackingError("tracking.backends", repr(name), f"some of {list(BACKENDS)}", f"write {near}")
        if find_spec(name) is None:
            mend = f"pip install 'hoi-workbench[{name}]', or leave it out"
            raise TrackingError("tracking.backends", f"{name}, which is not installed", "an installed tracker", mend)
        backend, place = BACKENDS[name], folder / name
        _waiting.append(lambda backend=backend, place=place: backend(place, run.resolve().name, config, settings))


def log(title: str, step: int, values: Mapping[str, Any]) -> None:
    """Numbers of one step; what is no number is left out."""
    numbers = _numbers(values)
    for tracker in _trackers() if numbers else []:
        tracker.log(title, step, numbers)


def summary(values: Mapping[str, Any]) -> None:
    """Results of the run."""
    numbers = _numbers(values)
    for tracker in _trackers() if numbers else []:
        tracker.summary(numbers)


def stop() -> None:
    """Close all backends; done at exit, too."""
    _waiting.clear()
    while _open:
        _open.pop().close()


def _trackers() -> list[Tracker]:
    while _waiting:
        _open.append(_waiting.pop(0)())
    return _open


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


atexit.register(stop)
