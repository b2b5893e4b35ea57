"""Identity of a text-embedding space, carried by text banks, means, bridges and classifiers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from lib.clip.load import ClipModel


@dataclass(frozen=True)
class TextSpace:
    """Everything that decides what vector a sentence becomes.

    clip_sha: SHA-256 of the CLIP weights. activation: gelu | quick_gelu. tokenizer: its name.
    template: the prompt around a class name, "{}" for free text.
    adaptation: "none", or what moved the text after CLIP, e.g. "ezhoi:<checkpoint sha>".
    """

    clip_sha: str
    activation: str
    tokenizer: str
    template: str
    adaptation: str = "none"

    @property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the canonical JSON of the fields."""
        canonical = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, str]:
        return {**asdict(self), "id": self.id}

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str) -> TextSpace:
        """Rebuild and check the stored id; `where` names the file in the error."""
        space = cls(**{name: value for name, value in record.items() if name != "id"})
        if space.id != record["id"]:
            raise ValueError(
                f"{where}: found text space id {record['id']}, expected {space.id} from its fields;"
                " the file was edited by hand; mend: make it again"
            )
        return space


def clip_text_space(clip: ClipModel, adaptation: str = "none", template: str = "{}") -> TextSpace:
    """Text space of a CLIP's text tower; `adaptation` names a trained EZ-HOI when its prompts change the tower."""
    spec = clip.spec
    return TextSpace(spec.weights_sha256, spec.activation, f"clip-bpe-{spec.context_length}", template, adaptation)
