"""The recogniser: an image tower under a classifier head (spec defr.md §3, §5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.clip.load import ClipModel
from lib.defr.embeddings import LanguageRows
from lib.defr.heads import build_head, family_of
from lib.defr.towers import ClipTower, TimmTower, Tower
from lib.settings import DefrSettings


class DefrClassifier(nn.Module):
    """Logits of all HOI classes of an image; trained end to end."""

    def __init__(self, tower: Tower, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, images: Tensor, precision: str = "fp32") -> Tensor:
        """[B, 3, n, n] -> logits [B, C] float32; precision bf16 runs the tower alone under autocast."""
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"defr.precision: found {precision!r}, expected fp32 or bf16")
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = self.tower(images)
        return self.head(features.float())


def build_defr(
    settings: DefrSettings,
    num_classes: int,
    *,
    clip: ClipModel | None = None,
    language: LanguageRows | None = None,
    seed: int = 0,
) -> DefrClassifier:
    """Tower and head of the settings. clip: for the backbone `clip`. language: for heads that start from embeddings."""
    family = family_of(settings.head)
    if settings.backbone == "clip":
        if clip is None:
            raise ValueError("defr.backbone clip: found no CLIP, expected a loaded one; mend: set clip.source")
        tower: Tower = ClipTower(clip, settings.image_size, joint=family.joint)
    elif family.joint:
        raise ValueError(f"defr.head {settings.head}: keeps CLIP's projection, so it needs defr.backbone clip")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = TimmTower(settings.backbone, settings.image_size, settings.weights)
    head = build_head(
        settings.head, tower.width, num_classes, language=language, log_scale=settings.log_scale,
        trainable=settings.log_scale_trainable, log_scale_max=settings.log_scale_max, seed=seed,
    )  # fmt: skip
    return DefrClassifier(tower, head)
