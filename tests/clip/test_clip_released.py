"""Conversion of CLIP archives with OpenAI's names (spec clip-features-and-detr.md §3.1)."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lib.clip import released
from lib.clip.load import CONFIG_FILE, WEIGHTS_FILE, ClipLoadError, load_clip
from lib.clip.released import convert_openai
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image
from lib.runs import file_sha256

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 128, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small CLIP whose values survive half precision, as those of the archives do."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval().requires_grad_(False)
    for value in model.state_dict().values():
        value += 0.02 * torch.randn(value.shape)
        value.copy_(value.half().float())
    return model


@pytest.fixture
def state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a published archive: half precision and three scalars."""
    scalars = {"input_resolution": 48, "context_length": 20, "vocab_size": 49408}
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    return tensors | {name: torch.tensor(value) for name, value in scalars.items()}


class Tree(nn.Module):
    """Tensors by dotted name, scriptable."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name in sorted({name.partition(".")[0] for name in tensors}):
            inner = {k.partition(".")[2]: v for k, v in tensors.items() if k.partition(".")[0] == name}
            if "" in inner:
                self.register_buffer(name, inner[""])
            else:
                self.add_module(name, Tree(inner))

    def forward(self) -> int:
        return 0


@pytest.fixture
def archive(state: dict[str, Tensor], tmp_path: Path) -> Path:
    """A TorchScript archive as OpenAI publishes them, of no published SHA-256."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Tree(state)), tmp_path / "ViT-tiny.pt")
    return tmp_path / "ViT-tiny.pt"


