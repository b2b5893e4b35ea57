"""Image towers of DEFR (spec defr.md §5): a trainable copy of CLIP's ViT, or a ViT of timm, at any image size."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import timm
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.nn import functional as F

from lib.clip.load import ClipModel


class ClipTower(nn.Module):
    """CLIP's image tower: class token after ln_post, [B, D]; with `joint` after the visual projection, [B, E].

    Built from a loaded CLIP without sharing a tensor with it; its position table is resized to `image_size`.
    """

    mean, std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    def __init__(self, clip: ClipModel, image_size: int = 0, joint: bool = False) -> None:
        super().__init__()
        visual = copy.deepcopy(clip.model.visual).requires_grad_(True)
        self.patch_size = clip.spec.patch_size
        self.image_size = image_size or clip.spec.image_size
        self.grid = grid_of(self.image_size, self.patch_size)
        visual.positional_embedding = nn.Parameter(resize_positions(visual.positional_embedding.detach(), self.grid))
        visual.image_size, visual.grid_size = (self.image_size,) * 2, (self.grid,) * 2
        if not joint:
            visual.proj = None
        self.visual, self.joint = visual, joint
        self.width = clip.spec.embed_dim if joint else clip.spec.vision_width

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, n, n] -> [B, width]."""
        return self.visual(images)

    def tokens(self, images: Tensor) -> Tensor:
        """What enters the first block: class token and patches, [B, 1 + g * g, D]."""
        return self.visual._embeds(images)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.visual.transformer.resblocks

    def pooled(self, cls: Tensor) -> Tensor:
        """Class tokens [P, D] after the last block -> features [P, width]."""
        cls = self.visual.ln_post(cls)
        return cls @ self.visual.proj if self.joint else cls


class TimmTower(nn.Module):
    """A ViT of timm without its classifier: class token after the final norm, [B, D].

    name: with its tag, such as `vit_base_patch32_224.augreg_in21k_ft_in1k`. weights: local file of timm's names; empty
    draws them. timm resizes the position table (bicubic with antialias; the authors' version is not known, §5).
    """

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, name: str, image_size: int, weights: Path | str = "") -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"defr.backbone: found {name!r}, expected clip or a ViT of timm.list_models('vit_*')")
        source: dict = {"pretrained": False}
        if weights:
            if not Path(weights).is_file():
                raise FileNotFoundError(
                    f"{weights}: found no file, expected weights of {name}\n  mend: copy model.safetensors of timm's"
                    f" {name} there, or set defr.weights to where it is"
                )
            source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
        self.vit = timm.create_model(name, num_classes=0, img_size=image_size, **source)
        self.image_size, self.joint = image_size, False
        self.width, self.patch_size = self.vit.num_features, self.vit.patch_embed.patch_size[0]
        self.grid = grid_of(image_size, self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, n, n] -> [B, width]."""
        return self.vit(images)


Tower = ClipTower | TimmTower


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Position table [1 + g0 * g0, D] at another grid: plain bicubic without antialias, class position copied (§5).

    open_clip's own resizing antialiases, which moves the features of a released checkpoint by O(1).
    """
    old = math.isqrt(len(table) - 1)
    if old == grid:
        return table.clone()
    patches = table[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, g0, g0)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([table[:1], patches.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def grid_of(image_size: int, patch_size: int) -> int:
    """Patches a side; ValueError where they do not tile the image."""
    if image_size % patch_size:
        raise ValueError(f"defr.image_size: found {image_size}, expected a multiple of the patch size {patch_size}")
    return image_size // patch_size
