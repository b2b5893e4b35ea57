"""Teachers that score class sentences on image regions: a generative captioner from a local folder, or CLIP itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image, preprocess
from lib.defr.pseudo_labels import Teacher
from lib.errors import FoundExpected

CAPTIONERS = ("blip", "vision-encoder-decoder")


class TeacherError(FoundExpected):
    """A captioner that cannot be used; names folder, finding, expectation, mend."""


def clip_teacher(clip: ClipModel, sentences: Sequence[str]) -> Teacher:
    """Cosine of a region with every class sentence, times CLIP's logit scale: a contrastive teacher."""
    rows = F.normalize(encode_text(clip, sentences), dim=-1)  # (C, D)
    scale, view = clip.model.logit_scale.exp().detach(), preprocess(clip)

    @torch.inference_mode()
    def teacher(regions: Sequence[Image.Image]) -> Tensor:
        features, _ = encode_image(clip, torch.stack([view(region.convert("RGB")) for region in regions]))
        return scale * F.normalize(features, dim=-1) @ rows.T  # (R, C)

    return teacher


def captioner_teacher(
    folder: Path | str, sentences: Sequence[str], device: torch.device | str = "cpu", batch_size: int = 64
) -> Teacher:
    """Mean log-likelihood of a sentence's tokens given the region, under a captioner of transformers in a local folder.

    Supported: BLIP (`BlipForConditionalGeneration`) and `VisionEncoderDecoderModel` such as ViT-GPT2. A region is
    encoded once for all sentences. batch_size: sentences decoded at once.
    Raises TeacherError for a folder without such a model.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise TeacherError(folder, "no config.json", "a captioner of transformers", "set defr.teacher to its folder")
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind not in CAPTIONERS:
        raise TeacherError(folder, f"a {kind} model", f"one of {CAPTIONERS}", "set defr.teacher to another folder")
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.eval().to(device)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens, mask = _tokens(tokenizer, sentences, _start_token(model, tokenizer))  # (C, T)
    tokens, mask = tokens.to(device), mask.to(device)

    @torch.inference_mode()
    def teacher(regions: Sequence[Image.Image]) -> Tensor:
        pixels = processor([region.convert("RGB") for region in regions], return_tensors="pt")["pixel_values"]
        encoder, decoder = (
            (model.vision_model, model.text_decoder) if kind == "blip" else (model.encoder, model.decoder)
        )
        seen = encoder(pixel_values=pixels.to(device)).last_hidden_state  # (R, L, W)
        if hasattr(model, "enc_to_dec_proj"):
            seen = model.enc_to_dec_proj(seen)
        return torch.stack([_likelihood(decoder, one, tokens, mask, batch_size) for one in seen])  # (R, C)

    return teacher


def _likelihood(decoder: nn.Module, seen: Tensor, tokens: Tensor, mask: Tensor, batch_size: int) -> Tensor:
    """Mean log-likelihood [C] of tokens [C, T] behind their start token; seen [L, W] is one region's encoding."""
    found = []
    for ids, valid in zip(tokens.split(batch_size), mask.split(batch_size), strict=True):
        given = seen.repeat(len(ids), 1, 1)
        logits = decoder(input_ids=ids, attention_mask=valid, encoder_hidden_states=given).logits  # (B, T, V)
        each = -F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")  # (B, T-1)
        counted = valid[:, 1:]
        found.append((each * counted).sum(1) / counted.sum(1))
    return torch.cat(found)


def _start_token(model: nn.Module, tokenizer: object) -> int:
    """The token that a caption starts with under this model."""
    for config in (getattr(model.config, "text_config", None), getattr(model.config, "decoder", None), model.config):
        start = getattr(config, "decoder_start_token_id", None) or getattr(config, "bos_token_id", None)
        if start is not None:
            return int(start)
    return int(tokenizer.cls_token_id)


def _tokens(tokenizer: object, sentences: Sequence[str], start: int) -> tuple[Tensor, Tensor]:
    """Ids [C, T] (start token, sentence, end token where the tokenizer has one) and their mask [C, T], padded right."""
    end = [token for token in (tokenizer.sep_token_id or tokenizer.eos_token_id,) if token is not None]
    rows = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"], *end] for text in sentences]
    length = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask
