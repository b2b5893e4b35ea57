"""Language embeddings of the classes as stored: three text models and CLIP's projection (spec defr.md §4, §13).

Ours is a safetensors file with a JSON of the sentences beside it; the public `classifier_weights_*` file (NumPy arrays
in a torch file) is read with a loader that builds arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lib.errors import FoundExpected
from lib.runs import atomic_write, write_json

KEYS = {"bert": "bert_w", "simcse": "simcse_w", "clip": "clip_w"}
PROJECTION = "clip_proj"


class EmbeddingsError(FoundExpected):
    """A file of class embeddings that cannot be used; names file, finding, expectation, mend."""


@dataclass(frozen=True)
class LanguageRows:
    """Unit rows [C, .] by source ("bert", "simcse", "clip") and CLIP's visual projection P [D, E].

    models: identity of the model behind every source. sentences: of every class, in class order; empty if unknown.
    """

    unit: Mapping[str, Tensor]
    projection: Tensor | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    sentences: tuple[tuple[str, ...], ...] = ()

    def rows(self, source: str) -> Tensor:
        """Initial classifier [C, D]: the unit rows, CLIP's carried back into feature space, T P^T (§3.2)."""
        if source not in self.unit:
            raise EmbeddingsError(
                "class embeddings", f"those of {sorted(self.unit)}", source,
                "give a file that holds them (defr.embeddings) or the model's folder (defr.text_model)",
            )  # fmt: skip
        if source != "clip":
            return self.unit[source]
        if self.projection is None:
            raise EmbeddingsError(
                "class embeddings", "no clip_proj", "the visual projection [D, E]", "store it as well"
            )
        return back_projected(self.unit["clip"], self.projection)


def back_projected(text: Tensor, projection: Tensor) -> Tensor:
    """T P^T: CLIP text rows [C, E] as rows [C, D] in the space of the unprojected image feature (§3.2)."""
    return text @ projection.T


def save_embeddings(path: Path | str, rows: LanguageRows) -> None:
    """Write `path` (.safetensors) and the sentences beside it (.json)."""
    path = Path(path)
    tensors = {KEYS[name]: value for name, value in rows.unit.items()}
    if rows.projection is not None:
        tensors[PROJECTION] = rows.projection
    metadata = {"sentence_hash": sentence_hash(rows.sentences), "models": json.dumps(dict(rows.models))}
    blob = save({name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}, metadata)
    atomic_write(path, lambda stream: stream.write(blob))
    write_json(path.with_suffix(".json"), rows.sentences)


def load_embeddings(path: Path | str) -> LanguageRows:
    """Read our .safetensors file, or the public `classifier_weights_*` (any other name).

    Raises EmbeddingsError for a file that is absent, damaged, holds anything but arrays, or contradicts its sentences.
    """
    path = Path(path)
    if not path.is_file():
        raise EmbeddingsError(path, "no file", "class embeddings", "make them with lib.defr.text, or copy the file")
    if path.suffix == ".safetensors":
        return _load_ours(path)
    tensors = {name: _as_tensor(path, name, value) for name, value in _load_public(path).items()}
    unknown = tensors.keys() - {*KEYS.values(), PROJECTION}
    if unknown or not tensors.keys() & set(KEYS.values()):
        raise EmbeddingsError(path, f"entries {sorted(tensors)}", f"{[*KEYS.values(), PROJECTION]}", "use another file")
    return _rows(tensors)


def sentence_hash(sentences: Sequence[Sequence[str]]) -> str:
    """SHA-256 of the sentences in class order."""
    return hashlib.sha256(json.dumps([list(each) for each in sentences], ensure_ascii=False).encode()).hexdigest()


def _rows(tensors: Mapping[str, Tensor], models: Mapping[str, str] | None = None, sentences=()) -> LanguageRows:
    unit = {name: tensors[key] for name, key in KEYS.items() if key in tensors}
    return LanguageRows(unit, tensors.get(PROJECTION), models or {}, tuple(map(tuple, sentences)))


def _load_ours(path: Path) -> LanguageRows:
    with safe_open(path, framework="pt") as stored:
        metadata, tensors = stored.metadata() or {}, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    beside = path.with_suffix(".json")
    sentences = json.loads(beside.read_text()) if beside.is_file() else []
    if metadata.get("sentence_hash") != sentence_hash(sentences):
        raise EmbeddingsError(
            beside, "other sentences or none", f"those that {path.name} was made from", "make the embeddings again"
        )
    return _rows(tensors, json.loads(metadata.get("models", "{}")), sentences)


def _load_public(path: Path) -> Mapping[str, object]:
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.float32)), (_reconstruct, "numpy.core.multiarray._reconstruct")]
    allowed.append((_reconstruct, "numpy._core.multiarray._reconstruct"))
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EmbeddingsError(
            path, f"a file that cannot be read as arrays ({reason})", "a torch file of float32 arrays only",
            "copy it again; a file that wants to run code is not opened",
        ) from error  # fmt: skip
    if not isinstance(content, dict):
        raise EmbeddingsError(path, f"a {type(content).__name__}", "a dict of arrays", "use another file")
    return content


_reconstruct = np.empty(0).__reduce__()[0]  # what NumPy's own pickles name as the builder of an array


def _as_tensor(path: Path, name: str, value: object) -> Tensor:
    if not isinstance(value, np.ndarray | Tensor) or value.ndim != 2:
        raise EmbeddingsError(path, f"{name}: {type(value).__name__}", "a matrix", "use another file")
    tensor = torch.as_tensor(value).float()
    if not tensor.isfinite().all():
        raise EmbeddingsError(path, f"{name}: values that are not finite", "finite rows", "copy the file again")
    return tensor
