"""Visual prompts conditioned on the image, and live text prompts that the class embedding can see.

Visual prompts follow spec ez-hoi.md §2.4. The public text prompts sit behind the EOT token of a causal transformer and
cannot change the class text (§2.6, fact 1); `TextPrompts` puts them in front of the sentence instead, which is what the
paper describes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lib.clip.load import ClipModel
from lib.ezhoi.adapters import BottleneckAdapter


class VisualPrompts(nn.Module):
    """`length` prompt tokens for each of the first `depth` vision layers.

    v_l = Linear_l(r_l) with fixed Gaussian bases r_l, then one shared cross-attention adapter lets every prompt look at
    the image's CLIP patch tokens.
    """

    def __init__(self, base_dim: int, vision_width: int, memory_dim: int, *, depth: int, length: int = 2) -> None:
        super().__init__()
        self.register_buffer("bases", torch.randn(depth, length, base_dim))
        self.proj = nn.Linear(base_dim, vision_width)
        deep = nn.Linear(base_dim, vision_width)  # the deep projections start as clones of one layer (quirk Q15)
        self.compound_prompt_proj_vis = nn.ModuleList(copy.deepcopy(deep) for _ in range(depth - 1))
        self.img_clip_pt_adapter = BottleneckAdapter(vision_width, memory_dim, self_attention=False)

    def forward(self, memory: Tensor) -> Tensor:
        """memory [B, L, D] L2-normalised patch tokens -> [depth, B, length, width].

        The adapter is cross-only, so each prompt is treated alone and all levels can be one sequence: exact.
        """
        layers = [self.proj, *self.compound_prompt_proj_vis]
        levels = torch.stack([layer(base) for layer, base in zip(layers, self.bases, strict=True)])  # (T, 2, W)
        depth, length, width = levels.shape
        queries = levels.reshape(1, depth * length, width).expand(len(memory), -1, -1)
        prompts = self.img_clip_pt_adapter(queries, memory)  # (B, T*2, W)
        return prompts.reshape(len(memory), depth, length, width).transpose(0, 1)


class TextPrompts(nn.Module):
    """Live class prompts: `length` tokens behind the start token, replaced at the first `depth` layers.

    p_l[row] = BA(r_l; MLP(description feature of the row)) as §4.2, with learnable bases of token-embedding size.
    """

    def __init__(self, text_width: int, description_dim: int, *, depth: int, length: int = 2) -> None:
        super().__init__()
        self.bases = nn.Parameter(torch.randn(depth, length, text_width) * 0.02)
        self.txtcls_pt_adapter = BottleneckAdapter(text_width, description_dim, self_attention=False)

    def forward(self, descriptions: Tensor) -> Tensor:
        """descriptions [K, D] L2-normalised text features -> [depth, K, length, width]."""
        depth, length, width = self.bases.shape
        queries = self.bases.reshape(1, depth * length, width).expand(len(descriptions), -1, -1)
        prompts = self.txtcls_pt_adapter(queries, descriptions[:, None])
        return prompts.reshape(len(descriptions), depth, length, width).transpose(0, 1)


def encode_prompted_text(clip: ClipModel, tokens: Tensor, prompts: Tensor) -> Tensor:
    """Text features with prompts between the start token and the sentence; differentiable in the prompts.

    tokens [K, context] of the frozen tokenizer; prompts [depth, K, length, width]. Returns [K, D], un-normalised.
    Raises ValueError when a sentence leaves no room for the prompts.
    """
    model = clip.model
    length = prompts.shape[2]
    eot = tokens.argmax(dim=1)  # the end token has the highest id
    if int(eot.max()) + length >= tokens.shape[1]:
        raise ValueError(
            f"text prompts: found a text of {int(eot.max()) + 1} tokens, expected at most {tokens.shape[1] - length}"
            f" (context {tokens.shape[1]} less {length} prompts); mend: shorten the sentence or ezhoi.prompt_length"
        )
    with torch.no_grad():
        embedded = model.token_embedding(tokens)  # (K, T, W)
    x = torch.cat([embedded[:, :1], prompts[0], embedded[:, 1 : tokens.shape[1] - length]], dim=1)
    x = x + model.positional_embedding
    for index, block in enumerate(model.transformer.resblocks):
        if 0 < index < len(prompts):
            x = torch.cat([x[:, :1], prompts[index], x[:, 1 + length :]], dim=1)
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x), device=x.device), eot + length] @ model.text_projection
