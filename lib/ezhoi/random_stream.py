"""The random draws behind a released EZ-HOI checkpoint (spec ez-hoi.md Appendix C).

The public program keeps its prompt bases in a plain list, so they are neither trained nor saved, although the visual
prompts are linear in them. They follow from seed 66 and from everything that the program constructed before them, in
its order. That order is replayed here with PyTorch's default initialisers; modules are built and thrown away, one at
a time. Zero and one fills draw nothing and are left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from lib.clip.load import ClipSpec
from lib.ezhoi.adapters import WIDTH, DecoderLayer, Mlp
from lib.ezhoi.released_format import LEARNER, starts

SEED = 66
VOCABULARY = 49408  # tokens of OpenAI's BPE
LEVELS, LENGTH = 9, 2  # tune_LY and N_CTX of every published run
TEXT_LAYER_WIDTH = 12 * 64  # adapters inside the text layers have ViT-B's vision width whatever the backbone


@dataclass(frozen=True)
class ClipDimensions:
    """What decides the sizes of the draws; head counts do not."""

    embed_dim: int
    patch_size: int
    grid: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    context_length: int

    @classmethod
    def of(cls, spec: ClipSpec) -> ClipDimensions:
        return cls(**{name: getattr(spec, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class ReplayedStream:
    """bases: [levels, length, Wt]. The adapters carry the names of a checkpoint; they prove the stream's position.

    text_layers: adapter in each text layer: never trained, so a checkpoint holds it unchanged (fingerprint i).
    class_prompts: the class prompt adapter: only weight decay moves it (fingerprint ii).
    """

    bases: Tensor
    text_layers: list[nn.Module]
    class_prompts: nn.Module


def replay(size: ClipDimensions, levels: int = LEVELS, length: int = LENGTH) -> ReplayedStream:
    """Replay rank 0's CPU stream up to the prompt bases; torch's own stream stays where it is.

    Seconds: 4 for ViT-B/16, 8 for ViT-L/14@336. The values rely on the initialisers and on the published flags
    (instance adapters on, bottleneck 64, no custom image); `fingerprint_problems` tells whether they hold.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.default_generator.manual_seed(SEED)  # the CPU stream alone: nothing on a GPU is drawn or disturbed
        for _ in ("training set", "test set"):  # each data set of the program loads a CLIP for its transform
            _clip(size)
        _detr()
        text_layers = _clip(size, adapters=True)
        _clip(size)  # the frozen copy
        class_prompts = _prompt_learner(size)
        bases = torch.stack([torch.randn(length, size.text_width) for _ in range(levels)])
    return ReplayedStream(bases, text_layers, class_prompts)


def prompt_bases(size: ClipDimensions, levels: int = LEVELS, length: int = LENGTH) -> Tensor:
    """[levels, length, Wt] prompt bases r_0 ... of the released checkpoints on a CLIP of this size."""
    return replay(size, levels, length).bases


def _clip(size: ClipDimensions, adapters: bool = False) -> list[nn.Module]:
    """OpenAI's CLIP as its constructor draws it; with `adapters` the layers of EZ-HOI, whose text side is returned."""
    width, text_width, found = size.vision_width, size.text_width, []
    nn.Conv2d(3, width, size.patch_size, bias=False)
    torch.randn(width)  # class token
    torch.randn(size.grid**2 + 1, width)  # positions
    for _ in range(size.vision_layers):
        _block(width)
        if adapters:
            _instance_adapter(width)
    torch.randn(width, size.embed_dim)  # projection

    for _ in range(size.text_layers):
        _block(text_width)
        if adapters:
            found.append(_bottleneck(TEXT_LAYER_WIDTH, kaiming=True))
    nn.Embedding(VOCABULARY, text_width)

    torch.empty(VOCABULARY, text_width).normal_()  # `initialize_parameters` draws the text side once more
    torch.empty(size.context_length, text_width).normal_()
    for _ in range(size.text_layers):
        for rows, columns in ((3, 1), (1, 1), (4, 1), (1, 4)):  # in_proj, out_proj, c_fc, c_proj
            torch.empty(rows * text_width, columns * text_width).normal_()
    torch.empty(text_width, size.embed_dim).normal_()
    return found


