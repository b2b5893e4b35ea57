"""One page that compares runs: results beside published numbers, settings that differ, cost, figures, provenance.

python -m lib.analysis.compare runs/a runs/b --out compare.html
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from lib.analysis.figures import METHOD_LABEL, SPLIT_KEYS, results_from_metrics
from lib.analysis.page import (
    duration,
    folded,
    name_cell,
    number_cell,
    page,
    picture,
    quiet,
    section,
    size,
    table,
    text_cell,
)
from lib.analysis.palette import FAINT, MARKERS, drawing, save_figure
from lib.analysis.provenance import Node, provenance_section, read_nodes
from lib.errors import FoundExpected
from lib.evaluation.published import SETTINGS, published
from lib.runs import read_json, write_text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#332288")  # of the runs, colour-blind safe
CLOSE = 0.5  # mAP points: below, one seed each does not tell two runs apart


@dataclass(frozen=True)
class ComparedRun:
    """What a page needs of one run; settings are flat (`ezhoi.epochs`)."""

    name: str
    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any]
    nodes: list[Node]
    results: pd.DataFrame  # method -> full, unseen, seen


def read_runs(folders: Sequence[Path | str]) -> list[ComparedRun]:
    """Read run folders; names are made longer until they differ. Raises FoundExpected for a folder without metrics."""
    paths = [Path(folder).resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.parts[-2:]) for path in paths]
    runs = []
    for name, path in zip(names, paths, strict=True):
        metrics = read_json(path / "metrics.json")
        if not metrics:
            raise FoundExpected(path, "no metrics.json", "a run folder", f"run its notebooks: make run RUN={path}")
        config = path / "config.yaml"
        settings = _flat(yaml.safe_load(config.read_text())) if config.is_file() else {}
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        results = results_from_metrics(numbers)
        environment = _flat(read_json(path / "environment.json"))
        runs.append(ComparedRun(name, path, numbers, settings, environment, read_nodes(path), results))
    return runs


def write_comparison(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Write the page, and its figure beside it (same name, .png); returns the page's path."""
    runs, out = read_runs(folders), Path(out)
    settings, made_on = [run.settings for run in runs], [run.environment for run in runs]
    parts = [
        f"<h1>{escape(' · '.join(run.name for run in runs))}</h1><p class=verdict>{escape(leader(runs))}</p>",
        section("Results", _results(runs, out)),
        section("Settings that differ", _differences(settings, runs, "Every setting is the same.")),
        section("Cost", _cost(runs)),
        section("Where they come from", _provenance(runs)),
        section("Figures", _figures(runs)),
        section("Made on", _differences(made_on, runs, "The same machine, versions and code.")),
        section("All metrics", _all_metrics(runs)),
    ]
    title = " and ".join(run.name for run in runs)
    write_text(out, page(f"{title} · comparison", *parts))
    return out


def leader(runs: Sequence[ComparedRun]) -> str:
    """One sentence: the best method of every run by full mAP, and whether the difference says anything."""
    best = {run.name: run.results["full"].max() for run in runs if run.results["full"].notna().any()}
    if len(best) < 2:
        return "Fewer than two of these runs have an mAP: nothing to rank."
    ranked = sorted(best, key=best.get, reverse=True)
    first, second = ranked[:2]
    lead = best[first] - best[second]
    method = {run.name: run.results["full"].idxmax() for run in runs if run.name in best}
    said = ", ".join(f"{name} {best[name]:.2f} ({METHOD_LABEL.get(method[name], method[name])})" for name in ranked)
    word = "No clear leader" if lead < CLOSE else f"{first} leads by {lead:.1f} points"
    return f"Best full mAP: {said}. {word}; one seed each says little below {CLOSE} points."


# ---------------------------------------------------------------- sections


