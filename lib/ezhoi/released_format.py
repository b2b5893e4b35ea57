"""The layout of EZ-HOI's public checkpoints: names, reading, what its shapes tell (spec ez-hoi.md §7.1)."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lib.clip.load import ClipSpec
from lib.errors import FoundExpected
from lib.ezhoi.vision import adapter_layers
from lib.settings import PRESETS, EzHoiSettings

LEARNER, TOWER = "clip_head.prompt_learner.", "clip_head.image_encoder."
ROWS, PROMPTS = "label_HO", f"{LEARNER}token_prompts"
EXPECTED = (ROWS, "logit_scale_HO", PROMPTS, f"{LEARNER}proj.weight", "priors_downproj.layers.0.weight")

# what a checkpoint holds beside the live parts, and why it is left there
KNOWN = {
    r"(label_HO|clip_head\.prompt_learner\.token_prompts)(_eval)?$": "class rows",
    r"clip_head\.(text_encoder\.)?transformer\.resblocks\.\d+\.txtcls_adapter\.": "dead: adapters in the text layers",
    r"clip_head\.prompt_learner\.(ctx$|txtcls_pt_adapter\.|unseen_pt_adapter\.)": "dead: prompts behind the end token",
    r"(mem_adapter|txtmem_adapter)\.down_proj_prior\.": "dead: memory MLP of a self-attention adapter",
    r".*\.mhsa_layers\.0\.norm1\.": "dead: norm of a self-attention that does not exist",
    r"detector\.": "copy of the DETR file",
    r"diffusion_(bridge|geometric_transform)\.": "the fork's bridge, to be read from its own file",
}
UNSUPPORTED = {
    "weight_pred.": "a model with --use_weight_pred, whose logit scale is predicted from dropped-out union features;"
    " no published result uses it",
    "vcoco_rela.": "a V-COCO model, whose prompts the public program takes from HICO-DET's list by mistake"
    " (spec §2.7); train on V-COCO instead",
}


class ReleasedError(FoundExpected):
    """A checkpoint that cannot be imported or a model that cannot be exported: found, expected, mend."""


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """tensors: `model_state_dict`. prompt_bases: [T, 2, Wt] where the file carries them (only our exports do)."""

    path: Path
    tensors: dict[str, Tensor]
    prompt_bases: Tensor | None
    iteration: int | None
    epoch: int | None

    @property
    def evaluated(self) -> str:
        """Suffix of the rows used in evaluation: models trained without the unseen names have a set of their own."""
        return "_eval" if f"{ROWS}_eval" in self.tensors else ""


def public_name(name: str) -> str:
    """Name of one of our trained tensors inside a released checkpoint."""
    name = re.sub(r"^prompts\.", LEARNER, name)
    name = re.sub(r"^vision\.adaptermlp\.(\d+)\.", rf"{TOWER}transformer.resblocks.\1.adaptermlp.", name)
    return name.removeprefix("text.")


def starts(tensor: Tensor | None) -> str:
    """A tensor's first entries, for messages."""
    return "is absent" if tensor is None else f"starts {[round(x, 6) for x in tensor.flatten()[:3].tolist()]}"


def read_released(path: Path | str) -> ReleasedCheckpoint:
    """Read a checkpoint without running any code in it. Raises ReleasedError for anything that is not one."""
    path = Path(path)
    if not path.is_file():
        raise ReleasedError(path, "no file", "an EZ-HOI checkpoint (ckpt_*.pt)", "correct the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise ReleasedError(
            path, f"something other than plain tensors ({reason[1] if reason else error})",
            "tensors and plain containers; nothing else is ever unpickled",
            "do not load it; whoever made it can save {'model_state_dict': ...} alone",
        ) from None  # fmt: skip
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ReleasedError(
            path, f"a broken file ({type(error).__name__} {error})", "a whole checkpoint", "download it again"
        ) from None
    table = state.get("model_state_dict", state) if isinstance(state, Mapping) else {}
    tensors = {str(name).removeprefix("module."): value for name, value in table.items() if isinstance(value, Tensor)}
    for prefix, why in UNSUPPORTED.items():
        if any(name.startswith(prefix) for name in tensors):
            raise ReleasedError(path, why, "a model of the published flags", "use another checkpoint")
    missing = [name for name in EXPECTED if name not in tensors]
    if missing:
        kind = "a DETR checkpoint" if "query_embed.weight" in tensors else f"{len(tensors)} tensors"
        raise ReleasedError(
            path, f"{kind} without {', '.join(missing)}", "model_state_dict of an EZ-HOI model",
            "give the ckpt_*.pt of EZ-HOI; detectors are imported by their own command",
        )  # fmt: skip
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ReleasedError(path, f"values that are not finite in {broken[:3]}", "finite weights", "use another epoch")
    bases, counters = state.get("prompt_bases"), (state.get(key) for key in ("iteration", "epoch"))
    return ReleasedCheckpoint(path, tensors, bases if isinstance(bases, Tensor) else None, *counters)


