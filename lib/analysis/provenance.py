"""Where the results of a run come from and what they cost, read from the artifact.json of every artefact.

provenance_section(run)   the graph of artefacts, each kind below what it was computed from, as inline SVG
cost_section(run)         seconds, memory and disk of every artefact, and of every notebook
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from html import escape
from pathlib import Path
from typing import Any

from lib.analysis.page import duration, folded, name_cell, quiet, size, table, text_cell
from lib.runs import read_json

BOX_W, BOX_H, GAP_X, GAP_Y, PAD = 186, 58, 20, 40, 6  # pixels of the drawing
A_ROW = 5  # boxes a row at most, so that the drawing fits the page


@dataclass(frozen=True)
class Node:
    """One artefact of a run; cost entries are nan where they were not recorded (bytes, seconds)."""

    kind: str
    fingerprint: str
    parents: tuple[str, ...]  # kinds of this run
    outside: int  # further inputs that are no artefact of this run: files, weights
    state: str
    seconds: float
    bytes: float
    peak_memory: float
    gpu_memory: float
    code: str
    started: str


def read_nodes(run_folder: Path | str) -> list[Node]:
    """All artefacts of a run, in the order in which they were started."""
    folder = Path(run_folder)
    paths = [*folder.glob("*/artifact.json"), *folder.glob("*/*/artifact.json")]
    records = {record["kind"]: record for record in map(read_json, paths)}
    by_print = {record["fingerprint"]: kind for kind, record in records.items()}
    nodes = []
    for kind, record in records.items():
        parents = tuple(dict.fromkeys(by_print[p] for p in record["parents"] if p in by_print))
        outside = sum(parent not in by_print for parent in record["parents"])
        numbers = {key: float(record.get(key, math.nan)) for key in ("seconds", "bytes", "peak_memory", "gpu_memory")}
        text = {key: record.get(key, "") for key in ("state", "code", "started")}
        nodes.append(Node(kind, record["fingerprint"], parents, outside, **numbers, **text))
    return sorted(nodes, key=lambda node: (node.started, node.kind))


# ---------------------------------------------------------------- cost


def cost_section(run_folder: Path | str) -> str:
    """Table of what each artefact cost, and the notebooks' wall time; a remark where nothing is recorded."""
    nodes, status = read_nodes(run_folder), read_json(Path(run_folder) / "status.json")
    if not nodes:
        return quiet("No artefact yet.")
    longest = max((node.seconds for node in nodes if math.isfinite(node.seconds)), default=1.0) or 1.0
    rows = []
    for node in nodes:
        share = 100 * node.seconds / longest if math.isfinite(node.seconds) else 0
        bar = f'<td class=left><span class=costbar style="width:{max(share, 0.5) * 0.9:.1f}px"></span></td>'
        cells = [node.seconds, node.peak_memory, node.gpu_memory, node.bytes]
        shown = [duration(cells[0]), *map(size, cells[1:])]
        rows.append([name_cell(node.kind), bar, *(f"<td>{text}</td>" for text in shown)])
    totals = [duration(_total(nodes, "seconds")), size(_most(nodes, "peak_memory")), size(_most(nodes, "gpu_memory"))]
    last = [*totals, size(_total(nodes, "bytes"))]
    rows.append([name_cell("together (memory: the most)"), "<td></td>", *(f"<td><b>{text}</b></td>" for text in last)])
    head = ["artefact", "", "time", "memory", "GPU memory", "disk"]
    return _STYLE + table(head, rows) + _notebook_costs(status.get("notebooks", {}))


def _notebook_costs(notebooks: dict[str, Any]) -> str:
    rows = [
        [
            name_cell(name),
            text_cell(entry["state"]),
            f"<td>{duration(entry.get('seconds', math.nan))}</td>",
            f"<td>{size(entry.get('peak_memory') or math.nan)}</td>",
        ]
        for name, entry in notebooks.items()
    ]
    return folded("by notebook", table(["notebook", "state", "time", "memory"], rows, prose=["state"])) if rows else ""


