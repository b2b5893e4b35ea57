"""The doctor on CLIP and what hangs on it: stores of features, EZ-HOI weights, bridges, the text space of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip

from lib.bridge.bundle import Bridge, check_compatible
from lib.clip.load import CONFIG_FILE, ClipSpec
from lib.clip.released import PUBLISHED
from lib.clip.text_space import clip_text_space
from lib.defr.labels import SPLITS
from lib.engine.progress import Progress
from lib.ezhoi.weights import read_record
from lib.features.store import FeatureStore
from lib.settings import Config
from lib.stages import inputs
from lib.stages.doctor_case import Case, Check, failed, note, passed
from lib.stages.doctor_facts import CLIP, EZHOI
from lib.stages.doctor_report import ALL, STOP, Finding

WEIGHT_BOOKS, CAPTION_BOOKS = ("02", "03", "04", "05"), ("03", "04", "05")
SHIPPED_CLIP = inputs.PROJECT / "configs" / "tiny_clip" / CONFIG_FILE
_BLOCK = 1 << 24  # bytes read at a time while hashing


# ---------------------------------------------------------------- CLIP


def clip(case: Case) -> Iterator[Finding]:
    """The CLIP as the stages load it; its dimensions against the published ones and against the ezhoi settings."""
    source = case.cfg.clip.source
    if not source and not case.has("models"):
        yield from shipped("CLIP", case, "clip.source", "local-dir:weights/ViT-B-16", ALL)
        return
    folder = Path(source.removeprefix("local-dir:"))
    archive = archive_of(folder, ".pt") if source.startswith("local-dir:") else None
    try:
        case.clip = inputs.clip_model(case.cfg, case.run)
    except (OSError, ValueError, RuntimeError) as error:
        yield _no_clip(folder, archive, error)
        return
    spec = case.clip.spec
    depth = min(case.cfg.ezhoi.prompt_depth, spec.vision_layers)
    found = (
        f"{spec.id}: {spec.image_size} px, {spec.grid} x {spec.grid} patches, D = {spec.embed_dim}, {spec.activation};"
        f" EZ-HOI's prompts in {depth} of {spec.vision_layers} layers"
    )
    expected = _published_dimensions(spec)
    own = {name: getattr(spec, name) for name in expected}
    if own != expected:
        wrong = ", ".join(f"{name} {own[name]}" for name in own if own[name] != expected[name])
        right = ", ".join(f"{name} {expected[name]}" for name in own if own[name] != expected[name])
        yield Finding("CLIP", STOP, f"{spec.weights}: {wrong}", f"{right}, as {spec.name} has", _origin(spec.name),
                      "convert the archive again, or give the folder the name of its own model")  # fmt: skip
    elif spec.weights == "random":
        yield note("CLIP", f"{found}; random weights", expected="trained weights",
                   mend="good for a test of the wiring only: set clip.source")  # fmt: skip
    elif not case.embedded and not source:
        yield note("CLIP", f"{found}; it knows the stick world only", expected="a CLIP of photographs",
                   origin=CLIP.format(name="ViT-B-16"), mend="set clip.source")  # fmt: skip
    else:
        yield passed("CLIP", found)
    if archive:
        yield _verdict_on(archive)


def _no_clip(folder: Path, archive: Path | None, error: Exception) -> Finding:
    """A stop that says what to do next: unpack, convert, or download."""
    found = failed("CLIP", error, origin=_origin(folder.name))
    if archive is None:
        command = f"python -m lib.clip.released {folder.name}.pt {folder}"
        return Finding("CLIP", STOP, found.found, found.expected, found.origin, f"download the archive, then {command}")
    verdict = _verdict_on(archive)
    if verdict.state == STOP:
        return verdict
    mend = f"python -m lib.clip.released {archive} {folder}"
    return Finding("CLIP", STOP, f"{found.found}, but {archive} is there, intact", found.expected, "", mend)


def _origin(name: str) -> str:
    return CLIP.format(name=name) if name in PUBLISHED.values() else ""


def archive_of(folder: Path, *suffixes: str) -> Path | None:
    """The released file that a folder is converted from, where it lies beside or inside it."""
    if folder.is_file():
        return folder
    places = [base / f"{folder.name}{suffix}" for base in (folder.parent, folder) for suffix in suffixes]
    return next((path for path in places if path.is_file()), None)


def _verdict_on(archive: Path) -> Finding:
    """Size and SHA-256 of a CLIP archive."""
    name, size = "CLIP, archive", archive.stat().st_size / 1e6
    published = {model: sha for sha, model in PUBLISHED.items()}
    if archive.stem not in published:
        return passed(name, f"{archive}: {size:,.0f} MB; no hash was published for this name")
    digest = sha256(archive)
    if PUBLISHED.get(digest) == archive.stem:
        return passed(name, f"{archive}: {size:,.0f} MB, SHA-256 {digest[:12]}... as published")
    return Finding(
        name, STOP, f"{archive}: {size:,.0f} MB with SHA-256 {digest[:12]}...",
        f"{published[archive.stem][:12]}..., the published one", _origin(archive.stem),
        "download it again: it is cut short or another file; never convert it with --trust",
    )  # fmt: skip


def sha256(path: Path) -> str:
    """SHA-256 of a file, with progress."""
    digest = hashlib.sha256()
    with path.open("rb") as stream, Progress(f"SHA-256 of {path.name}, MB", path.stat().st_size >> 20) as progress:
        while block := stream.read(_BLOCK):
            digest.update(block)
            progress.step(len(block) >> 20)
    return digest.hexdigest()


def _published_dimensions(spec: ClipSpec) -> dict[str, Any]:
    """Those of open_clip's own configuration of the name; nothing for a name that OpenAI did not publish."""
    planned = planned_spec(spec.name) if spec.name in PUBLISHED.values() else None
    names = (
        "embed_dim",
        "image_size",
        "patch_size",
        "grid",
        "vision_width",
        "vision_layers",
        "text_width",
        "text_layers",
    )
    return {name: getattr(planned, name) for name in names} if planned else {}


