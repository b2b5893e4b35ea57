"""What a CLIP's feature store holds: its decoder, its encoder, its manifest, and how far `fast` is from `exact`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.model import convert_weights_to_lp
from torch import Tensor, nn
from torch.nn import functional as F

from lib.clip.load import ClipLoadError, ClipModel
from lib.clip.tokens import encode_image, preprocess
from lib.data.images import read_image_bytes
from lib.engine.compiled import compile_module
from lib.features.layout import FeatureStoreError
from lib.features.loading import DECODE_MODES, Decode, DecodeMode, ExactDecode, FastDecode
from lib.features.store import FeatureStore

Precision = Literal["fp32", "bf16"]
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]
PRECISIONS = ("fp32", "bf16")
_TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2}  # of the largest token entry: half precision on disk, TF32, other kernels
_CACHED_BYTES = 2.5e6  # activations of a CPU forward that stay near the core: one image of ViT-B/16


def clip_decode(clip: ClipModel, mode: DecodeMode = "exact") -> Decode:
    """File bytes -> what the tower takes (spec §2.1). Raises ValueError for an unknown mode."""
    _one_of("features.decode", mode, DECODE_MODES)
    exact = ExactDecode(preprocess(clip))
    if mode == "exact":
        return exact
    cfg = clip.model.visual.preprocess_cfg
    if (cfg["interpolation"], cfg["resize_mode"]) != ("bicubic", "shortest"):
        raise ClipLoadError(
            f"preprocessing of {clip.spec.id}",
            f"{cfg['interpolation']} to {cfg['resize_mode']}",
            "bicubic to the shortest side, as OpenAI's CLIP",
            "features.decode=exact",
        )
    return FastDecode(exact, clip.spec.image_size, cfg["mean"], cfg["std"])


def clip_encoder(clip: ClipModel, precision: Precision = "fp32", compile_mode: str = "") -> Encoder:
    """images [B, 3, n, n] -> cls [B, D], patches [B, L, D].

    fp32: no TF32 anywhere, as `exact` asks (spec §2.2). bf16: matrix products in bf16, about 1 % off.
    On a CPU a batch runs in pieces whose activations stay in the cache; a bf16 piece is one image, because torch's
    attention copies its weights for every image of a larger one. compile_mode: see `compiled.compile_module`.
    """
    _one_of("features.precision", precision, PRECISIONS)
    half, spec = precision == "bf16", clip.spec
    if half:  # cast once: autocast alone would cast every weight again for every piece
        tower = copy.deepcopy(clip.model.visual)
        convert_weights_to_lp(tower, torch.bfloat16)
        clip = replace(clip, model=nn.ModuleDict({"visual": tower}))
    compile_module(clip.model.visual, compile_mode)
    hidden_bytes = 4 * 4 * spec.vision_width * (1 + spec.tokens)  # float32, MLP 4 times as wide as the tower
    piece = 1 if half else max(1, int(_CACHED_BYTES / hidden_bytes))

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=not half, allow_tf32=half)
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=half), cudnn:
            if clip.device.type != "cpu":
                return encode_image(clip, images)
            cls, patches = zip(*(encode_image(clip, part) for part in images.split(piece)), strict=True)
        return torch.cat(cls), torch.cat(patches)

    return encode


def clip_manifest(
    clip: ClipModel, split: str, decode: DecodeMode = "exact", precision: Precision = "fp32"
) -> dict[str, Any]:
    """Manifest of a store: model, weights, preprocessing, precision, L and D (spec §5.5)."""
    spec = clip.spec
    return {
        "clip": spec.id,
        "weights_sha256": spec.weights_sha256,
        "activation": spec.activation,
        "preprocess": dict(clip.model.visual.preprocess_cfg),
        "decode": decode,
        "precision": precision,
        "split": split,
        "L": spec.tokens,
        "D": spec.embed_dim,
    }


@torch.no_grad()
def mode_difference(
    clip: ClipModel, paths: Sequence[Path | str], decode: DecodeMode, precision: Precision
) -> dict[str, float]:
    """How far the patch tokens of a mode are from `exact` in fp32 on some images: relative error (L2), least cosine."""
    modes = _Tokens(clip), _Tokens(clip, decode, precision)
    exact, other = (torch.cat([tokens(Path(path)) for path in paths]) for tokens in modes)  # (n, L, D)
    return {
        "relative_error": float((other - exact).norm() / exact.norm()),
        "least_cosine": float(F.cosine_similarity(other, exact, dim=-1).min()),
    }


@torch.no_grad()
def verify_sample(store: FeatureStore, clip: ClipModel, paths: Mapping[str, Path], count: int, seed: int = 0) -> float:
    """Compute `count` random images of a store again, in the store's own mode; returns the largest difference.

    paths: name -> image. Raises FeatureStoreError naming the image whose record differs by more than the store's
    number format and the batch explain: wrong weights, another preprocessing, or a damaged record.
    """
    manifest = store.manifest["settings"]
    expected = clip.spec.tokens, clip.spec.embed_dim
    if store.shape != expected:
        mend = "use the CLIP that made the features"
        raise FeatureStoreError(store.folder, f"tokens of shape {store.shape}", f"{expected} of {clip.spec.id}", mend)
    precision = manifest.get("precision", "fp32")
    tokens = _Tokens(clip, manifest.get("decode", "exact"), precision)
    readable = store.index[store.index["error"] == ""]
    worst = 0.0
    for row in readable.sample(min(count, len(readable)), random_state=seed).itertuples():
        again = tokens(Path(paths[row.name]))[0]  # (L, D)
        stored = store[row.id][0]
        difference, allowed = float((again - stored).abs().max()), _TOLERANCE[precision] * float(again.abs().max())
        if not difference <= allowed:
            raise FeatureStoreError(
                f"{store.folder}, {row.name}", f"patch tokens that differ by {difference:.3g} from {clip.spec.id}'s",
                f"at most {allowed:.3g}", "use the CLIP that made the features, or extract into another folder",
            )  # fmt: skip
        worst = max(worst, difference)
    return worst


class _Tokens:
    """Patch tokens [1, L, D] of an image file in one mode, on the CPU in float32."""

    def __init__(self, clip: ClipModel, decode: DecodeMode = "exact", precision: Precision = "fp32") -> None:
        self.decode, self.encode = clip_decode(clip, decode), clip_encoder(clip, precision)

    def __call__(self, path: Path) -> Tensor:
        image, _ = self.decode(read_image_bytes(path), path)
        return self.encode(image[None])[1].float().cpu()


def _one_of(setting: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{setting}: found {value!r}, expected one of {', '.join(known)}")
