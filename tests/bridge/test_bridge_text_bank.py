"""Text spaces and banks: identity, round trip, and files that were tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from lib.bridge.geometry import normalise
from lib.bridge.text_bank import TextBank, text_mean
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
