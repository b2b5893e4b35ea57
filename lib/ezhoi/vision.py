"""The frozen CLIP vision tower with instance adapters and deep prompts inside (spec ez-hoi.md §2.3, §2.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.ezhoi.adapters import InstanceAdapter


class AdaptedVision(nn.Module):
    """Runs an open_clip ViT block by block. The tower is held outside the module tree: it is never trained or saved.

    tower: frozen open_clip VisionTransformer. layers: indices of the blocks that get an adapter before their attention.
    """

    def __init__(self, tower: nn.Module, gain_init: float, layers: Sequence[int]) -> None:
        super().__init__()
        self._tower = [tower]
        width = tower.class_embedding.shape[0]
        self.adaptermlp = nn.ModuleDict({str(layer): InstanceAdapter(width, gain_init) for layer in layers})

    @property
    def tower(self) -> nn.Module:
        return self._tower[0]

    def forward(self, images: Tensor, prior: Tensor, prior_padding: Tensor, prompts: Tensor | None) -> Tensor:
        """Projected patch map.

        images [B, 3, R, R]; prior [B, n, 64] instance tokens with prior_padding [B, n]; prompts [T, B, p, W]: level 0
        is appended after the position embedding and before `ln_pre`, levels 1..T-1 replace the last tokens of layers
        1..T-1, deeper layers let them evolve. Returns [B, D, G, G].
        """
        tower = self.tower
        x = tower.conv1(images).flatten(2).transpose(1, 2)  # (B, L, W)
        batch, patches, _ = x.shape
        x = torch.cat([tower.class_embedding.expand(batch, 1, -1), x], dim=1) + tower.positional_embedding
        if prompts is not None:
            x = torch.cat([x, prompts[0]], dim=1)  # (B, 1 + L + p, W)
        x = tower.ln_pre(x)
        for index, block in enumerate(tower.transformer.resblocks):
            if prompts is not None and 0 < index < len(prompts):
                x = torch.cat([x[:, : 1 + patches], prompts[index]], dim=1)
            if str(index) in self.adaptermlp:
                x = self.adaptermlp[str(index)](x, prior, prior_padding)
            x = block(x)
        x = tower.ln_post(x[:, 1 : 1 + patches]) @ tower.proj  # (B, L, D)
        grid_h, grid_w = tower.grid_size
        return x.transpose(1, 2).reshape(batch, -1, grid_h, grid_w)


def adapter_layers(position: str, layers: int) -> range:
    """Blocks with an instance adapter (`--adapter_pos`): all | front (first half) | end (second half) | last | none."""
    choices = {
        "all": range(layers), "front": range(layers // 2), "end": range(layers // 2, layers),
        "last": range(layers - 1, layers), "none": range(0),
    }  # fmt: skip
    if position not in choices:
        raise ValueError(f"ezhoi.instance_adapters: found {position!r}, expected one of {', '.join(choices)}")
    return choices[position]
