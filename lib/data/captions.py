"""COCO-format captions and plain sentence lists."""

from __future__ import annotations

import json
from pathlib import Path


def read_captions(path: Path | str) -> list[str]:
    """Sentences of a COCO captions JSON (`annotations[].caption`), a JSON list of strings, or a text file of lines."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: found no file, expected COCO captions (captions_train2014.json) or a list of sentences"
            "\n  mend: set text_bank.captions"
        )
    if path.suffix != ".json":
        sentences = path.read_text().splitlines()
    else:
        content = json.loads(path.read_text())
        rows = content["annotations"] if isinstance(content, dict) else content
        sentences = [row["caption"] if isinstance(row, dict) else row for row in rows]
    sentences = [" ".join(sentence.split()) for sentence in sentences]
    kept = [sentence for sentence in sentences if sentence]
    if not kept:
        raise ValueError(f"{path}: found no sentence, expected COCO captions, a JSON list of strings or a text file")
    return kept
