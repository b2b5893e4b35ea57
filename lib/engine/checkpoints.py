"""Checkpoints that survive a kill: whole or absent, tensors and plain containers only."""

from __future__ import annotations

import random
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.engine.distributed import from_first, is_first
from lib.runs import atomic_write


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) atomically."""
    atomic_write(path, lambda stream: torch.save(state, stream))


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint to the CPU with the weights-only loader; errors name the file and the mend."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file, expected a checkpoint; mend: run the training stage")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RuntimeError(
            f"{path}: found a file that is no plain checkpoint ({error}); expected tensors and plain containers only"
            "\n  mend: delete it and run the training stage again"
        ) from error


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training: `<folder>/<step>.pt`, the newest `keep` of them, and `best.pt`.

    Written by the first process, read by all. A newest one that cannot be read gives way to the one before it.
    """

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"checkpoints.keep: found {self.keep}, expected at least 1")

    def save(self, step: int, state: dict[str, Any], best: dict[str, Any] | None = None) -> None:
        """Keep the state after `step` steps, and what is best so far if it changed."""
        if not is_first():
            return
        if best is not None:  # before the state that knows of it: a kill between the two repeats both
            save_checkpoint(self.folder / "best.pt", best)
        save_checkpoint(self.folder / f"{step:09d}.pt", state)
        for old in self._paths()[: -self.keep]:
            old.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The state to go on from, None at a start. Raises the newest one's RuntimeError if none can be read."""
        name, state = None, None
        if is_first():
            name, state = self._newest()
        name = from_first(name)
        return state if is_first() or name is None else load_checkpoint(self.folder / name)

    def best(self) -> dict[str, Any] | None:
        """What was given as the best so far."""
        path = self.folder / "best.pt"
        return load_checkpoint(path) if path.is_file() else None

    def describe(self) -> str:
        """What is there, for an error."""
        paths = self._paths()
        return f"the last checkpoint is {paths[-1]}" if paths else "no epoch was finished"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.pt"))

    def _newest(self) -> tuple[str | None, dict[str, Any] | None]:
        problems: list[RuntimeError] = []
        for path in reversed(self._paths()):
            try:
                return path.name, load_checkpoint(path)
            except RuntimeError as error:
                warnings.warn(f"{error}\nTrying the checkpoint before it.", stacklevel=4)
                problems.append(error)
        if problems:
            raise problems[0]
        return None, None


def checkpoint_folder(training: Path) -> Path:
    """Where a training keeps its checkpoints."""
    return training / "checkpoints"


def remove_checkpoints(training: Path) -> None:
    """They take several times the room of the weights; only an unfinished training needs them."""
    shutil.rmtree(checkpoint_folder(training), ignore_errors=True)


def rng_state() -> dict[str, Any]:
    """State of the Python, NumPy and torch (CPU and CUDA) random streams as plain containers."""
    version, keys, gauss = random.getstate()
    name, words, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, stream in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(stream, device)


def seed_everything(seed: int) -> None:
    """Seed the Python, NumPy and torch streams."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
