"""What the doctor's checks share: settings, run folder, what was read so far, and errors turned into findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib.clip.load import ClipModel
from lib.data.dataset import HoiDataset
from lib.data.formats import FORMATS, Format
from lib.data.vocabulary import Vocabulary
from lib.detection.detr import Detr
from lib.runs import Run
from lib.settings import Config
from lib.stages.doctor_report import ALL, NOTE, OK, STOP, Finding

_PARTS = re.compile(
    r"^(?P<where>.*?)[:\s]*\bfound:?\s+(?P<found>.*?)[,;\s]*\bexpected:?\s+(?P<expected>.*?)"
    r"(?:\s*[;\n]\s*mend:\s+(?P<mend>.*))?$",
    re.DOTALL,
)


@dataclass
class Case:
    """One configuration and the run folder it is meant for.

    run: the run, or an empty stand-in in a temporary folder where `folder` does not exist yet. no_device: why the
    device of the settings cannot be used; `cfg` has the CPU in its place then. datasets, clip, detr: filled by the
    checks that read them; what could not be read stays out, and later checks leave it alone.
    """

    cfg: Config
    folder: Path
    run: Run
    no_device: str = ""
    datasets: dict[str, HoiDataset] = field(default_factory=dict)
    clip: ClipModel | None = None
    detr: Detr | None = None
    boxes: bool = False  # the source of boxes, a network or not, is usable

    @property
    def embedded(self) -> bool:
        """The stick world is the data set."""
        return not self.cfg.data.root

    def has(self, kind: str) -> bool:
        """The run folder has a record of this artefact, whole or not."""
        return (self.folder / kind / "artifact.json").is_file()

    @property
    def form(self) -> Format:
        """The form of annotations that data.kind names, the commonest one of a family."""
        return next((each for each in FORMATS if self.cfg.data.kind in (each.kind, each.family)), FORMATS[0])

    @property
    def vocabulary(self) -> Vocabulary | None:
        """That of any split that could be read."""
        return next((data.vocabulary for data in self.datasets.values()), None)


Check = Callable[[Case], Iterable[Finding]]


def failed(name: str, error: Exception, **more: object) -> Finding:
    """A stop from an error; its parts `found`, `expected` and `mend` go to the finding's own."""
    text = " ".join(str(error).split("\n")) if not str(error).count("mend:") else str(error)
    match = _PARTS.match(text)
    if not match:
        return Finding(name, STOP, f"{type(error).__name__}: {text}", **more)
    where, found, expected, mend = (
        " ".join((match[key] or "").split()) for key in ("where", "found", "expected", "mend")
    )
    told = {"expected": expected, "mend": mend} | {key: value for key, value in more.items() if value}
    return Finding(name, STOP, f"{where}: {found}" if where else found, **told)


def passed(name: str, found: str, notebooks: tuple[str, ...] = ALL) -> Finding:
    """An ok."""
    return Finding(name, OK, found, notebooks=notebooks)


def note(name: str, found: str, **more: object) -> Finding:
    """Something that works, but should be known."""
    return Finding(name, NOTE, found, **more)


def run_checks(case: Case, part: str, checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    """All findings of some checks; what a check raises is a stop under its name."""
    findings = []
    for name, check in checks:
        try:
            findings += check(case)
        except Exception as error:  # whatever a reader says is what the doctor has to report
            findings.append(failed(name, error))
    return [replace(each, part=part) for each in findings]
