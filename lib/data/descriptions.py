"""Description files: one paragraph an HOI class, as EZ-HOI's `hico_HOI_descrip.txt` (spec ez-hoi.md §4.1)."""

from __future__ import annotations

from pathlib import Path


def read_descriptions(path: Path | str, num_hois: int) -> list[str]:
    """Descriptions in HOI order.

    Blocks of three lines: a numbered header, `   - Description: <text>`, blank. The text lies between the first and a
    possible second colon of the middle line. Raises ValueError when the number of blocks is not `num_hois`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: found no file, expected {num_hois} description blocks"
            "\n  mend: set data.descriptions to the description file (EZ-HOI ships hico_HOI_descrip.txt),"
            " or to '' to use the class labels"
        )
    lines = path.read_text().splitlines()
    texts = [line.split(":")[1].strip() for line in lines[1::3] if ":" in line]
    if len(texts) != num_hois:
        raise ValueError(
            f"{path}: found {len(texts)} description blocks, expected {num_hois} (one an HOI class of the annotations)"
            "\n  mend: use the description file of this vocabulary"
        )
    return texts
