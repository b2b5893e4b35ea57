"""OpenAI's CLIP archives -> the folder that `lib.clip.load` reads (spec clip-features-and-detr.md §3.1).

    python -m lib.clip.released ViT-B-16.pt weights/vit-b-16        # then: clip.source: local-dir:weights/vit-b-16

A published archive is TorchScript, that is, a program: it is opened only if its SHA-256 is one that OpenAI states in
its download URLs, or if the caller says that it can be trusted. Plain state dicts are read without running anything.
"""

from __future__ import annotations

import argparse
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from lib.clip.load import CONFIG_FILE, WEIGHTS_FILE, ClipLoadError, load_clip
from lib.runs import atomic_write, file_sha256, write_json

# SHA-256 -> name, as in the download URLs of the published archives
PUBLISHED = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B-32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B-16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L-14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L-14-336px",
}
SCALARS = ("input_resolution", "context_length", "vocab_size")  # beside the tensors of a published archive
HEAD_WIDTH = 64  # heads = width / 64 in both towers of every OpenAI ViT
_MEND = "download the archive again, or pass a plain state dict (.pt, .safetensors) with OpenAI's names"


def convert_openai(source: Path | str, folder: Path | str, *, trust: bool = False) -> dict[str, Any]:
    """Convert a CLIP archive with OpenAI's names; returns the description of the CLIP as loaded from `folder`.

    source: a TorchScript archive, a plain state dict saved by torch, or a safetensors file.
    folder: receives open_clip_config.json and open_clip_model.safetensors (fp32).
    trust: open a TorchScript archive whose SHA-256 is unknown; it may run any code while it is opened.
    Raises ClipLoadError for a damaged or foreign file; nothing is written then.
    """
    source, folder = Path(source), Path(folder)
    state = _read(source, trust)
    tensors = {name: value for name, value in state.items() if name not in SCALARS}
    model_cfg = model_cfg_of(tensors, source)
    _check_scalars(source, state, model_cfg)
    _check_tensors(source, tensors, model_cfg)
    tensors = {name: value.float().contiguous() for name, value in tensors.items()}
    config = {
        "name": PUBLISHED.get(file_sha256(source), source.stem),
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "size": model_cfg["vision_cfg"]["image_size"],
            "mode": "RGB",
            "mean": OPENAI_DATASET_MEAN,
            "std": OPENAI_DATASET_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # last out, last in: a killed conversion leaves no whole folder
    stored = safetensors.torch.save(tensors, metadata={"format": "pt", "quick_gelu": "true"})
    atomic_write(folder / WEIGHTS_FILE, lambda stream: stream.write(stored))
    write_json(folder / CONFIG_FILE, config)
    return load_clip(f"local-dir:{folder}").spec.describe()


def model_cfg_of(tensors: Mapping[str, Tensor], source: Path | str = "state dict") -> dict[str, Any]:
    """open_clip's model configuration, every dimension read from the shapes of OpenAI's state dict."""
    landmarks = (
        "visual.conv1.weight", "visual.positional_embedding", "positional_embedding", "token_embedding.weight",
        "ln_final.weight", "text_projection",
    )  # fmt: skip
    missing = [name for name in landmarks if name not in tensors]
    if missing or "visual.layer1.0.conv1.weight" in tensors:
        kind = "a CLIP with a ResNet image tower" if "visual.layer1.0.conv1.weight" in tensors else f"no {missing}"
        raise ClipLoadError(source, kind, "a CLIP with a ViT image tower and OpenAI's tensor names", _MEND)
    vision_width, patch = len(tensors["visual.conv1.weight"]), tensors["visual.conv1.weight"].shape[-1]
    text_width = len(tensors["ln_final.weight"])
    grid = math.isqrt(len(tensors["visual.positional_embedding"]) - 1)
    for tower, width in (("image", vision_width), ("text", text_width)):
        if width % HEAD_WIDTH:
            raise ClipLoadError(
                source, f"{tower} tower of width {width}", f"a multiple of {HEAD_WIDTH}, OpenAI's width of a head",
                "weights of another family need their own open_clip_config.json beside open_clip_model.safetensors",
            )  # fmt: skip
    return {
        "embed_dim": tensors["text_projection"].shape[-1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch,
            "patch_size": patch,
            "width": vision_width,
            "layers": _layers(tensors, "visual.transformer.resblocks."),
            "head_width": HEAD_WIDTH,
        },
        "text_cfg": {
            "context_length": len(tensors["positional_embedding"]),
            "vocab_size": len(tensors["token_embedding.weight"]),
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": _layers(tensors, "transformer.resblocks."),
        },
    }


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _read(source: Path, trust: bool) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU."""
    if not source.is_file():
        raise ClipLoadError(source, "no file", "a CLIP archive or state dict", "correct the path")
    try:
        if source.suffix == ".safetensors":
            return safetensors.torch.load_file(source)
        if _is_torchscript(source):
            _check_published(source, trust)
            return torch.jit.load(source, map_location="cpu").state_dict()
        state = torch.load(source, map_location="cpu", weights_only=True)
    except ClipLoadError:
        raise
    except Exception as error:  # truncated, not a checkpoint, or a pickle that wants to run code
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ClipLoadError(
            source,
            f"a file that cannot be read as tensors ({type(error).__name__}: {reason})",
            "a whole TorchScript archive, safetensors file, or torch file of tensors only (read without running code)",
            _MEND,
        ) from error
    others = [name for name, value in state.items() if not isinstance(value, Tensor)] if isinstance(state, dict) else []
    if not isinstance(state, dict) or set(others) - set(SCALARS):
        found = f"a {type(state).__name__} with {others[:4]}, no tensors" if others else f"a {type(state).__name__}"
        raise ClipLoadError(source, found, "a dict of name -> tensor", _MEND)
    return state


def _is_torchscript(source: Path) -> bool:
    """Whether a zip archive carries code, as TorchScript does and `torch.save` does not."""
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def _check_published(source: Path, trust: bool) -> None:
    digest = file_sha256(source)
    if digest not in PUBLISHED and not trust:
        raise ClipLoadError(
            source,
            f"a TorchScript archive (it can run code) of unknown SHA-256 {digest}",
            f"the SHA-256 of a published archive: {', '.join(PUBLISHED.values())}",
            "download it again; if you made it or know who did, pass --trust (trust=True)",
        )


def _check_scalars(source: Path, state: Mapping[str, Tensor], model_cfg: dict[str, Any]) -> None:
    """The scalars of an archive must say what its shapes say."""
    text = model_cfg["text_cfg"]
    for name, expected in zip(
        SCALARS, (model_cfg["vision_cfg"]["image_size"], text["context_length"], text["vocab_size"]), strict=True
    ):
        if name in state and int(state[name]) != expected:
            raise ClipLoadError(source, f"{name} {int(state[name])}", f"{expected}, as its tensors have it", _MEND)


def _check_tensors(source: Path, tensors: Mapping[str, Tensor], model_cfg: dict[str, Any]) -> None:
    """Every tensor of the model, none besides, all of the right shape and finite."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in open_clip.CLIP(**model_cfg).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != expected:
        differing = {
            "missing": sorted(expected.keys() - found.keys()),
            "unknown": sorted(found.keys() - expected.keys()),
            "of another shape": sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k]),
        }
        told = "; ".join(f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in differing.items() if names)
        raise ClipLoadError(source, told, f"the {len(expected)} tensors of {json.dumps(model_cfg)}", _MEND)
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ClipLoadError(source, f"values that are not finite in {broken[:4]}", "finite weights", _MEND)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.clip.released", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="archive, state dict (.pt) or .safetensors with OpenAI's names")
    parser.add_argument("folder", type=Path, help="receives the converted model")
    parser.add_argument("--trust", action="store_true", help="open a TorchScript archive of unknown SHA-256")
    arguments = parser.parse_args()
    try:
        spec = convert_openai(arguments.source, arguments.folder, trust=arguments.trust)
    except ClipLoadError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps(spec, indent=1))
    print(f"\nset clip.source: local-dir:{arguments.folder}")


if __name__ == "__main__":
    main()
