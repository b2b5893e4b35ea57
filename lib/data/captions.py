"""COCO-format captions and plain sentence lists."""

from __future__ import annotations

from pathlib import Path

from lib.data.annotation_file import AnnotationError, MissingAnnotationError, read_json

_EXPECTED = "COCO captions (captions_train2014.json), a JSON list of sentences or a text file of lines"


def read_captions(path: Path | str) -> list[str]:
    """Sentences of a COCO captions JSON (`annotations[].caption`), a JSON list of strings, or a text file of lines.

    JSON may be gzipped. Raises MissingAnnotationError, and AnnotationError for a file without a sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingAnnotationError(path, "no file", _EXPECTED, "set text_bank.captions")
    if ".json" not in path.suffixes:
        try:
            sentences = path.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise AnnotationError(path, f"no text ({error})", _EXPECTED, "save it as UTF-8") from None
    else:
        content = read_json(path, _EXPECTED)
        try:
            rows = content["annotations"] if isinstance(content, dict) else content
            sentences = [str.strip(row["caption"] if isinstance(row, dict) else row) for row in rows]
        except (KeyError, TypeError, AttributeError) as error:
            raise AnnotationError(path, f"entries without caption ({error!r})", _EXPECTED, "use another file") from None
    kept = [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    if not kept:
        raise AnnotationError(path, "no sentence", _EXPECTED, "use another file")
    return kept
