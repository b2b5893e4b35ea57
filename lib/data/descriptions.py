"""Class texts of EZ-HOI: the files of spec ez-hoi.md §4.1, and templates so that none of them is required."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from lib.data.vocabulary import NO_INTERACTION, Vocabulary, gerund, proper_phrase, verb_cues

FREE_TEXT_LIMIT = 300  # characters of a `(verb, object)` description, cut back to the last full stop
_PAIR_HEADER = re.compile(r"^\s*\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)\s*:?\s*$")
_DIFFERENCE_HEADER = re.compile(r"^\s*\(?\s*(\d+)\s*,\s*(\d+)\s*\)?\s*:?\s*$")
_ACT_HEADER = re.compile(r"^\s*(\d+)\s*,\s*\D")
_ACT_ITEM = re.compile(r"^\s*\d\.\s+(.*\S)\s*$")


@dataclass(frozen=True)
class Difference:
    """How an unseen class differs from its related seen class.

    seen: HOI id of the related seen class.
    sentences: the comparison text, one entry a sentence.
    """

    seen: int
    sentences: list[str]


@dataclass(frozen=True)
class ClassTexts:
    """What EZ-HOI's text learner reads (spec ez-hoi.md §4.1).

    descriptions: [H], one paragraph an HOI class.
    differences: unseen HOI id -> its comparison with a seen class.
    act_descriptors: [H] lists of short cues, None where the model does not use them.
    """

    descriptions: list[str]
    differences: dict[int, Difference]
    act_descriptors: list[list[str]] | None = None


# ---------------------------------------------------------------- descriptions


def read_descriptions(path: Path | str, vocabulary: Vocabulary | int) -> list[str]:
    """[H] descriptions in HOI order; the first line tells which of the two formats a file has.

    Blocks (`hico_HOI_descrip.txt`): three lines a class, in HOI order: a numbered header, `   - Description: <text>`,
    blank. The text lies between the first and a possible second colon of the middle line.
    Pairs (`hico_HOI_descrip_2.txt`, `vcoco_HOI_descrip.txt`): a line `(verb, object)`, then free text, in any order.
    Verb and object are names or ids; object ids count from 0 or, as V-COCO does, from 1.
    The first 300 characters count, cut back to the last full stop.
    vocabulary: its classes; the number of classes will do for a file of blocks.
    Raises FileNotFoundError, and ValueError with line, finding, expectation and mend.
    """
    count = vocabulary if isinstance(vocabulary, int) else vocabulary.num_hois
    path, lines = _lines(path, f"{count} description blocks", "data.descriptions", "a template")
    first = next((line for line in lines if line.strip()), "")
    if not _PAIR_HEADER.match(first):
        return _read_blocks(path, lines, vocabulary)
    if isinstance(vocabulary, int):
        raise TypeError(f"{path}: found `(verb, object)` headers, which are matched by name: pass the Vocabulary")
    return _read_pairs(path, lines, vocabulary)


def _read_blocks(path: Path, lines: list[str], vocabulary: Vocabulary | int) -> list[str]:
    while lines and not lines[-1].strip():
        lines.pop()
    count, texts = vocabulary if isinstance(vocabulary, int) else vocabulary.num_hois, []
    for start in range(0, len(lines), 3):
        block = lines[start : start + 3]
        name = f"class {len(texts)}" + ("" if isinstance(vocabulary, int) else f" ({_name(vocabulary, len(texts))})")
        parts = block[1].split(":") if len(block) > 1 else []
        if not block[0].strip() or len(parts) < 2 or not parts[1].strip() or "".join(block[2:]).strip():
            raise _error(
                path, f"{block[0].strip()[:60]!r} without one description below it", f"the block of {name}",
                "give each class a numbered header, a line `   - Description: <text>` and a blank line", start + 1,
            )  # fmt: skip
        texts.append(parts[1].strip())
    if len(texts) != count:
        raise _error(
            path, f"{len(texts)} description blocks", f"{count} (one an HOI class of the annotations)",
            "use the description file of this vocabulary, or set data.descriptions='' for a template",
        )  # fmt: skip
    return texts


def _read_pairs(path: Path, lines: list[str], vocabulary: Vocabulary) -> list[str]:
    blocks = _blocks(path, lines, _PAIR_HEADER)
    keys = [header for _, header, _ in blocks]
    ids = all(part.isdigit() for key in keys for part in key)
    tables = [_pair_ids(vocabulary, first) for first in (0, 1)] if ids else [_pair_names(vocabulary)]
    hois = max(tables, key=lambda table: sum(_plain(key) in table for key in keys))
    texts: dict[int, str] = {}
    for line, header, text in blocks:
        hoi, shown = hois.get(_plain(header)), f"({', '.join(header)})"
        if hoi is None:
            raise _error(path, shown, "a (verb, object) of the annotations", "correct or remove the entry", line)
        if hoi in texts:
            raise _error(path, f"a second text of {shown}", "one a class", "remove one of the two", line)
        text = text[:FREE_TEXT_LIMIT]
        texts[hoi] = text[: text.rfind(".") + 1] or text
        if not texts[hoi]:
            raise _error(path, f"no text below {shown}", f"a description of {_name(vocabulary, hoi)}", "add it", line)
    missing = [_name(vocabulary, hoi) for hoi in range(vocabulary.num_hois) if hoi not in texts]
    if missing:
        raise _error(
            path, f"no description of {_some(missing)}", f"one for each of the {vocabulary.num_hois} classes",
            "add them, or use the file of this vocabulary",
        )  # fmt: skip
    return [texts[hoi] for hoi in range(vocabulary.num_hois)]


def _pair_ids(vocabulary: Vocabulary, first: int) -> dict[tuple[str, str], int]:
    """(verb, object) -> HOI with ids as keys, objects counted from `first`."""
    pairs = zip(vocabulary.hoi_verb, vocabulary.hoi_object, strict=True)
    return {(str(verb), str(name + first)): hoi for hoi, (verb, name) in enumerate(pairs)}


def _pair_names(vocabulary: Vocabulary) -> dict[tuple[str, str], int]:
    """(verb, object) -> HOI with names as keys."""
    pairs = zip(vocabulary.hoi_verb, vocabulary.hoi_object, strict=True)
    return {_plain((vocabulary.verbs[v], vocabulary.objects[o])): hoi for hoi, (v, o) in enumerate(pairs)}


def _plain(key: Sequence[str]) -> tuple[str, ...]:
    """A header's parts without quotes, capitals and underscores; ids without leading zeros."""
    parts = (" ".join(part.strip(" '\"").lower().replace("_", " ").split()) for part in key)
    return tuple(str(int(part)) if part.isdigit() else part for part in parts)