def settings_of(checkpoint: ReleasedCheckpoint, spec: ClipSpec) -> EzHoiSettings:
    """The settings that the file's names and shapes tell; refuses another backbone and flags that nothing supports."""
    path, tensors = checkpoint.path, checkpoint.tensors

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    if spec.activation != "quick_gelu":
        raise ReleasedError(
            f"clip {spec.id}", f"activation {spec.activation}", "quick_gelu", "give OpenAI's CLIP, converted"
        )
    projection, dim = tensors[f"{LEARNER}proj.weight"], tensors[PROMPTS].shape[2]
    found = {"vision width": projection.shape[0], "text width": projection.shape[1], "token width": dim}
    expected = {"vision width": spec.vision_width, "text width": spec.text_width, "token width": spec.text_width}
    positions = tensors.get(f"{TOWER}positional_embedding")
    if positions is not None:
        found["image tokens"], expected["image tokens"] = len(positions), spec.tokens + 1
    if found != expected:
        raise ReleasedError(
            path, f"a checkpoint of another backbone {found}", f"{expected} of {spec.id}", "give its CLIP with --clip"
        )
    layers = sorted({int(m[1]) for m in (re.search(r"resblocks\.(\d+)\.adaptermlp\.", name) for name in tensors) if m})
    places = [p for p in ("all", "front", "end", "last", "none") if [*adapter_layers(p, spec.vision_layers)] == layers]
    width = tensors["priors_downproj.layers.0.weight"].shape[1]
    sizes = {"cbe": 5, "be": 4, "ce": 1, "e": 0}
    priors = [kind for kind, extra in sizes.items() if width == spec.embed_dim + extra]
    priors += [kind for kind, alone in {"cb": 5, "b": 4, "c": 1}.items() if width == alone]
    fused = tensors["vis_fuse.0.weight"].shape[1] if "vis_fuse.0.weight" in tensors else spec.embed_dim
    regions = {spec.embed_dim: "U", 2 * spec.embed_dim: "HO", 3 * spec.embed_dim: "HO+U"}
    if not places or not priors or fused not in regions:
        raise ReleasedError(
            path, f"instance adapters in layers {layers}, prior tokens {width} wide, fused regions {fused} wide",
            f"adapters in all, the first half, the second half, the last or none of {spec.vision_layers} layers;"
            f" tokens of confidence, box and embedding, at most {spec.embed_dim + 5} wide; regions {[*regions]} wide",
            "give the CLIP it was trained on; --adapter_pos random and --prior_method 1 and 2 are not supported",
        )  # fmt: skip
    return replace(
        EzHoiSettings(preset="released", **PRESETS["released"]),
        regions=regions[fused],
        instance_adapters=places[0],
        prior=priors[0],
        prompt_length=tensors[f"{LEARNER}ctx"].shape[0] if f"{LEARNER}ctx" in tensors else 2,
        prompt_depth=1 + sum(bool(re.search(r"compound_prompt_proj_vis\.\d+\.weight", name)) for name in tensors),
        image_prompts=has(f"{LEARNER}img_clip_pt_adapter."),
        pair_adapter=has("mem_adapter."),
        unseen_prompts=has(f"{LEARNER}unseen_pt_adapter."),
        text_adapter=has("txtmem_adapter."),
        act_descriptors=has("act_descriptor_attn."),
    )


def account(checkpoint: ReleasedCheckpoint, used: set[str]) -> dict[str, int]:
    """Count the known tensors that are left out, by reason; refuse the rest."""
    left, unknown = Counter(), []
    for name in checkpoint.tensors.keys() - used:
        reason = next((why for pattern, why in KNOWN.items() if re.match(pattern, name)), None)
        left[reason] += 1
        if reason is None:
            unknown.append(name)
    if unknown:
        raise ReleasedError(
            checkpoint.path, f"{len(unknown)} tensors of unknown meaning, such as {sorted(unknown)[:3]}",
            "the names of the published program", "import a checkpoint of the published flags",
        )  # fmt: skip
    return dict(left)
