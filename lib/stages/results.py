"""Look into the results of a run and hand them to other programs: precision-recall figure, class table, export.

python -m lib.stages.results export runs/demo cache/ # .mat files, as UPT writes them
python -m lib.stages.results figure runs/demo curves.png --method frozen_clip
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lib.analysis.palette import save_figure
from lib.analysis.precision_recall import precision_recall_figure
from lib.errors import FoundExpected
from lib.evaluation.foreign import convert
from lib.evaluation.prediction_table import LONG_NAMES
from lib.evaluation.published import beside_published
from lib.ezhoi.predict import PairTable, hoi_predictions
from lib.runs import Run, atomic_write
from lib.settings import Config
from lib.stages import detector, inputs


def predictions(cfg: Config, run: Run, method: str = "ezhoi") -> pd.DataFrame:
    """The test predictions of a method: ezhoi, frozen_clip, clip_crops, or a variant of notebook 04 (bridge, ...)."""
    if method == "ezhoi":
        table = PairTable.load(run.existing("pairs/test").path)
        classes = detector.classes_of(cfg, inputs.dataset(cfg, run, "test"))
        return hoi_predictions(table.frame, table.logits, classes, cfg.ezhoi.prior_power)
    found = {path.parent.name: path for path in run.root.glob("predictions/*/predictions.parquet")}
    found |= {path.stem: path for path in run.root.glob("predictions/bridges/*.parquet")}
    named = {name: path for name, path in found.items() if name not in ("variants", "entry_steps")}
    if method not in named:
        expected = f"one of {['ezhoi', *sorted(named)]}"
        raise FoundExpected(run.root / "predictions", f"no method {method!r}", expected, "run notebooks 02 and 04")
    return pd.read_parquet(named[method])


def curves(cfg: Config, run: Run, method: str = "ezhoi", classes: Sequence[int] = ()) -> Figure:
    """Precision over recall of a method on the test split: group means and single classes (HOI ids)."""
    table, vocabulary = predictions(cfg, run, method), inputs.dataset(cfg, run, "test").vocabulary
    names = [vocabulary.hoi_name(hoi) for hoi in range(vocabulary.num_hois)]
    result = detector.evaluation(cfg, run, table)
    unseen = inputs.unseen(cfg, run) or None
    rare = None if unseen else inputs.dataset(cfg, run, "train").rare().tolist()  # two groups beside all are enough
    return precision_recall_figure(table, result, names, unseen=unseen, rare=rare, classes=classes)


def beside(cfg: Config, run: Run, method: str = "ezhoi", backbone: str | None = None) -> pd.DataFrame:
    """A method's means among the published ones of the run's zero-shot setting; meant for HICO-DET alone.

    backbone: only this CLIP image tower, "ViT-B/16" or "ViT-L/14@336".
    """
    scores = detector.evaluate(cfg, run, predictions(cfg, run, method))
    return beside_published(scores, cfg.data.zero_shot, backbone, name=f"{method}, this run")


def export(cfg: Config, run: Run, target: Path | str, method: str = "ezhoi") -> None:
    """Write a method's test predictions for another program; the form goes by the name of `target`.

    A folder: `detections_01.mat` ... for the official MATLAB program. `.json`: PPDM's. `.pkl`: V-COCO's official list
    (data.kind=vcoco). `.parquet`: long column names, for `python -m lib.evaluation.hico_det`.
    """
    table = predictions(cfg, run, method).rename(columns={ours: long for long, ours in LONG_NAMES.items()})
    target = Path(target)
    if target.suffix == ".parquet":
        atomic_write(target, lambda stream: table.to_parquet(stream, index=False))
        return
    with tempfile.TemporaryDirectory() as folder:
        table.to_parquet(Path(folder) / "ours.parquet", index=False)
        convert(Path(folder) / "ours.parquet", target, inputs.dataset(cfg, run, "test").source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the export, the figure or the class table; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(prog="python -m lib.stages.results", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("export", "figure", "classes"))
    parser.add_argument("run", help="run folder")
    parser.add_argument("target", type=Path, help="folder, .json, .pkl, .parquet | .png | .csv")
    parser.add_argument("--method", default="ezhoi", help="ezhoi, frozen_clip, bridge, ...")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the run's settings")
    asked = parser.parse_args(arguments)
    try:
        saved = Path(asked.run) / "config.yaml"
        if not saved.is_file():
            raise FoundExpected(saved, "no file", "the folder of a run", "check the path; `make runs` lists them")
        cfg, run = inputs.open_run(str(saved.resolve()), str(Path(asked.run).resolve()), asked.settings)
        if asked.what == "export":
            export(cfg, run, asked.target, asked.method)
        elif asked.what == "figure":
            save_figure(curves(cfg, run, asked.method), asked.target)
        else:
            table = detector.class_table(cfg, run, predictions(cfg, run, asked.method))
            atomic_write(asked.target, lambda stream: stream.write(table.to_csv(index=False).encode()))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{asked.target}: {asked.what} of {asked.method}, test split of {asked.run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