# ---------------------------------------------------------------- differences and action descriptors


def read_differences(
    path: Path | str, vocabulary: Vocabulary, unseen: Sequence[int], of: Literal["unseen", "seen"] = "unseen"
) -> dict[int, Difference]:
    """Comparisons with a seen class, by HOI id: a line `unseen, seen` (two HOI ids), then text to the next such line.

    The text is split into sentences at full stops.
    unseen: HOI ids of the split. Without any (the default setting still owns a file) every entry is kept.
    of: "unseen" for `<split>_diff.txt`, whose entries are the unseen classes; "seen" for `<split>_seen_diff.txt`.
    Raises FileNotFoundError, and ValueError with line, finding, expectation and mend: an unknown id, a class twice,
    missing or of the other side, a related class that is unseen, no text.
    """
    path, lines = _lines(path, "unseen-seen comparisons", "data.differences", "a template")
    blocks = _blocks(path, lines, _DIFFERENCE_HEADER)
    hidden = set(map(int, unseen)) or ({int(head[0]) for _, head, _ in blocks} if of == "unseen" else set())
    wanted = hidden if of == "unseen" else set(range(vocabulary.num_hois)) - hidden
    found: dict[int, Difference] = {}
    for line, header, text in blocks:
        hoi, seen = map(int, header)
        for number in (hoi, seen):
            if number >= vocabulary.num_hois:
                limit = f"0..{vocabulary.num_hois - 1}"
                raise _error(path, f"HOI id {number}", limit, "use the file of this vocabulary", line)
        name = _name(vocabulary, hoi)
        if hoi not in wanted:
            raise _error(path, f"class {hoi} ({name})", f"an {of} class of the split", "use the split's own file", line)
        if seen in hidden:
            raise _error(
                path, f"class {hoi} ({name}) compared with {seen} ({_name(vocabulary, seen)}), which is unseen",
                "a seen class, since training must not read unseen ones", "use the split's own file", line,
            )  # fmt: skip
        if hoi in found:
            raise _error(path, f"class {hoi} ({name}) again", "one entry a class", "remove one of the two", line)
        sentences = _sentences(text)
        if not sentences:
            raise _error(
                path, f"no text for class {hoi} ({name})", "its difference from the seen class", "add it", line
            )
        found[hoi] = Difference(seen, sentences)
    if missing := [f"{hoi} ({_name(vocabulary, hoi)})" for hoi in sorted(wanted - found.keys())]:
        raise _error(
            path, f"no entry of {_some(missing)}", f"one for each of the {len(wanted)} {of} classes",
            "use the split's own file, or set data.differences='' for a template",
        )  # fmt: skip
    return dict(sorted(found.items()))


