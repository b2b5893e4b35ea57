"""Our trained EZ-HOI as a checkpoint of the public program (spec ez-hoi.md §7.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib.clip.load import ClipModel
from lib.clip.text import tokenize
from lib.ezhoi.adapters import WIDTH, BottleneckAdapter, Mlp
from lib.ezhoi.model import EzHoi
from lib.ezhoi.prompts import VisualPrompts
from lib.ezhoi.random_stream import ClipDimensions, ReplayedStream, replay
from lib.ezhoi.released_format import LEARNER, PROMPTS, ROWS, TOWER, ReleasedError, public_name
from lib.runs import atomic_write


def export_released(
    model: EzHoi, clip: ClipModel, path: Path | str, detector: Mapping[str, Tensor] | None = None
) -> Path:
    """Write `model` as a public checkpoint; returns its path (`ckpt_00000_00.pt` inside `path` if that is a folder).

    The public program draws its prompt bases anew from seed 66, so the projections are re-expressed on those: it then
    computes our visual prompts to rounding. The bases also travel under the extra key `prompt_bases`. Dead modules get
    the values that the program itself would draw (or its constants). detector: DETR tensors to travel along, which the
    program needs if it loads strictly. Raises ReleasedError for what that format cannot express.
    """
    path, text = Path(path), model.text
    if text.prompts is not None:
        raise ReleasedError(
            "export", "text prompts in front of the sentences", "constant text, or an adapter behind the text tower",
            "the public format only knows prompts behind the end token, where no class text sees them; keep our files",
        )  # fmt: skip
    if text.average.shape[1] == len(text.sentences):
        raise ReleasedError(
            "export", "a logit for every HOI", "verbs", "the public 600-class mode divides 0 by 0 (spec §2.7)"
        )
    depth, length, _ = model.prompts.bases.shape
    stream = replay(ClipDimensions.of(clip.spec), depth, length)
    live = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    live |= _on_bases(model.prompts, stream.bases)
    tensors = {public_name(name): value for name, value in live.items() if name != "prompts.bases"}
    tensors |= _clip_copies(clip) | _dead(model, clip, stream)
    tensors |= {f"detector.{name}": value for name, value in (detector or {}).items()}
    for name in [name for name in tensors if ".mhsa_layers.0.norm2." in name]:
        tensors.setdefault(name.replace("norm2", "norm1"), torch.full((WIDTH,), float(name.endswith("weight"))))
    state = {
        "iteration": 0, "epoch": 0, "prompt_bases": stream.bases,
        "model_state_dict": {name: value.contiguous() for name, value in tensors.items()},
    }  # fmt: skip
    path = path if path.suffix else path / "ckpt_00000_00.pt"
    atomic_write(path, lambda stream: torch.save(state, stream))
    return path


def _on_bases(prompts: VisualPrompts, bases: Tensor) -> dict[str, Tensor]:
    """Projection weights that give the same v_l on other bases: the smallest change that does (two rows a level)."""
    names = ["proj", *(f"compound_prompt_proj_vis.{level}" for level in range(len(bases) - 1))]
    weights = {}
    for name, base, wanted in zip(names, bases.double(), prompts.folded().detach().cpu().double(), strict=True):
        layer = prompts.get_submodule(name)
        weight, bias = layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()
        change = torch.linalg.pinv(base) @ (wanted - base @ weight.T - bias)  # (Wt, Wv)
        weights[f"prompts.{name}.weight"] = (weight + change.T).float()
    return weights


def _clip_copies(clip: ClipModel) -> dict[str, Tensor]:
    """CLIP as the public model holds it: vision once, text twice."""
    copies = {}
    for name, value in clip.model.state_dict().items():
        if name.startswith("visual."):
            copies[TOWER + name.removeprefix("visual.")] = value.cpu()
            continue
        copies[f"clip_head.{name}"] = value.cpu()
        if name.startswith(("transformer.", "ln_final.", "positional_embedding", "text_projection")):
            copies[f"clip_head.text_encoder.{name}"] = value.cpu()
    return copies


def _dead(model: EzHoi, clip: ClipModel, stream: ReplayedStream) -> dict[str, Tensor]:
    """What the public program holds and never uses: rows' inputs, text-side adapters, spare MLPs."""
    text, width = model.text, clip.spec.text_width
    tokens = tokenize(clip, [text.sentences[row] for row in text.rows])
    dead = {
        ROWS: (text.average > 0).float().cpu(),
        PROMPTS: clip.model.token_embedding(tokens).detach().cpu(),
        f"{LEARNER}ctx": torch.zeros(model.prompts.bases.shape[1], width),
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        modules = {
            f"{LEARNER}txtcls_pt_adapter.": stream.class_prompts,
            f"{LEARNER}unseen_pt_adapter.": BottleneckAdapter(width, width, self_attention=True),
        }
        for name, adapter in (("mem_adapter", model.mem_adapter), ("txtmem_adapter", text.txtmem_adapter)):
            if adapter is not None:
                modules[f"{name}.down_proj_prior."] = Mlp(clip.spec.embed_dim, 128, 128, WIDTH)
    for layer, adapter in enumerate(stream.text_layers):
        for tower in ("clip_head.", "clip_head.text_encoder."):
            modules[f"{tower}transformer.resblocks.{layer}.txtcls_adapter."] = adapter
    return dead | {p + name: v.detach() for p, module in modules.items() for name, v in module.state_dict().items()}
