"""What the numbers of a run say, in words: the verdict on the bridge and a plain-text summary.

Every sentence is computed from the flat metrics, with the thresholds below; where the bridge does not help, it says
so. Class-aware numbers decide. The label-free mean-max-cosine of older reports is printed beside them, with its
warning, and never decides anything (spec diffusion-bridge.md §1.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lib.analysis.embeddings import VISION_STATES
from lib.analysis.figures import METHOD_LABEL, SPLIT_KEYS, results_from_metrics
from lib.analysis.gap_report import METRICS

CLEAR = 0.5  # mAP points below which one run's difference is called no clear difference
COLLAPSE_ENTROPY = 0.6  # predicted-class entropy after the bridge, as a share of that before
COLLAPSE_RANK = 0.25  # effective rank after the bridge, as a share of that before


@dataclass(frozen=True)
class Finding:
    """One sentence; tone: good | bad | neutral."""

    tone: str
    text: str


def findings(metrics: Mapping[str, float]) -> list[Finding]:
    """The verdict first, then what supports it; an empty list where nothing can be compared."""
    pairs = [("bridge", "ezhoi"), ("bridge", "centred"), ("centred", "ezhoi"), ("ezhoi", "frozen_clip")]
    found = [_comparison(metrics, *pair) for pair in [*pairs, ("wrong_order", "bridge")]]
    return [finding for finding in [*found, _collapse(metrics), *_gap(metrics)] if finding]


def verdict(metrics: Mapping[str, float]) -> Finding:
    """The one sentence on the bridge for the head of a report."""
    collapse = _collapse(metrics)
    if collapse:
        return collapse
    finding = _comparison(metrics, "bridge", "ezhoi")
    if not finding:
        return Finding("neutral", "The run holds no mAP with and without the bridge: it says nothing about the bridge.")
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


def _collapse(metrics: Mapping[str, float]) -> Finding | None:
    """A bridge that maps everything onto few texts raises cosines and closes the gap, and is worthless."""
    entropy = [metrics.get(f"gap/{state}/hit_entropy", math.nan) for state in ("centred", "bridged")]
    rank = [metrics.get(f"gap/{state}/effective_rank", math.nan) for state in ("centred", "bridged")]
    recall = [metrics.get(f"gap/{state}/recall@1", math.nan) for state in ("centred", "bridged")]
    snapped = entropy[1] < COLLAPSE_ENTROPY * entropy[0] or rank[1] < COLLAPSE_RANK * rank[0]
    if not (snapped and recall[1] < recall[0]):
        return None
    return Finding(
        "bad",
        f"The bridge collapses: predicted-class entropy {entropy[0]:.2f} → {entropy[1]:.2f}, effective rank "
        f"{rank[0]:.1f} → {rank[1]:.1f}, recall@1 {recall[0]:.2f} → {recall[1]:.2f}. A smaller gap is no success here.",
    )


def _gap(metrics: Mapping[str, float]) -> list[Finding]:
    found = []
    for name in ("gt_margin", "recall@1"):
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
    cosine = [metrics.get(f"gap/{state}/max_cosine", math.nan) for state in ("centred", "bridged")]
    margin = [metrics.get(f"gap/{state}/gt_margin", math.nan) for state in ("centred", "bridged")]
    if cosine[1] > cosine[0] and margin[1] <= margin[0]:
        found.append(
            Finding(
                "bad",
                f"The mean max cosine rises ({cosine[0]:.2f} → {cosine[1]:.2f}) while the margin to the best wrong "
                f"class does not ({margin[0]:.3f} → {margin[1]:.3f}): points move to texts, not to their own texts.",
            )
        )
    gap = [metrics.get(f"gap/{state}/centroid_gap", math.nan) for state in ("raw", "centred")]
    if all(math.isfinite(value) for value in gap):
        text = (
            f"Centring alone takes the centroid gap from {gap[0]:.2f} to {gap[1]:.2f}; the bridge is what comes after."
        )
        found.append(Finding("neutral", text))
    return found


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
        lines += ["", f"Modality gap (all pairs)\n  {'':28}{header}   reading"]
        for name, metric in METRICS.items():
            values = [metrics.get(f"gap/{state}/{name}", math.nan) for state in states]
            if any(map(math.isfinite, values)):
                label = metric.label.replace("$^2$", "²")
                lines.append(f"  {label:28}{''.join(f'{_cell(v):>10}' for v in values)}   {metric.reading}")
        lines += ["  The mean max cosine uses no labels and rises also when every point snaps onto a wrong text."]
        lines += ["  Cosines and margins of raw vision live in another space than the others; recall compares across."]
    supporting = [finding.text for finding in findings(metrics)]
    lines += ["", "Findings", *(f"  - {text}" for text in supporting or ["nothing to compare yet"])]
    return "\n".join(lines) + "\n"


def _cell(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