def assert_same(folder: Path, model: nn.Module) -> None:
    clip = load_clip(f"local-dir:{folder}")
    images = torch.randn(2, 3, 48, 48)
    cls, patches = encode_image(clip, images)
    assert cls.dtype == torch.float32 and patches.shape == (2, 9, 24)
    torch.testing.assert_close(cls, model.encode_image(images), atol=1e-6, rtol=0)
    tokens = clip.tokenizer(["a photo of a person"])
    torch.testing.assert_close(encode_text(clip, ["a photo of a person"]), model.encode_text(tokens), atol=1e-6, rtol=0)
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.exp()))


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_plain_state_dict_round_trip(model: nn.Module, state: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    source = tmp_path / {"torch": "mine.pt", "safetensors": "mine.safetensors"}[kind]
    torch.save(state, source) if kind == "torch" else safetensors.torch.save_file(state, source)
    spec = convert_openai(source, tmp_path / "converted")
    assert_same(tmp_path / "converted", model)
    assert spec == load_clip(f"local-dir:{tmp_path / 'converted'}").spec.describe()
    expected = {"name": "mine", "embed_dim": 24, "image_size": 48, "patch_size": 16, "grid": 3, "vision_width": 128}
    expected |= {"vision_layers": 2, "text_width": 64, "text_layers": 1, "context_length": 20}
    assert expected.items() <= spec.items() and spec["activation"] == "quick_gelu"
    config = json.loads((tmp_path / "converted" / CONFIG_FILE).read_text())
    assert config["model_cfg"] == CONFIG
    assert config["preprocess_cfg"]["interpolation"] == "bicubic" and config["preprocess_cfg"]["size"] == 48
    assert sorted(file.name for file in (tmp_path / "converted").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_quick_gelu_stays_with_the_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "clip.pt")
    convert_openai(tmp_path / "clip.pt", tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    config["model_cfg"]["quick_gelu"] = False
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ClipLoadError, match="expected quick_gelu true"):
        load_clip(f"local-dir:{tmp_path}")


def test_torchscript_needs_a_published_hash_or_trust(model: nn.Module, archive: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(ClipLoadError, match="(?s)can run code.*unknown SHA-256.*expected.*ViT-B-16.*mend.*--trust"):
        convert_openai(archive, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
    assert convert_openai(archive, tmp_path / "trusted", trust=True)["name"] == "ViT-tiny"
    assert_same(tmp_path / "trusted", model)
    monkeypatch.setitem(released.PUBLISHED, file_sha256(archive), "ViT-X")
    assert convert_openai(archive, tmp_path / "published")["name"] == "ViT-X"


def test_published_hashes() -> None:
    """Four archives, hashes of full length (they are part of OpenAI's download URLs)."""
    assert sorted(released.PUBLISHED.values()) == ["ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336px"]
    assert all(len(digest) == 64 and int(digest, 16) for digest in released.PUBLISHED)


class Malicious:
    """A pickle of it makes a folder when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_never_runs(tmp_path: Path, monkeypatch, write, trust: bool) -> None:
    monkeypatch.chdir(tmp_path)
    write({"visual.proj": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(ClipLoadError, match="(?s)evil.pt: found a file that cannot be read.*without running code"):
        convert_openai(tmp_path / "evil.pt", tmp_path / "converted", trust=trust)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "converted").exists()


@pytest.mark.parametrize("kind", ["torch", "safetensors", "torchscript"])
def test_truncated_file(state: dict[str, Tensor], archive: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pt")
    writers = {"torch": torch.save, "safetensors": safetensors.torch.save_file}
    archive.rename(source) if kind == "torchscript" else writers[kind](state, source)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(ClipLoadError, match="(?s)cut.*cannot be read.*mend: download"):
        convert_openai(source, tmp_path / "converted", trust=True)
    assert not (tmp_path / "converted").exists()


ADAPTER = "transformer.resblocks.0.adapter"
REFUSALS = {
    "1 missing: visual.ln_post.bias": lambda s: s.pop("visual.ln_post.bias"),
    "no .*visual.conv1.weight": lambda s: s.pop("visual.conv1.weight"),
    f"1 unknown: {ADAPTER}": lambda s: s.update({ADAPTER: torch.zeros(2)}),
    "1 of another shape: visual.proj": lambda s: s.update({"visual.proj": torch.zeros(128, 25)}),
    "a CLIP with a ResNet image tower": lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}),
    "values that are not finite in .*ln_final.bias": lambda s: s["ln_final.bias"].fill_(torch.nan),
    "input_resolution 224": lambda s: s.update(input_resolution=torch.tensor(224)),
    "no .*visual.conv1.weight.*text_projection": dict.clear,
    "text tower of width 65": lambda s: s.update({"ln_final.weight": torch.zeros(65)}),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_foreign_weights_are_refused(state: dict[str, Tensor], tmp_path: Path, message: str) -> None:
    REFUSALS[message](state)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ClipLoadError, match=f"(?s)clip.pt: found {message}.*expected.*mend"):
        convert_openai(tmp_path / "clip.pt", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_no_file_and_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(ClipLoadError, match="found no file"):
        convert_openai(tmp_path / "absent.pt", tmp_path / "converted")
    torch.save({"epoch": 3}, tmp_path / "clip.pt")
    with pytest.raises(ClipLoadError, match="expected a dict of name -> tensor"):
        convert_openai(tmp_path / "clip.pt", tmp_path / "converted")


def test_a_killed_conversion_leaves_no_whole_folder(state: dict[str, Tensor], tmp_path: Path, monkeypatch) -> None:
    """Replacing an older conversion: between the two files there is no folder that loads."""
    torch.save(state, tmp_path / "clip.pt")
    convert_openai(tmp_path / "clip.pt", tmp_path / "converted")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(released, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        convert_openai(tmp_path / "clip.pt", tmp_path / "converted")
    with pytest.raises(ClipLoadError, match=f"{CONFIG_FILE}: found no file"):
        load_clip(f"local-dir:{tmp_path / 'converted'}")


def test_command(archive: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["released", str(archive), str(tmp_path / "converted")])
    with pytest.raises(SystemExit, match="unknown SHA-256"):
        released.main()
    monkeypatch.setattr("sys.argv", ["released", str(archive), str(tmp_path / "converted"), "--trust"])
    released.main()
    assert f"clip.source: local-dir:{tmp_path / 'converted'}" in capsys.readouterr().out
