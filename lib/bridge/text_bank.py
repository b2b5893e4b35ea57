"""Text banks: sentence vectors and the text space they live in (spec diffusion-bridge.md §6, §7)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib.bridge.geometry import modality_mean
from lib.clip.text_space import TextSpace
from lib.runs import atomic_write, write_json


@dataclass(frozen=True)
class TextBank:
    """Raw text-encoder outputs of many sentences.

    vectors: [N, D] float32 as the encoder gives them (neither normalised, centred nor scaled).
    labels: the N sentences. space: the text space they live in. source: where the sentences are from, in
        words.
    """

    vectors: Tensor
    labels: list[str]
    space: TextSpace
    source: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != torch.float32:
            raise ValueError(
                f"text bank: found vectors {self.vectors.dtype} {tuple(self.vectors.shape)},"
                " expected float32 [N, D]; mend: pass .float() encoder outputs, one row a sentence"
            )
        if len(self.labels) != len(self.vectors):
            raise ValueError(f"text bank: found {len(self.labels)} labels for {len(self.vectors)} vectors")
        broken = (~self.vectors.isfinite().all(dim=1)) | (self.vectors.norm(dim=1) == 0)
        if broken.any():
            row = int(broken.nonzero()[0])
            raise ValueError(f"text bank: row {row} ({self.labels[row]!r}) is zero or not finite")

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def vectors_sha(self) -> str:
        return tensor_sha256(self.vectors)

    @property
    def corpus_sha(self) -> str:
        """SHA-256 of the sorted sentences."""
        return hashlib.sha256("\n".join(sorted(self.labels)).encode()).hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write text_bank.safetensors and text_bank.json."""
        folder = Path(folder)
        blob = save({"vectors": self.vectors.cpu().contiguous()})
        atomic_write(folder / "text_bank.safetensors", lambda stream: stream.write(blob))
        record = {
            "schema": 1,
            "text_space": self.space.to_json(),
            "source": self.source,
            "count": len(self),
            "dim": self.dim,
            "vectors_sha256": self.vectors_sha,
            "labels": self.labels,
        }
        write_json(folder / "text_bank.json", record)

    @classmethod
    def load(cls, folder: Path | str) -> TextBank:
        """Read a saved bank; raises ValueError where its two files disagree."""
        folder = Path(folder)
        path = folder / "text_bank.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: found no file, expected a text bank; mend: run notebook 03")
        record = json.loads(path.read_text())
        space = TextSpace.from_json(record["text_space"], str(path))
        bank = cls(load_file(folder / "text_bank.safetensors")["vectors"], record["labels"], space, record["source"])
        found = {"count": len(bank), "dim": bank.dim, "vectors_sha256": bank.vectors_sha}
        expected = {name: record[name] for name in found}
        if found != expected:
            raise ValueError(
                f"{folder / 'text_bank.safetensors'}: found {found}, expected {expected} as {path.name} says;"
                " mend: make the text bank again"
            )
        return bank


def text_mean(bank: TextBank) -> Tensor:
    """Mean [D] of the bank's normalised vectors, itself not normalised (spec §2.2)."""
    return modality_mean(bank.vectors)


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
