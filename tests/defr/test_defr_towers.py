"""Towers at other image sizes, box masks inside them (spec defr.md §5, §11, §17.8-9)."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lib.clip.load import load_clip
from lib.clip.tokens import encode_image
from lib.defr.box_mask import class_token_mask, hidden_cells, masked_features
from lib.defr.embeddings import LanguageRows
from lib.defr.model import build_defr
from lib.defr.towers import ClipTower, TimmTower, resize_positions
from lib.settings import DefrSettings

TIMM = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=1)


@pytest.fixture(scope="module")
def tower(clip):
    return ClipTower(clip, 96).eval().requires_grad_(False)


def test_positions_are_plain_bicubic():
    table = torch.randn(1 + 16, 5, generator=torch.Generator().manual_seed(0))
    grid = table[1:].T.reshape(1, 5, 4, 4)
    for size in (2, 7):
        found = resize_positions(table, size)
        plain, smooth = (
            F.interpolate(grid, size=(size, size), mode="bicubic", antialias=antialias)[0].flatten(1).T
            for antialias in (False, True)
        )
        assert torch.equal(found[0], table[0]) and torch.equal(found[1:], plain)
        assert (found[1:] - smooth).abs().max() > 1e-2
    assert torch.equal(resize_positions(table, 4), table)


def test_clip_tower_at_its_own_size_is_clip(clip):
    images = torch.randn(2, 3, clip.spec.image_size, clip.spec.image_size)
    expected = encode_image(clip, images)[0]
    joint = ClipTower(clip, joint=True).eval()
    assert torch.allclose(joint(images), expected, atol=1e-5) and joint.width == clip.spec.embed_dim
    free = ClipTower(clip).eval()
    assert torch.allclose(free(images) @ clip.model.visual.proj, expected, atol=1e-5)
    assert all(p.requires_grad for p in free.parameters()) and clip.model.visual.proj is not None
    assert not any(p.requires_grad for p in clip.model.parameters())
    with pytest.raises(ValueError, match="multiple of the patch size"):
        ClipTower(clip, 100)


def test_timm_tower_reads_local_weights(tmp_path):
    tower = TimmTower(TIMM, 224)
    save_file(tower.vit.state_dict(), tmp_path / "model.safetensors")
    same, larger = (
        TimmTower(TIMM, 224, tmp_path / "model.safetensors"),
        TimmTower(TIMM, 64, tmp_path / "model.safetensors"),
    )
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(same.eval()(images), tower.eval()(images))
    assert larger(images[..., :64, :64]).shape == (1, tower.width) and larger.grid == 4
    assert torch.equal(larger.vit.blocks[0].attn.qkv.weight, tower.vit.blocks[0].attn.qkv.weight)
    with pytest.raises(FileNotFoundError, match="defr.weights"):
        TimmTower(TIMM, 224, tmp_path / "absent")
    with pytest.raises(ValueError, match="defr.backbone"):
        TimmTower("clp", 224)


def test_build_from_settings(clip):
    settings = DefrSettings(image_size=64)
    language = LanguageRows({"clip": torch.eye(7, clip.spec.embed_dim)}, clip.model.visual.proj)
    model = build_defr(settings, 7, clip=clip, language=language)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert model(torch.zeros(2, 3, 64, 64), "bf16").dtype == torch.float32
    timm = replace(settings, backbone=TIMM, head="rand-linear", log_scale=0.0)
    one, two = (build_defr(timm, 7, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(ValueError, match="needs defr.backbone clip"):
        build_defr(replace(timm, head="rand-512"), 7)
    with pytest.raises(ValueError, match="clip.source"):
        build_defr(settings, 7, language=language)


# ---------------------------------------------------------------- box masks


def test_hidden_cells_by_hand():
    human, thing = torch.tensor([[16.0, 0.0, 33.0, 16.0]]), torch.tensor([[-9.0, 50.0, 10.0, 70.0]])
    hidden = hidden_cells(human, thing, 4, 16)[0]
    visible = {(0, 1), (0, 2), (3, 0)}  # 16..33 touches columns 1 and 2; 50..64 row 3
    assert {(int(r), int(c)) for r, c in (~hidden).nonzero()} == visible
    assert hidden_cells(human[:0], thing[:0], 4, 16).shape == (0, 4, 4)


def test_three_modes():
    hidden = torch.tensor([[[True, False]], [[True, True]]])
    inf = -torch.inf
    assert class_token_mask(hidden, "block").tolist() == [[0, inf, 0], [0, 0, 0]]  # no cell: the whole image
    assert class_token_mask(hidden, "released").tolist() == [[0, 1, 0], [0, 1, 1]]
    assert not class_token_mask(hidden, "none").any()
    with pytest.raises(ValueError, match="mask_mode"):
        class_token_mask(hidden, "blocked")


@pytest.fixture
def pair_case(tower):
    g = torch.Generator().manual_seed(5)
    hidden = torch.rand(5, tower.grid, tower.grid, generator=g) < 0.6
    hidden[2] = True
    return torch.randn(3, 96, 96, generator=g), hidden


def test_without_a_mask_all_pairs_are_the_image(tower, pair_case):
    image, hidden = pair_case
    expected = tower(image[None]).expand(5, -1)
    for layers in (1, 3):
        assert torch.allclose(masked_features(tower, image, hidden, mode="none", layers=layers), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["block", "released"])
def test_one_layer_equals_the_full_block(tower, pair_case, mode):
    """The class token's row alone, against open_clip's block with a whole mask; chunks change nothing."""
    image, hidden = pair_case
    x = tower.tokens(image[None])
    for block in tower.blocks[:-1]:
        x = block(x)
    last, mask = tower.blocks[-1], class_token_mask(hidden, mode)
    full = torch.zeros(5, x.shape[1], x.shape[1])
    full[:, 0] = mask
    heads = last.attn.num_heads
    expected = last(x.expand(5, -1, -1), attn_mask=full.repeat_interleave(heads, 0))[:, 0]
    assert torch.allclose(masked_features(tower, image, hidden, mode=mode), tower.pooled(expected), atol=1e-5)
    whole, chunked = (masked_features(tower, image, hidden, mode=mode, layers=2, chunk=size) for size in (9, 2))
    assert torch.allclose(whole, chunked, atol=1e-5)


def test_blocked_cells_do_not_matter(tower, pair_case):
    """Disturb what hidden patches hold before the last block: the pair's feature stays, the unmasked one moves."""
    image, hidden = pair_case[0], pair_case[1][:1]
    noise = torch.randn(1, 1 + hidden.numel(), tower.width) * F.pad(hidden.flatten(1), (1, 0))[..., None]
    modes = ("block", "none")
    before = {mode: masked_features(tower, image, hidden, mode=mode) for mode in modes}
    handle = tower.blocks[-2].register_forward_hook(lambda block, given, output: output + noise)
    after = {mode: masked_features(tower, image, hidden, mode=mode) for mode in modes}
    handle.remove()
    assert torch.allclose(after["block"], before["block"], atol=1e-6)
    assert (after["none"] - before["none"]).abs().max() > 1e-2


def test_layers_out_of_range(tower, pair_case):
    with pytest.raises(ValueError, match="mask_layers"):
        masked_features(tower, *pair_case, layers=9)
