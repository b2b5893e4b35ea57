"""What the numbers say to do next, in words: does the bridge improve, is it marginal, does it hurt, and what to try.

Everything is computed from the flat metrics of a run (`gap_report.gap_metrics`), by the thresholds below. Two rankings
decide, recall@1 and the class mAP on true pairs, centred -> bridged on the very same pairs; a change counts when its
95 % interval excludes zero and it is no smaller than CLEAR. Cosines never decide: they rise whenever points snap onto
texts, also onto wrong ones (spec diffusion-bridge.md §1.4), and a collapse is called a collapse before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CLEAR = {"recall@1": 0.01, "class_map": 0.005}  # smaller changes are marginal, however certain
COLLAPSE_ENTROPY = 0.6  # predicted-class entropy after the bridge, as a share of that before
COLLAPSE_RANK = 0.25  # effective rank after the bridge, as a share of that before
COLLAPSE_SPREAD = 0.25  # mean pairwise 1 - cos after the bridge, as a share of that before
BASELINE_LEAD = 0.02  # recall@1 by which a closed-form baseline must beat the bridge to be recommended
OFF_CENTRE = 0.15  # centroid gap that own-mean centring should not leave
STILL_APART = 0.9  # separability (AUC) after the bridge from which the gap counts as open
SMOOTHED = 0.2  # fall of the share of kept neighbours that counts as over-smoothing
FOOLED = 0.5  # share of the rise of the max cosine that the true class must take part in
CENTRING_SHARE = 0.8  # of the whole reduction of the gap, from which centring has done the work
WIDE = 0.04  # width of the interval of the recall change from which more pairs are needed
LEVELS = {"improves": "good", "marginal": "neutral", "hurts": "bad", "collapse": "bad", "note": "neutral"}

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Advice:
    """level: improves | marginal | hurts | collapse | note. text: what was found. try_next: what to do about it."""

    level: str
    text: str
    try_next: tuple[str, ...] = ()

    @property
    def tone(self) -> str:
        """good | neutral | bad, as in `summary.Finding`."""
        return LEVELS[self.level]


def advise(metrics: Metrics) -> list[Advice]:
    """The judgement first, then what explains it; empty for a run whose gap was not measured."""
    judged = judgement(metrics)
    if judged is None:
        return []
    notes = (note(metrics) for note in NOTES)
    return [judged, *(note for note in notes if note)]


# ---------------------------------------------------------------- the judgement


def judgement(metrics: Metrics) -> Advice | None:
    """Does the bridge improve on centring alone? None where centred or bridged vision was not measured."""
    found = collapse(metrics)
    if found:
        return found
    turns = {name: turn(metrics, name) for name in CLEAR}
    if not any(math.isfinite(_change(metrics, name)[0]) for name in CLEAR):
        return None
    numbers = "; ".join(_told(metrics, name) for name in CLEAR)
    rises, falls = ([name for name, way in turns.items() if way == sign] for sign in (1, -1))
    if rises and not falls:
        return Advice(
            "improves",
            f"The bridge improves on centring: {numbers}.",
            (
                "measure it on all test pairs (analysis.max_pairs) and over seeds (make sweep)",
                "see with how few evaluations it still does (evaluation.step_budgets, notebook 04)",
                "look at the classes that lose (table of classes, notebook 05)",
            ),
        )
    if falls and not rises:
        return Advice(
            "hurts",
            f"The bridge hurts: {numbers}.",
            (
                "enter less deep: a smaller bridge.entry_step keeps more of the feature",
                "look at the loss curve of bridge/adapted and train longer (bridge.steps) or on more sentences",
                "leave the bridge out: centring alone is the better half",
            ),
        )
    mixed = "gains and losses cancel" if rises and falls else "no clear change"
    return Advice(
        "marginal",
        f"The bridge is marginal, {mixed}: {numbers}.",
        (
            "run on more pairs to see whether it is consistent (analysis.max_pairs)",
            "try other depths (evaluation.entry_steps) and whether mAP follows",
            "use it for uncertain predictions only, or as part of an ensemble (evaluation.ensemble)",
        ),
    )


def turn(metrics: Metrics, name: str, split: str = "all") -> int:
    """+1, -1 or 0: whether a metric clearly rises or falls from centred to bridged."""
    change, low, high = _change(metrics, name, split)
    if change >= CLEAR[name] and low > 0:
        return 1
    return -1 if change <= -CLEAR[name] and high < 0 else 0


def collapse(metrics: Metrics) -> Advice | None:
    """A bridge that maps everything onto few texts raises cosines and closes the gap, and is worthless."""
    entropy, rank, spread, recall = (
        _states(metrics, name) for name in ("hit_entropy", "effective_rank", "spread", "recall@1")
    )
    snapped = entropy[1] < COLLAPSE_ENTROPY * entropy[0] or rank[1] < COLLAPSE_RANK * rank[0]
    if not (snapped or spread[1] < COLLAPSE_SPREAD * spread[0]) or recall[1] > recall[0]:
        return None
    return Advice(
        "collapse",
        f"The bridge collapses: predicted-class entropy {entropy[0]:.2f} → {entropy[1]:.2f}, effective rank "
        f"{rank[0]:.1f} → {rank[1]:.1f}, spread {spread[0]:.2f} → {spread[1]:.2f}, recall@1 {recall[0]:.2f} → "
        f"{recall[1]:.2f}. A smaller gap is no success here.",
        (
            "enter less deep (bridge.entry_step): from far out every point runs to the same texts",
            "learn more and more varied sentences (text_bank.captions); a few classes are learnt by heart",
            "compare with the closed form (variant prototype of notebook 04): if that collapses too, it is the depth",
        ),
    )


# ---------------------------------------------------------------- what explains it


def fooled_cosine(metrics: Metrics) -> Advice | None:
    """The label-free cosine rises more than the true class takes part in."""
    highest, true = _states(metrics, "max_cosine"), _states(metrics, "paired_cosine")
    if not highest[1] - highest[0] > 0 or true[1] - true[0] >= FOOLED * (highest[1] - highest[0]):
        return None
    percent = 100 * (highest[1] - highest[0]) / abs(highest[0])
    return Advice(
        "note",
        f"Points move to texts, not to their own: the mean max cosine rises {highest[0]:.2f} → {highest[1]:.2f} "
        f"({percent:+.0f} %, which a label-free report calls an improvement), the cosine to the true class only "
        f"{true[0]:.2f} → {true[1]:.2f}.",
        ("judge by recall and mAP, never by this cosine",),
    )


def better_baseline(metrics: Metrics) -> Advice | None:
    """A closed form, fitted on training pairs, does better than the bridge."""
    bridged = metrics.get("gap/bridged/recall@1", math.nan)
    names = [key.split("/")[1] for key in metrics if key.startswith("gap/baseline:") and key.endswith("/recall@1")]
    best = max(names, key=lambda name: metrics[f"gap/{name}/recall@1"], default="")
    if not best or not metrics[f"gap/{best}/recall@1"] - bridged >= BASELINE_LEAD:
        return None
    unseen = [metrics.get(f"gap/{state}/recall@1_unseen", math.nan) for state in (best, "bridged")]
    on_unseen = f" (unseen classes {unseen[0]:.3f} against {unseen[1]:.3f})" if all(map(math.isfinite, unseen)) else ""
    label = best.removeprefix("baseline:").replace("_", " ")
    return Advice(
        "note",
        f"The closed form '{label}', fitted on training pairs, reaches recall@1 {metrics[f'gap/{best}/recall@1']:.3f}, "
        f"the bridge {bridged:.3f}{on_unseen}: labelled pairs hold what a bridge trained on text alone cannot know.",
        ("put a linear layer or a cross-modal adapter trained on pairs before the bridge, or in its place",),
    )


def centring_did_it(metrics: Metrics) -> Advice | None:
    """Most of what closes the gap costs nothing."""
    before = metrics.get("gap/adapted/centroid_gap", metrics.get("gap/raw/centroid_gap", math.nan))
    centred, bridged = _states(metrics, "centroid_gap")
    if not (before > bridged and before - centred >= CENTRING_SHARE * (before - bridged)):
        return None
    return Advice(
        "note",
        f"Centring alone takes the centroid gap from {before:.2f} to {centred:.2f}, the bridge to {bridged:.2f}.",
        ("report centring as the baseline of every bridge",),
    )


def off_centre(metrics: Metrics) -> Advice | None:
    """Own-mean centring should leave next to nothing of the centroid gap."""
    left = _states(metrics, "centroid_gap")[0]
    if not left > OFF_CENTRE:
        return None
    return Advice(
        "note",
        f"Centring leaves a centroid gap of {left:.2f}: the means that are subtracted are not those of these pairs and "
        "class texts.",
        (
            "check that the text mean belongs to the adapted texts (text_bank/adapted), not to raw CLIP",
            "take the vision mean over images like the ones you test (data.validation_images)",
        ),
    )


def still_apart(metrics: Metrics) -> Advice | None:
    """A linear model still tells bridged vision from text."""
    left = _states(metrics, "separability_auc")[1]
    if not left >= STILL_APART:
        return None
    return Advice(
        "note",
        f"The gap is still open after the bridge: a linear model tells the modalities apart (AUC {left:.2f}).",
        ("enter deeper (bridge.entry_step)", "centre each modality by its own mean (bridge.center=own)"),
    )


def smoothed(metrics: Metrics) -> Advice | None:
    """Neighbourhoods dissolve although nothing is gained."""
    kept = _states(metrics, "neighbour_preservation")
    if not kept[0] - kept[1] >= SMOOTHED or turn(metrics, "recall@1") > 0:
        return None
    return Advice(
        "note",
        f"Over-smoothing: of a pair's nearest pairs centring keeps {kept[0]:.0%}, the bridge {kept[1]:.0%}, and the "
        "ranking gains nothing.",
        ("enter less deep (bridge.entry_step)",),
    )


def unseen_lose(metrics: Metrics) -> Advice | None:
    """Unseen classes pay for what seen ones get."""
    names = [name for name in CLEAR if turn(metrics, name, "unseen") < 0 <= turn(metrics, name, "seen")]
    if not names:
        return None
    return Advice(
        "note",
        f"Unseen classes lose while seen ones do not: {_told(metrics, names[0], 'unseen')}.",
        ("give the text bank sentences of the unseen verbs and objects (text_bank.captions)",),
    )


def wrong_space(metrics: Metrics) -> Advice | None:
    """The bridge was trained on other texts than the classifier's."""
    if not metrics.get("bridge/text_space_mismatch"):
        return None
    return Advice(
        "note",
        "The bridge was trained in another text space than the classifier's (allowed on purpose).",
        ("train bridge/adapted on this detector's own text: notebook 03",),
    )


