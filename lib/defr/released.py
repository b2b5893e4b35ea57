"""The public training checkpoints of DEFR (spec defr.md §13): `checkpoint_%04d.pt` -> a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib.defr.model import DefrClassifier
from lib.errors import FoundExpected

# public prefix (behind `module.`) -> ours; every other name belongs to the head
TOWERS = {"visual_encoder.visual.": "tower.visual.", "vit.": "tower.vit."}


class ReleasedError(FoundExpected):
    """A public checkpoint that does not fit; names file, finding, expectation, mend."""


def load_released(path: Path | str, model: DefrClassifier) -> int:
    """Fill `model` (built for the checkpoint's backbone, image size and head) and return the checkpoint's epoch.

    Every tensor must be used and none may be absent. Raises ReleasedError.
    """
    path = Path(path)
    if not path.is_file():
        raise ReleasedError(path, "no file", "a checkpoint of DEFR", "correct the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, epoch = content["model_state_dict"], int(content["epoch"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ReleasedError(
            path, f"no plain checkpoint ({reason})", "tensors under model_state_dict beside epoch", "copy it again"
        ) from error
    _load_strictly(path, our_names(state), model)
    return epoch


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a public state dict under the names of `DefrClassifier`."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        prefix = next((prefix for prefix in TOWERS if name.startswith(prefix)), None)
        renamed[f"head.{name}" if prefix is None else TOWERS[prefix] + name.removeprefix(prefix)] = value.float()
    return renamed


def _load_strictly(path: Path, state: dict[str, Tensor], model: DefrClassifier) -> None:
    own = model.state_dict()
    differing = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(state.keys() - own.keys()),
        "of another shape": sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape),
    }
    told = "; ".join(f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in differing.items() if names)
    if told:
        raise ReleasedError(
            path, told, f"the {len(own)} tensors of this model",
            "build the model with the backbone, defr.head and defr.image_size that the checkpoint was trained with",
        )  # fmt: skip
    model.load_state_dict(state)
