"""EZ-HOI on any image: a path or a folder in, a table of interactions and pictures out (spec ez-hoi.md §8).

    python -m lib.ezhoi.infer RUN IMAGE_OR_FOLDER... [--out FOLDER] [--top N] [--threshold T] [--skip-broken]
        [key=value ...]

RUN is a run folder with a trained EZ-HOI; key=value changes its settings, such as detector.score_threshold=0.5.
Nothing has to be prepared for the images: DETR finds the instances, CLIP's patch tokens become the memory.
As everywhere in the project, a photo's EXIF orientation is not applied: turn sideways photos first.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags
from torch import Tensor
from torch.nn import functional as F

from lib.clip.load import ClipLoadError, ClipModel
from lib.clip.tokens import encode_image
from lib.config import ConfigError, load_config
from lib.data.images import ImageError, read_image
from lib.data.vocabulary import Vocabulary
from lib.detection.detr import DetectorError, Detr, preprocess
from lib.engine.progress import Progress
from lib.ezhoi.batches import as_pixels, pad_views, squashed
from lib.ezhoi.classes import ScoredClasses
from lib.ezhoi.live_detector import LiveDetector, build_live_detector
from lib.ezhoi.model import EzHoi
from lib.ezhoi.pairs import Instances, enumerate_pairs
from lib.ezhoi.predict import BOXES_H, BOXES_O, hoi_predictions, pair_frame
from lib.ezhoi.weights import WeightsError
from lib.runs import Run, atomic_write
from lib.settings import Config

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PICTURE_END = "_hois"  # end of a picture's stem; a walk through a folder leaves such files out
COLUMNS = {
    "file": "str",
    "human": "int64",  # instance of the image; humans come first
    "object_index": "int64",  # instance of the image, may be another human
    **dict.fromkeys((*BOXES_H, *BOXES_O), "float32"),  # pixels of the file
    "object": "str",
    "object_id": "int64",
    "verb": "str",
    "verb_id": "int64",
    "hoi": "str",
    "hoi_id": "int64",
    "score": "float32",  # sigmoid(logit) (score_human score_object)^prior_power
    "score_human": "float32",
    "score_object": "float32",
}


class _Look(NamedTuple):
    """One image as the networks take it: instances in the R-frame, [3, R, R] for EZ-HOI, [3, n, n] for the memory."""

    file: str
    size: tuple[int, int]  # width, height of the file
    instances: tuple[Tensor, Tensor, Tensor, int]
    square: Tensor
    clip_view: Tensor


@torch.inference_mode()
def detect_hois(
    model: EzHoi,
    clip: ClipModel,
    detr: Detr,
    classes: ScoredClasses,
    vocabulary: Vocabulary,
    images: Sequence[Path | str],
    *,
    proposal_rule: Mapping[str, float],
    prior_power: float,
    score_threshold: float = 0.0,
    device: torch.device | str = "cpu",
    skip_broken: bool = False,
    batch_size: int = 8,
) -> pd.DataFrame:
    """One row an (image, human, object, HOI) with the columns of COLUMNS: files in their order, best score first.

    proposal_rule: settings of `lib.detection.proposals.propose`. prior_power: exponent of the detector scores, 2.8 in
    the published evaluation. score_threshold: rows below it are left out. batch_size: images a forward of CLIP and
    EZ-HOI; DETR takes one at a time, since padding changes its results.

    attrs["without_pairs"]: files with no person, or with nothing beside one. attrs["broken"]: file -> reason of the
    unreadable ones, which are left out with `skip_broken` and otherwise raise lib.data.images.ImageError. Raises
    FloatingPointError, with the files, for logits that are no finite numbers.
    """
    model.eval().to(device)
    live = build_live_detector(detr, vocabulary.objects, size=model.size, human=vocabulary.person, rule=proposal_rule)
    class_text = model.text.class_text()  # constant in evaluation: computed once
    frames: list[pd.DataFrame] = []
    without_pairs: list[str] = []
    broken: dict[str, str] = {}
    with Progress("EZ-HOI on images", len(images)) as progress:
        for start in range(0, len(images), batch_size):
            batch = []
            for file in map(str, images[start : start + batch_size]):
                try:
                    look = _look(file, live, clip)
                except ImageError as error:
                    if not skip_broken:
                        raise
                    broken[file] = error.found
                    continue
                if look is None:
                    without_pairs.append(file)
                else:
                    batch.append(look)
            if batch:
                pairs, logits = _pairs(model, clip, class_text, batch, device)
                frames.append(_interactions(pairs, logits, classes, vocabulary, prior_power))
            progress.step(len(images[start : start + batch_size]))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    table = table[table["score"] >= score_threshold].reset_index(drop=True)[list(COLUMNS)].astype(COLUMNS)
    table.attrs = {"without_pairs": without_pairs, "broken": broken}
    return table


def _look(file: str, live: LiveDetector, clip: ClipModel) -> _Look | None:
    """Decode, detect and prepare one image; None where it has no pair."""
    image = read_image(file)
    found = live(*pad_views([preprocess(live.detr, image)]))
    count, n_human = int(found.count), int(found.n_human)
    if n_human == 0 or count < 2:
        return None
    instances = (found.boxes[0, :count], found.scores[0, :count], found.labels[0, :count])
    square = as_pixels(squashed(image.convert("RGB"), live.size))
    return _Look(file, image.size, (*instances, n_human), square, clip.transform(image))


def _pairs(
    model: EzHoi, clip: ClipModel, class_text: Tensor, batch: Sequence[_Look], device: torch.device | str
) -> tuple[pd.DataFrame, Tensor]:
    """All P pairs of a batch of images, one row each, and their logits [P, C]."""
    instances = Instances.collate([look.instances for look in batch]).to(device)
    patches = encode_image(clip, torch.stack([look.clip_view for look in batch]))[1]  # (B, L, D)
    memory = F.normalize(patches, dim=-1).to(device)
    patch_map = model.encode(torch.stack([look.square for look in batch]).to(device), memory, instances)
    pairs = enumerate_pairs(instances)
    image, human, obj = pairs
    logits = model.logits(model.pair_features(patch_map, instances, pairs), class_text)
    wrong = image[~logits.isfinite().all(dim=1)].unique().tolist()
    if wrong:
        raise FloatingPointError(
            f"{', '.join(batch[i].file for i in wrong)}: found logits that are no finite numbers"
            "\n  mend: the weights or the CLIP features hold NaN; train again, or use other weights (ezhoi.init_from)"
        )
    sizes, scores = torch.tensor([look.size for look in batch], device=device), instances.scores
    frame = pair_frame(
        instances, pairs, sizes, model.size, image=image, human=human, object_index=obj,
        score_human=scores[image, human], score_object=scores[image, obj],
    )  # fmt: skip
    return frame.assign(file=np.array([look.file for look in batch])[frame["image"]]), logits.cpu()


def _interactions(
    pairs: pd.DataFrame, logits: Tensor, classes: ScoredClasses, vocabulary: Vocabulary, power: float
) -> pd.DataFrame:
    """Rows of pairs -> rows of (pair, HOI) with names and scores, those of an image by falling score."""
    numbered = pairs.assign(image=np.arange(len(pairs)))  # predictions then tell which pair they are of
    scored = hoi_predictions(numbered, logits, classes, power)
    hoi = scored["hoi"].to_numpy()
    verb, obj = vocabulary.hoi_verb[hoi], vocabulary.hoi_object[hoi]
    table = pairs.iloc[scored["image"]].assign(
        object=np.array(vocabulary.objects)[obj],
        object_id=obj,
        verb=np.array(vocabulary.verbs)[verb],
        verb_id=verb,
        hoi=[vocabulary.hoi_name(one) for one in hoi.tolist()],
        hoi_id=hoi,
        score=scored["score"].to_numpy(),
    )
    return table.sort_values(["image", "score"], ascending=[True, False], kind="stable")


def image_files(places: Iterable[Path | str]) -> list[Path]:
    """Files as given and, of a folder, every image below it in order of name; each once, as absolute paths.

    Raises FileNotFoundError for a place that does not exist, or where no image is found.
    """
    places = [Path(place) for place in places]
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if _is_image(path))
        elif place.exists():
            found.append(place)
        else:
            raise FileNotFoundError(
                f"{place}: found no such file or folder, expected an image or a folder of images"
                "\n  mend: check the path (settings are written key=value, such as detector.score_threshold=0.5)"
            )
    if not found:
        raise FileNotFoundError(
            f"{', '.join(map(str, places)) or 'no path given'}: found no image, expected files that end in"
            f" {' '.join(SUFFIXES)}\n  mend: give another folder, or name the files themselves"
        )
    return list(dict.fromkeys(path.absolute() for path in found))


def _is_image(path: Path) -> bool:
    hidden, ours = path.name.startswith("."), path.stem.endswith(PICTURE_END)
    return path.suffix.lower() in SUFFIXES and not hidden and not ours and path.is_file()


def detect_with_run(cfg: Config, run: Run, images: Sequence[Path | str], **options: float | bool) -> pd.DataFrame:
    """`detect_hois` with the trained EZ-HOI, CLIP, DETR and settings of a run.

    options: score_threshold, skip_broken, batch_size. Raises FileNotFoundError for a run without a trained model.
    """
    from lib.stages import detector, inputs  # the stages stand above this room; this is the room's own command

    try:
        run.existing("ezhoi")  # before any network is loaded
    except RuntimeError as error:
        raise FileNotFoundError(error) from None
    data = inputs.dataset(cfg, run, "train")
    return detect_hois(
        detector.load_ezhoi(cfg, run),
        inputs.clip_model(cfg, run),
        inputs.detector(cfg, run),
        detector.classes_of(cfg, data),
        data.vocabulary,
        images,
        proposal_rule=inputs.proposal_rule(cfg),
        prior_power=cfg.ezhoi.prior_power,
        device=inputs.device(cfg),
        **options,
    )


# ---------------------------------------------------------------- the command


def write_results(table: pd.DataFrame, images: Sequence[Path | str], folder: Path, top: int) -> dict[str, Path]:
    """hois.parquet and hois.csv, and for every readable image a picture of its `top` rows: file -> picture."""
    from lib.analysis.palette import save_figure
    from lib.analysis.pictures import draw_hois

    atomic_write(folder / "hois.parquet", lambda stream: table.to_parquet(stream))
    atomic_write(folder / "hois.csv", lambda stream: table.to_csv(stream, index=False, float_format="%.6g"))
    pictures: dict[str, Path] = {}
    for file in map(str, images):
        if file in table.attrs["broken"]:
            continue
        stem, number = Path(file).stem, 1
        path = folder / f"{stem}{PICTURE_END}.png"
        while path in pictures.values():  # another folder holds a file of this name
            number += 1
            path = folder / f"{stem}_{number}{PICTURE_END}.png"
        figure = draw_hois(read_image(file), table[table["file"] == file], limit=top, title=Path(file).name)
        pictures[file] = save_figure(figure, path, dpi=150)
    return pictures


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 2 for anything that is refused."""
    options = _parse(arguments)
    is_setting = [bool(re.match(r"[\w.]+=", item)) and not Path(item).exists() for item in options.items]
    settings = [item for item, setting in zip(options.items, is_setting, strict=True) if setting]
    places = [item for item, setting in zip(options.items, is_setting, strict=True) if not setting]
    root = Path(options.run).absolute()
    out = Path(options.out).absolute() if options.out else root / "custom"
    try:
        if not (root / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{root}: found no config.yaml, expected a run folder"
                f"\n  mend: make run RUN={options.run}, or name another run"
            )
        cfg, images = load_config(root / "config.yaml", settings), image_files(places)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.chdir(Path(__file__).parents[2])  # relative paths in settings start at the project, as in notebooks
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        table = detect_with_run(
            cfg, Run(root), images, score_threshold=options.threshold, skip_broken=options.skip_broken
        )
    except ImageError as error:
        print(f"{error}\n  (--skip-broken leaves unreadable images out)", file=sys.stderr)
        return 2
    except (FileNotFoundError, FloatingPointError, ConfigError, WeightsError, ClipLoadError, DetectorError) as error:
        print(error, file=sys.stderr)
        return 2
    _report(table, write_results(table, images, out, options.top), options.top)
    print(f"\n{len(table)} interactions in {len(images)} images: {out / 'hois.parquet'}, hois.csv and pictures")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lib.ezhoi.infer", description="Human-object interactions in any images by a trained EZ-HOI."
    )
    parser.add_argument("run", help="run folder with a trained EZ-HOI, such as runs/demo")
    parser.add_argument("items", nargs="+", metavar="IMAGE_OR_FOLDER | key=value", help="images; changed settings")
    parser.add_argument("--out", help="folder of the results; default <run>/custom")
    parser.add_argument("--top", type=int, default=6, help="interactions an image that are printed and drawn")
    parser.add_argument("--threshold", type=float, default=0.0, help="interactions below this score are left out")
    parser.add_argument("--skip-broken", action="store_true", help="leave unreadable images out instead of stopping")
    return parser.parse_intermixed_args(arguments)


def _report(table: pd.DataFrame, pictures: Mapping[str, Path], top: int) -> None:
    """Print the best rows of every image, and what there is to say about those without any."""
    for file, picture in pictures.items():
        print(f"\n{file} -> {picture.name}")
        if read_image(file).getexif().get(ExifTags.Base.Orientation, 1) != 1:
            print("  the file asks viewers to turn it (EXIF orientation), which is not done here: save it turned")
        best = table[table["file"] == file].head(top)
        if file in table.attrs["without_pairs"]:
            print("  no person, or nothing beside one")
        elif best.empty:
            print("  no interaction above the threshold")
        for row in best.itertuples():
            instances = f"human {row.human} ({row.score_human:.2f}), {row.object} {row.object_index}"
            print(f"  {row.score:.3f}  {row.hoi:30} {instances} ({row.score_object:.2f})")
    for file, reason in table.attrs["broken"].items():
        print(f"\n{file}\n  left out: {reason}")


if __name__ == "__main__":
    sys.exit(main())
