"""The doctor on the data tree: annotation files, photographs, splits, class texts, captions, image labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.data.dataset import HoiDataset
from lib.data.descriptions import read_act_descriptors, read_descriptions, read_differences
from lib.data.formats import KINDS, Format
from lib.data.images import ImageError, read_image
from lib.defr.labels import SPLITS, read_labels
from lib.stages import inputs
from lib.stages.doctor_case import Case, Check, failed, note, passed
from lib.stages.doctor_facts import (
    CAPTIONS,
    CLASS_TEXTS,
    CLASSES,
    COUNTS,
    PHOTOGRAPHS,
    RECOGNITION_LABELS,
    TEXT_MODEL,
    TITLE,
)
from lib.stages.doctor_report import STOP, Finding

COCO_PARTS = {"train": "train2014", "test": "val2014"}
SAMPLE = 12  # photographs of a split that are decoded
TEXT_BOOKS, CAPTION_BOOKS, RECOGNITION_BOOKS = ("02", "03", "04", "05"), ("03", "04", "05"), ("06",)


# ---------------------------------------------------------------- annotations


def annotations(case: Case) -> Iterator[Finding]:
    """Both files through the reader itself; the counts against the published ones."""
    kind, embedded = case.cfg.data.kind, case.embedded
    if embedded and not case.has("world"):
        world = case.cfg.data.world
        yield passed("stick world", f"notebook 00 will render {world.train_images:,} + {world.test_images:,} images")
        return
    if kind not in KINDS:
        yield Finding("data.kind", STOP, repr(kind), f"one of {', '.join(KINDS)}", mend="set data.kind")
        return
    # without the limits of the settings: counts are those of the file
    whole = replace(case.cfg, data=replace(case.cfg.data, train_limit=0, test_limit=0))
    for split in SPLITS:
        name = f"annotations, {split}"
        try:
            data = inputs.dataset(whole, case.run, split)
        except (OSError, ValueError, KeyError) as error:
            yield _unreadable(case.form, name, split, error)
            continue
        limit = case.cfg.data.train_limit if split == "train" else case.cfg.data.test_limit
        case.datasets[split] = data.subset(limit)
        yield _counted(case.form, name, split, data, limit)


def _unreadable(form: Format, name: str, split: str, error: Exception) -> Finding:
    finding = failed(name, error, origin=_source_of(form, split))
    if isinstance(error, FileNotFoundError):
        count = COUNTS[form.family, split]
        return replace(finding, expected=f"{count.images:,} images, {count.rows:,} pair rows of {TITLE[form.family]}")
    return finding


def _source_of(form: Format, split: str) -> str:
    return f"{form.comes_from}: {Path(form.annotations[0].format(split=form.name_of(split))).name}"


def _counted(form: Format, name: str, split: str, data: HoiDataset, limit: int) -> Finding:
    words, title = data.vocabulary, TITLE[form.family]
    classes = (words.num_hois, len(words.verbs), len(words.objects))
    images, empty, rows = len(data), len(data) - len(data.annotated), int(data.hoi_counts.sum())
    found = f"{data.source.name}: {images:,} images ({empty:,} without a pair), {rows:,} rows, {classes[0]} classes of"
    found += f" {classes[1]} verbs and {classes[2]} objects; {data.version}"
    used = f"; the first {limit:,} images will be used" if limit else ""
    published = COUNTS[form.family, split]
    if classes != CLASSES[form.family]:
        return passed(name, f"{found}{used}")
    if (images - empty, rows) == (published.images - published.empty, published.rows):  # HOIA files drop empty images
        return passed(name, f"{found}: the published counts of {title}{used}")
    return note(
        name, found + used,
        expected=f"{published.images:,} images ({published.empty:,} without a pair), {published.rows:,} rows",
        origin=_source_of(form, split), mend=f"fine for a part of {title}; its published numbers do not apply then",
    )  # fmt: skip


# ---------------------------------------------------------------- photographs


def photographs(case: Case) -> Iterator[Finding]:
    """Every annotated file is there, and a sample of them decodes to the size that the annotations state."""
    if case.cfg.data.kind not in KINDS or (case.embedded and not case.datasets):
        return
    for split in SPLITS:
        if split in case.datasets:
            yield _photographs(case, split, case.datasets[split])
        else:
            yield _folder_alone(case, split)


def _folder_alone(case: Case, split: str) -> Finding:
    """Without annotations only the number of files can be told."""
    family, name = case.form.family, f"photographs, {split}"
    folder = Path(case.cfg.data.root) / (case.cfg.data.images or case.form.images).format(split=split)
    below = folder / COCO_PARTS[split]
    folder = below if family == "vcoco" and (below.is_dir() or not folder.is_dir()) else folder
    files = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    if files:
        return passed(name, f"{folder}: {files:,} files (names not compared: no annotations)")
    return Finding(
        name, STOP, f"{folder}: {'an empty' if folder.is_dir() else 'no'} folder",
        f"{COUNTS[family, split].images:,} photographs", PHOTOGRAPHS[family],
        "unpack the archive below data.root, or set data.images to the folder",
    )  # fmt: skip


def _photographs(case: Case, split: str, data: HoiDataset) -> Finding:
    name, origin = f"photographs, {split}", "" if case.embedded else PHOTOGRAPHS[case.form.family]
    folders = defaultdict(list)
    for image in data.images:
        folders[image.path.parent].append(image.name)
    there = {folder: {path.name for path in folder.iterdir()} if folder.is_dir() else set() for folder in folders}
    missing = [one for folder, names in folders.items() for one in names if one not in there[folder]]
    where = ", ".join(map(str, folders))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        return Finding(
            name, STOP, f"{where}: {len(missing):,} of {len(data):,} files are missing ({shown})",
            f"the {len(data):,} files that the annotations name", origin,
            "copy the missing files, or set data.images to the folder that holds them",
        )  # fmt: skip
    for index in np.unique(np.linspace(0, len(data) - 1, min(SAMPLE, len(data))).astype(int)):
        image = data.images[index]
        try:
            picture = read_image(image.path)
        except ImageError as error:
            return failed(name, error, origin=origin)
        if picture.size != image.size:
            return Finding(
                name, STOP, f"{image.path}: {picture.width} x {picture.height} pixels",
                f"{image.size[0]} x {image.size[1]}, as annotated", origin,
                "use the original photographs, neither resized nor turned by their EXIF orientation",
            )  # fmt: skip
    return passed(name, f"{where}: all {len(data):,} files there; {min(SAMPLE, len(data))} decoded, sizes as annotated")


# ---------------------------------------------------------------- splits and texts


def zero_shot(case: Case) -> Iterator[Finding]:
    """What the setting withholds; on HICO-DET the published counts are enforced by the reader."""
    setting = case.cfg.data.zero_shot
    if case.embedded and not case.datasets:
        yield passed("zero-shot split", f"{setting}, of the stick world")
        return
    withheld = inputs.unseen(case.cfg, case.run)
    if len(case.datasets) < len(SPLITS):
        yield passed("zero-shot split", f"{setting}: {len(withheld)} unseen classes")
        return
    count = inputs.zero_shot_counts(case.cfg, case.run)
    yield passed(
        "zero-shot split",
        f"{setting}: {count['hoi_unseen']} of {count['hoi_unseen'] + count['hoi_seen']} classes unseen;"
        f" training keeps {count['train_rows_kept']:,} rows on {count['train_images_kept']:,} images and"
        f" loses {count['train_rows_dropped']:,}; {count['test_rows_unseen']:,} unseen rows in the test split",
    )


def class_texts(case: Case) -> Iterator[Finding]:
    """Descriptions, differences and action descriptors that the settings name."""
    data, words = case.cfg.data, case.vocabulary
    readers = {
        "descriptions": lambda path: len(read_descriptions(path, words)),
        "differences": lambda path: len(read_differences(path, words, inputs.unseen(case.cfg, case.run))),
        "act_descriptors": lambda path: len(read_act_descriptors(path, words)),
    }
    wanted = {"descriptions": True, "differences": case.cfg.ezhoi.unseen_prompts}
    wanted["act_descriptors"] = case.cfg.ezhoi.act_descriptors
    for setting, read in readers.items():
        path, name = getattr(data, setting), setting.replace("act_", "action ")
        if not wanted[setting]:
            continue
        if not path:
            shipped = case.embedded and setting == "descriptions"
            found = "those of the stick world" if shipped else f"data.{setting} is empty: written from a template"
            yield passed(name, found, TEXT_BOOKS)
            continue
        try:
            if not Path(path).is_file() or words is None:
                yield from _exists(name, path, f"data.{setting}", CLASS_TEXTS, TEXT_BOOKS)
            else:
                yield passed(name, f"{path}: {read(path)} entries", TEXT_BOOKS)
        except KeyError:  # an unknown zero-shot setting has a line of its own
            continue
        except ValueError as error:
            yield failed(name, error, origin=CLASS_TEXTS, notebooks=TEXT_BOOKS)


def _exists(name: str, path: str, setting: str, origin: str, notebooks: tuple[str, ...]) -> Iterator[Finding]:
    if Path(path).exists():
        yield passed(name, f"{path} (contents not compared: no annotations)", notebooks)
    else:
        mend = f"copy it there, or correct {setting}"
        yield Finding(name, STOP, f"{path}: no file", "the file that the setting names", origin, mend, notebooks)


def captions(case: Case) -> Iterator[Finding]:
    """The sentences whose distribution the bridge learns."""
    if case.embedded and not case.cfg.text_bank.captions and not case.datasets:
        yield passed("captions", "those of the stick world", CAPTION_BOOKS)
        return
    try:
        texts = inputs.captions(case.cfg, case.run)
    except (OSError, ValueError, KeyError) as error:
        yield failed("captions", error, origin=CAPTIONS, notebooks=CAPTION_BOOKS)
        return
    yield passed("captions", f"{len(texts):,} distinct sentences will be used", CAPTION_BOOKS)


def recognition(case: Case) -> Iterator[Finding]:
    """Image labels, text model and weights of notebook 06, where the settings name any."""
    defr = case.cfg.defr
    if defr.labels and not Path(defr.labels).is_file():
        yield from _exists("image labels", defr.labels, "defr.labels", RECOGNITION_LABELS, RECOGNITION_BOOKS)
    elif defr.labels:
        try:
            found = {split: read_labels(defr.labels, split) for split in SPLITS}
        except ValueError as error:
            yield failed("image labels", error, origin=RECOGNITION_LABELS, notebooks=RECOGNITION_BOOKS)
        else:
            shapes = " + ".join(f"{len(each.files):,}" for each in found.values())
            yield passed("image labels", f"{defr.labels}: {shapes} images", RECOGNITION_BOOKS)
    for setting in ("text_model", "weights", "embeddings"):
        if path := getattr(defr, setting):
            origin = TEXT_MODEL if setting == "text_model" else ""
            yield from _exists(f"DEFR, {setting.replace('_', ' ')}", path, f"defr.{setting}", origin, RECOGNITION_BOOKS)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("annotations", annotations),
    ("photographs", photographs),
    ("zero-shot split", zero_shot),
    ("class texts", class_texts),
    ("captions", captions),
    ("recognition", recognition),
)
