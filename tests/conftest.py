"""Shared fixtures. Nothing here touches the network."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_project(monkeypatch):
    """Tests run from the project folder, so that configs/ and notebooks/ are found."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def shared():
    """Folder with real photos and annotations beside the project; skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder with real photos and annotations beside the project")
    return folder
