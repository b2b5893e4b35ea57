"""Settings of the embedding analysis."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AnalysisSettings:
    """What is measured and drawn, and with how many points (OmegaConf-compatible types only)."""

    max_pairs: int = 2000  # pairs kept for the metrics, drawn with `seed`; the same pairs in every state
    projection_pairs: int = 800  # pairs kept for the projections; every state of a pair is one point
    methods: list[str] = field(default_factory=lambda: ["pca", "tsne", "umap"])  # projections to compute
    perplexity: float = 30.0  # t-SNE: effective number of neighbours of a point
    neighbours: int = 15  # UMAP: neighbours that define local structure
    knn: int = 10  # neighbours in the modality purity
    folds: int = 5  # cross-validation folds of the linear separability
    bootstrap: int = 300  # resamples behind every 95 % interval; 0 leaves the intervals out
    seed: int = 0  # seeds the choice of pairs, the resamples and the projections
