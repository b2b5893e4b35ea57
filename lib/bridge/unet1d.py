"""The public diffusion bridge's 1-D U-Net with its state-dict names (spec diffusion-bridge.md §3.1, §5).

The embedding is treated as a signal of length D with one channel: down four levels with two residual blocks
and a linear attention each, full attention at the bottom, and up again with one skip connection per
residual block. Attribute names (`downs.0.2.fn.fn.to_qkv` ...) are those of the public weights, so that they
load strictly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.bridge.denoisers import SinusoidalTimeCode

HEADS, HEAD_DIM = 4, 32


class ChannelRmsNorm(nn.Module):
    """g sqrt(C) x / |x| over the channels of [B, C, n]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * math.sqrt(x.shape[1])


class ConvBlock(nn.Module):
    """conv3 -> RMS norm -> optional FiLM -> SiLU, [B, ci, n] -> [B, co, n]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = nn.Conv1d(channels_in, channels_out, 3, padding=1)
        self.norm = ChannelRmsNorm(channels_out)

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if film is not None:
            scale, shift = film
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResBlock(nn.Module):
    """Two conv blocks, the first modulated by the time code, plus a (projected) shortcut."""

    def __init__(self, channels_in: int, channels_out: int, code: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(code, 2 * channels_out))
        self.block1 = ConvBlock(channels_in, channels_out)
        self.block2 = ConvBlock(channels_out, channels_out)
        same = channels_in == channels_out
        self.res_conv = nn.Identity() if same else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.mlp(code)[..., None].chunk(2, dim=1)  # (B, co, 1) each
        return self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)


class LinearAttention(nn.Module):
    """Attention through a 32 x 32 context per head: cost linear in the length of [B, C, n]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.to_qkv = nn.Conv1d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv1d(inner, channels, 1), ChannelRmsNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (HEADS, HEAD_DIM)) for part in self.to_qkv(x).chunk(3, dim=1))  # (B, 4, 32, n)
        q = q.softmax(dim=-2) * HEAD_DIM**-0.5
        context = k.softmax(dim=-1) @ v.transpose(-1, -2)  # (B, 4, 32 of k, 32 of v)
        return self.to_out((context.transpose(-1, -2) @ q).flatten(1, 2))


class Attention(nn.Module):
    """Softmax attention over the positions of [B, C, n]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.to_qkv = nn.Conv1d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(1, (HEADS, HEAD_DIM)).transpose(-1, -2) for part in self.to_qkv(x).chunk(3, dim=1)
        )  # (B, 4, n, 32)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(-1, -2).flatten(1, 2))


class PreNorm(nn.Module):
    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelRmsNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class Unet1d(nn.Module):
    """`forward(x [B, D], t [B] int) -> x0_hat [B, D]`; the channel axis of the signal is added inside.

    dim: D, divisible by 2^(levels-1); also the width of the time code, the only thing in the weights that
        depends on it: the convolutions would run on any length without a complaint, so the length is
        checked here.
    base: channels of the first convolution. mults: channels of the levels as multiples of it.
    """

    def __init__(self, dim: int, base: int = 32, mults: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__()
        if dim % 2 ** (len(mults) - 1):
            raise ValueError(f"found dimension {dim}, expected a multiple of {2 ** (len(mults) - 1)}")
        self.dim = dim
        code = 4 * base
        channels = [base, *(base * mult for mult in mults)]
        levels = list(zip(channels[:-1], channels[1:], strict=True))

        self.init_conv = nn.Conv1d(1, base, 7, padding=3)
        self.time_mlp = nn.Sequential(SinusoidalTimeCode(dim), nn.Linear(dim, code), nn.GELU(), nn.Linear(code, code))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (inner, outer) in enumerate(levels, start=1):
            last = level == len(levels)
            resample = nn.Conv1d(inner, outer, 3, padding=1) if last else nn.Conv1d(inner, outer, 4, 2, 1)
            self.downs.append(self._level(inner, inner, code, resample))

        self.mid_block1 = ResBlock(channels[-1], channels[-1], code)
        self.mid_attn = Residual(PreNorm(channels[-1], Attention(channels[-1])))
        self.mid_block2 = ResBlock(channels[-1], channels[-1], code)

        for level, (inner, outer) in enumerate(reversed(levels), start=1):
            resample: nn.Module = nn.Conv1d(outer, inner, 3, padding=1)
            if level < len(levels):
                resample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), resample)
            self.ups.append(self._level(outer + inner, outer, code, resample))

        self.final_res_block = ResBlock(2 * base, base, code)
        self.final_conv = nn.Conv1d(base, 1, 1)

    @staticmethod
    def _level(channels_in: int, channels: int, code: int, resample: nn.Module) -> nn.ModuleList:
        # going up, both residual blocks take a skip connection and so the wider input
        attention = Residual(PreNorm(channels, LinearAttention(channels)))
        first, second = (ResBlock(channels_in, channels, code) for _ in range(2))
        return nn.ModuleList([first, second, attention, resample])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"found states of shape {tuple(x.shape)}, expected [B, {self.dim}]")
        code = self.time_mlp(t)
        x = self.init_conv(x[:, None])  # (B, base, D)
        skips = [x]
        for first, second, attention, resample in self.downs:
            x = first(x, code)
            skips.append(x)
            x = attention(second(x, code))
            skips.append(x)
            x = resample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, code)), code)
        for first, second, attention, resample in self.ups:
            x = first(torch.cat([x, skips.pop()], dim=1), code)
            x = attention(second(torch.cat([x, skips.pop()], dim=1), code))
            x = resample(x)
        x = self.final_res_block(torch.cat([x, skips.pop()], dim=1), code)
        return self.final_conv(x)[:, 0]
