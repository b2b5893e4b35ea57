"""What the class token of a recogniser looks at: its attention in the last block, laid over the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lib.analysis.palette import drawing, headline
from lib.defr.towers import ClipTower, Tower


@torch.inference_mode()
def class_attention(tower: Tower, pixels: Tensor) -> Tensor:
    """[B, g, g]: attention of the class token to the patches in the last block, mean over the heads.

    pixels: [B, 3, n, n] as the tower takes them. A map sums to 1 less what the class token keeps for itself.
    """
    tower.eval()
    if isinstance(tower, ClipTower):
        attention = tower.blocks[-1].attn
        (normed,) = _outputs_of(tower.blocks[-1].ln_1, tower, pixels)
        projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)  # (B, 1 + L, 3 D)
    else:
        attention = tower.vit.blocks[-1].attn
        (projected,) = _outputs_of(attention.qkv, tower, pixels)
    query, key, _ = (part.unflatten(2, (attention.num_heads, -1)) for part in projected.chunk(3, dim=2))
    similar = torch.einsum("bhd,blhd->bhl", query[:, 0], key) / query.shape[3] ** 0.5
    weights = similar.softmax(dim=2).mean(dim=1)[:, 1:]  # (B, L)
    return weights.unflatten(1, (tower.grid, tower.grid)).cpu()


def _outputs_of(module: nn.Module, tower: Tower, pixels: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code would not see the hook
            tower(pixels.to(next(tower.parameters()).device))
    finally:
        handle.remove()
    return kept


def attention_figure(
    images: Sequence[Image.Image], maps: dict[str, Tensor], captions: Sequence[str] = (), title: str = ""
) -> Figure:
    """A row an image: the image squashed to the square that the tower sees, then the map of every model.

    maps: model -> [images, g, g]. captions: a line below each image. All maps of a row share one scale.
    """
    columns = 1 + len(maps)
    with drawing((2.5 * columns, 2.6 * len(images) + 0.5)) as fig:
        axes = fig.subplots(len(images), columns, squeeze=False)
        for row, image in enumerate(images):
            side = min(max(image.size), 1000)
            square = image.convert("RGB").resize((side, side))
            highest = max(float(found[row].max()) for found in maps.values())
            axes[row, 0].set_title(captions[row] if captions else "", fontsize=9)
            for ax in axes[row]:
                ax.imshow(square, extent=(0, 1, 0, 1))
                ax.set_axis_off()
            for ax, (name, found) in zip(axes[row, 1:], maps.items(), strict=True):
                # the tokens' own resolution is shown: smoothing would suggest detail that is not there
                ax.imshow(
                    found[row], cmap="cividis", alpha=0.72, vmin=0, vmax=highest, extent=(0, 1, 0, 1),
                    interpolation="nearest",
                )  # fmt: skip
                if row == 0:
                    ax.set_title(name, fontsize=9)
        headline(fig, title or "Where the class token looks in the last block")
    return fig
