"""Progress of long work: a bar and a live loss curve in JupyterLab, one log line every few seconds without a screen.

Each printed line also goes into the run's status.json, recorded numbers also to the trackers (`lib.engine.tracking`).
A worker process that has no screen of its own hands both over with `listen`.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tqdm.auto import tqdm

from lib.engine import tracking
from lib.runs import append_jsonl, report_progress

HEADLESS = "HOI_HEADLESS"  # set by the batch runner: no widgets, one line every few seconds
LINE_SECONDS, LINE_SECONDS_MOST = 5.0, 60.0  # lines come at 5 s, and rarer as the work grows longer

_listener: Callable[[dict[str, Any]], None] | None = None


def interactive() -> bool:
    """True in a notebook that a person looks at: a kernel is there and the batch runner did not start it."""
    return "ipykernel" in sys.modules and not os.environ.get(HEADLESS)


def listen(listener: Callable[[dict[str, Any]], None] | None) -> None:
    """Send progress of this process to `listener` instead of the screen: {title, total, done, start, curve, values,
    recorded, over}.

    None: the screen again. The listener is called every few seconds and with every recorded value.
    """
    global _listener
    _listener = listener


class Progress:
    """Progress over `total` steps, with optional named numbers.

        with Progress("EZ-HOI", total, history=folder / "history.jsonl", curve="loss") as progress:
            progress.step(loss=loss)

    history: JSON lines file that receives every value given to `record`. curve: name of the value drawn live.
    """

    def __init__(
        self, title: str, total: int, *, start: int = 0, history: Path | None = None, curve: str | None = None
    ) -> None:
        self.title, self.total, self.done = title, total, start
        self.history, self.curve = history, curve
        self._live = interactive() and _listener is None
        self._begun = self._printed = time.monotonic()
        self._start = start
        self._values: dict[str, Any] = {}
        self._points: list[tuple[int, float]] = []
        self._handle: Any = None
        self._bar = tqdm(total=total, initial=start, desc=title) if self._live else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif _listener is not None:
            self._tell({}, over=True)
        elif self.done > self._start:
            self._print()

    def step(self, count: int = 1, **values: Any) -> None:
        """Advance by `count`; `values` are shown beside the bar or on the next log line."""
        self.done += count
        self._values |= values
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if now - self._printed < self._interval(now):
            return
        self._printed = now
        if self._bar is None:
            self._print()
        else:
            self._bar.set_postfix(self._values)
            self._draw()
            report_progress(self._line())

    def record(self, **values: Any) -> None:
        """Append numbers to the history file, to the live curve and to the trackers."""
        if self.history is not None:
            append_jsonl(self.history, {"step": self.done, **values})
        if self.curve in values:
            self._points.append((self.done, float(values[self.curve])))
        self._values |= values
        if _listener is None:
            tracking.log(self.title, self.done, values)
        else:
            self._tell(values)

    def _interval(self, now: float) -> float:
        """A night of lines every 5 s would drown a notebook."""
        longer = 1.0 if _listener else (now - self._begun) / 60
        return min(max(LINE_SECONDS, longer), LINE_SECONDS_MOST)

    def _tell(self, recorded: dict[str, Any], over: bool = False) -> None:
        state = {"title": self.title, "total": self.total, "done": self.done, "start": self._start}
        _listener(state | {"curve": self.curve, "values": self._values, "recorded": recorded, "over": over})

    def _line(self) -> str:
        elapsed = time.monotonic() - self._begun
        rate = (self.done - self._start) / max(elapsed, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        numbers = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self._values.items()
        )
        eta = f"{left:.0f} s left" if math.isfinite(left) and left < 1e7 else ""
        return f"{self.title}: {self.done}/{self.total}  {rate:.1f}/s  {eta}  {numbers}".rstrip()

    def _print(self) -> None:
        if _listener is not None:
            self._tell({})
            return
        print(self._line(), flush=True)
        report_progress(self._line())

    def _draw(self) -> None:
        if len(self._points) < 2:
            return
        import matplotlib.pyplot as plt
        from IPython.display import display

        figure, axis = plt.subplots(figsize=(6, 2.2))
        axis.plot(*zip(*self._points, strict=True))
        axis.set(title=self.title, xlabel="step", ylabel=self.curve)
        plt.close(figure)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)


def track(items: Sequence[Any] | Iterable[Any], title: str, total: int | None = None) -> Iterator[Any]:
    """Iterate with progress."""
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with Progress(title, count) as progress:
        for item in items:
            yield item
            progress.step()
