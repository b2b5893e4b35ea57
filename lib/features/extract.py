"""Extraction of patch features into a store, by any number of ranks (spec clip-features-and-detr.md §5-§6).

    python -m lib.features.extract features/train --clip local-dir:weights/ViT-B-16 --images hico/images/train2015
    torchrun --nproc_per_node 4 -m lib.features.extract ...      # the same bytes, four GPUs

Each rank computes the shards it owns and skips those that exist. Batches never cross a shard, so what a
shard holds depends neither on the number of ranks nor on where an earlier session was stopped.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.clip.load import load_clip
from lib.clip.tokens import preprocess as clip_preprocess
from lib.data.images import ImageError
from lib.engine.progress import Progress
from lib.errors import FoundExpected
from lib.features.clip_features import (
    PRECISIONS,
    Encoder,
    clip_decode,
    clip_encoder,
    clip_manifest,
    mode_difference,
    verify_sample,
)
from lib.features.image_lists import find_images, read_image_list
from lib.features.layout import images_per_shard, shard_path
from lib.features.loading import DECODE_MODES, Batch, Decode, ExactDecode, Preprocess, decoding_workers, load_batches
from lib.features.store import FeatureStore
from lib.features.writer import FeatureWriter, ImageRecord
from lib.runs import append_jsonl


def extract_features(
    model_encode: Encoder,
    image_paths: Sequence[Path | str],
    names: Sequence[str],
    folder: Path | str,
    manifest: Mapping[str, Any],
    *,
    preprocess: Preprocess,
    decode: Decode | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    strict: bool = False,
    dtype: Literal["float16", "float32"] = "float16",
    progress: Callable[[int, int], None] | None = None,
    log: Path | str | None = None,
) -> list[dict[str, Any]]:
    """Compute this rank's missing shards; the rank that completes the set also writes the index.

    model_encode: images [B, 3, H, W] (float32, on the CPU; it moves them to its device) -> cls [B, D],
        patches [B, L, D], any float type and device. Called under inference mode.
    image_paths, names: parallel; a name is the image's key in the store, which keeps them in sorted order.
    manifest: what shapes the features; see `FeatureWriter`.
    preprocess: decoded PIL image in the file's own mode -> tensor [3, H, W]; picklable if workers > 0.
    decode: file bytes -> (tensor, size) instead of PIL and `preprocess` (lib.features.loading.FastDecode).
    workers: processes that decode ahead of the model; 0 decodes in this process.
    strict: raise ImageError at the first unreadable image instead of recording it.
    progress: called as progress(done, total) with numbers of images of this rank's missing shards.
    log: JSON lines file that gets one line a finished shard: shards, images per second, seconds left.

    Returns {"id", "name", "reason"} of every unreadable image in this rank's shards, those of earlier
    sessions included; their features are zero, and errors.jsonl lists them for all ranks.
    """
    if len(image_paths) != len(names):
        raise ValueError(f"extraction: {len(image_paths)} image paths for {len(names)} names, expected one each")
    order = sorted(range(len(names)), key=names.__getitem__)
    paths = [Path(image_paths[i]) for i in order]
    writer = FeatureWriter(folder, manifest, [names[i] for i in order], shard_size=shard_size, dtype=dtype)
    shards = writer.missing_shards(rank, world)
    batches = [
        ids[start : start + batch_size]
        for ids in map(writer.shard_ids, shards)
        for start in range(0, len(ids), batch_size)
    ]
    L, D = manifest.get("L"), manifest.get("D")
    if shards and None in (L, D):  # one blank image tells them before any real one, readable or not
        blank = preprocess(Image.new("RGB", (256, 256)))
        cls, patches = _checked(model_encode, None, None)(blank[None])
        D, L = cls.shape[1], patches.shape[1]
    encode = _checked(model_encode, L, D)
    loaded = load_batches(paths, decode or ExactDecode(preprocess), batches, workers)
    encoded = _one_ahead(loaded, encode, getattr(torch, dtype), strict)
    meter, done = _Meter(log, rank, len(shards)), 0
    with ThreadPoolExecutor(1) as disk:  # writes a shard while the next one is computed
        written: Future[None] | None = None
        for k in shards:
            n = len(writer.shard_ids(k))
            patches, cls = np.zeros((n, L, D), dtype), np.zeros((n, D), dtype)
            records: list[ImageRecord] = []
            while len(records) < n:
                batch, tokens = next(encoded)
                if tokens:
                    rows = len(records) + batch.readable
                    cls[rows], patches[rows] = (part.array() for part in tokens)
                records += batch.records
                done += len(batch.records)
                if progress:
                    progress(done, sum(map(len, batches)))
            if written:
                written.result()  # at most one shard waits in memory
            written = disk.submit(writer.write_shard, k, patches, cls, records)
            meter.shard(n)
        if written:
            written.result()
    failures = writer.failures(rank, world)
    if strict and failures:
        _refuse_recorded(writer, failures[0], paths)
    if not writer.missing_shards():
        writer.finish()
    return failures


def _one_ahead(
    batches: Iterator[Batch], encode: Encoder, dtype: torch.dtype, strict: bool
) -> Iterator[tuple[Batch, list[_OnTheWay]]]:
    """Every batch with its cls and patches (none without a readable image); a GPU already has the next one."""
    waiting: tuple[Batch, list[_OnTheWay]] | None = None
    for batch in batches:
        if strict and batch.errors:
            raise batch.errors[0]
        tokens = [_OnTheWay(part, dtype) for part in encode(batch.images)] if len(batch.images) else []
        if waiting:
            yield waiting
        waiting = batch, tokens
    if waiting:
        yield waiting


class _OnTheWay:
    """A tensor on its way to the host: from a GPU the copy runs behind the next batch's kernels."""

    def __init__(self, values: Tensor, dtype: torch.dtype) -> None:
        self.host, self.copied = values.to(dtype), None
        if values.is_cuda:
            source, self.host = self.host, torch.empty(values.shape, dtype=dtype, pin_memory=True)
            self.host.copy_(source, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def array(self) -> np.ndarray:
        if self.copied:
            self.copied.synchronize()
        return self.host.cpu().numpy()


def _checked(model_encode: Encoder, L: int | None, D: int | None) -> Encoder:
    """The encoder under inference mode; ValueError unless it gives cls [B, D] and patches [B, L, D]."""

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            cls, patches = model_encode(images)
        B, found = len(images), (tuple(cls.shape), tuple(patches.shape))
        width = D or cls.shape[-1]
        expected = (B, width), (B, L or patches.shape[min(1, patches.ndim - 1)], width)
        if found != expected:
            raise ValueError(
                f"extraction: the encoder gave cls {found[0]} and patches {found[1]} for {B} images,"
                f" expected {expected[0]} and {expected[1]}"
            )
        return cls, patches

    return encode


class _Meter:
    """Progress of a rank as JSON lines: finished shards of all, images per second, seconds left."""

    def __init__(self, log: Path | str | None, rank: int, shards: int) -> None:
        self.log, self.rank, self.shards = log, rank, shards
        self.begun, self.done, self.images = time.monotonic(), 0, 0

    def shard(self, images: int) -> None:
        self.done, self.images = self.done + 1, self.images + images
        elapsed = time.monotonic() - self.begun
        if self.log:
            rate, left = self.images / elapsed, elapsed / self.done * (self.shards - self.done)
            line = {"rank": self.rank, "shards_done": self.done, "shards": self.shards}
            append_jsonl(self.log, line | {"images_per_second": round(rate, 3), "seconds_left": round(left, 1)})


def _refuse_recorded(writer: FeatureWriter, failure: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """ImageError for an image that an earlier, lenient session recorded as unreadable."""
    shard = shard_path(writer.folder, "patches", failure["id"] // writer.shard_size)
    raise ImageError(
        paths[failure["id"]],
        f"recorded as unreadable by an earlier extraction: {failure['reason']}",
        "a readable image file (strict extraction)",
        f"restore the image and rm {shard}; it is computed again",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; under torchrun every process computes its shards on its own GPU."""
    options = _parser().parse_args(arguments)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        told = _extract(options, rank, world)
    except (FoundExpected, ImageError) as error:
        raise SystemExit(str(error)) from None
    if rank == 0:
        print(told)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.features.extract", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("store", type=Path, help="folder that receives the features; an unfinished one is continued")
    add("--clip", required=True, help="local-dir:<folder> | random:<open_clip name>")
    add("--images", type=Path, required=True, help="folder of the images, sub-folders included")
    add("--names", type=Path, help="annotation file or list of names; default: every image of the folder")
    add("--split", default="", help="word for the index: train, test")
    add("--decode", choices=DECODE_MODES, default="exact", help="exact (PIL) | fast (torchvision)")
    add("--precision", choices=PRECISIONS, default="fp32", help="fp32 | bf16 (autocast)")
    add("--compile", default="", help="torch.compile: default | reduce-overhead (CUDA graphs) | max-autotune")
    add("--dtype", choices=("float16", "float32"), default="float16", help="numbers on disk")
    add("--shard-size", type=int, default=0, help="images a shard; 0 = about 200 MB a shard")
    add("--batch-size", type=int, default=128, help="images a forward")
    add("--workers", type=int, default=-1, help="decoding processes a rank; -1 = as many as help")
    add("--device", default="", help="default: this rank's GPU, else the CPU")
    add("--seed", type=int, default=0, help="of random: weights")
    add("--skip-broken", action="store_true", help="record unreadable images (errors.jsonl, zeros) instead of stopping")
    add("--verify", type=int, default=0, metavar="N", help="afterwards compute N images again and compare")
    add("--log", type=Path, help="JSON lines: finished shards, images per second, seconds left")
    return parser


def _extract(options: argparse.Namespace, rank: int, world: int) -> str:
    """What the command does; returns what to tell."""
    gpus = torch.cuda.device_count()
    device = options.device or (f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus}" if gpus else "cpu")
    clip = load_clip(options.clip, device, seed=options.seed)
    paths = find_images(options.images, read_image_list(options.names) if options.names else None)
    names, spec = [path.name for path in paths], clip.spec
    with Progress(f"CLIP features, rank {rank}", len(paths)) as progress:
        failed = extract_features(
            clip_encoder(clip, options.precision, options.compile), paths, names, options.store,
            clip_manifest(clip, options.split, options.decode, options.precision),
            preprocess=clip_preprocess(clip), decode=clip_decode(clip, options.decode), batch_size=options.batch_size,
            shard_size=options.shard_size or images_per_shard(spec.tokens, spec.embed_dim, options.dtype),
            rank=rank, world=world, workers=decoding_workers(options.workers, clip.device, world),
            strict=not options.skip_broken, dtype=options.dtype, log=options.log,
            progress=lambda done, total: progress.step(done - progress.done),
        )  # fmt: skip
    told = [f"{options.store}: {len(paths)} images, [{spec.tokens}, {spec.embed_dim}] each, {len(failed)} unreadable"]
    if (options.decode, options.precision) != ("exact", "fp32") and paths:
        found = mode_difference(clip, paths[:8], options.decode, options.precision)
        told.append(
            f"{options.decode} decode, {options.precision}: {found['relative_error']:.2%} from exact fp32,"
            f" least cosine {found['least_cosine']:.5f} (first {len(paths[:8])} images)"
        )
    if options.verify and rank == 0 and (options.store / "index.parquet").is_file():
        store = FeatureStore.open(options.store)
        worst = verify_sample(store, clip, dict(zip(names, paths, strict=True)), options.verify)
        told.append(f"computed {options.verify} images again: largest difference {worst:.2g}")
    told.append(f"use it: features.source={options.store.parent} (a folder with the stores train/ and test/)")
    return "\n".join(told)


if __name__ == "__main__":
    main()
