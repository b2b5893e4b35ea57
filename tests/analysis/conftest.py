"""A synthetic embeddings table: two shifted cones of Gaussians with classes, and a bridge of known quality."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from lib.analysis.embeddings import BOXES_H, BOXES_O, EmbeddingTable, normalised

VERBS = ("ride", "hold", "sit on", "kick", "carry", "wash", "jump", "walk", "throw", "feed", "push", "no interaction")
OBJECTS = ("bicycle", "horse", "ball", "chair", "dog", "umbrella", "car", "bench")


def cones(pairs: int = 240, classes: int = 24, dim: int = 48, bridge: float = 0.5, seed: int = 0) -> EmbeddingTable:
    """Raw vision and text in cones about 0.8 apart; the bridge moves a centred point `bridge` of the way to its text.

    bridge = 1 maps every point onto its class text, a negative value pushes it away.
    """
    rng = np.random.default_rng(seed)
    verb = np.arange(classes) % len(VERBS)
    obj = (np.arange(classes) * 5 + np.arange(classes) // len(VERBS)) % len(OBJECTS)
    direction = 0.6 * rng.normal(size=(len(VERBS), dim))[verb] + 0.5 * rng.normal(size=(len(OBJECTS), dim))[obj]
    direction = normalised(direction + 0.4 * rng.normal(size=(classes, dim)))
    means = normalised(rng.normal(size=(2, dim)))
    text = normalised(0.7 * means[0] + 0.5 * direction)
    hoi = np.minimum(rng.geometric(1.6 / classes, size=pairs) - 1, classes - 1)
    raw = normalised(0.7 * means[1] + 0.5 * direction[hoi] + 0.9 * normalised(rng.normal(size=(pairs, dim))))
    centred = normalised(raw - raw.mean(0))
    text_centred = normalised(text - text.mean(0))
    bridged = normalised(centred + bridge * (text_centred[hoi] - centred))

    def frame(ids: np.ndarray, modality: str, state: str) -> pd.DataFrame:
        names = {"verb": [VERBS[i] for i in verb[ids]], "object": [OBJECTS[i] for i in obj[ids]]}
        return pd.DataFrame(
            {"point": np.arange(len(ids)), "modality": modality, "state": state, "hoi_id": ids, **names}
        ).assign(hoi=lambda f: f["verb"] + " " + f["object"], unseen=np.isin(verb[ids], (2, 6, 9)))

    scene = {"image": np.arange(pairs) // 2, "score": rng.uniform(0.1, 1, pairs)}
    corner = rng.uniform(5, 50, size=(pairs, 4))
    for first, names in zip((0, 2), (BOXES_H, BOXES_O), strict=True):
        box = np.concatenate([corner[:, first : first + 2], corner[:, first : first + 2] + 40], axis=1)
        scene |= dict(zip(names, box.T, strict=True))
    frames, vectors = [frame(np.arange(classes), "text", "text")], [text]
    for state, value in (("raw", raw), ("centred", centred), ("bridged", bridged)):
        correct = (value @ (text if state == "raw" else text_centred).T).argmax(1) == hoi
        frames.append(frame(hoi, "vision", state).assign(correct=correct, **scene))
        vectors.append(value)
    return EmbeddingTable(pd.concat(frames, ignore_index=True), np.concatenate(vectors))


@pytest.fixture
def make_table() -> Callable[..., EmbeddingTable]:
    return cones
