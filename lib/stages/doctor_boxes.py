"""The doctor on the source of boxes: a DETR and its classes, other programs' files, annotated boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lib.defr.labels import SPLITS
from lib.detection.detr import FILES, class_positions
from lib.stages import inputs
from lib.stages.doctor_case import Case, Check, failed, note, passed
from lib.stages.doctor_facts import DETECTOR, DETR_R50_BYTES
from lib.stages.doctor_models import archive_of, sha256, shipped
from lib.stages.doctor_report import ALL, STOP, Finding


def detector_books(case: Case) -> tuple[str, ...]:
    """Notebooks that look at boxes: recognition (06) does with CLIP's tower, and where a teacher crops pairs."""
    settings = case.cfg.defr
    return ("01", "02", "06") if settings.backbone == "clip" or settings.teacher else ("01", "02")


def detector(case: Case) -> Iterator[Finding]:
    """The DETR as the stages load it; its classes against those of the annotations."""
    return (replace(finding, notebooks=detector_books(case)) for finding in _detector(case))


def _detector(case: Case) -> Iterator[Finding]:
    source, name = case.cfg.detector.source, "detector"
    if source in inputs.ORACLES:
        case.boxes = True
        yield note(name, f"{source}: annotated boxes in place of a detector", expected="a detector",
                   mend="results are an upper bound: say so beside them")  # fmt: skip
        return
    if source.startswith(inputs.JSON):
        yield from _json_boxes(case, source.removeprefix(inputs.JSON))
        return
    if not source and not case.has("models"):
        yield from shipped(name, case, "detector.source", "weights/detr-r50-hicodet", ALL)
        return
    folder = Path(source)
    try:
        case.detr = inputs.detector(case.cfg, case.run)
    except (OSError, ValueError, RuntimeError) as error:
        yield _no_detector(folder, error)
        return
    case.boxes = True
    detr, words = case.detr, case.vocabulary
    found = (
        f"{len(detr.labels)} classes and background, {detr.model.config.num_queries} boxes an image, {detr.resample}"
    )
    found += f", {detr.short_side} to {detr.long_side} px; weights {detr.fingerprint[:8]}"
    unknown = [] if words is None else [
        thing for thing, at in zip(words.objects, class_positions(words.objects, detr.labels), strict=True) if at < 0
    ]  # fmt: skip
    if words is not None and (words.objects[words.person] in unknown or len(unknown) == len(words.objects)):
        yield Finding(
            name, STOP,
            f"{len(detr.labels)} classes ({', '.join(detr.labels[:3])}, ...) without {', '.join(unknown[:3])}",
            f"the {len(words.objects)} objects of the annotations by name (80 of COCO, not its 91 ids)",
            _detector_origin(folder), f"python -m lib.detection.released CHECKPOINT.pth {folder}",
        )  # fmt: skip
    elif unknown:
        some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        yield note(name, f"{found}; it has no class for {len(unknown)} annotated objects ({some})",
                   expected="a class for every object", mend="their interactions will never be found")  # fmt: skip
    else:
        yield passed(name, found)


def _json_boxes(case: Case, pattern: str) -> Iterator[Finding]:
    """Another program's detections: one JSON file an image."""
    for split in SPLITS:
        folder, name = Path(pattern.format(split=split)), f"detections, {split}"
        there = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
        wanted = [Path(image.name).stem for image in case.datasets[split].images] if split in case.datasets else []
        missing = [stem for stem in wanted if stem not in there]
        if missing or not there:
            lost = f"{len(missing):,} of {len(wanted):,} files are missing ({', '.join(missing[:2])}, ...)"
            yield Finding(name, STOP, f"{folder}: {lost if there else 'no files'}", "one <image name>.json an image",
                          mend="correct detector.source; {split} in it becomes train or test")  # fmt: skip
        else:
            case.boxes = True
            yield passed(name, f"{folder}: {len(there):,} files, labels {case.cfg.detector.labels}")


def _no_detector(folder: Path, error: Exception) -> Finding:
    found, archive = failed("detector", error), archive_of(folder, ".pth", ".pt")
    expected = found.expected or f"a folder with {', '.join(FILES)}"
    origin = _detector_origin(folder)
    if archive is None:
        command = f"python -m lib.detection.released {folder.name}.pth {folder}"
        return Finding("detector", STOP, found.found, expected, origin, f"download it, then {command}")
    size = archive.stat().st_size
    if size < DETR_R50_BYTES:
        return Finding(
            "detector, checkpoint", STOP, f"{archive}: {size / 1e6:,.0f} MB",
            f"at least {DETR_R50_BYTES / 1e6:,.0f} MB, the weights of a DETR R50", origin,
            "download it again: it is cut short",
        )  # fmt: skip
    stated = archive.stem.rpartition("-")[2]  # facebookresearch writes the first digits of the hash into the name
    if stated == "e632da11" and not sha256(archive).startswith(stated):
        return Finding("detector, checkpoint", STOP, f"{archive}: another SHA-256", f"one that begins with {stated}",
                       origin, "download it again")  # fmt: skip
    mend = f"python -m lib.detection.released {archive} {folder if folder != archive else folder.with_suffix('')}"
    there = f"{found.found}, but {archive} is there ({size / 1e6:,.0f} MB)"
    return Finding("detector", STOP, there, expected, "", mend)


def _detector_origin(folder: Path) -> str:
    return next((text for name, text in DETECTOR.items() if folder.name.startswith(name)), DETECTOR["detr-r50-hicodet"])


CHECKS: tuple[tuple[str, Check], ...] = (("detector", detector),)