def _total(nodes: list[Node], name: str) -> float:
    values = [value for node in nodes if math.isfinite(value := getattr(node, name))]
    return sum(values) if values else math.nan


def _most(nodes: list[Node], name: str) -> float:
    return max((value for node in nodes if math.isfinite(value := getattr(node, name))), default=math.nan)


# ---------------------------------------------------------------- graph

Graph = dict[str, set[str]]  # box -> boxes it was computed from


def provenance_section(run_folder: Path | str) -> str:
    """The artefacts as a graph, parents above children, with a line on the code that made them."""
    nodes = read_nodes(run_folder)
    if not nodes:
        return quiet("No artefact yet.")
    codes = Counter(node.code for node in nodes if node.code)
    made = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    dirty = " A + marks sources with changes that were not committed." if any("+" in code for code in codes) else ""
    note = "Every kind of artefact below what it was computed from; lines that a longer way implies are left out."
    note += f" Code revisions: {made or 'not recorded'}.{dirty}"
    rows = []
    for node in nodes:
        sources = [*node.parents, *([f"{node.outside} files or weights"] if node.outside else [])]
        words = [text_cell(", ".join(sources) or "–"), text_cell(node.started.replace("T", " ")[:16])]
        rows.append([name_cell(node.kind), f"<td class=left><code>{escape(node.fingerprint)}</code></td>", *words])
    head = ["artefact", "fingerprint", "made from", "started"]
    listed = folded(f"{len(nodes)} fingerprints", table(head, rows, prose=head[1:]))
    return f"{_STYLE}<div class=scroll>{_svg(nodes)}</div>{quiet(note)}{listed}"


