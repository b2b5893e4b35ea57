"""`report.html` of a run: one file that opens anywhere, figures embedded, nothing loaded from outside.

Read from the run folder: metrics.json (needed), figures/*.png with an optional caption in a .txt of the same name
(embedded as previews that link to the files), figures/*.html (linked), config.yaml, environment.json.
Written: report.html and summary_report.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

from lib.analysis import page
from lib.analysis.advice import advise
from lib.analysis.embeddings import VISION_STATES
from lib.analysis.figures import METHOD_LABEL, SPLIT_KEYS, results_from_metrics
from lib.analysis.gap_report import METRICS
from lib.analysis.provenance import cost_section, provenance_section
from lib.analysis.summary import findings, text_summary, verdict
from lib.runs import write_text

__all__ = ["text_summary", "write_report"]


def write_report(run_folder: Path | str) -> Path:
    """Write `report.html` and `summary_report.txt` of a run and return the path of the first.

    Raises FileNotFoundError when the run has no metrics.json; any other part that is missing is said to be missing.
    """
    folder = Path(run_folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found, expected the metrics of a run; run its notebooks: make run RUN={folder}"
        )
    metrics = {key: value for key, value in json.loads(path.read_text()).items() if isinstance(value, int | float)}
    name = folder.resolve().name
    whole = page.page(
        f"{name} · HOI report",
        _head(name, metrics),
        page.section("Results", _results(metrics)),
        page.section("What the numbers say", _findings(metrics)),
        page.section("Vision and text: what to do next", _advice(metrics)),
        page.section("Figures", _figures(folder)),
        page.section("Modality gap", _gap(metrics)),
        page.section("Cost", cost_section(folder)),
        page.section("Where it comes from", provenance_section(folder)),
        page.section("Settings", _file(folder / "config.yaml")),
        page.section("Environment", _environment(folder / "environment.json")),
        page.section("All metrics", _all_metrics(metrics)),
    )
    write_text(folder / "summary_report.txt", text_summary(metrics))
    write_text(folder / "report.html", whole)
    return folder / "report.html"


# ---------------------------------------------------------------- sections


def _head(name: str, metrics: Mapping[str, float]) -> str:
    judged = verdict(metrics)
    seconds = metrics.get("demo/seconds", math.nan)
    made = page.quiet(f"Made in {page.duration(seconds)}.") if math.isfinite(seconds) else ""
    return f"<h1>{escape(name)}</h1><p class='verdict {judged.tone}'>{escape(judged.text)}</p>{made}"


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
    return page.table(head, rows) + page.quiet("Bold: best of a column. One run, one seed: read differences with care.")


def _findings(metrics: Mapping[str, float]) -> str:
    found = findings(metrics)
    if not found:
        return "<p class=quiet>Nothing to compare yet.</p>"
    return "<ul>" + "".join(f"<li class={f.tone}>{escape(f.text)}</li>" for f in found) + "</ul>"


def _advice(metrics: Mapping[str, float]) -> str:
    found = advise(metrics)
    if not found:
        return page.quiet("Not measured yet: run notebook 05_embedding_analysis.")
    items = []
    for advice in found:
        steps = "".join(f"<li class=neutral>{escape(step)}</li>" for step in advice.try_next)
        items.append(f"<li class={advice.tone}>{escape(advice.text)}{f'<ul>{steps}</ul>' if steps else ''}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _figures(run_folder: Path) -> str:
    folder = run_folder / "figures"

    def block(path: Path) -> str:
        text = path.with_suffix(".txt")
        caption = text.read_text().strip() if text.is_file() else path.stem.replace("_", " ")
        return page.preview(path, caption, run_folder)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # compressing a picture takes tenths of a second
        blocks = list(pool.map(block, sorted(folder.glob("*.png"))))
    if blocks:
        blocks.insert(0, page.quiet("Pictures link to the files in full size, where figures/ lies beside this page."))
    links = "".join(
        f'<li><a href="figures/{escape(path.name)}">{escape(path.stem.replace("_", " "))}</a> (interactive)</li>'
        for path in sorted(folder.glob("*.html"))
    )
    return "".join(blocks) + (f"<ul>{links}</ul>" if links else "") or page.quiet("No figures yet.")


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
    return note + page.table(["metric", *states, "reading"], rows, prose=["reading"])


def _environment(path: Path) -> str:
    if not path.is_file():
        return f"<p class=quiet>{escape(path.name)} is missing.</p>"
    rows = [
        [f"<th scope=row>{escape(key)}</th>", f"<td class=left>{escape(_plain(value))}</td>"]
        for key, value in json.loads(path.read_text()).items()
    ]
    return page.table([], rows)


def _file(path: Path) -> str:
    if not path.is_file():
        return f"<p class=quiet>{escape(path.name)} is missing.</p>"
    return f"<details><summary>{escape(path.name)}</summary><pre>{escape(path.read_text())}</pre></details>"


def _all_metrics(metrics: Mapping[str, float]) -> str:
    rows = [[f"<th scope=row>{escape(key)}</th>", _number(value)] for key, value in sorted(metrics.items())]
    return f"<details><summary>{len(rows)} numbers of metrics.json</summary>{page.table([], rows)}</details>"


# ---------------------------------------------------------------- pieces


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
    lines = [f"{'mAP (%)':40}{'Full':>8}{'Unseen':>8}{'Seen':>8}"]
    for name, row in frame.iterrows():
        lines.append(f"{METHOD_LABEL.get(name, name):40}" + "".join(f"{row[split]:8.2f}" for split in SPLIT_KEYS))
    return "\n".join(lines)


def main() -> None:
    """Write the report of a run and print its results and verdict."""
    parser = argparse.ArgumentParser(prog="python -m lib.analysis.report", description=main.__doc__)
    parser.add_argument("run", help="run folder, such as runs/demo")
    folder = Path(parser.parse_args().run)
    written = write_report(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    print(f"{results_table(metrics)}\n\n{verdict(metrics).text}\n{written}")


if __name__ == "__main__":
    main()
