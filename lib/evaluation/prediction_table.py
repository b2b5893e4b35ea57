"""The predictions table on disk: our own column names, and the self-explaining ones of other programs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from lib.evaluation.errors import MissingPredictionError, PredictionError
from lib.evaluation.hico_det import BOX_COLUMNS, PREDICTION_COLUMNS

# long name -> ours; the boxes are h_x1 .. h_y2 and o_x1 .. o_y2
LONG_NAMES = {"image_id": "image", "hoi_id": "hoi"} | {f"{name[2]}_{name[:2]}": name for name in BOX_COLUMNS}


def read_predictions(path: Path | str) -> pd.DataFrame:
    """Columns image, x1h .. y2o, hoi, score of a parquet file (or a folder of them) in either naming.

    Raises MissingPredictionError, and PredictionError for a file that is no parquet or lacks a column.
    """
    path = Path(path)
    names = parquet_columns(path)
    ours = {LONG_NAMES.get(name, name): name for name in names}
    if missing := [name for name in PREDICTION_COLUMNS if name not in ours]:
        raise PredictionError(
            path, f"columns {names}, those for {missing} are missing",
            f"image_id, hoi_id, score, h_x1 .. h_y2, o_x1 .. o_y2 (or {', '.join(PREDICTION_COLUMNS)})",
            "write one row a (pair, HOI) with all of them",
        )  # fmt: skip
    table = pq.read_table(path, columns=[ours[name] for name in PREDICTION_COLUMNS])
    table = table.rename_columns(list(PREDICTION_COLUMNS)).to_pandas(split_blocks=True, self_destruct=True)
    table.attrs["source"] = str(path)
    return table


def parquet_columns(path: Path) -> list[str]:
    """Column names of a parquet file or folder. Raises MissingPredictionError or PredictionError."""
    if not path.exists():
        raise MissingPredictionError(path, "no file", "predictions as parquet", "correct the path")
    try:
        return pq.ParquetDataset(path).schema.names
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise PredictionError(
            path, f"not a readable parquet file ({error})", "predictions as parquet", "write it again"
        ) from None
