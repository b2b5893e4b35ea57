"""The converted DETR against one written down from the paper's equations (Carion et al. 2020), with controls.

Spec clip-features-and-detr.md §8.3: random weights, every norm and bias shaken (identity norms hide swaps), two images
of different size in one padded batch.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import DetrConfig, DetrForObjectDetection

from lib.detection.released import to_transformers

WIDTH, HEADS, FFN, QUERIES, CLASSES = 32, 4, 64, 7, 5


class Layer(nn.Module):
    """A post-norm layer of either stack; positions are added to queries and keys, never to values."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        if decoder:
            self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.norm3 = nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def encode(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + position, x + position, x, key_padding_mask=padding)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))

    def decode(self, x: Tensor, query: Tensor, memory: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + query, x + query, x)[0])
        x = self.norm2(x + self.multihead_attn(x + query, memory + position, memory, key_padding_mask=padding)[0])
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Reference(nn.Module):
    """Parameters under facebookresearch's names."""

    def __init__(self) -> None:
        super().__init__()
        body = resnet18()
        del body.fc
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": body})])
        self.input_proj = nn.Conv2d(512, WIDTH, 1)
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.transformer = nn.ModuleDict({
            "encoder": nn.ModuleDict({"layers": nn.ModuleList([Layer(False), Layer(False)])}),
            "decoder": nn.ModuleDict(
                {"layers": nn.ModuleList([Layer(True), Layer(True)]), "norm": nn.LayerNorm(WIDTH)}
            ),
        })  # fmt: skip
        self.class_embed = nn.Linear(WIDTH, CLASSES + 1)
        sizes = [WIDTH, WIDTH, WIDTH, 4]
        self.bbox_embed = nn.ModuleDict(
            {"layers": nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))}
        )

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        body = self.backbone[0]["body"]
        x = body.maxpool(body.relu(body.bn1(body.conv1(pixels))))
        x = body.layer4(body.layer3(body.layer2(body.layer1(x))))  # (B, 512, h, w)
        inside = F.interpolate(mask[None].float(), size=x.shape[-2:])[0].bool()  # (B, h, w)
        position, padding = sine(inside).flatten(1, 2), ~inside.flatten(1)
        memory = self.input_proj(x).flatten(2).transpose(1, 2)  # (B, h w, d)
        for layer in self.transformer["encoder"]["layers"]:
            memory = layer.encode(memory, position, padding)
        query = self.query_embed.weight.expand(len(pixels), -1, -1)
        state = torch.zeros_like(query)
        for layer in self.transformer["decoder"]["layers"]:
            state = layer.decode(state, query, memory, position, padding)
        state = self.transformer["decoder"]["norm"](state)
        first, second, last = self.bbox_embed["layers"]
        return self.class_embed(state), last(F.relu(second(F.relu(first(state))))).sigmoid()


def sine(inside: Tensor) -> Tensor:
    """[B, h, w, d]: half of the channels for y, half for x; positions run to 2 pi over the unpadded image."""
    parts = []
    for axis in (1, 2):
        place = inside.cumsum(axis).float()
        place = place / (place.amax(axis, keepdim=True) + 1e-6) * 2 * math.pi
        wave = 10_000 ** (torch.arange(0, WIDTH // 2, 2) / (WIDTH // 2))
        angle = place[..., None] / wave  # (B, h, w, d / 4)
        parts.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1)


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    model = Reference().eval()
    for name, value in model.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.add_(0.2 * torch.rand_like(value) if "running_var" in name else 0.2 * torch.randn_like(value))
    return model


def converted(state: dict[str, Tensor]) -> DetrForObjectDetection:
    config = DetrConfig(
        backbone="resnet18", d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=FFN, decoder_ffn_dim=FFN, num_queries=QUERIES,
        num_labels=CLASSES,
    )  # fmt: skip
    model = DetrForObjectDetection(config).eval()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    model.load_state_dict(to_transformers(state), strict=True)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """A tall and a wide image, zero-padded."""
    pixels, mask = torch.zeros(2, 3, 160, 192), torch.zeros(2, 160, 192, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for slot, (height, width) in enumerate([(160, 96), (128, 192)]):
        pixels[slot, :, :height, :width] = torch.randn(3, height, width, generator=generator)
        mask[slot, :height, :width] = 1
    return pixels, mask


@torch.no_grad()
def difference(reference: Reference, state: dict[str, Tensor]) -> tuple[float, float]:
    """Largest differences of logits and boxes between the reference and a converted state."""
    logits, boxes = reference(*batch())
    output = converted(state)(pixel_values=batch()[0], pixel_mask=batch()[1])
    return float((output.logits - logits).abs().max()), float((output.pred_boxes - boxes).abs().max())


def test_parity(reference: Reference) -> None:
    logits, boxes = difference(reference, reference.state_dict())
    assert logits < 1e-4 and boxes < 1e-5


def swapped(state: dict[str, Tensor], one: str, other: str) -> dict[str, Tensor]:
    """The state with all names that hold `one` and `other` exchanged."""

    def name(key: str) -> str:
        return key.replace(one, "#").replace(other, one).replace("#", other)

    return {name(key): value for key, value in state.items()}


def keys_before_queries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoder attention with q and k exchanged."""
    changed = dict(state)
    for key, value in state.items():
        if "encoder.layers" in key and "in_proj" in key:
            q, k, v = value.chunk(3)
            changed[key] = torch.cat([k, q, v])
    return changed


CONTROLS = {
    "decoder norm2 and norm3": lambda state: swapped(state, "decoder.layers.1.norm2.", "decoder.layers.1.norm3."),
    "encoder q and k": keys_before_queries,
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_wrong_mapping_would_show(reference: Reference, control: str) -> None:
    assert difference(reference, CONTROLS[control](reference.state_dict()))[0] > 1e-2