def planned_spec(name: str) -> ClipSpec | None:
    """The dimensions that a CLIP of this name will have, before its weights are there; None for an unknown name."""
    library = f"{name.removesuffix('px')}-quickgelu"
    config = open_clip.get_model_config(library if library in open_clip.list_models() else name)
    return spec_of(name, config) if config else None


def spec_of(name: str, config: dict[str, Any]) -> ClipSpec:
    """Dimensions from an open_clip model configuration."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    grid = vision["image_size"] // vision["patch_size"]
    return ClipSpec(
        name, "planned", "", config["embed_dim"], vision["image_size"], vision["patch_size"], grid, vision["width"],
        vision["layers"], text["width"], text["layers"], text["context_length"],
        "quick_gelu" if config.get("quick_gelu") else "gelu",
    )  # fmt: skip


def expected_spec(case: Case) -> ClipSpec | None:
    """The loaded CLIP's dimensions, or those of the one that the settings name."""
    if case.clip is not None:
        return case.clip.spec
    if not case.cfg.clip.source:
        return spec_of("tiny-clip", json.loads(SHIPPED_CLIP.read_text())["model_cfg"])
    return planned_spec(Path(case.cfg.clip.source.partition(":")[2]).name)


def shipped(name: str, case: Case, setting: str, example: str, notebooks: tuple[str, ...]) -> Iterator[Finding]:
    """The tiny models: unpacked by notebook 00, which runs on the stick world only."""
    if case.embedded:
        yield passed(name, "the tiny one that comes with the project; notebook 00 unpacks it", notebooks)
    else:
        yield Finding(
            name, STOP, f"{setting} is empty", "a folder: the tiny models are made by notebook 00 for the stick world",
            "", f"set {setting}, such as {example}", notebooks,
        )  # fmt: skip


# ---------------------------------------------------------------- what starts from these


def stores(case: Case) -> Iterator[Finding]:
    """features.source: finished stores of this CLIP that hold every image."""
    source = case.cfg.features.source
    for split in SPLITS if source and case.clip else ():
        name, spec = f"features, {split}", case.clip.spec
        try:
            store = FeatureStore.open(Path(source) / split, {"clip": spec.id, "L": spec.tokens, "D": spec.embed_dim})
            if split in case.datasets:
                store.ids([image.name for image in case.datasets[split].images])
        except (OSError, ValueError, RuntimeError) as error:
            yield failed(name, error)
        else:
            yield passed(name, f"{store.folder}: {len(store):,} images of {spec.id}")


