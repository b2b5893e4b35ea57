"""Converted CLIP weights: tokens, token ids and text features of the public program (parity README §3, clip_*)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from lib.clip.load import ClipModel, load_clip
from lib.clip.released import convert_openai
from lib.clip.text import encode_text, tokenize
from lib.clip.tokens import encode_image

from .recipe import arrays, close, digest_close, needs, state

CASES = [pytest.param(name, marks=needs(f"{name}.npz", "keys.json")) for name in ("clip_tiny", "clip_vit_b16")]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Iterator[tuple[str, ClipModel]]:
    """The section's weights as a user meets them: a file of OpenAI's names, converted to a folder, loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.save(state(request.param), folder / "archive.pt")
    convert_openai(folder / "archive.pt", folder / "converted")
    yield request.param, load_clip(f"local-dir:{folder / 'converted'}")
    shutil.rmtree(folder)  # half a gigabyte each


def test_image_tokens(case: tuple[str, ClipModel]) -> None:
    name, clip = case
    data = arrays(name)
    cls, patches = encode_image(clip, data["in_image"])
    tokens = torch.cat([cls[:, None], patches], dim=1)  # (B, 1 + L, D)
    close(name, "tokens", tokens[:, : data["out_tokens"].shape[1]], data["out_tokens"], 1e-4)
    digest_close(name, "tokens", tokens, data["dig_tokens"])
    assert clip.spec.activation == "quick_gelu"


def test_text(case: tuple[str, ClipModel]) -> None:
    name, clip = case
    data = arrays(name)
    sentences = data["in_text"].tolist()
    assert torch.equal(tokenize(clip, sentences), data["in_tokens"].long())
    close(name, "text", encode_text(clip, sentences), data["out_text"], 1e-4)
