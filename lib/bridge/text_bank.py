"""Text banks: sentence vectors and the text space they live in (spec diffusion-bridge.md §6, §7).

mode  kind      sentences                          encoded by                 fits
1     captions  captions or any list of sentences  frozen CLIP                classifiers of plain CLIP text
2     classes   class sentences                    a trained EZ-HOI's tower   that EZ-HOI only; few texts
2+    adapted   captions and class sentences       a trained EZ-HOI's tower   that EZ-HOI only
3     vision    none: pair features                the detector               nothing, a control (`vision_control`)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib.bridge.geometry import modality_mean, normalise
from lib.bridge.self_test import ordered_sha
from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.clip.text_space import TextSpace, clip_text_space
from lib.runs import atomic_write, write_json

BANK_KINDS = ("captions", "classes", "adapted", "vision")
CONTROL = "control:vision"  # adaptation of a bank of visual features: equals that of no classifier
Encode = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TextBank:
    """Raw text-encoder outputs of many sentences.

    vectors: [N, D] float32 as the encoder gives them (neither normalised, centred nor scaled).
    labels: the N sentences. space: the text space they live in. source: where the sentences are from, in
        words. classes: those of the labels that are sentences of the classifier's classes, in the classes' order.
    """

    vectors: Tensor
    labels: list[str]
    space: TextSpace
    source: str
    classes: tuple[str, ...] = ()

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

    @property
    def classes_sha(self) -> str:
        """SHA-256 of the class sentences in their order, "" without any."""
        return ordered_sha(self.classes)

    def corpus(self) -> dict[str, str | int]:
        """What a bridge's provenance says about the texts it learnt."""
        return {
            "source": self.source,
            "count": len(self),
            "distinct": len(set(self.labels)),
            "classes": len(self.classes),
            "sha256": self.corpus_sha,
            "vectors_sha256": self.vectors_sha,
        }

    def save(self, folder: Path | str) -> None:
        """Write text_bank.safetensors and text_bank.json."""
        folder = Path(folder)
        blob = save({"vectors": self.vectors.cpu().contiguous()})
        atomic_write(folder / "text_bank.safetensors", lambda stream: stream.write(blob))
        record = {
            "schema": 2,
            "text_space": self.space.to_json(),
            "source": self.source,
            "count": len(self),
            "dim": self.dim,
            "vectors_sha256": self.vectors_sha,
            "classes": self.classes,
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
        vectors = load_file(folder / "text_bank.safetensors")["vectors"]
        bank = cls(vectors, record["labels"], space, record["source"], tuple(record.get("classes", ())))
        found = {"count": len(bank), "dim": bank.dim, "vectors_sha256": bank.vectors_sha}
        expected = {name: record[name] for name in found}
        if found != expected:
            raise ValueError(
                f"{folder / 'text_bank.safetensors'}: found {found}, expected {expected} as {path.name} says;"
                " mend: make the text bank again"
            )
        return bank


class AdaptedText(Protocol):
    """A trained EZ-HOI's text side (`lib.ezhoi.text.ClassText`)."""

    def encode(self, sentences: Sequence[str]) -> Tensor: ...

    def space(self, checkpoint: str) -> TextSpace: ...


def templates_of(template: str, ensemble: Sequence[str]) -> list[str]:
    """The templates that `text_bank.templates` means, or `text_bank.template` alone where it is empty."""
    templates = list(ensemble) or [template]
    wrong = [text for text in templates if text.count("{}") != 1]
    if wrong:
        raise ValueError(f"text_bank.templates: found {wrong[0]!r}, expected one {{}} where the sentence goes")
    return templates


def template_id(templates: Sequence[str]) -> str:
    """How an ensemble is written in a text space: its templates in order, so that any change is another space."""
    return " | ".join(templates)


def embed(encode: Encode, sentences: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
    """Vectors [N, D] of sentences: raw for one template, the mean of the normalised features for several."""
    if len(templates) == 1:
        return encode([templates[0].format(sentence) for sentence in sentences]).float().cpu()
    parts = [normalise(encode([template.format(s) for s in sentences]).float()) for template in templates]
    return torch.stack(parts).mean(dim=0).cpu()


def caption_bank(
    clip: ClipModel, sentences: Sequence[str], templates: Sequence[str] = ("{}",), source: str = "captions"
) -> TextBank:
    """Mode 1: sentences through the frozen text tower."""
    vectors = embed(lambda texts: encode_text(clip, texts), sentences, templates)
    return TextBank(vectors, list(sentences), clip_text_space(clip, template=template_id(templates)), source)


def adapted_bank(
    text: AdaptedText,
    checkpoint: str,
    sentences: Sequence[str],
    classes: Sequence[str],
    templates: Sequence[str] = ("{}",),
    source: str = "adapted text",
) -> TextBank:
    """Mode 2+ (or 2, without `sentences`): free sentences and class sentences through a trained EZ-HOI's text side.

    checkpoint: fingerprint of the trained model, part of the text space where its text is live.
    """
    labels = [*sentences, *classes]
    space = replace(text.space(checkpoint), template=template_id(templates))
    return TextBank(embed(text.encode, labels, templates), labels, space, source, tuple(classes))


def vision_control(features: Tensor, space: TextSpace, source: str = "pair features") -> TextBank:
    """Mode 3, a control: a bank of raw *visual* features [N, D].

    A diffusion model of it learns p(vision) and cannot carry vision to text, whatever its loss (spec §6.1). Its text
    space is that of no classifier, so that the bridge runs only with bridge.allow_text_space_mismatch=true, which is
    recorded with the metrics.
    """
    labels = [f"pair {number}" for number in range(len(features))]
    return TextBank(features.detach().float().cpu(), labels, replace(space, adaptation=CONTROL), source)


def text_mean(bank: TextBank) -> Tensor:
    """Mean [D] of the bank's normalised vectors, itself not normalised (spec §2.2)."""
    return modality_mean(bank.vectors)


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
