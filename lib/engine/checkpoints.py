"""Checkpoints that survive a kill: whole or absent, tensors and plain containers only."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the Python, NumPy and torch streams."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
