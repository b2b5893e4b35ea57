"""The doctor on the machine and the run folder: device, memory, disk, packages, what an earlier run left behind."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lib.runs import Artifact, Run, StaleArtifactError
from lib.settings import Config
from lib.stages import bridging, inputs
from lib.stages import detector as ezhoi
from lib.stages import doctor_costs as costs
from lib.stages.doctor_case import Case, Check, note, passed
from lib.stages.doctor_facts import CLASSES, COUNTS
from lib.stages.doctor_models import expected_spec
from lib.stages.doctor_report import ALL, STOP, Finding

TIGHT = 0.8  # share of what is free from which a check warns
CAPTIONS = 400_000  # sentences of a caption file that could not be read


# ---------------------------------------------------------------- python and device


def packages(case: Case) -> Iterator[Finding]:
    """Every package that pyproject.toml asks for, at a version it allows."""
    project = tomllib.loads((inputs.PROJECT / "pyproject.toml").read_text())["project"]
    wrong, python = [], platform.python_version()
    for requirement in map(Requirement, project["dependencies"]):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (wanted {requirement.specifier})")
    if not SpecifierSet(project["requires-python"]).contains(python):
        wrong.append(f"Python {python} (wanted {project['requires-python']})")
    if wrong:
        yield Finding("packages", STOP, ", ".join(wrong), "the versions of pyproject.toml", mend="make setup")
    else:
        yield passed("packages", f"Python {python}, torch {torch.__version__}, {len(project['dependencies'])} packages")


def device_problem(cfg: Config) -> str:
    """Why the device of the settings cannot be used; empty if it can."""
    count = torch.cuda.device_count()
    try:
        where = inputs.device(cfg)
    except RuntimeError:
        return f"no device is called {cfg.device!r}"
    missing = where.type == "cuda" and (where.index or 0) >= count
    return f"no device {cfg.device}: the machine has {count} CUDA devices" if missing else ""


def device(case: Case) -> Iterator[Finding]:
    """The device of the settings is there."""
    where, name = inputs.device(case.cfg), "device"
    if case.no_device:
        expected, mend = "auto, cpu, cuda or cuda:<number>", "device=auto takes a GPU where there is one"
        yield Finding(name, STOP, case.no_device, expected, mend=mend)
    elif where.type == "cuda":
        yield passed(name, f"{where}: {torch.cuda.get_device_name(where)}")
    elif case.embedded:
        yield passed(name, f"{where}, {os.cpu_count()} cores")
    else:
        yield note(name, f"{where}, {os.cpu_count()} cores", expected="a GPU for a data set of this size",
                   mend="notebooks 01 and 02 take days on a CPU; data.train_limit makes a small trial")  # fmt: skip


def memory(case: Case) -> Iterator[Finding]:
    """What extraction, training and recognition need, by formula, against what is free."""
    spec = expected_spec(case)
    if spec is None:
        return
    where = inputs.device(case.cfg)
    on_gpu = where.type == "cuda"
    free = torch.cuda.mem_get_info(where)[0] if on_gpu else psutil.virtual_memory().available
    cfg, hois = case.cfg, _sizes(case).hois
    rows = min(hois, 220) if cfg.ezhoi.class_rows == "selected" else hois
    share = costs.processes_of(cfg) if on_gpu else 1  # a step is shared out over GPUs
    needs = (
        ("extraction", "01", costs.extraction_memory(cfg, spec), "clip.batch_size", cfg.clip.batch_size),
        ("training", "02", costs.training_memory(cfg, spec, rows, share), "ezhoi.batch_size", cfg.ezhoi.batch_size),
        ("recognition", "06", costs.recognition_memory(cfg, spec, share), "defr.batch_size", cfg.defr.batch_size),
    )
    for name, book, need, setting, size in needs:
        if name == "recognition" and cfg.defr.backbone != "clip":
            continue
        found = f"about {costs.gigabytes(need)} ({setting} {size}) of {costs.gigabytes(free)} free"
        found += " on the GPU" if on_gpu else " memory"
        mend = _smaller(setting, size, need, free, book)
        yield _against(f"memory, {name}", found, need, free, (book,), mend)


def _smaller(setting: str, size: int, need: float, free: float, book: str) -> str:
    fits = max(1, int(size * TIGHT * max(free - costs.CONTEXT, 0) / need))
    if setting.startswith("ezhoi"):
        return f"{setting}={fits} ezhoi.accumulate={-(-size // fits)} (the same step), or ezhoi.precision=bf16"
    return f"{setting}={fits}" + (", or several GPUs, or leave notebook 06 out" if book == "06" else "")


def _against(name: str, found: str, need: float, free: float, notebooks: tuple[str, ...], mend: str) -> Finding:
    if need > free:
        return Finding(name, STOP, found, mend=mend, notebooks=notebooks)
    if need > TIGHT * free:
        return note(name, f"{found}: tight", mend=mend, notebooks=notebooks)
    return passed(name, found, notebooks)


# ---------------------------------------------------------------- disk and run folder


def _sizes(case: Case) -> costs.Sizes:
    """From what was read; else from the published counts, or those of the world to be rendered."""
    cfg, words = case.cfg, case.vocabulary
    kind = case.form.family
    if case.embedded:
        planned = {"train": cfg.data.world.train_images, "test": cfg.data.world.test_images}
    else:
        planned = {split: COUNTS[kind, split].images for split in ("train", "test")}
    limits = {"train": cfg.data.train_limit, "test": cfg.data.test_limit}
    count = {
        split: len(case.datasets[split]) if split in case.datasets else min(planned[split], limits[split] or 10**9)
        for split in planned
    }
    hois, verbs, objects = (words.num_hois, len(words.verbs), len(words.objects)) if words else CLASSES[kind]
    return costs.Sizes(
        **count, hois=hois, objects=objects, classes=verbs if cfg.ezhoi.classes == "verb" else hois,
        queries=case.detr.model.config.num_queries if case.detr else 100,
        fit=min(cfg.data.validation_images or cfg.evaluation.fit_images, count["train"]),
        texts=cfg.text_bank.max_texts or (CAPTIONS if cfg.text_bank.captions else 10 * count["train"]),
    )  # fmt: skip


def disk(case: Case) -> Iterator[Finding]:
    """What notebooks 01 to 04 will still write, by formula, against what is free."""
    spec = expected_spec(case)
    if spec is None:
        return
    folder = existing_parent(case.folder)
    needs = costs.disk(case.cfg, spec, _sizes(case))
    need = sum(size for kind, size in needs.items() if not _complete(case, kind))
    features = needs["features/train"] + needs["features/test"]
    free = shutil.disk_usage(folder).free
    found = (
        f"about {costs.gigabytes(need)} still to write, of {costs.gigabytes(free)} free"
        f" (features {costs.gigabytes(features)}: images x {spec.tokens + 1} tokens x {spec.embed_dim} numbers"
        f" of {case.cfg.features.dtype})"
    )
    yield _against("disk", found, need, free, ("01", "02", "03", "04"), "another RUN on a larger disk, or make room")


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def run_folder(case: Case) -> Iterator[Finding]:
    """The run folder can be written."""
    folder = existing_parent(case.folder)
    new = "" if case.folder.is_dir() else " (does not exist yet)"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding("run folder", STOP, f"{folder}: {reason}", "a folder that can be written", mend="another RUN")
        return
    yield passed("run folder", f"{case.folder}{new}: can be written")


class _LookingRun(Run):
    """A run that says what a stage would do instead of doing it: every stage computes its own fingerprint."""

    def log(self, event: str, **values: Any) -> None:
        """Nothing is written."""

    def artifact(self, kind: str, *arguments: Any, **named: Any) -> Artifact:
        """The complete artefact of the same fingerprint; StaleArtifactError, or RuntimeError for an unfinished one."""
        Artifact.load(self.root / kind)
        return super().artifact(kind, *arguments, **named)


def leftovers(case: Case) -> Iterator[Finding]:
    """Artefacts in the run folder that these settings would refuse, resume, or reuse."""
    kinds = [kind for kind in _stages(case) if case.has(kind)]
    if not kinds or case.clip is None or not case.boxes or len(case.datasets) < 2:
        if kinds:
            yield note("earlier artefacts", f"{len(kinds)} in the run folder, not compared: data or models are missing")
        return
    looking, stages = _LookingRun(case.folder), _stages(case)
    reused, resumed, replaced = [], [], []
    for kind in kinds:
        try:
            stages[kind](case.cfg, looking)
            reused.append(kind)
        except StaleArtifactError as error:
            if {"all", kind} & set(case.run.recompute):
                replaced.append(kind)
                continue
            lines = [line.strip() for line in str(error).split("\n")[1:-1]]
            yield Finding(
                "earlier artefacts", STOP, f"{kind} was made otherwise: {'; '.join(lines[:4])}",
                "the same settings and parents", "",
                f"another run folder, the old settings, or SET='--recompute {kind}' (all: also what follows from it)",
                _books(kind),
            )  # fmt: skip
            return  # everything that was made from it differs too
        except (RuntimeError, FileNotFoundError):
            resumed.append(kind)
    told = f"; asked to be made again: {', '.join(replaced)}" if replaced else ""
    told += f"; unfinished, will go on: {', '.join(resumed)}" if resumed else ""
    yield passed("earlier artefacts", f"{len(reused)} made with these settings will be reused{told}")


def _books(kind: str) -> tuple[str, ...]:
    """The notebooks that need an artefact of this kind."""
    first = {"ezhoi": "02", "pairs": "02", "text_bank": "03", "bridge": "03", "predictions": "04"}
    return tuple(book for book in ALL if book >= first.get(kind.split("/")[0], "01"))


def _stages(case: Case) -> dict[str, Callable[..., Any]]:
    """Artefact folder -> the stage that makes it, in order."""
    own = {"world": inputs.world} if case.embedded else {}
    if not (case.cfg.clip.source and case.cfg.detector.source):
        own["models"] = inputs.models
    for split in ("train", "test"):
        own[f"features/{split}"] = partial(inputs.features, split=split)
        own[f"detections/{split}"] = partial(inputs.detections, split=split)
    own["ezhoi"] = ezhoi.ezhoi
    own |= {f"pairs/{which}": partial(ezhoi.pairs, which=which) for which in ("fit", "test")}
    for kind in ("captions", "adapted"):
        own[f"text_bank/{kind}"] = partial(bridging.text_bank, kind=kind)
        own[f"bridge/{kind}"] = partial(bridging.bridge, kind=kind)
    return own | {"predictions/bridges": bridging.comparison}


def _complete(case: Case, kind: str) -> bool:
    try:
        return bool(Artifact.load(case.folder / kind))
    except (FileNotFoundError, RuntimeError):
        return False


CHECKS: tuple[tuple[str, Check], ...] = (
    ("packages", packages),
    ("device", device),
    ("memory", memory),
    ("disk", disk),
    ("run folder", run_folder),
    ("earlier artefacts", leftovers),
)
