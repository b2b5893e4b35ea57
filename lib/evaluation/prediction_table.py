"""The predictions table on disk: our own column names, and the self-explaining ones of other programs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from lib.evaluation.hico_det import BOX_COLUMNS, PREDICTION_COLUMNS

# long name -> ours; the boxes are h_x1 .. h_y2 and o_x1 .. o_y2
LONG_NAMES = {"image_id": "image", "hoi_id": "hoi"} | {f"{name[2]}_{name[:2]}": name for name in BOX_COLUMNS}


def read_predictions(path: Path | str) -> pd.DataFrame:
    """Columns image, x1h .. y2o, hoi, score of a parquet file (or a folder of them) in either naming.

    Raises FileNotFoundError, and ValueError for a file that is no parquet or lacks a column.
    """
    path = Path(path)
    names = parquet_columns(path)
    ours = {LONG_NAMES.get(name, name): name for name in names}
    if missing := [name for name in PREDICTION_COLUMNS if name not in ours]:
        raise ValueError(
            f"{path}: columns for {missing} are missing; found {names}, expected image_id, hoi_id, score, h_x1 .. h_y2,"
            f" o_x1 .. o_y2 (or {', '.join(PREDICTION_COLUMNS)})"
        )
    table = pq.read_table(path, columns=[ours[name] for name in PREDICTION_COLUMNS])
    return table.rename_columns(list(PREDICTION_COLUMNS)).to_pandas(split_blocks=True, self_destruct=True)


def parquet_columns(path: Path) -> list[str]:
    """Column names of a parquet file or folder; FileNotFoundError and ValueError say what is wrong with it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: found no file, expected predictions as parquet")
    try:
        return pq.ParquetDataset(path).schema.names
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise ValueError(f"{path}: not a readable parquet file ({error})") from None
