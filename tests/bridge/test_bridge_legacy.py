"""Pickles of the public programs: every layout is read, nothing in them runs, and what is exported reads back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lib.bridge.geometry import centre, modality_mean, normalise
from lib.bridge.legacy import main, pair_metadata, text_layouts, visual_layout
from lib.bridge.old_pickles import LegacyError, read_embeddings, read_mean
from lib.bridge.text_bank import CONTROL, TextBank, caption_bank
from lib.clip.load import load_clip
from lib.data.restricted_pickle import read_pickle

RawText = Callable[..., torch.Tensor]
CLIP = "random:configs/clip/tiny-clip.json"


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Pickles an object and returns the file."""

    def put(content: Any, protocol: int = 4, name: str = "old.pkl") -> Path:
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        return tmp_path / name

    return put


def test_every_layout_of_a_mean(put: Callable[..., Path]) -> None:
    mean = torch.linspace(-0.1, 0.15, 16)
    for content, modality in (
        (mean, ""),
        (mean[None], ""),
        (mean.numpy(), ""),
        (mean[None].numpy().astype(np.float64), ""),
        ({"text_mean": mean, "source": "coco_captions"}, "text"),
        ({"text_mean": mean[None], "num_classes": 212}, "text"),
        ({"mean": mean.numpy()}, ""),
        ({"vision_mean": mean}, "vision"),
        ({"image_mean": mean[None]}, "vision"),
    ):
        found = read_mean(put(content))
        torch.testing.assert_close(found.mean, mean)
        assert found.mean.dtype == torch.float32 and found.modality == modality
    both = put({"text_mean": mean, "image_mean": 2 * mean})
    assert torch.equal(read_mean(both, "vision").mean, 2 * mean) and torch.equal(read_mean(both, "text").mean, mean)
    assert read_mean(put({"text_mean": mean, "source": "coco_captions"})).details == {"source": "coco_captions"}


