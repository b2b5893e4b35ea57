"""Extraction into the store against the loop of EZ-HOI's scripts: one image a forward, one pickle an image.

    python -m benchmarks.extraction --json extraction.json

CLIP ViT-B/16 with random weights, JPEG photographs of 640 x 480 drawn by the stick world, one process. The baseline
opens, transforms and encodes one image at a time and pickles its float32 tokens behind the class token, as those
scripts do, on the same open_clip tower. Ours runs `extract_features` as the command does, index and fsync included.
Both do the same matrix products, so beside the ratio stands the greatest one that is possible: the baseline's seconds
over those of the products alone, at the rate of one large product measured here.
`--profile 1` also prints where the time of a forward goes.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import arguments, compare, report, timed
from lib.clip.load import ClipModel, load_clip
from lib.clip.tokens import encode_image, preprocess
from lib.data.stick_world import render_world
from lib.features.clip_features import clip_decode, clip_encoder, clip_manifest, mode_difference
from lib.features.extract import extract_features
from lib.features.legacy import legacy_file, read_legacy
from lib.features.loading import decoding_workers
from lib.features.store import FeatureStore
from lib.settings import WorldSettings

ALLOWED = {"fp32": 2e-3, "bf16": 2e-2}  # relative error of patch tokens: half precision on disk; autocast


def old_loop(clip: ClipModel, paths: list[Path], folder: Path) -> Path:
    """One image at a time through the tower, one pickle each."""
    folder.mkdir(exist_ok=True)
    transform = preprocess(clip)
    for path in paths:
        image = transform(Image.open(path)).unsqueeze(0).to(clip.device)
        with torch.no_grad():
            cls, patches = encode_image(clip, image)
            tokens = torch.cat([cls[:, None], patches], dim=1).squeeze(0)[1:]
        with legacy_file(folder, path.name).open("wb") as stream:
            pickle.dump(tokens, stream)
    return folder


def our_run(clip: ClipModel, paths: list[Path], folder: Path, decode: str, precision: str, batch_size: int) -> Path:
    """The command's work, from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    extract_features(
        clip_encoder(clip, precision), paths, [path.name for path in paths], folder,
        clip_manifest(clip, "test", decode, precision), preprocess=preprocess(clip), decode=clip_decode(clip, decode),
        batch_size=batch_size, workers=decoding_workers(-1, clip.device), shard_size=1024,
    )  # fmt: skip
    return folder


def same_tokens(precision: str) -> Callable[[Path, Path], None]:
    """Raises unless a store holds the tokens of a folder of pickles."""

    def check(store_folder: Path, pickles: Path) -> None:
        store = FeatureStore.open(store_folder)
        old = torch.stack([read_legacy(legacy_file(pickles, name))[0] for name in store.index["name"]]).cpu()
        error = float((store.batch(range(len(store)))[0] - old).norm() / old.norm())
        assert error < ALLOWED[precision], f"tokens are {error:.2e} apart, allowed {ALLOWED[precision]}"

    return check


def forward_flop(clip: ClipModel) -> float:
    """Operations (a multiplication and an addition are two) of the matrix products of one image's forward."""
    spec = clip.spec
    tokens, width = 1 + spec.tokens, spec.vision_width
    layer = 12 * tokens * width**2 + 2 * tokens**2 * width  # q, k, v, out, MLP of 4 widths; scores, weighted sum
    ends = spec.tokens * 3 * spec.patch_size**2 * width + tokens * width * spec.embed_dim
    return 2.0 * (spec.vision_layers * layer + ends)


def product_rate(device: str, precision: str, size: int = 3072) -> float:
    """Operations a second of one large matrix product: as near to the processor's peak as its library comes."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(size, size, dtype=dtype, device=device)
    return 2.0 * size**3 / timed(lambda: x @ x)[0]


def print_profile(clip: ClipModel, precision: str) -> None:
    """The operations that take the time of eight images, and the rate of the matrix products."""
    images, encode = torch.randn(8, 3, clip.spec.image_size, clip.spec.image_size), clip_encoder(clip, precision)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
        encode(images)
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"\nprofile of 8 images, {precision}: {total / 8e3:.0f} ms an image")
    for row in rows[:6]:
        rate = f"{row.flops / row.self_cpu_time_total / 1e3:.0f} GFLOP/s" if row.flops else ""
        print(f"  {row.self_cpu_time_total / total:6.1%}  {row.key:45} {rate}")


def main() -> None:
    options = arguments(__doc__, repeats=3, images=8, batch_size=64, clip="random:ViT-B-16-quickgelu", profile=0)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = load_clip(options.clip, device)
    with tempfile.TemporaryDirectory(prefix="extraction-benchmark-") as name:
        folder = Path(name)
        world = WorldSettings(train_images=options.images, test_images=1, width=640, height=480)
        render_world(folder / "world", world)
        paths = sorted((folder / "world/images/train2015").iterdir())
        rows = []
        for decode, precision in (("exact", "fp32"), ("fast", "bf16")):
            rows.append(
                compare(
                    f"{decode}, {precision}, {len(paths)} images",
                    lambda mode=(decode, precision): our_run(clip, paths, folder / "store", *mode, options.batch_size),
                    lambda: old_loop(clip, paths, folder / "pickles"),
                    same_tokens(precision),
                    options.repeats,
                    numbers=mode_difference(clip, paths[:4], decode, precision),
                )
            )
            products = len(paths) * forward_flop(clip) / product_rate(device, precision)
            rows[-1].numbers["ratio if matrix products alone took time"] = median(rows[-1].baseline) / products
            rows[-1].numbers["share of ours that they take"] = products / median(rows[-1].ours)
    report(f"Extraction on {device} against one image at a time, one pickle each", rows, options.json)
    if options.profile:
        print_profile(clip, "fp32")
        print_profile(clip, "bf16")


if __name__ == "__main__":
    main()
