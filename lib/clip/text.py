"""Text features of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.clip.load import ClipModel


@torch.no_grad()
def encode_text(clip: ClipModel, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
    """Features [N, D] of sentences, fp32, not L2-normalised, on the CLIP's device.

    A sentence longer than the context is cut and keeps its end token (open_clip's rule).
    """
    if not len(sentences):
        return torch.zeros(0, clip.spec.embed_dim, device=clip.device)
    tokens = clip.tokenizer(list(sentences)).to(clip.device)  # (N, T)
    return torch.cat([clip.model.encode_text(batch) for batch in tokens.split(batch_size)]).float()  # (N, D)


def tokenize(clip: ClipModel, sentences: Sequence[str], reserve: int = 0) -> Tensor:
    """Token ids [N, context]; `reserve` slots are kept free behind the end token (room for learned prompts)."""
    room = clip.spec.context_length - reserve
    tokens = clip.tokenizer(list(sentences), context_length=room).to(clip.device)  # (N, room)
    return torch.nn.functional.pad(tokens, (0, reserve))
