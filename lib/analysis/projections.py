"""Two-dimensional views of text and vision: gap axis and PCA (exact), t-SNE, UMAP and AlignedUMAP.

    gap           x along the vector from the mean of vision to the mean of text, y the main axis of what is left: the
                  means of the two clouds lie exactly one centroid gap (L2M) apart
    pca           the plane of largest variance of all rows together
    tsne          openTSNE, fitted once on the texts and the vision rows of `fit_states`, which the others are then
                  placed into (`transform`), so that a new state does not change the picture of the old ones
    umap          umap-learn, one joint fit of every state
    aligned_umap  umap-learn's AlignedUMAP, one map a state (and a run or checkpoint), the same pair held together

Rows are L2-normalised first, so Euclidean distances order points as cosines do. Raw text (the companion of raw vision)
and centred text (of centred and bridged vision) both take part. Fits use at most `fit_pairs` pairs; the others are
placed into the finished map, so every row has coordinates.

Sources: van der Maaten & Hinton 2008 (t-SNE), Policar et al. 2024 (openTSNE), McInnes et al. 2018 (UMAP), Dadu et al.
2023 (AlignedUMAP); the gap vector: Liang et al. 2022, "Mind the Gap", §4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from sklearn.decomposition import PCA

from lib.analysis.embeddings import TEXT_STATES, EmbeddingTable, normalised

METHODS = ("gap", "pca", "tsne", "umap", "aligned_umap")
LABELS = {"gap": "gap axis", "pca": "PCA", "tsne": "t-SNE", "umap": "UMAP", "aligned_umap": "AlignedUMAP"}
CAVEAT = "Distances between islands mean nothing; neither do their sizes."
MIN_POINTS = 5  # below, neighbour graphs are meaningless
AXES = 50  # t-SNE and UMAP look for neighbours in the leading axes: nearly all variance, a fraction of the time
Say = Callable[[str], None]


def caveat(method: str) -> str:
    """The sentence that belongs under a projection."""
    if method == "gap":
        return "A linear view: along x the means of vision and text lie exactly one centroid gap apart."
    if method == "pca":
        return "A linear view: only what lies along two axes is seen."
    if method == "tsne":
        return f"{CAVEAT} States that were not fitted stand beside their nearest fitted points, however far those are."
    return CAVEAT


def project(
    table: EmbeddingTable,
    methods: Sequence[str] = METHODS[:4],
    *,
    seed: int = 0,
    perplexity: float = 30.0,
    neighbours: int = 15,
    fit_states: Sequence[str] = ("raw", "centred"),
    fit_pairs: int = 5000,
    progress: Say | None = None,
) -> EmbeddingTable:
    """The table (with its centred text) and columns `<method>_x`, `<method>_y`; parameters go to `info["projections"]`.

    perplexity, neighbours: cut to what the number of points allows; the value used is recorded.
    fit_states: vision states that t-SNE is fitted on, with all texts; the first state where the table has none of them.
    progress: called with a line as each method starts and as t-SNE goes on.
    The same table, seed, parameters and number of torch threads give the same coordinates on one machine.
    """
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise ValueError(f"projections: found methods {sorted(unknown)}, expected some of {list(METHODS)}")
    table = table.with_centred_text()
    if len(table) < MIN_POINTS:
        raise ValueError(f"projections: found {len(table)} points, expected at least {MIN_POINTS}")
    say = progress or (lambda _: None)
    x = normalised(table.vectors)
    fitted = _drawn(table, fit_pairs, seed)
    columns, parameters = {}, dict(table.info.get("projections", {}))
    for method in methods:
        say(f"{LABELS[method]} of {len(table)} points")
        if method == "gap":
            coordinates, used = _gap(table, x)
        elif method == "pca":
            coordinates, used = _pca(x)
        elif method == "tsne":
            chosen = fitted & _reference(table, fit_states)
            coordinates, used = _tsne(_reduced(x, chosen, seed), chosen, seed, perplexity, say)
            used["fitted_on"] = sorted(set(table.frame.loc[chosen, "state"]))
        elif method == "umap":
            coordinates, used = _umap(_reduced(x, fitted, seed), fitted, seed, neighbours)
        else:
            coordinates, used = _aligned(table, _reduced(x, fitted, seed), fitted, seed, neighbours)
        columns |= {f"{method}_x": coordinates[:, 0], f"{method}_y": coordinates[:, 1]}
        parameters[method] = {"seed": seed, "points": len(table), **used}
    frame = table.frame.assign(**{name: values.astype(np.float32) for name, values in columns.items()})
    return replace(table, frame=frame, info=table.info | {"projections": parameters})


def linear_coordinates(table: EmbeddingTable, method: str, vectors: np.ndarray, source: str = "") -> np.ndarray:
    """Where unit vectors [..., D] of the centred space lie in a linear projection of the table -> [..., 2].

    For rows that are not in the table, such as the steps of a bridge's trajectory. method: gap | pca.
    """
    used = table.info["projections"][method]
    if method == "pca":
        return (vectors - np.asarray(used["mean"])) @ np.asarray(used["axes"]).T
    return vectors @ np.asarray(used["axes"][source]).T


# ---------------------------------------------------------------- which rows a map is fitted on


def _drawn(table: EmbeddingTable, pairs: int, seed: int) -> np.ndarray:
    """[N] bool: all texts and at most `pairs` vision points, the same in every state and source."""
    vision = (table.frame["modality"] == "vision").to_numpy()
    points = np.sort(table.frame.loc[vision, "point"].unique())
    if len(points) > pairs:
        points = np.random.default_rng(seed).choice(points, pairs, replace=False)
    return ~vision | table.frame["point"].isin(points).to_numpy()


def _reference(table: EmbeddingTable, states: Sequence[str]) -> np.ndarray:
    """[N] bool: texts and the vision rows of `states` (the table's first state if it has none of them)."""
    chosen = [state for state in states if state in table.states] or table.states[:1]
    return table.frame["state"].isin([*TEXT_STATES, *chosen]).to_numpy()


def _reduced(x: np.ndarray, fitted: np.ndarray, seed: int) -> np.ndarray:
    """[N, at most AXES]: all rows along the leading axes of those that a map is fitted on."""
    return PCA(min(AXES, fitted.sum(), x.shape[1]), random_state=seed).fit(x[fitted]).transform(x)


# ---------------------------------------------------------------- exact, linear


def _gap(table: EmbeddingTable, x: np.ndarray) -> tuple[np.ndarray, dict]:
    """x: along the gap vector of the row's own space (a centred one takes that of the space it was centred from)."""
    along, rest, axes = np.zeros(len(x)), x.astype(np.float64), {}
    for name in table.sources:
        own = (table.frame["source"] == name).to_numpy()
        for states, axis, middle in _gap_spaces(table.source(name)):
            rows = own & table.frame["state"].isin(states).to_numpy()
            rest[rows] -= middle
            along[rows] = rest[rows] @ axis
            rest[rows] -= np.outer(along[rows], axis)
            axes[name] = axis  # the last space of a source is the centred one, whose middle is zero
    across = PCA(1, svd_solver="covariance_eigh").fit(rest)
    second = across.components_[0]
    parameters = {
        # the second without its part along the first: both coordinates are then products with a row
        "axes": {name: [axis.tolist(), (second - (second @ axis) * axis).tolist()] for name, axis in axes.items()},
        "variance_across": float(across.explained_variance_ratio_[0].round(4)),
    }
    return np.stack([along, rest @ second], axis=1), parameters


def _gap_spaces(table: EmbeddingTable) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """(states, unit gap axis [D], point half-way between the means [D]) of every space of one source, centred last."""

    def means(state: str) -> tuple[np.ndarray, np.ndarray]:
        return tuple(
            normalised(part.vectors).astype(np.float64).mean(0)
            for part in (table.select(state), table.texts_for(state))
        )

    spaces = []
    for state in table.states:
        if state in ("raw", "adapted"):
            v, t = means(state)
            spaces.append(([state, table.text_state(state)], _unit(t - v), (v + t) / 2))
    if not spaces:
        v, t = means(table.states[0])
        spaces.append(([], _unit(t - v), v))
    axis = spaces[-1][1]
    return [*spaces, (["centred", "bridged", "text_centred"], axis, np.zeros(len(axis)))]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _pca(x: np.ndarray) -> tuple[np.ndarray, dict]:
    model = PCA(2, svd_solver="covariance_eigh").fit(x.astype(np.float64))  # exact; scikit-learn fixes the signs
    parameters = {"mean": model.mean_.tolist(), "axes": model.components_.tolist()}
    return model.transform(x), parameters | {"explained_variance": model.explained_variance_ratio_.round(4).tolist()}


# ---------------------------------------------------------------- neighbour maps


def _tsne(x: np.ndarray, fitted: np.ndarray, seed: int, perplexity: float, say: Say) -> tuple[np.ndarray, dict]:
    from openTSNE import TSNE  # imported late: UMAP and openTSNE cost seconds that metrics alone need not pay

    from lib.analysis.tsne_gradient import SplineGradient

    perplexity = float(min(perplexity, (fitted.sum() - 1) / 3))
    model = TSNE(
        perplexity=perplexity,
        initialization="pca",
        neighbors="exact" if fitted.sum() <= 10_000 else "auto",
        negative_gradient_method=SplineGradient(),
        random_state=seed,
        n_jobs=torch.get_num_threads(),
        callbacks=lambda step, _error, _map: say(f"t-SNE, step {step} of a phase"),
        callbacks_every_iters=100,
    )
    found = model.fit(x[fitted])
    coordinates = np.zeros((len(x), 2))
    coordinates[fitted] = found
    if not fitted.all():
        say(f"t-SNE, placing {int((~fitted).sum())} more points")
        coordinates[~fitted] = found.transform(x[~fitted], perplexity=min(5.0, perplexity))
    return coordinates, {"perplexity": perplexity}


def _umap(x: np.ndarray, fitted: np.ndarray, seed: int, neighbours: int) -> tuple[np.ndarray, dict]:
    from umap import UMAP

    neighbours = int(min(neighbours, fitted.sum() - 1))
    model = UMAP(
        n_neighbors=neighbours,
        min_dist=0.1,
        # the spectral start needs more points than its eigenvectors can be computed from
        init="spectral" if fitted.sum() > 4 * neighbours else "random",
        random_state=seed,
        n_jobs=1,
    )
    coordinates = np.zeros((len(x), 2))
    coordinates[fitted] = model.fit_transform(x[fitted])
    if not fitted.all():
        coordinates[~fitted] = _beside(x[~fitted], x[fitted], coordinates[fitted])
    return coordinates, {"neighbours": neighbours, "min_dist": 0.1}


def _aligned(
    table: EmbeddingTable, x: np.ndarray, fitted: np.ndarray, seed: int, neighbours: int
) -> tuple[np.ndarray, dict]:
    """One map a (source, vision state) with the texts of its space, consecutive maps tied by their common points."""
    from umap import AlignedUMAP

    frame = table.frame
    slices = []
    for step, state in enumerate(table.states):
        # to and fro, so that consecutive maps share a state or a source
        for name in table.sources if step % 2 == 0 else table.sources[::-1]:
            inside = frame["state"].isin([state, table.text_state(state)]) & (frame["source"] == name)
            if (inside & (frame["modality"] == "vision")).any():
                slices.append(np.flatnonzero(inside.to_numpy() & fitted))
    points = [frame["modality"].str.cat(frame["point"].astype(str), sep=":").to_numpy()[rows] for rows in slices]
    coordinates, seen = np.zeros((len(x), 2)), np.zeros(len(x))
    neighbours = int(min(neighbours, min(map(len, slices)) - 1))
    if len(slices) == 1:
        return _umap(x, fitted, seed, neighbours)
    model = AlignedUMAP(n_neighbors=neighbours, min_dist=0.1, random_state=seed)
    maps = model.fit([x[rows] for rows in slices], relations=[_same(*two) for two in pairwise(points)]).embeddings_
    for rows, found in zip(slices, maps, strict=True):
        coordinates[rows] += found  # the texts of centred and bridged vision are in both maps: their mean
        seen[rows] += 1
    coordinates /= np.maximum(seen, 1)[:, None]
    for rows in _groups(table, seen == 0):
        anchors = np.flatnonzero(
            (seen > 0) & (frame[["source", "state"]] == frame.loc[rows[0], ["source", "state"]]).all(1)
        )
        coordinates[rows] = _beside(x[rows], x[anchors], coordinates[anchors])
    return coordinates, {"neighbours": neighbours, "min_dist": 0.1, "maps": len(slices)}


def _same(before: np.ndarray, after: np.ndarray) -> dict[int, int]:
    """Row of one slice -> row of the next, for the points that both have."""
    _, one, other = np.intersect1d(before, after, return_indices=True)
    return dict(zip(one.tolist(), other.tolist(), strict=True))


def _groups(table: EmbeddingTable, left: np.ndarray) -> list[np.ndarray]:
    """Rows of a mask [N], a list entry a (source, state)."""
    groups = table.frame[left].groupby(["source", "state"], sort=False).indices
    where = np.flatnonzero(left)
    return [where[rows] for rows in groups.values()]


def _beside(x: np.ndarray, anchors: np.ndarray, places: np.ndarray, k: int = 5) -> np.ndarray:
    """Where new rows [n, D] go in a finished map: the mean place of their k nearest anchors [A, D] -> [n, 2]."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(k, len(anchors))).fit(anchors).kneighbors(x, return_distance=False)
    return places[nearest].mean(1)
