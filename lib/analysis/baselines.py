"""Closed-form ways to bring vision to text, so that a bridge is judged by more than what costs nothing.

    baselines = fit_baselines(training_features, class_texts, truth)
    vision, texts = baselines["ridge"](features, class_texts)

Each is fitted on labelled *training* pairs (v_i, t_i), t_i the text of the pair's classes, and then applied to
any vision rows and class texts:

    identity             nothing
    shared_centring      the mean of both modalities together is subtracted from both: the gap stays
    modality_centring    each modality's own mean is subtracted (what the bridge starts from; spec §1.1)
    mean_shift           vision is moved by the gap vector, text stays (Liang et al. 2022, §4)
    whitening            each modality centred and whitened by its own shrunk covariance (Ledoit & Wolf 2004)
    orthogonal           centred vision turned onto centred text (Procrustes: Schönemann 1966)
    ridge                centred text predicted from centred vision, leave-one-out weight (Hoerl & Kennard 1970)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeCV

from lib.analysis.embeddings import normalised

# raw or unit vision rows [N, D], class texts [K, D] -> both in one space, unit rows
Baseline = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Map = Callable[[np.ndarray], np.ndarray]
ALPHAS = np.logspace(-3, 3, 13)  # ridge weights tried, for unit rows


def fit_baselines(vision: np.ndarray, texts: np.ndarray, truth: np.ndarray) -> dict[str, Baseline]:
    """Every baseline, fitted on training pairs: vision [n, D], class texts [K, D], truth [n, K] bool.

    Raises ValueError for fewer than two pairs or a pair without a class.
    """
    if len(vision) < 2 or not truth.any(1).all():
        raise ValueError(
            f"baselines: found {len(vision)} training pairs, {int((~truth.any(1)).sum())} of them without a class; "
            "expected at least two, all labelled"
        )
    v, class_texts = normalised(vision).astype(np.float64), normalised(texts).astype(np.float64)
    t = normalised(truth @ class_texts).astype(np.float64)  # (n, D)
    # the mean of the class texts, each once: an unseen class is no less a text than a frequent one
    mean_v, mean_t = v.mean(0), class_texts.mean(0)
    centred_v, centred_t = normalised(v - mean_v), normalised(t - mean_t)
    turn = orthogonal_procrustes(centred_v, centred_t)[0]
    ridge = RidgeCV(ALPHAS, fit_intercept=False).fit(centred_v, centred_t)
    own_v, own_t = (lambda x: normalised(x - mean_v)), (lambda x: normalised(x - mean_t))
    shared = (mean_v + mean_t) / 2
    return {
        "identity": _of(lambda x: x, lambda x: x),
        "shared_centring": _of(lambda x: x - shared, lambda x: x - shared),
        "modality_centring": _of(own_v, own_t),
        "mean_shift": _of(lambda x: x + (mean_t - mean_v), lambda x: x),
        "whitening": _of(_whitening(v), _whitening(class_texts)),
        "orthogonal": _of(lambda x: own_v(x) @ turn, own_t),
        "ridge": _of(lambda x: ridge.predict(own_v(x)), own_t),
    }


def _of(vision: Map, text: Map) -> Baseline:
    return lambda v, t: (normalised(vision(normalised(v))), normalised(text(normalised(t))))


def _whitening(rows: np.ndarray) -> Map:
    """x -> C^-1/2 (x - mean), C the shrunk covariance of the rows."""
    values, vectors = np.linalg.eigh(ledoit_wolf(rows)[0])
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-9))) @ vectors.T
    mean = rows.mean(0)
    return lambda x: (x - mean) @ whiten
