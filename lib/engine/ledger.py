"""Which notebooks of a run are finished, so that a batch goes on with the first one that is not.

status.json holds one entry a notebook: state, seconds, peak memory, the fingerprint of what was executed (its code
cells, its parameters, the resolved settings, the library's own sources) and the artefacts it made or used. It counts
as finished while all of that still holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lib.runs import Run, file_sha256, fingerprint, read_json, read_jsonl
from lib.settings import Config

LIBRARY = Path(__file__).parents[1]


def notebook_fingerprint(notebook: Path, settings: Config, parameters: Mapping[str, Any]) -> str:
    """Of everything that decides what executing the notebook does."""
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    given = {"code": code, "settings": asdict(settings), "own": parameters}
    return fingerprint("notebook", given, [library_fingerprint()])


@cache
def library_fingerprint() -> str:
    """Of the sources of this library, whatever git says."""
    sources = sorted(LIBRARY.rglob("*.py"))
    return fingerprint("library", {str(path.relative_to(LIBRARY)): file_sha256(path) for path in sources})


def first_unfinished(run: Run, notebooks: Sequence[Path], fingerprints: Sequence[str]) -> int:
    """Number of notebooks at the front that need not be executed again."""
    entries = run.read_status().get("notebooks", {})
    for number, (notebook, wanted) in enumerate(zip(notebooks, fingerprints, strict=True)):
        entry = entries.get(notebook.stem, {})
        whole = entry.get("state") == "finished" and entry["fingerprint"] == wanted
        if not (whole and (run.root / notebook.name).is_file() and _artifacts_stand(run, entry["artifacts"])):
            return number
    return len(notebooks)


def artifacts_since(run: Run, lines: int) -> dict[str, str]:
    """Kind -> fingerprint of what the stages logged after the first `lines` lines of log.jsonl."""
    rows = read_jsonl(run.root / "log.jsonl")[lines:]
    return {row["artifact"]: row["fingerprint"] for row in rows if "artifact" in row}


def _artifacts_stand(run: Run, artifacts: Mapping[str, str]) -> bool:
    for kind, wanted in artifacts.items():
        record = read_json(run.root / kind / "artifact.json")
        if record.get("state") != "complete" or record["fingerprint"] != wanted:
            return False
    return True
