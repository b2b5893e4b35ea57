"""`report.html` of a run: one file that opens anywhere, figures embedded, nothing loaded from outside.

Read from the run folder: metrics.json (needed), figures/*.png with an optional caption in a .txt of the same name,
figures/*.html (linked), config.yaml, environment.json. Written: report.html and summary.txt.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lib.analysis.embeddings import VISION_STATES
from lib.analysis.figures import METHOD_LABEL, SPLIT_KEYS, results_from_metrics
from lib.analysis.gap_report import METRICS
from lib.analysis.summary import findings, text_summary, verdict
from lib.runs import write_text

__all__ = ["text_summary", "write_report"]


def write_report(run_folder: Path | str) -> Path:
    """Write `report.html` and `summary.txt` of a run and return the path of the first.

    Raises FileNotFoundError when the run has no metrics.json; any other part that is missing is said to be missing.
    """
    folder = Path(run_folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found, expected the metrics of a run; run its notebooks: make run RUN={folder}"
        )
    metrics = {key: value for key, value in json.loads(path.read_text()).items() if isinstance(value, int | float)}
    parts = [
        _head(folder.resolve().name, metrics),
        _section("Results", _results(metrics)),
        _section("What the numbers say", _findings(metrics)),
        _section("Figures", _figures(folder / "figures")),
        _section("Modality gap", _gap(metrics)),
        _section("Settings", _file(folder / "config.yaml")),
        _section("Environment", _environment(folder / "environment.json")),
        _section("All metrics", _all_metrics(metrics)),
    ]
    title = f"{escape(folder.resolve().name)} · HOI report"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    write_text(folder / "summary.txt", text_summary(metrics))
    write_text(folder / "report.html", page)
    return folder / "report.html"


# ---------------------------------------------------------------- sections


def _head(name: str, metrics: Mapping[str, float]) -> str:
    judged = verdict(metrics)
    seconds = metrics.get("demo/seconds", math.nan)
    made = ""
    if math.isfinite(seconds):
        minutes, rest = divmod(round(seconds), 60)
        made = f"<p class=quiet>Made in {minutes} min {rest} s.</p>"
    return f"<h1>{escape(name)}</h1><p class='verdict {judged.tone}'>{escape(judged.text)}</p>{made}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _results(metrics: Mapping[str, float]) -> str:
    results = results_from_metrics(metrics)
    if not len(results):
        return "<p class=quiet>No mAP recorded yet: run notebook 04_bridge_evaluation.</p>"
    # other numbers of a method (cost per pair and the like) follow its mAP when at least one of them is recorded
    prefixes = tuple(f"{name}/" for name in results.index)
    extra = sorted({key.split("/", 1)[1] for key in metrics if key.startswith(prefixes)} - set(SPLIT_KEYS.values()))
    extra = [name for name in extra if name.startswith(("ms_", "seconds", "cost"))]
    best = results.max()
    rows = []
    for name, row in results.iterrows():
        cells = [_number(row[split], best=row[split] == best[split], digits=2) for split in SPLIT_KEYS]
        cells += [_number(metrics.get(f"{name}/{key}", math.nan)) for key in extra]
        rows.append([f"<th scope=row>{escape(METHOD_LABEL.get(str(name), str(name)))}</th>", *cells])
    head = ["mAP, %", *SPLIT_KEYS, *(key.replace("_", " ") for key in extra)]
    return (
        _table(head, rows) + "<p class=quiet>Bold: best of a column. One run, one seed: read differences with care.</p>"
    )


def _findings(metrics: Mapping[str, float]) -> str:
    found = findings(metrics)
    if not found:
        return "<p class=quiet>Nothing to compare yet.</p>"
    return "<ul>" + "".join(f"<li class={f.tone}>{escape(f.text)}</li>" for f in found) + "</ul>"


def _figures(folder: Path) -> str:
    blocks = []
    for path in sorted(folder.glob("*.png")):
        text = path.with_suffix(".txt")
        caption = text.read_text().strip() if text.is_file() else path.stem.replace("_", " ")
        data = base64.b64encode(path.read_bytes()).decode()
        blocks.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    links = "".join(
        f'<li><a href="figures/{escape(path.name)}">{escape(path.stem.replace("_", " "))}</a> (interactive)</li>'
        for path in sorted(folder.glob("*.html"))
    )
    return "".join(blocks) + (f"<ul>{links}</ul>" if links else "") or "<p class=quiet>No figures yet.</p>"


def _gap(metrics: Mapping[str, float]) -> str:
    states = [state for state in VISION_STATES if any(key.startswith(f"gap/{state}/") for key in metrics)]
    if not states:
        return "<p class=quiet>Not measured yet: run notebook 05_embedding_analysis.</p>"
    rows = []
    for name, metric in METRICS.items():
        values = [metrics.get(f"gap/{state}/{name}", math.nan) for state in states]
        if not any(map(math.isfinite, values)):
            continue
        arrow = {1: "↑", -1: "↓", 0: ""}[metric.better]
        label = f"<th scope=row>{escape(metric.label.replace('$^2$', '²'))} {arrow}</th>"
        rows.append([label, *map(_number, values), f"<td class=quiet>{escape(metric.reading)}</td>"])
    note = (
        "<p class=quiet>All pairs with a class. Raw vision against raw text; centred and bridged vision against text "
        "centred by its own mean. Cosines of raw vision therefore live in another space than those beside them; recall "
        "compares across. ↑ ↓: which way is better; no arrow: an alarm or a description. The mean max cosine uses no "
        "labels: it rises also when detection collapses.</p>"
    )
    return note + _table(["metric", *states, "reading"], rows, prose=["reading"])


def _environment(path: Path) -> str:
    if not path.is_file():
        return f"<p class=quiet>{escape(path.name)} is missing.</p>"
    rows = [
        [f"<th scope=row>{escape(key)}</th>", f"<td class=left>{escape(_plain(value))}</td>"]
        for key, value in json.loads(path.read_text()).items()
    ]
    return _table([], rows)


def _file(path: Path) -> str:
    if not path.is_file():
        return f"<p class=quiet>{escape(path.name)} is missing.</p>"
    return f"<details><summary>{escape(path.name)}</summary><pre>{escape(path.read_text())}</pre></details>"


def _all_metrics(metrics: Mapping[str, float]) -> str:
    rows = [[f"<th scope=row>{escape(key)}</th>", _number(value)] for key, value in sorted(metrics.items())]
    return f"<details><summary>{len(rows)} numbers of metrics.json</summary>{_table([], rows)}</details>"


# ---------------------------------------------------------------- pieces


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], prose: Sequence[str] = ()) -> str:
    """Rows of ready cells under a head; the columns named in `prose` are left-aligned."""
    top = (
        "<thead><tr>"
        + "".join(f"<th{' class=left' * (name in prose)}>{escape(name)}</th>" for name in head)
        + "</tr></thead>"
        if head
        else ""
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class=scroll><table>{top}<tbody>{body}</tbody></table></div>"


def _number(value: float, best: bool = False, digits: int | None = None) -> str:
    if not math.isfinite(value):
        return "<td>–</td>"
    text = f"{value:.{digits}f}" if digits is not None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return f"<td><b>{text}</b></td>" if best else f"<td>{text}</td>"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def results_table(metrics: Mapping[str, float]) -> str:
    """The results as plain text: method, Full / Unseen / Seen mAP in percent."""
    frame = results_from_metrics(metrics)
    lines = [f"{'mAP (%)':34}{'Full':>8}{'Unseen':>8}{'Seen':>8}"]
    for name, row in frame.iterrows():
        lines.append(f"{METHOD_LABEL.get(name, name):34}" + "".join(f"{row[split]:8.2f}" for split in SPLIT_KEYS))
    return "\n".join(lines)


def main() -> None:
    """Write the report of a run and print its results and verdict."""
    parser = argparse.ArgumentParser(prog="python -m lib.analysis.report", description=main.__doc__)
    parser.add_argument("run", help="run folder, such as runs/demo")
    folder = Path(parser.parse_args().run)
    page = write_report(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    print(f"{results_table(metrics)}\n\n{verdict(metrics).text}\n{page}")


_CSS = """
:root { color-scheme: light dark; --ink: #22272e; --quiet: #5b6472; --page: #fff; --card: #f6f7f9; --line: #e1e4e8;
  --good: #007a58; --bad: #b34700; --link: #0060a0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #9aa4b2; --page: #16191d; --card: #1f242a;
  --line: #333a43; --good: #3ecfa4; --bad: #ff9a5c; --link: #6cb6ff } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.9rem; margin: 0 0 .5rem } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem }
a { color: var(--link) } .quiet { color: var(--quiet); font-size: .9rem }
.verdict { font-size: 1.1rem; background: var(--card); border-left: 4px solid var(--quiet); padding: .8rem 1rem;
  border-radius: 0 6px 6px 0 }
.verdict.good { border-color: var(--good) } .verdict.bad { border-color: var(--bad) }
ul { padding-left: 1.2rem } li { margin: .3rem 0 } li.good::marker { color: var(--good); content: "▲ " }
li.bad::marker { color: var(--bad); content: "▼ " } li.neutral::marker { color: var(--quiet); content: "● " }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem }
th, td { padding: .32rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
thead th { color: var(--quiet); font-weight: 600 }
th:first-child, .left, td.quiet { text-align: left } th[scope=row] { font-weight: 500 }
figure { margin: 1.25rem 0 2rem } figure img { max-width: 100%; height: auto; background: #fff; padding: .5rem;
  box-sizing: border-box; border: 1px solid var(--line); border-radius: 6px }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .35rem }
pre { background: var(--card); padding: 1rem; overflow-x: auto; font-size: .82rem; border-radius: 6px }
summary { cursor: pointer; color: var(--link) }
"""


if __name__ == "__main__":
    main()