def _sentences(text: str) -> list[str]:
    """Split at full stops that end a word, so that "2.5" stays whole; the stops go."""
    return [part for part in (piece.strip() for piece in re.split(r"\.(?=\s|$)", text)) if part]


def read_act_descriptors(path: Path | str, vocabulary: Vocabulary) -> list[list[str]]:
    """[H] lists of cues (`all_act_descriptor.txt`): a line `id, a person ...`, then items `1. ...`; others are skipped.

    A class may have no item, but each must have its header. Raises FileNotFoundError, and ValueError with line.
    """
    path, lines = _lines(path, "action descriptors", "data.act_descriptors", "a template")
    found: dict[int, list[str]] = {}
    items: list[str] | None = None
    for number, line in enumerate(lines, start=1):
        if header := _ACT_HEADER.match(line):
            hoi = int(header[1])
            if hoi >= vocabulary.num_hois or hoi in found:
                raise _error(
                    path, f"HOI id {hoi}" + " again" * (hoi in found), f"0..{vocabulary.num_hois - 1}, each once",
                    "use the file of this vocabulary", number,
                )  # fmt: skip
            items = found.setdefault(hoi, [])
        elif item := _ACT_ITEM.match(line):
            if items is None:
                raise _error(path, repr(line.strip()[:60]), "a header `id, a person ...` first", "add it", number)
            items.append(item[1])
    if missing := [f"{hoi} ({_name(vocabulary, hoi)})" for hoi in range(vocabulary.num_hois) if hoi not in found]:
        raise _error(
            path, f"no header of {_some(missing)}", f"{vocabulary.num_hois} headers `id, a person ...`",
            "add them, or set data.act_descriptors='' for a template",
        )  # fmt: skip
    return [found[hoi] for hoi in range(vocabulary.num_hois)]


# ---------------------------------------------------------------- templates


def template_descriptions(vocabulary: Vocabulary) -> list[str]:
    """[H] two sentences from the cues of verb and object (`lib/data/vocabulary.py`)."""
    texts = []
    for hoi in range(vocabulary.num_hois):
        body, thing, relation = _cues(vocabulary, hoi)
        texts.append(f"A {_action(vocabulary, hoi)} has {body}. The photo shows {thing}, and {relation}.")
    return texts


def template_act_descriptors(vocabulary: Vocabulary) -> list[list[str]]:
    """[H] three cues: the person's body, the object, where the two are."""
    cues = []
    for hoi in range(vocabulary.num_hois):
        body, thing, relation = _cues(vocabulary, hoi)
        act = f"A {_action(vocabulary, hoi)}: {relation}"
        cues.append([f"A person with {body}", thing[0].upper() + thing[1:], act])
    return cues