def _block(width: int) -> None:
    """A residual attention block."""
    nn.MultiheadAttention(width, 1)
    nn.Linear(width, 4 * width)
    nn.Linear(4 * width, width)


def _instance_adapter(width: int) -> None:
    down = nn.Linear(width, WIDTH)
    nn.Linear(WIDTH, width)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    DecoderLayer(self_attention=False)


def _bottleneck(width: int, kaiming: bool) -> nn.Module:
    """A cross-only bottleneck adapter, memory of the same width."""
    down, up = nn.Linear(width, WIDTH), nn.Linear(WIDTH, width)
    memory = Mlp(width, 128, 128, WIDTH)
    if kaiming:
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(down.bias)
    for parameter in up.parameters():
        nn.init.zeros_(parameter)
    decoder = nn.ModuleList([DecoderLayer(self_attention=False)])
    return nn.ModuleDict(
        {"down_proj_mem": down, "up_proj_mem": up, "down_proj_prior": memory, "mhsa_layers": decoder}
    ).requires_grad_(False)


def _detr() -> None:
    """DETR-R50 with its 81-way head."""
    torchvision.models.resnet50(weights=None)
    width, hidden = 256, 2048

    def layer(attentions: int) -> nn.ModuleList:
        modules: list[nn.Module] = [nn.MultiheadAttention(width, 8) for _ in range(attentions)]
        return nn.ModuleList([*modules, nn.Linear(width, hidden), nn.Linear(hidden, width)])

    encoder, decoder = layer(attentions=1), layer(attentions=2)
    stack = nn.ModuleList(copy.deepcopy(one) for one in [encoder] * 6 + [decoder] * 6)
    for parameter in stack.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    nn.Linear(width, 81)
    Mlp(width, width, width, 4)
    nn.Embedding(100, width)
    nn.Conv2d(hidden, width, 1)


def _prompt_learner(size: ClipDimensions) -> nn.Module:
    """What the prompt learner constructs before its bases; returns the class prompt adapter."""
    nn.Linear(size.text_width, size.vision_width)  # of level 0
    nn.Linear(size.text_width, size.vision_width)  # cloned for the deeper levels
    return _bottleneck(size.text_width, kaiming=False)


# ---------------------------------------------------------------- fingerprints


def fingerprint_problems(tensors: Mapping[str, Tensor], stream: ReplayedStream) -> list[str]:
    """What speaks against the replayed stream being the checkpoint's; empty = both fingerprints of Appendix C hold.

    Matrices only: biases and norms start from constants.
    """
    problems = []
    prefix = "clip_head.text_encoder.transformer.resblocks.{}.txtcls_adapter."
    for layer, adapter in enumerate(stream.text_layers):
        for name, drawn in _drawn(adapter):
            stored = tensors.get(prefix.format(layer) + name)
            if stored is None or not torch.equal(stored.float(), drawn):
                problems.append(f"(i) text layer {layer} {name}: {starts(stored)}, replayed {starts(drawn)}")
                break
    for name, drawn in _drawn(stream.class_prompts):
        stored = tensors.get(f"{LEARNER}txtcls_pt_adapter.{name}")
        if stored is None or not _decayed(stored.float(), drawn):
            problems.append(f"(ii) txtcls_pt_adapter.{name}: {starts(stored)}, replayed {starts(drawn)}")
            break
    return problems


def _drawn(adapter: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in adapter.state_dict().items() if value.dim() > 1 and value.any()]


def _decayed(stored: Tensor, drawn: Tensor) -> bool:
    """Whether weight decay alone leads from `drawn` to `stored`: one common factor below 1.

    A step's decay of 1e-7 is about one unit in the last place, so rounding lets each entry's own factor lie anywhere
    between none and twice the mean decay.
    """
    if stored.shape != drawn.shape:
        return False
    factor = float((stored * drawn).sum() / drawn.square().sum())
    spread = (stored - factor * drawn).abs()
    return 0.9 < factor < 1 + 1e-5 and bool((spread <= (1 - factor + 1e-5) * drawn.abs() + 1e-9).all())
