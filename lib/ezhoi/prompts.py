"""Visual prompts conditioned on the image, and live text prompts that the class embedding can see.

Visual prompts follow spec ez-hoi.md §2.4. The public text prompts sit behind the EOT token of a causal transformer and
cannot change the class text (§2.6, fact 1); `TextPrompts` puts them in front of the sentence instead, which is what the
paper describes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lib.ezhoi.adapters import BottleneckAdapter


class VisualPrompts(nn.Module):
    """`length` prompt tokens for each of the first `depth` vision layers.

    v_l = Linear_l(r_l) with fixed Gaussian bases r_l, then one shared cross-attention adapter lets every prompt look at
    the image's CLIP patch tokens (`memory_dim` None leaves that out: `--img_clip_pt` off).
    """

    def __init__(self, base_dim: int, vision_width: int, memory_dim: int | None, *, depth: int, length: int = 2):
        super().__init__()
        self.register_buffer("bases", torch.randn(depth, length, base_dim))
        self.proj = nn.Linear(base_dim, vision_width)
        deep = nn.Linear(base_dim, vision_width)  # the deep projections start as clones of one layer (quirk Q15)
        self.compound_prompt_proj_vis = nn.ModuleList(copy.deepcopy(deep) for _ in range(depth - 1))
        self.img_clip_pt_adapter = None
        if memory_dim is not None:
            self.img_clip_pt_adapter = BottleneckAdapter(vision_width, memory_dim, self_attention=False)

    def folded(self) -> Tensor:
        """v_l [depth, length, width]: what the projections and bases amount to before any image is seen."""
        layers = [self.proj, *self.compound_prompt_proj_vis]
        return torch.stack([layer(base) for layer, base in zip(layers, self.bases, strict=True)])

    def forward(self, memory: Tensor) -> Tensor:
        """memory [B, L, D] L2-normalised patch tokens -> [depth, B, length, width].

        The adapter is cross-only, so each prompt is treated alone and all levels can be one sequence: exact.
        """
        levels = self.folded()  # (T, 2, W)
        depth, length, width = levels.shape
        queries = levels.reshape(1, depth * length, width).expand(len(memory), -1, -1)
        if self.img_clip_pt_adapter is not None:
            queries = self.img_clip_pt_adapter(queries, memory)  # (B, T*2, W)
        return queries.reshape(len(memory), depth, length, width).transpose(0, 1)


class TextPrompts(nn.Module):
    """Live class prompts: `length` tokens behind the start token, replaced at the first `depth` layers.

    p_l[class] = BA(r_l; MLP(description feature of the class)) as §4.2, with learnable bases of token-embedding size.
    `unseen` adds the adapter of unseen prompt learning (§4.3).
    """

    def __init__(self, text_width: int, text_dim: int, *, depth: int, length: int = 2, unseen: bool = False) -> None:
        super().__init__()
        self.bases = nn.Parameter(torch.randn(depth, length, text_width) * 0.02)
        self.txtcls_pt_adapter = BottleneckAdapter(text_width, text_dim, self_attention=False)
        self.unseen_pt_adapter = self.difference_proj = None
        if unseen:
            self.unseen_pt_adapter = BottleneckAdapter(text_width, text_width, self_attention=True)
            # prompts and text features share one memory: of equal width in OpenAI's models, projected elsewhere
            self.difference_proj = nn.Identity() if text_dim == text_width else nn.Linear(text_dim, text_width)

    def forward(self, descriptions: Tensor) -> Tensor:
        """descriptions [K, D] L2-normalised text features -> [depth, K, length, width]."""
        depth, length, width = self.bases.shape
        queries = self.bases.reshape(1, depth * length, width).expand(len(descriptions), -1, -1)
        prompts = self.txtcls_pt_adapter(queries, descriptions[:, None])
        return prompts.reshape(len(descriptions), depth, length, width).transpose(0, 1)

    def learn_from_seen(self, unseen: Tensor, seen: Tensor, differences: Tensor, padding: Tensor) -> Tensor:
        """Prompts of unseen classes that looked at a related seen class and at what sets the two apart (§4.3).

        unseen, seen: [depth, U, length, W] prompts of the U unseen classes and of their partners (no gradient into the
        latter). differences: [U, L, D] text features of the difference sentences, padding [U, L] True where empty.
        Memory is their concatenation; the mask is boolean, where the public program adds +1 to empty slots (quirk Q6).
        """
        depth, count, length, _ = unseen.shape
        texts = self.difference_proj(differences).expand(depth, -1, -1, -1)  # (T, U, L, W)
        memory = torch.cat([texts, seen.detach(), unseen], dim=2).flatten(0, 1)  # (T*U, L + 2p, W)
        empty = torch.cat([padding, padding.new_zeros(count, 2 * length)], dim=1).repeat(depth, 1)
        return self.unseen_pt_adapter(unseen.flatten(0, 1), memory, memory_padding=empty).view_as(unseen)