def test_means_that_are_none(put: Callable[..., Path]) -> None:
    mean = torch.full((16,), 0.2)
    for content, message in (
        (mean * 0.03, "found length 0.0240, expected between"),  # the guide's own log: a mean of centred vectors
        (mean * 20, "not normalised"),
        (mean.expand(2, 16), r"shape \(2, 16\)"),
        ({"embeddings": mean}, "a dict of .*embeddings.*, expected one of text_mean, mean"),
        ("mean", "found a str"),
        (mean * float("nan"), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            read_mean(put(content))
    with pytest.raises(LegacyError, match="found a vision mean, expected a text mean"):
        read_mean(put({"vision_mean": mean}), "text")


def test_embeddings_raw_and_centred_are_told_apart(put: Callable[..., Path], raw_text: RawText) -> None:
    raw = raw_text(60, 16)
    mean = modality_mean(raw)
    for content, scale in (
        ({"embeddings": raw, "num_classes": 60}, 0.0),
        (normalise(raw).numpy(), 0.0),
        ({"embeddings": (5 * centre(raw, mean)).numpy(), "scale_factor": 5.0}, 5.0),
        ((5 * centre(raw, mean))[:, None], 5.0),  # [N, 1, D], what the public trainer reads
    ):
        found = read_embeddings(put(content))
        assert found.scale == pytest.approx(scale)
        torch.testing.assert_close(normalise(found.raw(mean)), normalise(raw), atol=1e-5, rtol=0)
    with pytest.raises(LegacyError, match=r"already centred and of length 5(.|\n)*--mean"):
        found.raw(None)
    with pytest.raises(LegacyError, match="expected the key embeddings"):
        read_embeddings(put({"visual_before": raw}))


# ------------------------------------------------------------ writing


def test_layouts_hold_what_the_public_programs_read(raw_text: RawText) -> None:
    raw = raw_text(6, 16)
    mean, ids = modality_mean(raw_text(90, 16)), [3, 5, 8, 9, 11, 40]
    name = "unseen_verb_vitB_117_6classes"
    files = text_layouts(raw, mean, name, adapted=True, select_HOI_index=ids, num_classes=6)
    stem = f"hoi_text_embeddings_adapted_{name}"
    assert files.keys() == {
        f"{stem}_raw.pkl", f"{stem}_normalized.pkl", f"hoi_text_mean_adapted_{name}.pkl",
        f"select_HOI_index_adapted_{name}.pkl",
    }  # fmt: skip
    assert torch.equal(files[f"{stem}_raw.pkl"]["embeddings"], raw)
    normalized = files[f"{stem}_normalized.pkl"]
    torch.testing.assert_close(normalized["embeddings"], 5 * centre(raw, mean))
    assert normalized["scale_factor"] == 5.0 and normalized["select_HOI_index"] == ids
    told = files[f"hoi_text_mean_adapted_{name}.pkl"]
    assert torch.equal(told["text_mean"], mean) and told["num_classes"] == 6
    plain = text_layouts(raw, mean, "vitB_600", adapted=False, classnames=list("abcdef"))
    assert plain["hoi_text_mean_vitB_600.pkl"].shape == (1, 16)
    assert plain["hoi_text_embeddings_raw_vitB_600.pkl"]["classnames"] == list("abcdef")
    visual = visual_layout(raw, mean, [{}] * 6, partition="train")
    assert visual["embeddings"].dtype == np.float32 and visual["config"] == {"scale_factor": 5.0, "partition": "train"}
    torch.testing.assert_close(torch.from_numpy(visual["embeddings"]).norm(dim=1), torch.full((6,), 5.0))
    with pytest.raises(ValueError, match="5 metadata rows for 6 features"):
        visual_layout(raw, mean, [{}] * 5)


def frame() -> pd.DataFrame:
    """Image 0: two people and one object in two pairs; image 4: one pair of the same boxes as the first."""
    boxes = {"x1h": [0.0, 5, 0], "x1o": [1.0, 1, 1]}
    rest = dict.fromkeys(["y1h", "x2h", "y2h", "y1o", "x2o", "y2o"], 7.0)
    return pd.DataFrame({"image": [0, 0, 4], "object": [17, 17, 2], "strength": 1.0, **boxes, **rest})


def test_pair_metadata_numbers_boxes_within_an_image() -> None:
    labels = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    assert pair_metadata(frame(), labels) == [
        {"image_id": 0, "human_idx": 0, "object_idx": 0, "object_class": 17, "has_gt": True, "gt_verbs": [1, 2]},
        {"image_id": 0, "human_idx": 1, "object_idx": 0, "object_class": 17, "has_gt": False, "gt_verbs": []},
        {"image_id": 4, "human_idx": 0, "object_idx": 0, "object_class": 2, "has_gt": True, "gt_verbs": [0]},
    ]


# ------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def bank() -> TextBank:
    """Class sentences in the space of a small random CLIP."""
    words = [f"a photo of a person {verb} a {noun}" for verb in ("riding", "holding") for noun in ("dog", "bed", "cup")]
    found = caption_bank(load_clip(CLIP), words)
    return TextBank(found.vectors, words, found.space, "class sentences", tuple(words))


@pytest.mark.filterwarnings("ignore:.*is outside the usual")  # a random CLIP says nearly one thing
def test_text_goes_out_and_comes_back(bank: TextBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank.save(tmp_path / "bank")
    out = tmp_path / "old"
    assert main(["export", "text", f"{tmp_path / 'bank'}", "--name", "vitB_6", "--out", f"{out}"]) == 0
    mean = read_mean(out / "hoi_text_mean_vitB_6.pkl").mean
    torch.testing.assert_close(mean, modality_mean(bank.vectors))
    with (out / "hoi_text_embeddings_raw_vitB_6.pkl").open("rb") as stream:  # as the public programs read it
        assert pickle.load(stream)["classnames"] == bank.labels
    for kind, extra in (("raw", []), ("normalized", ["--mean", f"{out / 'hoi_text_mean_vitB_6.pkl'}"])):
        file = f"{out / f'hoi_text_embeddings_{kind}_vitB_6.pkl'}"
        assert main(["import", file, "--clip", CLIP, "--out", f"{tmp_path / kind}", *extra]) == 0
        found = TextBank.load(tmp_path / kind)
        assert (found.labels, found.space, list(found.classes)) == (bank.labels, bank.space, bank.labels)
        torch.testing.assert_close(normalise(found.vectors), normalise(bank.vectors), atol=1e-5, rtol=0)
    capsys.readouterr()
    assert main(["import", file, "--clip", CLIP, "--out", f"{tmp_path / 'x'}"]) == 2
    assert "give it with --mean" in capsys.readouterr().err
    assert main(["import", file, "--out", f"{tmp_path / 'x'}", *extra]) == 2
    assert "add --clip" in capsys.readouterr().err


def test_adapted_text_needs_its_detector(
    bank: TextBank, put: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put({"embeddings": bank.vectors, "txt_align": True, "select_HOI_index": [4, 7, 9, 10, 11, 12]})
    given = ["import", f"{file}", "--clip", CLIP, "--out", f"{tmp_path / 'bank'}"]
    assert main(given) == 2
    assert "text moved by --txt_align" in capsys.readouterr().err
    assert main([*given, "--adaptation", "ezhoi:0123"]) == 0
    found = TextBank.load(tmp_path / "bank")
    assert found.space.adaptation == "ezhoi:0123" and found.labels[:2] == ["HOI 4", "HOI 7"]
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert main([*given, "--adaptation", "ezhoi:0123", "--labels", f"{tmp_path / 'names.txt'}"]) == 2
    assert "found 2 names for 6 rows" in capsys.readouterr().err


def test_mean_goes_in_and_out(put: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean = torch.linspace(-0.2, 0.3, 16)
    folder, out = tmp_path / "mean", tmp_path / "old"
    assert main(["import", f"{put(mean[None])}", "--out", f"{folder}"]) == 2
    assert "--modality text|vision" in capsys.readouterr().err
    assert main(["import", f"{put({'text_mean': mean, 'source': 'coco'})}", "--out", f"{folder}"]) == 0
    record = json.loads((folder / "means.json").read_text())
    assert record["imported"]["told"] == {"source": "coco"} and record["norm"] == pytest.approx(float(mean.norm()))
    assert read_mean(folder).modality == "text" and torch.equal(read_mean(folder).mean, mean)
    assert main(["export", "mean", f"{folder}", "--name", "vitB_600", "--out", f"{out}"]) == 0
    with (out / "hoi_text_mean_vitB_600.pkl").open("rb") as stream:
        assert torch.equal(pickle.load(stream)["text_mean"], mean)
    assert main(["export", "mean", f"{folder}", "--name", "bare", "--bare", "--out", f"{out}"]) == 0
    assert read_pickle(out / "hoi_text_mean_bare.pkl").shape == (1, 16)


def test_visual_features_come_back_as_a_control(raw_text: RawText, tmp_path: Path, put: Callable[..., Path]) -> None:
    dim = load_clip(CLIP).spec.embed_dim
    features = raw_text(3, dim)
    np.save(tmp_path / "features.npy", features.numpy())
    np.save(tmp_path / "labels.npy", np.ones((3, 2), bool))
    frame().to_parquet(tmp_path / "pairs.parquet")
    mean = f"{put({'text_mean': modality_mean(raw_text(90, dim))})}"
    given = ["export", "visual", f"{tmp_path}", "--name", "vitB_train", "--out", f"{tmp_path}"]
    assert main(given) == 2
    assert main([*given, "--mean", mean]) == 0
    file = tmp_path / "hoi_visual_embeddings_normalized_vitB_train.pkl"
    assert read_pickle(file)["metadata"][0]["gt_verbs"] == [0, 1]
    assert main(["import", f"{file}", "--clip", CLIP, "--mean", mean, "--out", f"{tmp_path / 'bank'}"]) == 0
    bank = TextBank.load(tmp_path / "bank")
    assert bank.space.adaptation == CONTROL and bank.labels[1] == "0: 1-0"
    torch.testing.assert_close(bank.vectors, normalise(features), atol=1e-5, rtol=0)
