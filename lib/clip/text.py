"""Text features of a CLIP, with or without learned prompts in front of the sentence."""

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
    tokens = tokenize(clip, sentences)  # (N, T)
    return torch.cat([encode_tokens(clip, batch) for batch in tokens.split(batch_size)]).float()  # (N, D)


def tokenize(clip: ClipModel, sentences: Sequence[str], reserve: int = 0) -> Tensor:
    """Token ids [N, context]; `reserve` slots are kept free behind the end token (room for learned prompts)."""
    room = clip.spec.context_length - reserve
    tokens = clip.tokenizer(list(sentences), context_length=room).to(clip.device)  # (N, room)
    return torch.nn.functional.pad(tokens, (0, reserve))


def encode_tokens(clip: ClipModel, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Features [N, D], un-normalised, of token ids [N, context]; differentiable in the prompts.

    prompts: [depth, N, length, width], put between the start token and the sentence and replaced at the first `depth`
    layers. The transformer is causal, so slots behind the last end token are left out: the same features for far less
    work (a class sentence fills about 13 of 77 slots). Raises ValueError when a sentence leaves no room for prompts.
    """
    model = clip.model
    length = 0 if prompts is None else prompts.shape[2]
    eot = tokens.argmax(dim=1)  # the end token has the highest id
    used = int(eot.max()) + 1 + length
    if used > tokens.shape[1]:
        raise ValueError(
            f"text prompts: found a text of {used - length} tokens, expected at most {tokens.shape[1] - length}"
            f" (context {tokens.shape[1]} less {length} prompts); mend: shorten the sentence or ezhoi.prompt_length"
        )
    with torch.no_grad():
        x = model.token_embedding(tokens[:, : used - length])  # (N, T, W)
    if prompts is not None:
        x = torch.cat([x[:, :1], prompts[0], x[:, 1:]], dim=1)
    x = x + model.positional_embedding[:used]
    mask = model.attn_mask[:used, :used]
    for index, block in enumerate(model.transformer.resblocks):
        if prompts is not None and 0 < index < len(prompts):
            x = torch.cat([x[:, :1], prompts[index], x[:, 1 + length :]], dim=1)
        x = block(x, attn_mask=mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x), device=x.device), eot + length] @ model.text_projection
