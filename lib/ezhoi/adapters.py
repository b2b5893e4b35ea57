"""The bottleneck adapters of EZ-HOI (spec ez-hoi.md §2.2, §2.3).

One shape serves everywhere: project to 64 dimensions, let a transformer decoder layer attend to some memory, project
back to zero (so an untrained adapter is the identity), add. Parameter names are those of the public checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTH = 64  # bottleneck width (`--emb_dim`)


class Mlp(nn.Module):
    """Linear layers with ReLU between: dims[0] -> ... -> dims[-1]."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class DecoderLayer(nn.Module):
    """Post-norm transformer decoder layer: width 64, 2 heads, FFN 128; `self_attention=False` is cross-only."""

    def __init__(self, self_attention: bool, heads: int = 2, hidden: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        if self_attention:
            self.self_attn = nn.MultiheadAttention(WIDTH, heads, dropout, batch_first=True)
            self.norm1 = nn.LayerNorm(WIDTH)
        self.has_self_attention = self_attention
        self.multihead_attn = nn.MultiheadAttention(WIDTH, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.norm2, self.norm3 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, t: Tensor, memory: Tensor, memory_padding: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """t [B, Q, 64], memory [B, M, 64]; paddings are True where a slot is empty. Returns [B, Q, 64]."""
        if self.has_self_attention:
            attended = self.self_attn(t, t, t, key_padding_mask=padding, need_weights=False)[0]
            t = self.norm1(t + self.dropout(attended))
        attended = self.multihead_attn(t, memory, memory, key_padding_mask=memory_padding, need_weights=False)[0]
        t = self.norm2(t + self.dropout(attended))
        hidden = self.linear2(self.dropout(self.linear1(t).relu()))
        return self.norm3(t + self.dropout(hidden))


class BottleneckAdapter(nn.Module):
    """BA(x; memory) = x + Up(Dec(ReLU(Down x), memory)).

    dim: width of x. memory_dim: width of external memory, which passes an MLP to 64; None = "self" mode, where the
    memory is the projection of x itself. self_attention: full decoder layer instead of cross-only.
    """

    def __init__(self, dim: int, memory_dim: int | None, self_attention: bool) -> None:
        super().__init__()
        self.down_proj_mem, self.up_proj_mem = nn.Linear(dim, WIDTH), nn.Linear(WIDTH, dim)
        self.down_proj_prior = None if memory_dim is None else Mlp(memory_dim, 128, 128, WIDTH)
        self.mhsa_layers = nn.ModuleList([DecoderLayer(self_attention)])
        if self_attention:
            nn.init.kaiming_uniform_(self.down_proj_mem.weight, a=math.sqrt(5))
            nn.init.zeros_(self.down_proj_mem.bias)
        nn.init.zeros_(self.up_proj_mem.weight)
        nn.init.zeros_(self.up_proj_mem.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        padding: Tensor | None = None,
        memory_padding: Tensor | None = None,
    ) -> Tensor:
        """x [B, Q, dim] with padding [B, Q]; memory [B, M, memory_dim] with memory_padding in external mode.

        Paddings are boolean, True where a slot is empty (the public program adds a float mask there, quirk Q6).
        """
        down = self.down_proj_mem(x)  # (B, Q, 64)
        if self.down_proj_prior is None:
            memory, memory_padding = down, padding
        else:
            memory = self.down_proj_prior(memory)
        t = self.mhsa_layers[0](down.relu(), memory, memory_padding, padding)
        return x + self.up_proj_mem(t)


class InstanceAdapter(nn.Module):
    """Instance-aware adapter before the attention of one vision block: x + a * Up(Dec(ReLU(Down x), prior tokens)).

    gain_init: starting value of the learnable gain a; 1e-9 is the published one (quirk Q7).
    """

    def __init__(self, dim: int, gain_init: float = 1e-9) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), gain_init))
        self.down_proj, self.up_proj = nn.Linear(dim, WIDTH), nn.Linear(WIDTH, dim)
        self.mhsa_layers = nn.ModuleList([DecoderLayer(self_attention=False)])
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down_proj.bias)
        nn.init.zeros_(self.up_proj.weight)
        nn.init.zeros_(self.up_proj.bias)

    def forward(self, x: Tensor, prior: Tensor, prior_padding: Tensor) -> Tensor:
        """x [B, T, dim]; prior [B, n, 64]; prior_padding [B, n] True where there is no instance."""
        t = self.mhsa_layers[0](self.down_proj(x).relu(), prior, prior_padding)
        return x + self.scale * self.up_proj(t)