def weights(case: Case) -> Iterator[Finding]:
    """ezhoi.init_from belongs to this CLIP and this vocabulary."""
    path = Path(case.cfg.ezhoi.init_from)
    if not case.cfg.ezhoi.init_from:
        return
    name, command = "EZ-HOI weights", "python -m lib.ezhoi.released import {} FOLDER --clip ... --annotations ..."
    if path.is_file():
        yield Finding(name, STOP, f"{path}: a released checkpoint, {path.stat().st_size / 1e6:,.0f} MB",
                      "a folder of imported weights", "", command.format(path), WEIGHT_BOOKS)  # fmt: skip
        return
    try:
        record = read_record(path)
    except OSError as error:
        yield failed(name, error, origin=EZHOI, notebooks=WEIGHT_BOOKS)
        return
    trained_on, words = record["clip"], case.vocabulary
    if case.clip and trained_on["weights_sha256"] != case.clip.spec.weights_sha256:
        yield Finding(name, STOP, f"{path}: trained on CLIP {trained_on['id']} (D = {trained_on['embed_dim']})",
                      f"{case.clip.spec.id} (D = {case.clip.spec.embed_dim}), the CLIP of the settings", "",
                      "set clip.source to the CLIP of the weights", WEIGHT_BOOKS)  # fmt: skip
    elif words is not None and max(record["rows"]) >= words.num_hois:
        yield Finding(name, STOP, f"{path}: class rows up to HOI {max(record['rows'])}", f"0..{words.num_hois - 1}", "",
                      "use the annotations that the weights were trained with", WEIGHT_BOOKS)  # fmt: skip
    else:
        yield passed(name, f"{path}: {len(record['rows'])} class rows, CLIP {trained_on['id']}", WEIGHT_BOOKS)


def text_is_live(cfg: Config) -> bool:
    """EZ-HOI's class text depends on what it learns, so that no bridge of captions fits it."""
    return cfg.ezhoi.text_prompts == "prefix" or cfg.ezhoi.text_adapter or cfg.ezhoi.act_descriptors


def bridge(case: Case) -> Iterator[Finding]:
    """The bridge inside training learnt the text that the classifier has."""
    path = case.cfg.ezhoi.bridge
    if path in ("", "captions") or case.clip is None:  # captions: trained first, on this very CLIP
        return
    space = clip_text_space(case.clip, "ezhoi:in training" if text_is_live(case.cfg) else "none")
    command = "train a bridge on this CLIP's captions (notebook 03), with ezhoi.preset=released"
    try:
        mismatch = check_compatible(
            Bridge.load(path), space, case.clip.spec.embed_dim, command=command,
            allow_mismatch=case.cfg.bridge.allow_text_space_mismatch,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        yield failed("bridge in training", error, notebooks=WEIGHT_BOOKS)
        return
    if mismatch:
        yield note("bridge in training", f"{path}: learnt another text than the classifier's",
                   mend="on purpose: bridge.allow_text_space_mismatch", notebooks=WEIGHT_BOOKS)  # fmt: skip
    else:
        yield passed("bridge in training", f"{path}: text space {space.id}, the classifier's", WEIGHT_BOOKS)


def text_spaces(case: Case) -> Iterator[Finding]:
    """Banks and bridges that the run folder holds speak of this CLIP."""
    if case.clip is None:
        return
    files = [*case.folder.glob("text_bank/*/text_bank.json"), *case.folder.glob("bridge/*/bridge.json")]
    stated = {path.parent: json.loads(path.read_text())["text_space"] for path in sorted(files)}
    ours = case.clip.spec.weights_sha256
    foreign = [folder for folder, space in stated.items() if space["clip_sha"] != ours]
    if foreign:
        names = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in foreign)
        yield Finding(
            "text spaces", STOP, f"{names}: text of CLIP {stated[foreign[0]]['clip_sha'][:8]}",
            f"CLIP {ours[:8]}, the one of the settings", "",
            "another run folder, the CLIP that they were made with, or recompute='[all]'", CAPTION_BOOKS,
        )  # fmt: skip
    elif stated:
        yield passed("text spaces", f"{len(stated)} banks and bridges of the run: text of this CLIP", CAPTION_BOOKS)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("CLIP", clip),
    ("features", stores),
    ("EZ-HOI weights", weights),
    ("bridge in training", bridge),
    ("text spaces", text_spaces),
)
