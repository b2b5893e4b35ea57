"""Progress of another process, shown in this one: bar and curve in a notebook, lines without a screen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.engine.progress import Progress

POLL_SECONDS = 0.3


@contextmanager
def mirrored(path: Path) -> Iterator[None]:
    """Show what is appended to the JSON lines file `path` (states of `progress.listen`) until the block ends."""
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(path, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show(path: Path, over: threading.Event) -> None:
    shown: dict[str, Progress] = {}
    position, last = 0, False
    while not last:
        last = over.wait(POLL_SECONDS)  # then once more, for what came in the meantime
        lines, position = _new_lines(path, position)
        for line in lines:
            _follow(shown, json.loads(line))
    for progress in shown.values():
        progress.__exit__()


def _new_lines(path: Path, position: int) -> tuple[list[bytes], int]:
    """Whole lines from a position on, and the position behind them."""
    if not path.is_file():
        return [], position
    with path.open("rb") as stream:
        stream.seek(position)
        text = stream.read()
    whole = text[: text.rfind(b"\n") + 1]
    return whole.splitlines(), position + len(whole)


def _follow(shown: dict[str, Progress], state: dict[str, Any]) -> None:
    title, done = state["title"], state["done"]
    progress = shown.get(title)
    if progress is None or done < progress.done:  # a new piece of work, or a restart from a checkpoint
        if progress is not None:
            progress.__exit__()
        progress = shown[title] = Progress(title, state["total"], start=state["start"], curve=state["curve"])
    progress.step(done - progress.done, **state["values"])
    if state["recorded"]:
        progress.record(**state["recorded"])
    if state["over"]:
        shown.pop(title).__exit__()
