"""What the doctor found, as lines for a terminal, as a table for a notebook, as plain values for other programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

OK, NOTE, STOP = "ok", "note", "stop"
ALL = ("01", "02", "03", "04", "05", "06")
_SIGN = {OK: "✓", NOTE: "!", STOP: "✗"}
_ANSI = {OK: "32", NOTE: "33", STOP: "1;31"}
_COLOUR = {OK: ("#0b6b4f", "#d8f3e6"), NOTE: ("#7a4d00", "#fdeecb"), STOP: ("#8f1d1d", "#fbdcdc")}  # ink, ground
_NAME, _LABEL, _LEFT = 20, 11, 10  # columns of the terminal: names, labels of remarks, what stands before a name


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at and what was found.

    state: ok | note (works, but know this) | stop (a notebook will fail). expected, mend: for a note or stop. origin:
    where the public file normally comes from. notebooks: numbers of those that need it.
    """

    name: str
    state: str
    found: str
    expected: str = ""
    origin: str = ""
    mend: str = ""
    notebooks: tuple[str, ...] = ALL
    part: str = ""

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """(label, text) of everything that follows the finding itself."""
        rows = (("expected", self.expected), ("comes from", self.origin), ("mend", self.mend))
        stops = [("stops", f"notebook{'s' * (len(self.notebooks) > 1)} {_span(self.notebooks)}")]
        shown = [(label, text) for label, text in rows if text and self.state != OK]
        return shown + (stops if self.state == STOP else [])


@dataclass(frozen=True)
class Report:
    """All findings about one configuration and one run folder; shown as a table in a notebook."""

    title: str
    findings: tuple[Finding, ...]
    notebooks: tuple[str, ...] = ALL
    seconds: float = field(default=0.0, compare=False)

    @property
    def ready(self) -> bool:
        """No finding stops any of the notebooks asked about."""
        return not self.counts[STOP]

    @property
    def counts(self) -> dict[str, int]:
        """Findings by state."""
        return {state: sum(each.state == state for each in self.findings) for state in (OK, NOTE, STOP)}

    @property
    def verdict(self) -> str:
        """One line: ready or not ready, and how much of either."""
        count = self.counts
        notes = f", {_many(count[NOTE], 'note')}" if count[NOTE] else ""
        rest = f"{_many(count[OK], 'check')} passed{notes} ({self.seconds:.1f} s)"
        if self.ready:
            return f"ready: {rest}"
        stopped = sorted({book for each in self.findings if each.state == STOP for book in each.notebooks})
        before = f"notebook{'s' * (len(stopped) > 1)} {_span(stopped)}"
        return f"not ready: {_many(count[STOP], 'thing')} to mend before {before}, {rest}"

    def limited(self, notebooks: Iterable[str]) -> Report:
        """Only what these notebooks need."""
        wanted = tuple(notebooks)
        kept = (replace(each, notebooks=tuple(b for b in each.notebooks if b in wanted)) for each in self.findings)
        return replace(self, findings=tuple(each for each in kept if each.notebooks), notebooks=wanted)

    def to_json(self) -> dict[str, Any]:
        """Plain values: ready, counts, findings."""
        return {
            "ready": self.ready,
            "verdict": self.verdict,
            "notebooks": self.notebooks,
            "counts": self.counts,
            "findings": [asdict(each) for each in self.findings],
        }

    def text(self, colour: bool = False, width: int = 120) -> str:
        """Lines for a terminal; every state is told by word and sign, colour only repeats it."""

        def paint(text: str, state: str) -> str:
            return f"\x1b[{_ANSI[state]}m{text}\x1b[0m" if colour else text

        lines, part = [self.title], None
        for each in self.findings:
            if each.part != part:
                part = each.part
                lines += ["", part]
            badge = paint(f"{_SIGN[each.state]} {each.state:4}", each.state)
            first, *rest = _wrapped(each.found, width)
            lines += [f"  {badge}  {each.name:{_NAME}} {first}", *rest]
            for label, text in each.remarks:
                lines += _wrapped(f"{label:{_LABEL}}{text}", width, _LABEL, first=True)
        return "\n".join([*lines, "", paint(self.verdict, OK if self.ready else STOP)])

    def _repr_html_(self) -> str:
        rows, part = [], None
        for each in self.findings:
            if each.part != part:
                part = each.part
                rows.append(_html_heading(part))
            rows.append(_html_row(each))
        ink, ground = _COLOUR[OK if self.ready else STOP]
        verdict = (
            f'<div style="margin:.6em 0;padding:.5em .8em;border-radius:6px;font-weight:600;color:{ink};'
            f'background:{ground}">{_SIGN[OK if self.ready else STOP]} {escape(self.verdict)}</div>'
        )
        return (
            f'<div style="max-width:66em;font-size:13px"><div style="opacity:.75">{escape(self.title)}</div>'
            '<table style="border-collapse:collapse;table-layout:fixed;width:100%;margin:.4em 0 0;font-size:inherit">'
            '<colgroup><col style="width:5.6em"><col style="width:12.5em"><col></colgroup>'
            f"{''.join(rows)}</table>{verdict}</div>"
        )


def _wrapped(text: str, width: int, hanging: int = 0, first: bool = False) -> list[str]:
    """Lines of a text in the column behind the names; `first`: the first line is indented as well."""
    indent = " " * (_LEFT + _NAME + 1)
    room = max(width - len(indent), 40)
    lines = textwrap.wrap(
        text, room, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
    return [indent + line if first or number else line for number, line in enumerate(lines)]


def _html_heading(part: str) -> str:
    style = "text-align:left;padding:.9em .4em .25em;font-weight:600;border-bottom:1px solid rgba(128,128,128,.35)"
    return f'<tr style="background:none"><td colspan="3" style="{style}">{escape(part)}</td></tr>'


def _html_row(each: Finding) -> str:
    ink, ground = _COLOUR[each.state]
    badge = (
        f'<span style="display:inline-block;min-width:3.6em;padding:.05em .5em;border-radius:9px;font-size:90%;'
        f'color:{ink};background:{ground};white-space:nowrap">{_SIGN[each.state]} {each.state}</span>'
    )
    remarks = "".join(
        f'<div style="font-size:92%;margin-top:.15em"><span style="opacity:.65">{label}:</span> {escape(text)}</div>'
        for label, text in each.remarks
    )
    cell = "text-align:left;vertical-align:top;padding:.28em .4em;white-space:normal;overflow-wrap:anywhere"
    return (
        f'<tr style="background:none"><td style="{cell}">{badge}</td>'
        f'<td style="{cell}">{escape(each.name)}</td>'
        f'<td style="{cell}">{escape(each.found)}{remarks}</td></tr>'
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _span(books: Iterable[str]) -> str:
    """`01-03, 06` from sorted two-digit numbers."""
    runs: list[list[str]] = []
    for book in books:
        if runs and int(book) == int(runs[-1][-1]) + 1:
            runs[-1].append(book)
        else:
            runs.append([book])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
