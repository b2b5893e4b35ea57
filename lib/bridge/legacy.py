"""Old pickles into this project's folders, and its folders into old pickles (spec ez-hoi.md §9.3).

    python -m lib.bridge.legacy import mean.pkl --out weights/mean
    python -m lib.bridge.legacy import hoi_text_embeddings_raw_vitB_600.pkl --clip local-dir:weights/clip --out bank
    python -m lib.bridge.legacy export text runs/x/text_bank/adapted --name unseen_verb_vitB_117_212classes --out old
    python -m lib.bridge.legacy export mean runs/x/bridge/captions --name vitB_600 --out old
    python -m lib.bridge.legacy export visual runs/x/pairs/fit --mean runs/x/bridge/captions --name vitB_train --out old

`import` tells by itself what a file is: a mean becomes means.safetensors, text embeddings become a text bank, visual
embeddings (those with metadata) a text bank that is marked as a control. Exit code: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from lib.bridge.geometry import centre, modality_mean
from lib.bridge.old_pickles import MEAN_KEYS, LegacyError, read_embeddings, read_mean
from lib.bridge.text_bank import CONTROL, TextBank, tensor_sha256, vision_control
from lib.clip.load import load_clip
from lib.clip.text_space import clip_text_space
from lib.data.captions import read_captions
from lib.data.restricted_pickle import read_pickle
from lib.runs import atomic_write, file_sha256, write_json

BOXES_H, BOXES_O = ["x1h", "y1h", "x2h", "y2h"], ["x1o", "y1o", "x2o", "y2o"]  # columns of a pairs table


# ---------------------------------------------------------------- layouts of the public programs


def text_layouts(
    raw: Tensor, mean: Tensor, name: str, *, adapted: bool, scale: float = 5.0, **details: Any
) -> dict[str, Any]:
    """File name -> content: text embeddings raw and as c · G(row), and their mean.

    raw: [K, D] text-encoder outputs. mean: [D]. name: `<zero-shot kind>_<vitB|vitL>_<C>_<K>classes` for adapted text,
    `<vitB|vitL>_<C>` for raw text, whose mean is a bare [1, D]. details: select_HOI_index, num_classes, classnames ...
    """
    infix = "adapted_" if adapted else ""
    rows = f"hoi_text_embeddings_{infix}{name}_{{}}.pkl" if adapted else f"hoi_text_embeddings_{{}}_{name}.pkl"
    normalized = {"embeddings": scale * centre(raw.float(), mean), **details, "scale_factor": scale}
    files = {
        rows.format("raw"): {"embeddings": raw.float(), **details},
        rows.format("normalized"): normalized,
        f"hoi_text_mean_{infix}{name}.pkl": mean_layout(mean, scale_factor=scale, **details) if adapted else mean[None],
    }
    if "select_HOI_index" in details:
        files[f"select_HOI_index_{infix}{name}.pkl"] = details["select_HOI_index"]
    return files


def mean_layout(mean: Tensor, **details: Any) -> dict[str, Any]:
    """Content of a mean file as the fork writes it: text_mean [D] among its details."""
    return {"text_mean": mean, **details}


def visual_layout(
    features: Tensor, mean: Tensor, metadata: Sequence[Mapping[str, Any]], scale: float = 5.0, **config: Any
) -> dict[str, Any]:
    """Content of a visual embeddings file: c · G of raw pair features [N, D] as numpy, a dict a pair, the settings."""
    if len(metadata) != len(features):
        raise ValueError(f"visual embeddings: found {len(metadata)} metadata rows for {len(features)} features")
    embeddings = (scale * centre(features.float(), mean)).numpy()
    return {"embeddings": embeddings, "metadata": list(metadata), "config": {"scale_factor": scale, **config}}


def pair_metadata(frame: pd.DataFrame, labels: np.ndarray) -> list[dict[str, Any]]:
    """The fork's entry of every pair: image_id, human_idx, object_idx, object_class, has_gt, gt_verbs.

    frame: pairs table (`lib.ezhoi.predict.PairTable`). labels: [N, C] bool, the classes that a pair was given.
    human_idx and object_idx number the distinct boxes of an image in order of appearance.
    """
    columns = {"image_id": frame["image"]}
    for side, boxes in (("human_idx", BOXES_H), ("object_idx", BOXES_O)):
        box = frame.groupby(["image", *boxes], sort=False).ngroup()
        columns[side] = box.groupby(frame["image"]).transform(lambda numbers: pd.factorize(numbers)[0])
    rows = pd.DataFrame(columns | {"object_class": frame["object"]}).astype(int).to_dict("records")
    verbs = [np.flatnonzero(row).tolist() for row in labels]
    return [row | {"has_gt": bool(own), "gt_verbs": own} for row, own in zip(rows, verbs, strict=True)]


def write_pickle(path: Path, content: Any) -> None:
    """Write a file that the public programs read with `pickle.load`; tensors go to the CPU."""
    if isinstance(content, dict):
        content = {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in content.items()}
    atomic_write(path, lambda stream: pickle.dump(content, stream, protocol=4))


# ---------------------------------------------------------------- commands


def _import(given: argparse.Namespace) -> list[str]:
    content = read_pickle(given.file)
    if not isinstance(content, Mapping) or "embeddings" not in content:
        matrix = isinstance(content, Tensor | np.ndarray) and content.ndim > 1 and len(content) > 1
        if not matrix:
            return _import_mean(given)
    return _import_bank(given)


def _import_mean(given: argparse.Namespace) -> list[str]:
    found = read_mean(given.file, given.modality)
    if not found.modality:
        raise LegacyError(given.file, "a mean that does not say of what", "its modality", "add --modality text|vision")
    key = {"text": "text_mean", "vision": "vision_mean"}[found.modality]
    blob = save({key: found.mean.contiguous()})
    atomic_write(given.out / "means.safetensors", lambda stream: stream.write(blob))
    told = {name: value for name, value in found.details.items() if isinstance(value, str | int | float | bool)}
    record = {"modality": found.modality, "norm": float(found.mean.norm()), "sha256": tensor_sha256(found.mean)}
    origin = {"file": given.file.name, "sha256": file_sha256(given.file), "told": told}
    write_json(given.out / "means.json", record | {"dim": len(found.mean), "imported": origin})
    return [f"{given.out}: {found.modality} mean, D {len(found.mean)}, length {found.mean.norm():.3f}"]


def _import_bank(given: argparse.Namespace) -> list[str]:
    found = read_embeddings(given.file)
    raw = found.raw(read_mean(given.mean).mean if given.mean else None)
    if not given.clip:
        raise LegacyError(given.file, "embeddings without their CLIP", "a text space", "add --clip local-dir:<folder>")
    clip = load_clip(given.clip)
    if raw.shape[1] != clip.spec.embed_dim:
        raise LegacyError(
            given.file, f"rows {raw.shape[1]} wide", f"{clip.spec.embed_dim}, the embedding dimension of {given.clip}",
            "give the CLIP that made them",
        )  # fmt: skip
    moved = [flag for flag in ("txt_align", "act_descriptor") if found.details.get(flag)]
    if moved and given.adaptation == "none":
        raise LegacyError(
            given.file, f"text moved by --{moved[0]}", "the detector that moved it",
            "add --adaptation ezhoi:<fingerprint of that detector>",
        )  # fmt: skip
    space, source = clip_text_space(clip, given.adaptation, given.template), f"{given.file.name}, imported"
    if "metadata" in found.details:
        bank = replace(vision_control(raw, space, source), labels=_pair_names(found.details["metadata"]))
    else:
        labels = _labels(given, found.details, len(raw))
        bank = TextBank(raw, labels, space, source, tuple(labels))
    bank.save(given.out)
    lines = [f"{given.out}: {len(bank)} x {bank.dim}, text space {bank.space.id}"]
    if found.scale:
        lines.append(
            f"rows were centred and {found.scale:g} long: their directions are raw again, their lengths are lost"
        )
    if bank.space.adaptation == CONTROL:
        lines.append("visual features: a control (mode 3); a bridge of them cannot carry vision to text")
    return lines


def _labels(given: argparse.Namespace, details: Mapping[str, Any], count: int) -> list[str]:
    if given.labels:
        labels = read_captions(given.labels)
    elif "classnames" in details:
        labels = [str(name) for name in details["classnames"]]
    else:
        rows = np.asarray(details.get("select_HOI_index", range(count))).tolist()
        labels = [f"HOI {row}" for row in rows]
    if len(labels) != count:
        raise LegacyError(given.file, f"{len(labels)} names for {count} rows", "one each", "give --labels <file>")
    return labels


def _pair_names(metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{row.get('image_id')}: {row.get('human_idx')}-{row.get('object_idx')}" for row in metadata]


def _export(given: argparse.Namespace) -> list[str]:
    if given.what == "text":
        files = _export_text(given)
    elif given.what == "mean":
        found = read_mean(given.folder, given.modality)
        bare = found.modality == "vision" or given.bare
        content = found.mean[None] if bare else mean_layout(found.mean, source=f"{given.folder}")
        files = {f"hoi_{found.modality}_mean_{given.name}.pkl": content}
    else:
        if not given.mean:
            raise LegacyError(given.folder, "no mean", "the mean to take off", "add --mean <bridge folder or .pkl>")
        features = torch.from_numpy(np.load(given.folder / "features.npy", allow_pickle=False))
        labels = np.load(given.folder / "labels.npy", allow_pickle=False)
        metadata = pair_metadata(pd.read_parquet(given.folder / "pairs.parquet"), labels)
        mean = read_mean(given.mean, given.modality).mean
        content = visual_layout(features, mean, metadata, text_mean=str(given.mean))
        files = {f"hoi_visual_embeddings_normalized_{given.name}.pkl": content}
    for name, content in files.items():
        write_pickle(given.out / name, content)
    return [str(given.out / name) for name in files]


def _export_text(given: argparse.Namespace) -> dict[str, Any]:
    bank = TextBank.load(given.folder)
    number = {label: row for row, label in enumerate(bank.labels)}
    labels = list(bank.classes) or bank.labels
    rows = bank.vectors[[number[label] for label in labels]]
    mean = read_mean(given.mean, "text").mean if given.mean else modality_mean(rows)
    chosen = list(range(len(labels))) if given.select is None else read_pickle(given.select)
    if len(chosen) != len(labels):
        raise LegacyError(
            given.select, f"{len(chosen)} ids for {len(labels)} rows", "one each", "give another --select"
        )
    details = {"classnames": labels, "num_classes": len(labels), "select_HOI_index": list(chosen)}
    adapted = bank.space.adaptation != "none"
    details |= {"source": bank.source, "checkpoint": bank.space.adaptation} if adapted else {}
    return text_layouts(rows, mean, given.name, adapted=adapted, **details)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import or export; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.bridge.legacy", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    take = commands.add_parser("import", help="an old pickle becomes a mean or a text bank")
    take.add_argument("file", type=Path)
    take.add_argument("--clip", help="the CLIP that made the rows: local-dir:<folder>")
    take.add_argument("--adaptation", default="none", help="ezhoi:<fingerprint> of the detector that moved the text")
    take.add_argument("--template", default="{}", help="what wrapped the sentences")
    take.add_argument("--labels", type=Path, help="sentences of the rows, where the file does not name them")
    take.set_defaults(run=_import)
    give = commands.add_parser("export", help="files that the public programs read")
    give.add_argument("what", choices=("text", "mean", "visual"))
    give.add_argument("folder", type=Path, help="text bank | bridge | pairs folder of a run")
    give.add_argument("--name", required=True, help="middle of the file name, such as vitB_600")
    give.add_argument("--select", type=Path, help="pickled list of the HOI ids of the rows; else 0, 1, 2, ...")
    give.add_argument("--bare", action="store_true", help="a text mean as bare tensor [1, D] in place of a dict")
    give.set_defaults(run=_export)
    for command in (take, give):
        command.add_argument("--mean", type=Path, help="mean that was or is to be taken off: .pkl or bridge folder")
        command.add_argument("--modality", choices=sorted({*MEAN_KEYS.values()} - {""}), default="")
        command.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        lines = given.run(given)
    except (ValueError, FileNotFoundError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