def _results(runs: Sequence[ComparedRun], out: Path) -> str:
    methods = _methods(runs)
    if not methods:
        return quiet("No mAP recorded yet: run notebooks 02 and 04.")
    figure = save_figure(results_figure(runs), out.with_suffix(".png"))
    best = {split: max(run.results[split].max() for run in runs) for split in SPLIT_KEYS}
    rows = []
    for method in methods:
        having = [run for run in runs if method in run.results.index]
        for i, run in enumerate(having):
            label = METHOD_LABEL.get(method, method) if i == 0 else ""
            values = [run.results.at[method, split] for split in SPLIT_KEYS]
            change = values[0] - having[0].results.at[method, "full"] if i else math.nan
            cells = [number_cell(v, best=v == best[split]) for v, split in zip(values, SPLIT_KEYS, strict=True)]
            shown = f"<td class=quiet>{change:+.2f}</td>" if math.isfinite(change) else "<td></td>"
            rows.append([name_cell(label), text_cell(run.name), *cells, shown])
    head = ["mAP, %", "run", *SPLIT_KEYS, "full, change"]
    notes = quiet("Bold: best of a column. Change: against the first run that has the method. One seed a run.")
    return picture(figure) + table(head, rows, prose=["run"]) + notes + _published(runs)


def _methods(runs: Sequence[ComparedRun]) -> list[str]:
    found = {method for run in runs for method in run.results.index}
    return [m for m in METHOD_LABEL if m in found] + sorted(found - set(METHOD_LABEL))


def results_figure(runs: Sequence[ComparedRun]) -> Figure:
    """A row a method, a panel a split; every run a marker of its own."""
    methods = _methods(runs)[::-1]
    with drawing((9.6, 1.5 + 0.34 * len(methods))) as figure:
        axes = figure.subplots(1, len(SPLIT_KEYS), sharey=True)
        for axis, split in zip(axes, SPLIT_KEYS, strict=True):
            for number, run in enumerate(runs):
                have = [(run.results.at[m, split], y) for y, m in enumerate(methods) if m in run.results.index]
                marker = MARKERS[number % len(MARKERS)]
                look = {"marker": marker, "s": 46, "color": COLOURS[number % len(COLOURS)], "zorder": 3 + number}
                axis.scatter(*zip(*have, strict=True), label=run.name, alpha=0.85, linewidth=0, **look)
            axis.set_title(split)
            axis.set_xlabel("mAP, %", color=FAINT)
            axis.grid(axis="both")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(methods)), [METHOD_LABEL.get(m, m) for m in methods])
        axes[0].set_ylim(-0.6, len(methods) - 0.4)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(runs)))
    return figure


def _published(runs: Sequence[ComparedRun]) -> str:
    """Published rows of the runs' zero-shot setting, with a word on whether they may be set beside these runs."""
    found = {run.settings.get("data.zero_shot") for run in runs}
    if len(found) > 1:
        return quiet("No published numbers beside these: the runs have different zero-shot settings.")
    (name,) = found
    if name not in SETTINGS:
        return ""
    rows = [
        [
            name_cell(row["method"]),
            *(text_cell(row[key]) for key in ("backbone", "venue")),
            *(number_cell(row[key]) for key in ("full", "unseen", "seen")),
        ]
        for row in published(name).head(12).to_dict("records")
    ]
    own = all(run.settings.get("data.root") for run in runs)
    word = "authors report them" if own else "numbers on the stick world are not comparable with them"
    note = quiet(f"Published HICO-DET numbers of the setting {name}; {word}.")
    shown = note + table(["published", "CLIP", "venue", "full", "unseen", "seen"], rows, prose=["CLIP", "venue"])
    return shown if own else folded("Published numbers of this setting (HICO-DET)", shown)


def _differences(trees: Sequence[dict[str, Any]], runs: Sequence[ComparedRun], same: str) -> str:
    """A row for every key whose values differ between the runs."""
    rows = []
    for key in dict.fromkeys(key for tree in trees for key in tree):
        values = [tree.get(key, "–") for tree in trees]
        if len({str(value) for value in values}) > 1:
            shown = [f"<td class=left><code>{escape(str(value))}</code></td>" for value in values]
            rows.append([f"<th scope=row><code>{escape(key)}</code></th>", *shown])
    names = [run.name for run in runs]
    return table(["", *names], rows, prose=names) if rows else quiet(same)