def too_few(metrics: Metrics) -> Advice | None:
    """The interval of the deciding change is too wide to say much."""
    _, low, high = _change(metrics, "recall@1")
    if not high - low > WIDE:
        return None
    return Advice(
        "note",
        f"The interval of the recall change is {high - low:.3f} wide: too few pairs to tell small effects.",
        ("measure more pairs (analysis.max_pairs, analysis.metric_pairs)",),
    )


NOTES: tuple[Callable[[Metrics], Advice | None], ...] = (
    fooled_cosine, better_baseline, centring_did_it, off_centre, still_apart, smoothed, unseen_lose, wrong_space,
    too_few,
)  # fmt: skip


# ---------------------------------------------------------------- reading the flat metrics


def _states(metrics: Metrics, name: str) -> tuple[float, float]:
    return tuple(metrics.get(f"gap/{state}/{name}", math.nan) for state in ("centred", "bridged"))


def _change(metrics: Metrics, name: str, split: str = "all") -> tuple[float, float, float]:
    key = f"gap/change/{name}" + ("" if split == "all" else f"_{split}")
    return tuple(metrics.get(f"{key}{end}", math.nan) for end in ("", "_low", "_high"))


def _told(metrics: Metrics, name: str, split: str = "all") -> str:
    change, low, high = _change(metrics, name, split)
    label = {"recall@1": "recall@1", "class_map": "class mAP on true pairs"}[name]
    bounds = f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else ""
    return f"{label} {change:+.3f}{bounds}" if math.isfinite(change) else f"{label} unknown"
