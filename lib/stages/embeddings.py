"""The embedding table of a run: text, and test pairs raw, centred and bridged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from lib.analysis.embeddings import EmbeddingTable
from lib.analysis.gap_report import gap_changes, gap_report
from lib.analysis.projections import project
from lib.data.images import read_image
from lib.ezhoi.predict import BOXES_H, BOXES_O, PairTable
from lib.runs import Artifact, Run, atomic_write
from lib.settings import Config
from lib.stages import inputs
from lib.stages.bridging import load_bridge, workplace
from lib.stages.detector import load_ezhoi


def embeddings(cfg: Config, run: Run) -> Artifact:
    """Labelled test pairs in every vision state, every HOI sentence, and their projections."""
    parents = [run.existing(kind) for kind in ("pairs/test", "predictions/bridges", "bridge/adapted")]
    settings = {"analysis": cfg.analysis, "center": cfg.bridge.center}

    def make(folder: Path) -> dict:
        table = embedding_table(cfg, run, entry_step=parents[1].info["entry_step"])
        shown = table.sample(cfg.analysis.projection_pairs, cfg.analysis.seed)
        shown = project(
            shown, cfg.analysis.methods, seed=cfg.analysis.seed, perplexity=cfg.analysis.perplexity,
            neighbours=cfg.analysis.neighbours, progress=print,
        )  # fmt: skip
        table.save(folder)
        shown.save(folder / "projected")
        return {"points": len(table), "projected": len(shown)}

    return run.artifact("embeddings", settings, make, parents)


def embedding_table(cfg: Config, run: Run, entry_step: int) -> EmbeddingTable:
    """One row a point. Pairs without a label are left out; at most analysis.max_pairs pairs are kept."""
    data = inputs.dataset(cfg, run, "test")
    vocabulary, place = data.vocabulary, workplace(cfg, run)
    bridge, _ = load_bridge(cfg, run, "adapted", place)
    bridge = bridge.with_sampler(entry_step=entry_step)
    pairs = labelled_pairs(place.test, vocabulary.hoi_of)
    if len(pairs) > cfg.analysis.max_pairs:
        pairs = pairs.sample(cfg.analysis.max_pairs, random_state=cfg.analysis.seed).sort_index()
    pairs["point"] = [f"pair-{row}" for row in pairs.index]
    features = torch.from_numpy(place.test.features[pairs.index])
    hois = np.arange(vocabulary.num_hois)
    text = load_ezhoi(cfg, run).text.encode(vocabulary.class_sentences()).cpu()
    texts = pd.DataFrame(
        {"point": [f"text-{hoi}" for hoi in hois], "hoi_id": hois, "hoi_ids": [[h] for h in hois.tolist()]}
    )
    parts = [
        (texts, "text", text),
        (texts, "text_centred", bridge.geometry.text(text)),
        (pairs, "raw", features),
        (pairs, "centred", bridge.geometry.vision(features)),
        (pairs, "bridged", bridge(features)),
    ]
    frames = [
        rows.assign(state=state, modality="text" if state.startswith("text") else "vision") for rows, state, _ in parts
    ]
    frame = pd.concat(frames, ignore_index=True)
    verbs, objects = np.array(vocabulary.verbs), np.array(vocabulary.objects)
    frame["verb"] = verbs[vocabulary.hoi_verb[frame["hoi_id"]]]
    frame["object"] = objects[vocabulary.hoi_object[frame["hoi_id"]]]
    frame["hoi"] = frame["verb"] + " " + frame["object"]
    frame["unseen"] = frame["hoi_id"].isin(inputs.unseen(cfg, run))
    return EmbeddingTable(frame, torch.cat([vectors for *_, vectors in parts]).numpy())


def labelled_pairs(table: PairTable, hoi_of: np.ndarray) -> pd.DataFrame:
    """Pairs whose annotated verbs form an HOI with the detected object; `hoi_id` is the first, `hoi_ids` all of them.

    score: strength of the pair times the best verb's probability. correct: the best valid verb is annotated.
    """
    hois = hoi_of[table.frame["object"].to_numpy()]  # (N, C)
    labels = table.labels & (hois >= 0)
    kept = np.flatnonzero(labels.any(axis=1))
    logits = np.where(hois[kept] >= 0, table.logits[kept], -np.inf)
    best = logits.argmax(axis=1)
    frame = table.frame.iloc[kept][["image", *BOXES_H, *BOXES_O]].copy()
    frame.index = kept
    ids = [hois[row][labels[row]].tolist() for row in kept]
    probability = 1 / (1 + np.exp(-logits.max(axis=1)))
    return frame.assign(
        hoi_ids=ids,
        hoi_id=[several[0] for several in ids],
        score=table.frame["strength"].to_numpy()[kept] * probability,
        correct=labels[kept, best],
    )


def gap_numbers(cfg: Config, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gap report of the run's embedding table, and what bridging changes on the same pairs; computed once."""
    parent = run.existing("embeddings")

    def make(folder: Path) -> None:
        table = EmbeddingTable.load(parent.path)
        tables = {"report": gap_report(table, cfg.analysis)}
        tables["change"] = gap_changes(table, "centred", "bridged", cfg.analysis)
        for name, frame in tables.items():
            atomic_write(folder / f"{name}.parquet", lambda stream, frame=frame: frame.to_parquet(stream))

    folder = run.artifact("gap", {"analysis": cfg.analysis}, make, [parent]).path
    return pd.read_parquet(folder / "report.parquet"), pd.read_parquet(folder / "change.parquet")


def image_loader(cfg: Config, run: Run) -> Callable[[int], Image.Image]:
    """Image index of the embedding table -> test image, for the explorer."""
    data = inputs.dataset(cfg, run, "test")
    return lambda index: read_image(data[index].path).convert("RGB")
