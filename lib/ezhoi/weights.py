"""A trained EZ-HOI on disk: model.safetensors (what is trained, never CLIP) and model.json (what it belongs to)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from lib.clip.load import ClipSpec
from lib.errors import FoundExpected
from lib.ezhoi.model import EzHoi
from lib.runs import atomic_write, write_json
from lib.settings import EzHoiSettings

WEIGHTS, RECORD = "model.safetensors", "model.json"


class WeightsError(FoundExpected):
    """Weights that do not belong to the model which is to take them."""


def save_model(
    folder: Path, model: EzHoi, spec: ClipSpec, settings: EzHoiSettings, record: Mapping[str, Any] | None = None
) -> None:
    """Write both files; model.json comes last, so that a folder with it is whole."""
    blob = save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    atomic_write(folder / WEIGHTS, lambda stream: stream.write(blob))
    clip = {"id": spec.id, "weights_sha256": spec.weights_sha256, "embed_dim": spec.embed_dim, "grid": spec.grid}
    known = {"clip": clip, "settings": asdict(settings), "rows": model.text.rows.tolist()}
    write_json(folder / RECORD, known | dict(record or {}))


def read_record(folder: Path | str) -> dict[str, Any]:
    """model.json of a folder; FileNotFoundError names the folder and what makes one."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: found no file, expected a trained EZ-HOI ({RECORD} beside {WEIGHTS})"
            "\n  mend: run notebook 02, or import a released checkpoint: python -m lib.ezhoi.released import ..."
        )
    return json.loads(path.read_text())


def load_model_weights(folder: Path | str, model: EzHoi, spec: ClipSpec) -> dict[str, Any]:
    """Fill `model` with the weights of a folder and return its record.

    Raises WeightsError for another backbone, other class rows, other parts or other shapes.
    """
    folder, record = Path(folder), read_record(folder)
    if record["clip"]["weights_sha256"] != spec.weights_sha256:
        raise WeightsError(
            folder / RECORD, f"weights trained on CLIP {record['clip']['id']}", spec.id, "set clip.source to that CLIP"
        )
    if record["rows"] != model.text.rows.tolist():
        raise WeightsError(
            folder / RECORD, f"{len(record['rows'])} class rows", f"these {len(model.text.rows)} (other HOI ids)",
            "use the zero-shot setting, descriptions and class rows that the weights were trained with",
        )  # fmt: skip
    tensors, own = load_file(folder / WEIGHTS), model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or unknown or shapes:
        changed = {k: v for k, v in record["settings"].items() if k in _SHAPING}
        wrong = f"missing {missing[:3]}, unknown {unknown[:3]}, other shapes {sorted(shapes)[:3]}"
        raise WeightsError(
            folder / WEIGHTS,
            f"tensors of another model ({wrong})",
            f"the parts of the settings in use; the weights were made with {changed}",
            "give the same ezhoi settings",
        )
    model.load_state_dict(tensors)
    return record


# settings that decide which parts a model has and how large they are
_SHAPING = (
    "classes", "class_rows", "regions", "instance_adapters", "prior", "prompt_length", "prompt_depth", "image_prompts",
    "pair_adapter", "text_prompts", "unseen_prompts", "text_adapter", "act_descriptors",
)  # fmt: skip