def boxes_of(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Artefacts by box: `features/train` and `features/test` share one, unless that would draw a circle."""
    for split in (lambda node: node.kind.partition("/")[0], lambda node: node.kind):
        boxes: dict[str, list[Node]] = {}
        for node in nodes:
            boxes.setdefault(split(node), []).append(node)
        try:
            list(TopologicalSorter(graph_of(boxes)).static_order())
        except CycleError:
            continue
        return boxes
    raise ValueError("provenance: found artefacts that are computed from each other")


def graph_of(boxes: dict[str, list[Node]]) -> Graph:
    """Which box was computed from which others; inside a box nothing is drawn."""
    box_of = {node.kind: box for box, members in boxes.items() for node in members}
    return {
        box: {box_of[parent] for node in members for parent in node.parents} - {box} for box, members in boxes.items()
    }


def without_detours(graph: Graph) -> Graph:
    """Without the lines that another way implies (transitive reduction)."""
    above: Graph = {}
    for box in TopologicalSorter(graph).static_order():
        above[box] = graph[box].union(*(above[parent] for parent in graph[box]))
    detours = {box: set().union(*(above[parent] for parent in parents)) for box, parents in graph.items()}
    return {box: parents - detours[box] for box, parents in graph.items()}


def layers(graph: Graph) -> list[list[str]]:
    """Rows of boxes, every box below all of its parents and as near to its children as it can be."""
    order = list(TopologicalSorter(graph).static_order())
    children = {box: [child for child in order if box in graph[child]] for box in order}
    depth: dict[str, int] = {}
    for box in order:
        depth[box] = 1 + max((depth[parent] for parent in graph[box]), default=-1)
    for box in reversed(order):
        depth[box] = min((depth[child] - 1 for child in children[box]), default=depth[box])
    rows = []
    for level in sorted(set(depth.values())):
        members = [box for box in order if depth[box] == level]
        rows += [members[start : start + A_ROW] for start in range(0, len(members), A_ROW)]
    for _ in range(4):  # a few rounds of sorting every row by its neighbours untangle most lines
        for neighbours, sequence in ((graph, rows), (children, rows[::-1])):
            for row in sequence:
                place = {box: (i + 0.5) / len(other) for other in rows for i, box in enumerate(other)}
                near = {box: [place[other] for other in neighbours[box]] or [place[box]] for box in row}
                row.sort(key=lambda box: sum(near[box]) / len(near[box]))
    return rows


def _svg(nodes: Sequence[Node]) -> str:
    boxes = boxes_of(nodes)
    graph = without_detours(graph_of(boxes))
    rows = layers(graph)
    widest = max(map(len, rows))
    width = 2 * PAD + widest * BOX_W + (widest - 1) * GAP_X
    height = 2 * PAD + len(rows) * BOX_H + (len(rows) - 1) * GAP_Y
    corner = {}
    for y, row in enumerate(rows):
        left = (width - len(row) * BOX_W - (len(row) - 1) * GAP_X) / 2
        for x, box in enumerate(row):
            corner[box] = left + x * (BOX_W + GAP_X), PAD + y * (BOX_H + GAP_Y)
    lines = [_line(corner[parent], corner[box]) for box, parents in graph.items() for parent in sorted(parents)]
    drawn = [_box(box, members, *corner[box]) for box, members in boxes.items()]
    return (
        f'<svg class=provenance viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="Artefacts of the run and what they were computed from">{"".join(lines)}{"".join(drawn)}</svg>'
    )


def _line(parent: tuple[float, float], child: tuple[float, float]) -> str:
    x0, y0, x1, y1 = parent[0] + BOX_W / 2, parent[1] + BOX_H, child[0] + BOX_W / 2, child[1]
    bend = max(GAP_Y * 0.6, (y1 - y0) * 0.45)
    return f'<path d="M{x0:.1f} {y0:.1f} C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"/>'


def _box(box: str, members: Sequence[Node], x: float, y: float) -> str:
    """Name, the members' own names, time and disk; the tooltip has the fingerprints."""
    whole = all(node.state == "complete" for node in members)
    cost = " · ".join([duration(_total(members, "seconds")), size(_total(members, "bytes"))])
    names = ", ".join(node.kind.partition("/")[2] for node in members if "/" in node.kind and node.kind != box)
    names = names if len(names) <= 27 else f"{names[:26]}…"
    lines = [names, cost if whole else "unfinished"]
    title = "\n".join(f"{node.kind}  {node.fingerprint}  from {', '.join(node.parents) or 'files'}" for node in members)
    css = box.partition("/")[0] if whole else "partial"
    text = "".join(
        f'<text class=small x="{x + 10:.1f}" y="{y + 34 + 15 * i:.1f}">{escape(line)}</text>'
        for i, line in enumerate(filter(None, lines))
    )
    return (
        f'<g class="{escape(css)}"><title>{escape(title)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
        f'<text x="{x + 10:.1f}" y="{y + 18:.1f}">{escape(box)}</text>{text}</g>'
    )


_STYLE = """<style>
.provenance { max-width: none; height: auto; display: block; margin: .5rem auto 1rem }
.provenance path { fill: none; stroke: var(--quiet); stroke-opacity: .45; stroke-width: 1.3 }
.provenance rect { fill: var(--card); stroke: var(--line) }
.provenance text { fill: var(--ink); font: 600 12.5px system-ui, sans-serif }
.provenance .small { fill: var(--quiet); font: 11px system-ui, sans-serif }
.provenance .ezhoi rect, .provenance .bridge rect, .provenance .defr rect { stroke: var(--link); stroke-width: 1.6 }
.provenance .predictions rect, .provenance .recognition rect { stroke: var(--good); stroke-width: 1.6 }
.provenance .partial rect { stroke: var(--bad); stroke-dasharray: 4 3 }
.costbar { display: inline-block; height: .7em; border-radius: 2px; background: var(--link); opacity: .55 }
</style>"""
