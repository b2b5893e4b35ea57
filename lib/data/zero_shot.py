"""Zero-shot settings: which HOI classes are withheld from training (data-and-evaluation.md §4.1)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SETTINGS = ("default", "unseen_verb", "unseen_object", "rare_first", "non_rare_first")
HICO_SPLITS = Path(__file__).with_name("hico_zero_shot.json")


def unseen_hois(setting: str, root: Path | str | None = None) -> np.ndarray:
    """Ascending ids of the unseen HOI classes.

    root: a data set with its own `zero_shot.json` (the stick world, a custom set); else HICO-DET's public splits.
    """
    own = Path(root) / "zero_shot.json" if root else None
    source = own if own and own.is_file() else HICO_SPLITS
    settings = json.loads(source.read_text())["settings"]
    if setting not in settings:
        raise KeyError(f"data.zero_shot={setting!r} is no setting of {source}; expected one of {sorted(settings)}")
    return np.array(sorted(settings[setting]["unseen_hoi"]), np.int64)
