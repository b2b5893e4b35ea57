"""Text spaces and banks: identity, round trip, and files that were tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from lib.bridge.geometry import normalise
from lib.bridge.text_bank import (
    CONTROL,
    TextBank,
    adapted_bank,
    caption_bank,
    embed,
    template_id,
    templates_of,
    text_mean,
    vision_control,
)
from lib.clip.load import load_clip
from lib.clip.text import encode_text
from lib.clip.text_space import TextSpace


def test_every_field_of_the_space_changes_its_id(space: TextSpace) -> None:
    assert space.id == TextSpace("c0ffee", "gelu", "open_clip", "a photo of {}", "none").id
    ids = {replace(space, **{field.name: "other"}).id for field in fields(space)} | {space.id}
    assert len(ids) == 6 and all(len(value) == 12 for value in ids)


def test_round_trip(bank: TextBank, tmp_path: Path) -> None:
    bank.save(tmp_path)
    loaded = TextBank.load(tmp_path)
    assert torch.equal(loaded.vectors, bank.vectors)
    assert (loaded.labels, loaded.space, loaded.source) == (bank.labels, bank.space, bank.source)
    assert loaded.classes == ()
    classed = replace(bank, classes=("sentence 3", "sentence 1"))
    classed.save(tmp_path)
    assert TextBank.load(tmp_path).classes == ("sentence 3", "sentence 1")
    assert classed.classes_sha != replace(bank, classes=("sentence 1", "sentence 3")).classes_sha != bank.classes_sha
    assert classed.corpus()["classes"] == 2
    torch.testing.assert_close(text_mean(loaded), normalise(bank.vectors).mean(0))


def test_tampered_files_are_refused(bank: TextBank, tmp_path: Path) -> None:
    bank.save(tmp_path)
    record = json.loads((tmp_path / "text_bank.json").read_text())

    def rewrite(**changes: object) -> None:
        (tmp_path / "text_bank.json").write_text(json.dumps(record | changes))

    rewrite(text_space=record["text_space"] | {"clip_sha": "another"})
    with pytest.raises(ValueError, match="text_bank.json: found text space id"):
        TextBank.load(tmp_path)
    rewrite(dim=17)
    with pytest.raises(ValueError, match="text_bank.safetensors: found .*'dim': 16.*expected .*'dim': 17"):
        TextBank.load(tmp_path)
    rewrite(labels=record["labels"][1:])
    with pytest.raises(ValueError, match="399 labels for 400 vectors"):
        TextBank.load(tmp_path)
    rewrite()
    other = tmp_path / "other"
    replace(bank, vectors=bank.vectors + 1).save(other)
    (other / "text_bank.safetensors").replace(tmp_path / "text_bank.safetensors")
    with pytest.raises(ValueError, match="vectors_sha256"):
        TextBank.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 03"):
        TextBank.load(tmp_path / "absent")


def test_broken_vectors_are_refused(raw_text: Callable[..., torch.Tensor], space: TextSpace) -> None:
    rows = raw_text(3, 8)
    for broken in (rows.index_fill(0, torch.tensor([1]), 0.0), rows.index_fill(0, torch.tensor([1]), float("nan"))):
        with pytest.raises(ValueError, match=r"row 1 \('b'\) is zero or not finite"):
            TextBank(broken, ["a", "b", "c"], space, "test")
    with pytest.raises(ValueError, match="expected float32"):
        TextBank(rows.half(), ["a", "b", "c"], space, "test")


def letters(sentences: list[str]) -> torch.Tensor:
    """A text tower for tests: counts of the letters a to e."""
    return torch.tensor([[s.count(letter) + 0.5 for letter in "abcde"] for s in sentences])


def test_ensemble_is_the_mean_of_normalised_features() -> None:
    templates = ["a {} b", "eee {}"]
    found = embed(letters, ["ab", "c"], templates)
    for row, sentence in enumerate(["ab", "c"]):
        parts = [letters([template.format(sentence)])[0] for template in templates]
        torch.testing.assert_close(found[row], sum(part / part.norm() for part in parts) / 2)
    assert torch.equal(embed(letters, ["ab"], ["a {}"]), letters(["a ab"]))  # one template: raw, as it was


def test_templates_are_part_of_the_space() -> None:
    assert templates_of("a {}", []) == ["a {}"] and templates_of("a {}", ["b {}", "c {}"]) == ["b {}", "c {}"]
    assert len({template_id(t) for t in (["a {}"], ["a {}", "b {}"], ["b {}", "a {}"])}) == 3
    for wrong in ("a photo", "{} and {}"):
        with pytest.raises(ValueError, match="expected one {} where the sentence goes"):
            templates_of(wrong, [])


def test_caption_bank_of_a_clip() -> None:
    clip = load_clip("random:configs/clip/tiny-clip.json")
    bank = caption_bank(clip, ["a dog", "a cat"], ["a photo of {}"], "two animals")
    torch.testing.assert_close(bank.vectors, encode_text(clip, ["a photo of a dog", "a photo of a cat"]))
    assert bank.space.template == "a photo of {}" and bank.space.adaptation == "none" and bank.classes == ()
    both = caption_bank(clip, ["a dog", "a cat"], ["a photo of {}", "{}"])
    assert both.space.id != bank.space.id and both.space.template == "a photo of {} | {}"


def test_adapted_bank_takes_the_detectors_own_text_and_space(space: TextSpace) -> None:
    class Text:
        def encode(self, sentences: list[str]) -> torch.Tensor:
            return 2 * letters(sentences)

        def space(self, checkpoint: str) -> TextSpace:
            return replace(space, adaptation=f"ezhoi:{checkpoint}")

    bank = adapted_bank(Text(), "0123", ["abc"], ["a", "b"], ["{}"])
    assert torch.equal(bank.vectors, 2 * letters(["abc", "a", "b"]))
    assert bank.space.adaptation == "ezhoi:0123" and bank.labels == ["abc", "a", "b"] and bank.classes == ("a", "b")


def test_visual_features_are_a_control_that_fits_no_classifier(
    raw_text: Callable[..., torch.Tensor], space: TextSpace
) -> None:
    bank = vision_control(raw_text(20, 8), space)
    assert bank.space.adaptation == CONTROL and bank.space.id != space.id and len(set(bank.labels)) == 20
