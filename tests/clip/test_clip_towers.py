"""CLIP loading, tokens, text (spec clip-features-and-detr.md §15.1, §15.2)."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.clip.load import CONFIG_FILE, WEIGHTS_FILE, ClipLoadError, load_clip
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image, preprocess

TINY = "random:configs/clip/tiny-clip.json"


@pytest.fixture(scope="module")
def clip(request):
    return load_clip(f"random:{request.config.rootpath / 'configs/clip/tiny-clip.json'}")


@pytest.fixture
def folder(clip, tmp_path):
    """The tiny CLIP as a local-dir folder."""
    save_file(clip.model.state_dict(), tmp_path / WEIGHTS_FILE, {"quick_gelu": "true"})
    config = {"name": "some-clip", "model_cfg": open_clip.get_model_config("tiny-clip"), "preprocess_cfg": {}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model_cfg"] |= changes
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def random_images(count, size, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_spec_is_read_from_the_model(clip):
    spec = clip.spec
    assert (spec.embed_dim, spec.grid, spec.tokens, spec.image_size, spec.patch_size) == (128, 8, 64, 128, 16)
    assert (spec.vision_width, spec.vision_layers, spec.text_width, spec.text_layers) == (128, 4, 96, 3)
    assert (spec.context_length, spec.activation, spec.weights) == (32, "quick_gelu", "random")
    assert spec.id == f"tiny-clip-{spec.weights_sha256[:8]}"
    assert not any(parameter.requires_grad for parameter in clip.model.parameters()) and not clip.model.training


def test_recipes_a_b_c_agree(clip):
    images, visual = random_images(3, 128), clip.model.visual
    cls, patches = encode_image(clip, images)
    visual.pool_type = "none"
    recipe_a = visual(images)
    visual.pool_type = "tok"
    found = visual.forward_intermediates(images, indices=1, normalize_intermediates=True, output_fmt="NLC")
    recipe_c = found["image_intermediates"][-1] @ visual.proj
    torch.testing.assert_close(recipe_a[:, 0], cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(recipe_a[:, 1:], patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(recipe_c, patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.model.encode_image(images), cls, atol=1e-5, rtol=0)
    assert visual.output_tokens is False  # left as it was found


def test_batched_equals_single(clip):
    images = random_images(4, 128)
    cls, patches = encode_image(clip, images)
    for row in range(4):
        one_cls, one_patches = encode_image(clip, images[row : row + 1])
        torch.testing.assert_close(one_cls[0], cls[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(one_patches[0], patches[row], atol=1e-5, rtol=0)


def test_token_order_is_row_major(clip):
    grid, patch = clip.spec.grid, clip.spec.patch_size
    image = torch.zeros(1, 3, 128, 128)
    _, before = encode_image(clip, image)
    for row, column in ((0, 0), (2, 5), (7, 1)):
        bright = image.clone()
        bright[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 3.0
        change = (encode_image(clip, bright)[1] - before).norm(dim=-1)[0]
        assert change.argmax().item() == row * grid + column


def test_wrong_gelu_changes_features_and_is_refused(clip, folder):
    _, right = encode_image(clip, random_images(2, 128))
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)  # without the word on the activation
    edit(folder, quick_gelu=False)
    wrong = load_clip(f"local-dir:{folder}")
    assert wrong.spec.activation == "gelu"
    assert (encode_image(wrong, random_images(2, 128))[1] - right).abs().max() > 1e-3
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, {"quick_gelu": "true"})
    with pytest.raises(ClipLoadError, match="(?s)found quick_gelu false, expected quick_gelu true.*mend"):
        load_clip(f"local-dir:{folder}")


def test_unstated_activation_is_refused(folder):
    edit(folder, quick_gelu=None)
    with pytest.raises(ClipLoadError, match="no model_cfg.quick_gelu"):
        load_clip(f"local-dir:{folder}")


def test_local_folder_round_trip(clip, folder):
    again = load_clip(f"local-dir:{folder}")
    assert again.spec.name == "some-clip" and again.spec.weights == str(folder / WEIGHTS_FILE)
    images = random_images(2, 128)
    assert torch.equal(encode_image(again, images)[1], encode_image(clip, images)[1])
    sentences = ["a photo of a dog", "a person riding a horse"]
    assert torch.equal(encode_text(again, sentences), encode_text(clip, sentences))


def test_missing_and_unfit_files_are_named(folder):
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.move(folder / name, folder / "aside")
        with pytest.raises(ClipLoadError, match=f"(?s){name}: found no file.*mend"):
            load_clip(f"local-dir:{folder}")
        shutil.move(folder / "aside", folder / name)
    edit(folder, embed_dim=64)
    with pytest.raises(ClipLoadError, match="(?s)do not fit the model.*text_projection.*mend"):
        load_clip(f"local-dir:{folder}")
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(ClipLoadError, match="no readable model_cfg"):
        load_clip(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("local-dir:nowhere", "found no folder"),
        ("random:ViT-Z-99", "unknown model name"),
        ("random:nowhere.json", "found no file"),
        ("ViT-B-16", "unknown form"),
    ],
)
def test_unknown_sources(source, finding):
    with pytest.raises(ClipLoadError, match=finding):
        load_clip(source)


def test_random_weights_follow_the_seed():
    first, again, other = (load_clip(TINY, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.model.visual.proj, again.model.visual.proj) and first.spec == again.spec
    assert not torch.equal(first.model.visual.proj, other.model.visual.proj)
    assert first.spec.id != other.spec.id


def test_wrong_image_shape_is_refused(clip):
    with pytest.raises(ValueError, match=r"found shape \(1, 3, 64, 64\).*\(B, 3, 128, 128\)"):
        encode_image(clip, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("size", [(150, 200), (200, 150), (90, 40), (128, 128)])
def test_preprocess_equals_reference(clip, mode, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    n, (width, height) = 128, size
    short, long = min(size), max(size)
    resized = image.resize((n, int(n * long / short)) if width <= height else (int(n * long / short), n), Image.BICUBIC)
    left, top = round((resized.width - n) / 2), round((resized.height - n) / 2)
    pixels = np.asarray(resized.crop((left, top, left + n, top + n)).convert("RGB"), np.float32) / 255
    mean, std = np.float32([0.48145466, 0.4578275, 0.40821073]), np.float32([0.26862954, 0.26130258, 0.27577711])
    np.testing.assert_allclose(preprocess(clip)(image).permute(1, 2, 0).numpy(), (pixels - mean) / std, atol=1e-6)


def test_text_batches_and_long_sentences(clip):
    sentences = ["a dog", "a photo of a person riding a bicycle", "word " * 50]
    together, apart = encode_text(clip, sentences), encode_text(clip, sentences, batch_size=1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert together.shape == (3, 128) and together.dtype == torch.float32
    assert torch.equal(encode_text(clip, ["word " * 50]), encode_text(clip, ["word " * 60]))  # cut at the context
    assert encode_text(clip, []).shape == (0, 128)
