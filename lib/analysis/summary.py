"""What the numbers of a run say, in words: the verdict on the bridge and a plain-text summary.

Every sentence is computed from the flat metrics, with the thresholds below; where the bridge does not help, it says
so. Class-aware numbers decide. The label-free mean-max-cosine of older reports is printed beside them, with its
warning, and never decides anything (spec diffusion-bridge.md §1.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lib.analysis.advice import advise, collapse, fooled_cosine
from lib.analysis.embeddings import VISION_STATES
from lib.analysis.figures import METHOD_LABEL, SPLIT_KEYS, results_from_metrics
from lib.analysis.gap_report import BASELINE, METRICS

CONTROLS = ("centred", "vision_control")  # the same pairs without a bridge, and with one that knows no text
CLEAR = 0.5  # mAP points below which one run's difference is called no clear difference


@dataclass(frozen=True)
class Finding:
    """One sentence; tone: good | bad | neutral."""

    tone: str
    text: str


def findings(metrics: Mapping[str, float]) -> list[Finding]:
    """The verdict first, then what supports it; an empty list where nothing can be compared."""
    pairs = [("bridge", "ezhoi"), ("bridge", "centred"), ("centred", "ezhoi"), ("ezhoi", "frozen_clip")]
    found = [_comparison(metrics, *pair) for pair in [*pairs, ("wrong_order", "bridge")]]
    return [finding for finding in [*found, _collapsed(metrics), *_gap(metrics)] if finding]


def verdict(metrics: Mapping[str, float]) -> Finding:
    """What a report says first of the bridge; a gain is its own only where it beats what does without a bridge too."""
    collapsed = _collapsed(metrics)
    if collapsed:
        return collapsed
    finding = _comparison(metrics, "bridge", "ezhoi")
    if not finding:
        return Finding("neutral", "The run holds no mAP with and without the bridge: it says nothing about the bridge.")
    for control in CONTROLS if finding.tone == "good" else ():
        beside = _comparison(metrics, "bridge", control)
        if beside and beside.tone != "good":
            return Finding("neutral", f"The gain is not the bridge's own. {finding.text} {beside.text}")
    word = {"good": "helps", "bad": "does not help", "neutral": "does not clearly help"}[finding.tone]
    return Finding(finding.tone, f"The bridge {word}. {finding.text}")


def _comparison(metrics: Mapping[str, float], after: str, before: str) -> Finding | None:
    """Full, unseen and seen mAP of two methods; good only if a split clearly gains and none clearly loses."""
    change = {}
    for split, key in SPLIT_KEYS.items():
        values = [metrics.get(f"{method}/{key}", math.nan) for method in (after, before)]
        if all(math.isfinite(value) for value in values):
            change[split] = values[0] - values[1]
    if not change:
        return None
    gains = [split for split, value in change.items() if value >= CLEAR]
    losses = [split for split, value in change.items() if value <= -CLEAR]
    numbers = ", ".join(f"{split} {value:+.1f}" for split, value in change.items())
    names = f"{METHOD_LABEL[after]} against {METHOD_LABEL[before]}"
    if gains and losses:
        return Finding("neutral", f"{names}: mixed, gains on {_list(gains)}, loses on {_list(losses)} ({numbers} mAP).")
    if gains:
        return Finding("good", f"{names}: gains on {_list(gains)} ({numbers} mAP).")
    if losses:
        return Finding("bad", f"{names}: loses on {_list(losses)} ({numbers} mAP).")
    return Finding("neutral", f"{names}: no clear difference, every change is below {CLEAR} mAP ({numbers}).")


def _collapsed(metrics: Mapping[str, float]) -> Finding | None:
    found = collapse(metrics)
    return found and Finding(found.tone, found.text)


def _gap(metrics: Mapping[str, float]) -> list[Finding]:
    """What bridging changes on the same pairs, and whether the label-free cosine tells another story."""
    found = []
    for name in ("recall@1", "class_map", "gt_margin"):
        key = f"gap/change/{name}"
        change, low, high = (metrics.get(f"{key}{end}", math.nan) for end in ("", "_low", "_high"))
        if not math.isfinite(change):
            continue
        tone, word = (
            ("good", "rises") if low > 0 else ("bad", "falls") if high < 0 else ("neutral", "does not change clearly")
        )
        bounds = f"95 % interval {low:+.3f} to {high:+.3f}" if math.isfinite(low) else "no interval"
        found.append(
            Finding(tone, f"Centred → bridged, the same pairs: {METRICS[name].label} {word} ({change:+.3f}, {bounds}).")
        )
    fooled = fooled_cosine(metrics)
    return [*found, Finding("bad", fooled.text)] if fooled else found


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


# ---------------------------------------------------------------- plain text


def text_summary(metrics: Mapping[str, float]) -> str:
    """Plain text: results, gap metrics before and after, the label-free figures with their warning, conclusions."""
    lines = ["EMBEDDING ANALYSIS", "=" * 78, "", "Verdict", f"  {verdict(metrics).text}"]
    results = results_from_metrics(metrics)
    if len(results):
        lines += ["", f"Results (mAP, percent)\n  {'':28}{'full':>10}{'unseen':>10}{'seen':>10}"]
        lines += [
            f"  {METHOD_LABEL.get(name, name):28}"
            + "".join(f"{value:10.2f}" if math.isfinite(value) else f"{'-':>10}" for value in row)
            for name, row in zip(results.index, results.to_numpy(), strict=True)
        ]
    states = [state for state in VISION_STATES if any(key.startswith(f"gap/{state}/") for key in metrics)]
    if states:
        header = "".join(f"{state:>10}" for state in states)
        counts = [metrics.get(f"gap/{name}", math.nan) for name in ("pairs", "texts")]
        size = f"{counts[0]:.0f} pairs, {counts[1]:.0f} class texts" if all(map(math.isfinite, counts)) else "all pairs"
        lines += ["", f"Modality gap ({size})\n  {'':28}{header}   reading"]
        for name, metric in METRICS.items():
            values = [metrics.get(f"gap/{state}/{name}", math.nan) for state in states]
            if any(map(math.isfinite, values)):
                label = metric.label.replace("$^2$", "²")
                lines.append(f"  {label:28}{''.join(f'{_cell(v):>10}' for v in values)}   {metric.reading}")
        lines += ["  The mean max cosine uses no labels and rises also when every point snaps onto a wrong text."]
        lines += ["  Cosines of uncentred vision live in another space than those beside them; recall compares across."]
        lines += ["", *_baselines(metrics), *_guide(metrics, states)]
    supporting = [finding.text for finding in findings(metrics)]
    lines += ["", "Findings", *(f"  - {text}" for text in supporting or ["nothing to compare yet"])]
    for advice in advise(metrics):
        lines += ["", f"[{advice.level}] {advice.text}", *(f"    -> {step}" for step in advice.try_next)]
    return "\n".join(lines) + "\n"


def _baselines(metrics: Mapping[str, float]) -> list[str]:
    """Recall, class mAP and centroid gap of the closed forms beside the bridge."""
    states = sorted({key.split("/")[1] for key in metrics if key.startswith(f"gap/{BASELINE}")})
    if not states:
        return []
    names = ("recall@1", "recall@1_unseen", "class_map", "centroid_gap")
    lines = [f"Closed forms fitted on training pairs\n  {'':28}" + "".join(f"{name:>17}" for name in names)]
    for state in [*states, "bridged"]:
        values = "".join(f"{_cell(metrics.get(f'gap/{state}/{name}', math.nan)):>17}" for name in names)
        lines.append(f"  {state.removeprefix(BASELINE).replace('_', ' '):28}{values}")
    return [*lines, ""]


def _guide(metrics: Mapping[str, float], states: Sequence[str]) -> list[str]:
    """The label-free figures of older reports, last state against the one before it (spec §1.3)."""
    if len(states) < 2:
        return []
    before, after = states[-2:]

    def told(name: str) -> tuple[float, float]:
        return tuple(metrics.get(f"gap/{state}/{name}", math.nan) for state in (before, after))

    cosine, spread = told("max_cosine"), told("max_cosine_std")
    norms, norm_spread = told("vision_norm"), told("vision_norm_std")
    gain = cosine[1] - cosine[0]
    share = f" ({100 * gain / cosine[0]:+.1f} %)" if cosine[0] > 0 else ""
    inside, distance = told("spread"), told("text_distance")
    return [
        f"Label-free figures, {before} -> {after} (they decide nothing: they improve under a collapse too)",
        f"  Cosine similarity (vision -> nearest text)  before {cosine[0]:.4f} ± {spread[0]:.4f}"
        f"   after {cosine[1]:.4f} ± {spread[1]:.4f}   improvement {gain:+.4f}{share}",
        f"  Feature norms  before {norms[0]:.4f} ± {norm_spread[0]:.4f}   after {norms[1]:.4f} ± {norm_spread[1]:.4f}"
        f"   text {metrics.get(f'gap/{after}/text_norm', math.nan):.4f}",
        f"  Visual intra-distance  before {inside[0]:.4f}   after {inside[1]:.4f}",
        f"  Vision -> text distance  before {distance[0]:.4f}   after {distance[1]:.4f}",
    ]


def _cell(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
