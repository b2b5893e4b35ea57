"""PCA, t-SNE and UMAP of text and vision, fitted once on all states together.

One joint fit, not a fit on a reference state with the others transformed into it: `transform` places each new point at
its neighbours among the reference points, so a state that stays far from the text could never be seen to do so. In a
joint fit every state has the same say, all panels share one pair of axes, and an arrow from a pair's `centred` to its
`bridged` point is a movement in one picture. The price: adding a state changes the picture of the others.

Rows are L2-normalised first, so Euclidean distances order points as cosines do. Both raw text (the companion of raw
vision) and centred text (of centred and bridged vision) take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from sklearn.decomposition import PCA

from lib.analysis.embeddings import EmbeddingTable, normalised

METHODS = ("pca", "tsne", "umap")
LABELS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
CAVEAT = "Distances between islands mean nothing; neither do their sizes."
MIN_POINTS = 5  # below, neighbour graphs are meaningless


def caveat(method: str) -> str:
    """The sentence that belongs under a projection."""
    return CAVEAT if method in ("tsne", "umap") else "A linear view: only what lies along two axes is seen."


def project(
    table: EmbeddingTable,
    methods: Sequence[str] = METHODS,
    *,
    seed: int = 0,
    perplexity: float = 30.0,
    neighbours: int = 15,
    progress: Callable[[str], None] | None = None,
) -> EmbeddingTable:
    """The table (with its centred text) and columns `<method>_x`, `<method>_y`; parameters go to `info["projections"]`.

    perplexity, neighbours: cut to what the number of points allows; the value used is recorded.
    progress: called with one line as each method starts.
    The same table, seed and parameters give the same coordinates on one machine.
    """
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise ValueError(f"projections: found methods {sorted(unknown)}, expected some of {list(METHODS)}")
    table = table.with_centred_text()
    if len(table) < MIN_POINTS:
        raise ValueError(f"projections: found {len(table)} points, expected at least {MIN_POINTS}")
    x = normalised(table.vectors)
    # t-SNE and UMAP look for neighbours in the leading 50 axes: nearly all variance, a fraction of the time
    reduced = PCA(min(50, *x.shape), random_state=seed).fit_transform(x) if {"tsne", "umap"} & set(methods) else x
    columns, parameters = {}, dict(table.info.get("projections", {}))
    for method in methods:
        if progress:
            progress(f"{LABELS[method]} of {len(table)} points")
        if method == "pca":
            coordinates, used = _pca(x)
        elif method == "tsne":
            coordinates, used = _tsne(reduced, seed, perplexity)
        else:
            coordinates, used = _umap(reduced, seed, neighbours)
        columns |= {f"{method}_x": coordinates[:, 0], f"{method}_y": coordinates[:, 1]}
        parameters[method] = {"seed": seed, "points": len(table), **used}
    frame = table.frame.assign(**{name: values.astype(np.float32) for name, values in columns.items()})
    return replace(table, frame=frame, info=table.info | {"projections": parameters})


def _pca(x: np.ndarray) -> tuple[np.ndarray, dict]:
    model = PCA(2, svd_solver="full").fit(x)  # exact; scikit-learn fixes the signs
    return model.transform(x), {"explained_variance": model.explained_variance_ratio_.round(4).tolist()}


def _tsne(x: np.ndarray, seed: int, perplexity: float) -> tuple[np.ndarray, dict]:
    from openTSNE import TSNE  # imported late: UMAP and openTSNE cost seconds that metrics alone need not pay

    perplexity = float(min(perplexity, (len(x) - 1) / 3))
    model = TSNE(
        perplexity=perplexity,
        initialization="pca",
        neighbors="exact" if len(x) <= 10_000 else "auto",
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(model.fit(x)), {"perplexity": perplexity}


def _umap(x: np.ndarray, seed: int, neighbours: int) -> tuple[np.ndarray, dict]:
    from umap import UMAP

    neighbours = int(min(neighbours, len(x) - 1))
    model = UMAP(
        n_neighbors=neighbours,
        min_dist=0.1,
        # the spectral start needs more points than its eigenvectors can be computed from
        init="spectral" if len(x) > 4 * neighbours else "random",
        random_state=seed,
        n_jobs=1,
    )
    return model.fit_transform(x), {"neighbours": neighbours, "min_dist": 0.1}