def _cost(runs: Sequence[ComparedRun]) -> str:
    by_run = [{node.kind: node for node in run.nodes} for run in runs]
    kinds = dict.fromkeys(node.kind for run in runs for node in run.nodes)
    longest = max((node.seconds for run in runs for node in run.nodes if math.isfinite(node.seconds)), default=1) or 1
    rows = []
    for kind in kinds:
        cells = []
        for nodes in by_run:
            seconds = nodes[kind].seconds if kind in nodes else math.nan
            width = 70 * seconds / longest if math.isfinite(seconds) else 0
            cells.append(f"<td><span class=costbar style='width:{width:.0f}px'></span> {duration(seconds)}</td>")
        rows.append([name_cell(kind), *cells])
    totals = []
    for label, key, fold, shown in (
        ("time", "seconds", sum, duration),
        ("memory, at most", "peak_memory", max, size),
        ("GPU memory, at most", "gpu_memory", max, size),
        ("disk", "bytes", sum, size),
    ):
        values = [[v for node in run.nodes if math.isfinite(v := getattr(node, key))] for run in runs]
        if any(values):
            found = [shown(fold(column)) if column else "–" for column in values]
            totals.append([name_cell(label), *(f"<td><b>{text}</b></td>" for text in found)])
    names = [run.name for run in runs]
    return table(["all artefacts", *names], totals) + folded("by artefact", table(["artefact", *names], rows))


def _provenance(runs: Sequence[ComparedRun]) -> str:
    prints = [{node.kind: node.fingerprint for node in run.nodes} for run in runs]
    kinds = dict.fromkeys(kind for found in prints for kind in found)
    in_all = [kind for kind in kinds if all(kind in found for found in prints)]
    same = {kind for kind in in_all if len({found[kind] for found in prints}) == 1}
    parents = {node.kind: node.parents for run in runs for node in run.nodes}
    first = [kind for kind in in_all if kind not in same and all(parent in same for parent in parents[kind])]
    if first:
        said = f"The runs part at {', '.join(first)}; what comes after differs, what comes before is the same."
    else:
        said = "Every artefact is the same." if same else "The runs have no artefact in common."
    graphs = [f"<h3>{escape(run.name)}</h3>{provenance_section(run.folder)}" for run in runs]
    return f"<p>{escape(said)}</p>{''.join(graphs)}"


def _figures(runs: Sequence[ComparedRun]) -> str:
    """Pictures that at least two runs have, side by side."""
    pictures = [{path.name: path for path in sorted((run.folder / "figures").glob("*.png"))} for run in runs]
    names = [name for name in sorted({n for found in pictures for n in found}) if sum(name in f for f in pictures) > 1]
    blocks = []
    for name in names:
        having = [(run, found[name]) for run, found in zip(runs, pictures, strict=True) if name in found]
        text = having[0][1].with_suffix(".txt")
        caption = text.read_text().strip() if text.is_file() else Path(name).stem.replace("_", " ")
        side = "".join(picture(path, run.name, width=760) for run, path in having)
        blocks.append(f"<h3>{escape(caption)}</h3><div class=beside>{side}</div>")
    return "".join(blocks) or quiet("No figure that two of the runs have.")


def _all_metrics(runs: Sequence[ComparedRun]) -> str:
    keys = sorted({key for run in runs for key in run.metrics})
    rows = []
    for key in keys:
        values = [run.metrics.get(key, math.nan) for run in runs]
        rows.append([name_cell(key), *(number_cell(float(value), digits=3) for value in values)])
    return folded(f"{len(keys)} numbers", table(["", *(run.name for run in runs)], rows))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.analysis.compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run folders, the one to compare against first")
    parser.add_argument("--out", default="compare.html", help="page to write")
    options = parser.parse_args(arguments)
    try:
        out = write_comparison(options.runs, options.out)
    except FoundExpected as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{leader(read_runs(options.runs))}\n{out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
