"""One line from a finished run to the live explorer: `explore("runs/demo")`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from lib.analysis.embeddings import EmbeddingTable
from lib.analysis.explorer import Explorer
from lib.analysis.scene import Scene, scenes
from lib.analysis.thumbnails import ImageLoader, Thumbnails
from lib.analysis.view import View
from lib.config import load_config
from lib.data.formats import read_dataset
from lib.data.images import read_image
from lib.errors import FoundExpected
from lib.runs import Run
from lib.settings import Config

PROJECT = Path(__file__).parents[2]


def explore(*runs: Run | Path | str, view: View | Path | str | None = None) -> Explorer:
    """The explorer of a finished run, or of two runs of one detector and one list of images side by side.

    runs: folders written by notebooks 00-05 (or by a batch run). view: where to start, or a file of `save_view`.
    Raises FoundExpected for a folder that is no run, FileNotFoundError for a run without notebook 05.
    """
    opened = [run if isinstance(run, Run) else _open(Path(run)) for run in runs]
    if not 1 <= len(opened) <= 2:
        raise FoundExpected("explore", f"{len(opened)} runs", "one or two", 'explore("runs/demo")')
    view = view if view is None or isinstance(view, View) else View.load(view)
    cfg = load_config(opened[0].root / "config.yaml")
    return Explorer(run_scenes(*opened), image_loader(cfg, opened[0]), view, opened[0].root)


def _open(folder: Path) -> Run:
    # a notebook's working directory is notebooks/, a run's name starts at the project
    folder = next((place for place in (folder, PROJECT / folder) if place.is_dir()), folder)
    if not (folder / "config.yaml").is_file():
        known = sorted(path.parent.name for path in PROJECT.glob("runs/*/config.yaml"))
        raise FoundExpected(
            folder, "no run", f"a run folder such as {', '.join(known) or 'runs/demo'}", f"make run RUN={folder}"
        )
    return Run(folder.absolute())


def run_scenes(*runs: Run) -> list[Scene]:
    """The scenes of the embedding tables of runs, with their trajectories where these were kept."""
    folders = [run.existing("embeddings").path for run in runs]
    ways = [path if (path := folder / "trajectory.parquet").is_file() else None for folder in folders]
    return scenes(
        [EmbeddingTable.load(folder) for folder in folders],
        [run.root.name for run in runs],
        trajectories=[way and pd.read_parquet(way) for way in ways],
    )


def pictures(cfg: Config, run: Run, scene: Scene) -> Thumbnails:
    """The pictures of a scene's pairs, for the static HTML."""
    return Thumbnails(scene.frame, image_loader(cfg, run))


def image_loader(cfg: Config, run: Run) -> ImageLoader:
    """Image index and split of the embedding table -> image; annotations are read with the first picture."""
    root = PROJECT / cfg.data.root if cfg.data.root else run.existing("world").path
    folder = cfg.data.images if cfg.data.root else "images/{split}2015"

    def load(index: int, split: str) -> Image.Image:
        data = read_dataset(root, cfg.data.kind, "train" if split in ("train", "fit") else "test", folder)
        return read_image(data[index].path).convert("RGB")

    return load
