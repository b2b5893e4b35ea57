"""EZ-HOI's pickles, one an image, into a feature store and out of one (spec clip-features-and-detr.md §4).

    python -m lib.features.legacy import hicodet_pkl_files/clipbase_img_hicodet_train features/train \\
        --clip local-dir:weights/ViT-B-16 --images hico_20160224_det/images/train2015 --verify 4
    python -m lib.features.legacy export features/train hicodet_pkl_files --data hicodet

A pickle is read without running it, wherever it was made (CUDA tensors come to the CPU). The old programs saved a view
of [1 + L, D] numbers, so the class token is still inside the file: it is recovered. Exported tensors are copies in
float32 on the CPU and leave it out, as the old programs expect.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from lib.clip.load import load_clip
from lib.data.images import ImageError
from lib.data.restricted_pickle import read_pickle
from lib.engine.progress import Progress
from lib.errors import FoundExpected
from lib.features.clip_features import clip_manifest, verify_sample
from lib.features.image_lists import find_images, legacy_folder, read_image_list
from lib.features.layout import FeatureStoreError, images_per_shard
from lib.features.store import FeatureStore
from lib.features.writer import FeatureWriter, ImageRecord
from lib.runs import atomic_write

SUFFIX = "_clip.pkl"


def legacy_file(folder: Path | str, name: str) -> Path:
    """Pickle of an image: the name up to its first dot, and `_clip.pkl`."""
    return Path(folder) / f"{name.split('.')[0]}{SUFFIX}"


def read_legacy(path: Path | str, tokens: int | None = None) -> tuple[Tensor, Tensor | None]:
    """patches [L, D] float32 of one pickle, and its class token [D] if that is still inside.

    tokens: L, checked if given. The class token is the first row of a tensor of 1 + L rows (files of the single-image
    demo), else the row in front of the saved view, in a storage of images of 1 + L rows. Raises PickleError for a file
    that is no whole pickle or would run code, FeatureStoreError for anything but one tensor [L, D].
    """
    value = read_pickle(path)
    if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point():
        found = f"a {tuple(value.shape)} tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise FeatureStoreError(path, found, "one tensor [L, D] of floats", f"use a folder of *{SUFFIX} files")
    rows, D = value.shape
    if tokens is not None and rows == 1 + tokens:
        return value[1:].float(), value[0].float()
    if tokens not in (None, rows):
        raise FeatureStoreError(path, f"{rows} tokens", f"{tokens}", "import it with the CLIP that made it (--clip)")
    before = value.storage_offset() - D
    inside = value.is_contiguous() and before >= 0 and before % ((1 + rows) * D) == 0
    return value.float(), value.as_strided((D,), (1,), before).float() if inside else None


def import_legacy(
    folder: Path | str,
    store: Path | str,
    names: Sequence[str],
    manifest: Mapping[str, Any],
    *,
    images: Sequence[Path] | None = None,
    shard_size: int = 0,
    dtype: Literal["float16", "float32"] = "float16",
    strict: bool = True,
) -> dict[str, int]:
    """Write a store from a folder of pickles; an unfinished import goes on where it stopped.

    names: images in any order; the store sorts them. manifest: as `clip_manifest` gives it, with L and D.
    images: paths parallel to `names`, for sizes and hashes in the index.
    strict=False: an image without a usable pickle becomes a zero record and a line of errors.jsonl.
    A pickle without class token gets a zero one.
    Returns the numbers of images, of failed ones, and of those without class token in what this call read.
    """
    paths = dict(zip(names, images or [None] * len(names), strict=True))
    names, L, D = sorted(names), manifest["L"], manifest["D"]
    _refuse_shared_files(folder, names)
    size = shard_size or images_per_shard(L, D, dtype)
    writer = FeatureWriter(store, {**manifest, "imported": "pickles of EZ-HOI"}, names, shard_size=size, dtype=dtype)
    missing, without = writer.missing_shards(), 0
    with Progress("importing pickles", sum(len(writer.shard_ids(k)) for k in missing)) as progress:
        for k in missing:
            ids = writer.shard_ids(k)
            patches, cls = np.zeros((len(ids), L, D), np.float32), np.zeros((len(ids), D), np.float32)
            records = []
            for row, i in enumerate(ids):
                record = _image_facts(paths[names[i]])
                try:
                    tokens, token = read_legacy(legacy_file(folder, names[i]), L)
                    patches[row] = tokens.numpy()
                    without += token is None
                    if token is not None:
                        cls[row] = token.numpy()
                except FoundExpected as error:
                    if strict:
                        raise
                    record = ImageRecord(record.width, record.height, record.sha1, str(error).splitlines()[0])
                records.append(record)
                progress.step()
            writer.write_shard(k, patches, cls, records)
    writer.finish()
    return {"images": len(names), "failed": len(writer.failures()), "without_class_token": without}


def export_legacy(store: FeatureStore, folder: Path | str) -> int:
    """Write one pickle an image: a bare float32 tensor [L, D] on the CPU, without class token. Returns the count.

    An image that could not be read has no pickle: the old programs would take its zeros for features.
    """
    names = store.index.loc[store.index["error"] == "", ["id", "name"]]
    _refuse_shared_files(folder, names["name"])
    with Progress("exporting pickles", len(names)) as progress:
        for row in names.itertuples():
            patches = store[row.id][0].clone()  # a view would carry the storage it looks at into the file
            atomic_write(legacy_file(folder, row.name), lambda stream, values=patches: pickle.dump(values, stream))
            progress.step()
    return len(names)


def _refuse_shared_files(folder: Path | str, names: Sequence[str]) -> None:
    """Names that differ only behind their first dot share one old file."""
    first: dict[Path, str] = {}
    for name in names:
        other = first.setdefault(legacy_file(folder, name), name)
        if other != name:
            raise FeatureStoreError(
                legacy_file(folder, name), f"one file for {other} and {name}", "a file an image",
                "the old layout drops a name from its first dot on: rename the images",
            )  # fmt: skip


def _image_facts(path: Path | None) -> ImageRecord:
    if path is None:
        return ImageRecord()
    with Image.open(path) as image:
        width, height = image.size
    return ImageRecord(width, height, hashlib.sha1(path.read_bytes()).hexdigest())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m lib.features.legacy", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    add = (command := commands.add_parser("import", help="pickles -> store")).add_argument
    add("folder", type=Path, help="folder of pickles, or with --data the folder above it")
    add("store", type=Path, help="folder that receives the store")
    add("--clip", required=True, help="the CLIP that made them: local-dir:<folder> | random:<open_clip name>")
    add("--images", type=Path, help="folder of the images: sizes and hashes for the index, and --verify")
    add("--names", type=Path, help="annotation file or list of names; default: the images, else the pickles + .jpg")
    add("--split", default="", help="word for the index: train, test")
    add("--data", choices=("hicodet", "vcoco"), help="take the sub-folder that the old programs name for the split")
    add("--dtype", choices=("float16", "float32"), default="float16", help="numbers on disk")
    add("--skip-broken", action="store_true", help="record missing and damaged pickles instead of stopping")
    add("--verify", type=int, default=0, metavar="N", help="compute N images with --clip and compare")
    command.set_defaults(do=_import)
    add = (command := commands.add_parser("export", help="store -> pickles")).add_argument
    add("store", type=Path, help="folder of a finished store")
    add("folder", type=Path, help="folder that receives the pickles, or with --data the folder above it")
    add("--data", choices=("hicodet", "vcoco"), help="write into the sub-folder that the old programs read")
    command.set_defaults(do=_export)
    options = parser.parse_args(arguments)
    try:
        print(options.do(options))
    except (FoundExpected, ImageError) as error:
        raise SystemExit(str(error)) from None


def _import(options: argparse.Namespace) -> str:
    clip = load_clip(options.clip)
    folder = options.folder
    if options.data:
        folder = folder / legacy_folder(clip.spec.name, options.data, options.split)
    if not folder.is_dir():
        raise FeatureStoreError(folder, "no folder", f"a folder of *{SUFFIX} files", "correct the path")
    listed = read_image_list(options.names) if options.names else None
    images = find_images(options.images, listed) if options.images else None
    if images is not None:
        names = [path.name for path in images]
    else:
        names = listed or [path.name.removesuffix(SUFFIX) + ".jpg" for path in sorted(folder.glob(f"*{SUFFIX}"))]
    manifest = clip_manifest(clip, options.split)
    found = import_legacy(
        folder, options.store, names, manifest, images=images, dtype=options.dtype, strict=not options.skip_broken
    )
    told = [f"{options.store}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in found.items())]
    if options.verify and images:
        paths = dict(zip(names, images, strict=True))
        worst = verify_sample(FeatureStore.open(options.store), clip, paths, options.verify)
        told.append(f"computed {options.verify} images with {clip.spec.id}: largest difference {worst:.2g}")
    elif not options.verify:
        told.append("not checked against the CLIP: --images FOLDER --verify 4 computes four images again")
    told.append(f"use it: features.source={options.store.parent} (a folder with the stores train/ and test/)")
    return "\n".join(told)


def _export(options: argparse.Namespace) -> str:
    store = FeatureStore.open(options.store)
    folder = options.folder
    if options.data:
        made_with = store.manifest["settings"]
        folder = folder / legacy_folder(made_with.get("clip", ""), options.data, made_with.get("split", ""))
    return f"{folder}: {export_legacy(store, folder)} pickles, as EZ-HOI's programs read them"


if __name__ == "__main__":
    main()
