"""Progress of long work: a bar and a live loss curve in JupyterLab, one log line every few seconds without a screen."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tqdm.auto import tqdm

from lib.runs import append_jsonl

HEADLESS = "HOI_HEADLESS"  # set by the batch runner: no widgets, one line every few seconds
LINE_SECONDS = 5.0


def interactive() -> bool:
    """True in a notebook that a person looks at: a kernel is there and the batch runner did not start it."""
    return "ipykernel" in sys.modules and not os.environ.get(HEADLESS)


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
        self._live = interactive()
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
        elif self.done > self._start:
            self._print()

    def step(self, count: int = 1, **values: Any) -> None:
        """Advance by `count`; `values` are shown beside the bar or on the next log line."""
        self.done += count
        self._values |= values
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS:
            self._printed = now
            if self._bar is None:
                self._print()
            else:
                self._bar.set_postfix(self._values)
                self._draw()

    def record(self, **values: Any) -> None:
        """Append numbers to the history file and to the live curve."""
        if self.history is not None:
            append_jsonl(self.history, {"step": self.done, **values})
        if self.curve in values:
            self._points.append((self.done, float(values[self.curve])))
        self._values |= values

    def _print(self) -> None:
        elapsed = time.monotonic() - self._begun
        rate = (self.done - self._start) / max(elapsed, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        numbers = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self._values.items()
        )
        eta = f"{left:.0f} s left" if math.isfinite(left) and left < 1e7 else ""
        print(f"{self.title}: {self.done}/{self.total}  {rate:.1f}/s  {eta}  {numbers}".rstrip(), flush=True)

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