def template_differences(vocabulary: Vocabulary, unseen: Sequence[int], similarity: Tensor) -> dict[int, Difference]:
    """Each unseen class against the most similar seen one; among equals one that shares the object or the verb.

    similarity: [H, H], higher = more alike, e.g. cosines of the class texts. Raises ValueError on another shape, a
    value that is not finite, an unknown id, or no seen class.
    """
    count, rows = vocabulary.num_hois, np.unique(np.asarray(unseen, np.int64))
    values = similarity.detach().cpu().double().numpy()
    if values.shape != (count, count) or not np.isfinite(values).all():
        raise ValueError(f"similarity: found shape {values.shape}, expected finite values of shape {(count, count)}")
    seen = np.setdiff1d(np.arange(count), rows)
    if len(rows) and (rows[0] < 0 or rows[-1] >= count or not len(seen)):
        raise ValueError(f"unseen: found {len(rows)} ids {rows[0]}..{rows[-1]}, expected a part of 0..{count - 1}")
    if not len(rows):
        return {}
    near = values[np.ix_(rows, seen)]  # (U, S)
    objects, verbs = vocabulary.hoi_object, vocabulary.hoi_verb
    shares = (objects[rows, None] == objects[None, seen]) | (verbs[rows, None] == verbs[None, seen])
    best = near == near.max(axis=1, keepdims=True)
    related = seen[np.where(best, 1 + shares, 0).argmax(axis=1)]  # first = lowest id
    return {int(u): Difference(int(s), _contrast(vocabulary, u, s)) for u, s in zip(rows, related, strict=True)}


def _contrast(vocabulary: Vocabulary, unseen: int, seen: int) -> list[str]:
    """One sentence that names both classes, one a cue in which they differ, one on the object if that differs."""
    here, there = _action(vocabulary, unseen), _action(vocabulary, seen)
    sentences = [f"A {here} is not the same as a {there}"]
    cues, others = _cues(vocabulary, unseen), _cues(vocabulary, seen)
    same_object = verb_cues(
        vocabulary.verbs[vocabulary.hoi_verb[seen]], vocabulary.objects[vocabulary.hoi_object[unseen]]
    )
    for mine, other, alike in zip(cues, others, same_object, strict=True):
        if mine != alike:  # the verbs look different, not only the objects
            sentences.append(f"The photo of a {here} shows {mine} instead of {other}")
    thing, other = (proper_phrase(vocabulary.objects[vocabulary.hoi_object[hoi]]) for hoi in (unseen, seen))
    if thing != other:
        sentences.append(f"The object is {thing} and not {other}")
    return sentences


def _cues(vocabulary: Vocabulary, hoi: int) -> tuple[str, str, str]:
    return verb_cues(vocabulary.verbs[vocabulary.hoi_verb[hoi]], vocabulary.objects[vocabulary.hoi_object[hoi]])


def _action(vocabulary: Vocabulary, hoi: int) -> str:
    """`person riding a bicycle`; `no_interaction` has no gerund: `person near a bicycle`."""
    verb = vocabulary.verbs[vocabulary.hoi_verb[hoi]]
    doing = "near" if verb == NO_INTERACTION else gerund(verb)
    return f"person {doing} {proper_phrase(vocabulary.objects[vocabulary.hoi_object[hoi]])}"


# ---------------------------------------------------------------- files


def _lines(path: Path | str, expected: str, setting: str, otherwise: str) -> tuple[Path, list[str]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: found no file, expected {expected}"
            f"\n  mend: set {setting} to the file (EZ-HOI ships it), or to '' for {otherwise}"
        )
    return path, path.read_text(encoding="utf-8-sig").split("\n")


def _blocks(path: Path, lines: list[str], header: re.Pattern[str]) -> list[tuple[int, tuple[str, ...], str]]:
    """(line number, header parts, text on one line) of every header with the lines below it."""
    found: list[tuple[int, tuple[str, ...], list[str]]] = []
    for number, line in enumerate(lines, start=1):
        if match := header.match(line):
            found.append((number, match.groups(), []))
        elif found:
            found[-1][2].append(line)
        elif line.strip():
            raise _error(path, repr(line.strip()[:60]), "a header before any text", "add the header", number)
    return [(number, key, " ".join(" ".join(text).split())) for number, key, text in found]


def _error(path: Path, found: str, expected: str, mend: str, line: int | None = None) -> ValueError:
    place = f"{path}, line {line}" if line else f"{path}"
    return ValueError(f"{place}: found {found}, expected {expected}\n  mend: {mend}")


def _name(vocabulary: Vocabulary, hoi: int) -> str:
    return vocabulary.hoi_name(hoi) if hoi < vocabulary.num_hois else "none of the vocabulary"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
