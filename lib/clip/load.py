"""CLIP towers through open_clip, frozen, offline, with their dimensions in one `ClipSpec`.

One code path serves OpenAI's released weights (converted to a folder), any open_clip folder and the tiny CLIP of the
embedded world (spec clip-features-and-detr.md §3, §14). Consumers read every width from `ClipSpec`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from lib.errors import FoundExpected
from lib.runs import file_sha256

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


class ClipLoadError(FoundExpected):
    """A CLIP source is missing, incomplete or contradicts itself; names file, finding, expectation, mend."""


@dataclass(frozen=True)
class ClipSpec:
    """What a consumer may know about a CLIP, read from the built model."""

    name: str
    weights: str  # "random" or the path of the weights file
    weights_sha256: str
    embed_dim: int  # D, joint dimension
    image_size: int  # n, side of the square input in pixels
    patch_size: int
    grid: int  # g, patches a side
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    context_length: int
    activation: str  # quick_gelu | gelu

    @property
    def tokens(self) -> int:
        """L, patch tokens of an image (class token not counted)."""
        return self.grid**2

    @property
    def id(self) -> str:
        """`<name>-<first 8 digits of the weights' SHA-256>`: names stores and text spaces."""
        return f"{self.name}-{self.weights_sha256[:8]}"

    def describe(self) -> dict[str, Any]:
        """The fields, `tokens` and `id` as plain values for manifests and tables."""
        return asdict(self) | {"tokens": self.tokens, "id": self.id}


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A frozen CLIP: open_clip model (fp32, eval), tokenizer `list[str] -> [N, T]`, evaluation transform, spec."""

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    transform: Callable[[Image.Image], Tensor]
    spec: ClipSpec
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def logit_scale(self) -> float:
        """exp of the stored logit scale; 100 for OpenAI's models."""
        return float(self.model.logit_scale.exp())


def load_clip(source: str, device: torch.device | str = "cpu", seed: int = 0) -> ClipModel:
    """Load a CLIP from `local-dir:<folder>` or build one with seeded random weights from `random:<name>`.

    A folder holds open_clip_config.json and open_clip_model.safetensors. `<name>` is a model name of open_clip (such as
    `ViT-B-16-quickgelu`) or the path of a model JSON (such as `configs/clip/tiny-clip.json`).
    Raises ClipLoadError for anything that is missing or does not fit.
    """
    kind, _, what = source.partition(":")
    if kind == "local-dir" and what:
        model, name, weights, digest = _load_folder(Path(what))
    elif kind == "random" and what:
        model, name, weights, digest = _build_random(what, seed)
    else:
        raise ClipLoadError(
            f"clip source {source!r}",
            "an unknown form",
            "local-dir:<folder> or random:<open_clip name>",
            "set clip.source",
        )
    device = torch.device(device)
    model.requires_grad_(False).eval().to(device)
    spec = read_spec(model, name, weights, digest)
    return ClipModel(model, tokenizer_of(spec), transform_of(model), spec, device)


def read_spec(model: nn.Module, name: str, weights: str, weights_sha256: str) -> ClipSpec:
    """Read the dimensions from a built open_clip model."""
    visual = model.visual
    side, patch = visual.image_size[0], visual.patch_size[0]
    mlp = visual.transformer.resblocks[0].mlp
    return ClipSpec(
        name=name,
        weights=weights,
        weights_sha256=weights_sha256,
        embed_dim=visual.output_dim,
        image_size=side,
        patch_size=patch,
        grid=visual.grid_size[0],
        vision_width=visual.proj.shape[0],
        vision_layers=len(visual.transformer.resblocks),
        text_width=model.text_projection.shape[0],
        text_layers=len(model.transformer.resblocks),
        context_length=model.context_length,
        activation="quick_gelu" if isinstance(mlp.gelu, QuickGELU) else "gelu",
    )


def tokenizer_of(spec: ClipSpec) -> open_clip.SimpleTokenizer:
    """OpenAI's BPE at the model's context length; longer text is cut and keeps its end token."""
    return open_clip.SimpleTokenizer(context_length=spec.context_length)


def transform_of(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """open_clip's evaluation transform: short side bicubic to n, centre crop, RGB, CLIP mean and std (spec §2)."""
    return image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)


def _load_folder(folder: Path) -> tuple[nn.Module, str, str, str]:
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    mend = "convert the released weights into this folder, or run notebook 00 for the tiny CLIP; then set clip.source"
    if not folder.is_dir():
        raise ClipLoadError(folder, "no folder", f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}", mend)
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ClipLoadError(file, "no file", f"{CONFIG_FILE} beside {WEIGHTS_FILE}", mend)
    try:
        config = json.loads(config_file.read_text())
        model_cfg = config["model_cfg"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ClipLoadError(
            config_file, f"no readable model_cfg ({error!r})", "{'model_cfg': ..., 'preprocess_cfg': ...}", mend
        ) from None
    _check_activation(config_file, model_cfg, weights_file)
    try:
        model = open_clip.create_model(f"local-dir:{folder}", precision="fp32", require_pretrained=True)
    except RuntimeError as error:
        raise ClipLoadError(
            weights_file,
            f"tensors that do not fit the model ({error})",
            f"the tensors of {config_file}",
            "keep the JSON that belongs to the weights, or convert the weights again",
        ) from error
    return model, config.get("name", folder.resolve().name), str(weights_file), file_sha256(weights_file)


def _check_activation(config_file: Path, model_cfg: dict[str, Any], weights_file: Path) -> None:
    """Nothing in a state dict tells QuickGELU from GELU and the wrong one costs 4e-2 in the features (spec §3)."""
    stated = model_cfg.get("quick_gelu")
    if not isinstance(stated, bool):
        raise ClipLoadError(
            config_file,
            "no model_cfg.quick_gelu",
            "true (OpenAI's weights, the tiny CLIP) or false (weights trained with GELU) in so many words",
            'add "quick_gelu": true or false to model_cfg',
        )
    with safe_open(weights_file, framework="pt") as weights:
        trained_with = (weights.metadata() or {}).get("quick_gelu")
    if trained_with is not None and (trained_with == "true") != stated:
        raise ClipLoadError(
            config_file,
            f"quick_gelu {str(stated).lower()}",
            f"quick_gelu {trained_with}, which {weights_file.name} was written with",
            f'set "quick_gelu": {trained_with} in model_cfg',
        )


def _build_random(what: str, seed: int) -> tuple[nn.Module, str, str, str]:
    name = what
    if what.endswith(".json"):
        if not Path(what).is_file():
            raise ClipLoadError(what, "no file", "an open_clip model JSON (configs/clip/*.json)", "correct clip.source")
        open_clip.add_model_config(Path(what))
        name = Path(what).stem
    if name not in open_clip.list_models():
        raise ClipLoadError(
            f"clip source 'random:{what}'",
            "an unknown model name",
            "a name of open_clip.list_models()",
            "correct clip.source",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(name, precision="fp32", load_weights=False)
    recipe = (
        f"random {json.dumps(open_clip.get_model_config(name), sort_keys=True)} seed {seed} torch {torch.__version__}"
    )
    return model, name, "random", hashlib.sha256(recipe.encode()).hexdigest()
