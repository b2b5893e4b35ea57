"""The embedding table of a run: class texts, and labelled pairs before and after every step towards them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

from lib.analysis.embeddings import EmbeddingTable, compare
from lib.analysis.movement import trajectory_frame
from lib.analysis.neighbours import outcome_columns, with_neighbours
from lib.analysis.projections import project
from lib.bridge.bundle import Bridge
from lib.bridge.geometry import normalise
from lib.bridge.samplers import trajectory
from lib.bridge.scoring import class_cosines
from lib.clip.text import encode_text
from lib.data.dataset import HoiDataset
from lib.ezhoi.frozen_clip import PairClassifier, region_features
from lib.ezhoi.predict import BOXES_H, BOXES_O, PairTable
from lib.runs import Artifact, Run, atomic_write
from lib.settings import Config
from lib.stages import inputs
from lib.stages.bridging import Workplace, class_cosines_of, fit_on_seen, load_bridge, workplace
from lib.stages.detector import classes_of, load_ezhoi, new_model
from lib.stages.extraction import chosen_pairs, extract_pairs

# settings that shape the table; the others only shape the numbers (`lib.stages.gap`)
SHAPING = (
    "images", "max_pairs", "raw", "top", "methods", "projection_pairs", "tsne_states", "perplexity", "neighbours",
    "trajectory_pairs", "seed",
)  # fmt: skip


def embeddings(cfg: Config, run: Run) -> Artifact:
    """Labelled pairs in every vision state, every HOI sentence, their projections, and the bridge's way by step."""
    wanted = cfg.analysis
    kinds = ("pairs/test", "pairs/fit", "predictions/bridges", "bridge/adapted")
    parents = [run.existing(kind) for kind in kinds]
    settings = {"analysis": {name: getattr(wanted, name) for name in SHAPING}, "center": cfg.bridge.center}

    def make(folder: Path) -> dict:
        place = workplace(cfg, run)
        bridge = headline_bridge(cfg, run, place)
        table = embedding_table(cfg, run, place, bridge)
        table = project(
            table, list(wanted.methods), seed=wanted.seed, perplexity=wanted.perplexity, neighbours=wanted.neighbours,
            fit_states=wanted.tsne_states, fit_pairs=wanted.projection_pairs, progress=print,
        )  # fmt: skip
        table = outcome_columns(with_neighbours(table, wanted.top))
        table.save(folder)
        way = trajectory_table(table, bridge, wanted.trajectory_pairs, wanted.seed)
        atomic_write(folder / "trajectory.parquet", lambda stream: way.to_parquet(stream))
        return {
            "points": len(table),
            "states": table.states,
            "pairs": int(table.select(table.states[0]).frame.shape[0]),
        }

    return run.artifact("embeddings", settings, make, parents)


def headline_bridge(cfg: Config, run: Run, place: Workplace) -> Bridge:
    """The matching bridge, entered where notebook 04 chose to."""
    depth = run.existing("predictions/bridges").info["entry_step"]
    return load_bridge(cfg, run, "adapted", place)[0].with_sampler(entry_step=depth)


def embedding_table(cfg: Config, run: Run, place: Workplace, bridge: Bridge) -> EmbeddingTable:
    """One row a point. Pairs without a label are left out; at most analysis.max_pairs pairs are kept."""
    pairs, data = chosen_pairs(cfg, run)
    vocabulary, classes = data.vocabulary, classes_of(cfg, data)
    frame = kept_pairs(cfg, pairs, classes.hoi_of)
    features = torch.from_numpy(pairs.features[frame.index])
    clip, sentences = inputs.clip_model(cfg, run), vocabulary.class_sentences()
    text = load_ezhoi(cfg, run).text.encode(sentences).cpu()
    texts, logits = class_rows(data), torch.from_numpy(pairs.logits[frame.index])
    parts = [
        Part(texts, "text", text),
        Part(texts, "text_centred", bridge.geometry.text(text)),
        Part(frame, "adapted", features, Scorer(logits, classes.hoi_of)),
    ]
    for state, move in (("centred", bridge.geometry.vision), ("bridged", bridge)):
        blended = blended_logits(place, bridge, moved := move(features), logits, centring_only=state == "centred")
        parts.append(Part(frame, state, moved, Scorer(blended, classes.hoi_of)))
    if cfg.analysis.raw:
        regions = torch.from_numpy(region_features(clip, data, frame, cfg.clip.batch_size))
        logits = torch.from_numpy(PairClassifier(clip, vocabulary)(regions, frame["object_id"].to_numpy()))
        parts += [
            Part(texts, "text_raw", encode_text(clip, sentences).cpu()),
            Part(frame, "raw", regions, Scorer(logits, vocabulary.hoi_of)),
        ]
    info = {"images": cfg.analysis.images, "entry_step": bridge.entry_step, "num_steps": bridge.num_steps}
    return joined(cfg, run, parts, data, info)


def checkpoint_table(cfg: Config, run: Run, weights: Mapping[str, Path | str]) -> EmbeddingTable:
    """Several checkpoints of the detector on the same pairs as one table: `source` = their names (see `compare`).

    weights: folders of saved EZ-HOI weights, `runs/other/ezhoi` for instance; detections and images are the run's, at
    most analysis.max_pairs images of `analysis.images` (test, otherwise train). States: adapted, text, and both
    centred by their own means. `projections.project` with aligned_umap shows them in one picture.
    """
    split = "test" if cfg.analysis.images == "test" else "train"
    data, rng = inputs.dataset(cfg, run, split), np.random.default_rng(cfg.analysis.seed)
    images = np.sort(rng.permutation(len(data))[: cfg.analysis.max_pairs])
    classes, tables = classes_of(cfg, data), {}
    for name, folder in weights.items():
        model = new_model(cfg, run, inputs.dataset(cfg, run, "train"), folder).eval()
        pairs = extract_pairs(cfg, run, split, images, model)[0]
        frame = kept_pairs(cfg, pairs, classes.hoi_of)
        features, logits = (torch.from_numpy(values[frame.index]) for values in (pairs.features, pairs.logits))
        unit, scorer = normalise(features), Scorer(logits, classes.hoi_of)
        parts = [
            Part(class_rows(data), "text", model.text.encode(data.vocabulary.class_sentences()).detach().cpu()),
            Part(frame, "adapted", features, scorer),
            Part(frame, "centred", normalise(unit - unit.mean(0)), scorer),
        ]
        tables[name] = joined(cfg, run, parts, data, {"images": split, "weights": str(folder)})
    return compare(tables)


def joined(cfg: Config, run: Run, parts: Sequence[Part], data: HoiDataset, info: dict) -> EmbeddingTable:
    """The rows of all parts as one table, with names, sentences and groups of their classes."""
    vocabulary = data.vocabulary
    names = np.array([vocabulary.hoi_name(hoi) for hoi in range(vocabulary.num_hois)])
    rows = [part.rows(names, cfg.analysis.top, cfg.ezhoi.prior_power) for part in parts]
    table = pd.concat(rows, ignore_index=True)
    hoi = table["hoi_id"]
    table["verb"] = np.array(vocabulary.verbs)[vocabulary.hoi_verb[hoi]]
    table["object"] = np.array(vocabulary.objects)[vocabulary.hoi_object[hoi]]
    table["hoi"], table["sentence"] = names[hoi], np.array(vocabulary.class_sentences())[hoi]
    table["hois"] = [" / ".join(names[ids]) for ids in table["hoi_ids"]]
    table["unseen"] = hoi.isin(inputs.unseen(cfg, run))
    table["rare"] = hoi.isin(inputs.dataset(cfg, run, "train").rare())
    table["split"] = np.where(table["modality"] == "vision", data.split, "")
    return EmbeddingTable(table, torch.cat([part.vectors for part in parts]).cpu().numpy(), info)


def class_rows(data: HoiDataset) -> pd.DataFrame:
    """A row a class sentence."""
    hois = range(data.vocabulary.num_hois)
    return pd.DataFrame({"hoi_id": hois, "point": [f"text-{hoi}" for hoi in hois], "hoi_ids": [[hoi] for hoi in hois]})


def kept_pairs(cfg: Config, pairs: PairTable, hoi_of: np.ndarray) -> pd.DataFrame:
    """`labelled_pairs`, at most analysis.max_pairs of them, drawn with analysis.seed."""
    frame = labelled_pairs(pairs, hoi_of)
    if len(frame) > cfg.analysis.max_pairs:
        frame = frame.sample(cfg.analysis.max_pairs, random_state=cfg.analysis.seed).sort_index()
    return frame


def labelled_pairs(table: PairTable, hoi_of: np.ndarray) -> pd.DataFrame:
    """Pairs whose annotated classes form an HOI with the detected object; `hoi_id` is the first, `hoi_ids` all of them.

    The index counts in the pair table. `point` names the image and the pair in it: the same for every detector that
    was shown the same boxes.
    """
    hois = hoi_of[table.frame["object"].to_numpy()]  # (N, C)
    labels = table.labels & (hois >= 0)
    kept = np.flatnonzero(labels.any(axis=1))
    image = table.frame["image"]
    names = image.astype(str) + "-" + table.frame.groupby("image").cumcount().astype(str)
    frame = table.frame.iloc[kept][["image", "object", "strength", *BOXES_H, *BOXES_O]].set_axis(kept)
    frame = frame.rename(columns={"object": "object_id"})
    ids = [hois[row][labels[row]].tolist() for row in kept]
    return frame.assign(point="pair-" + names.to_numpy()[kept], hoi_ids=ids, hoi_id=[several[0] for several in ids])


# ---------------------------------------------------------------- scores beside the points


@dataclass
class Scorer:
    """Logits [n, C] of pairs, and the HOI that each class means on an object [objects, C] (-1: none)."""

    logits: Tensor
    hoi_of: np.ndarray


@dataclass
class Part:
    """Rows of one state: their frame, vectors [n, D], and who scores them (texts: nobody)."""

    frame: pd.DataFrame
    state: str
    vectors: Tensor
    scorer: Scorer | None = None

    def rows(self, names: np.ndarray, top: int, power: float) -> pd.DataFrame:
        """The frame with `state`, `modality` and, for pairs, `top5`, `top5_score`, `score`, `correct` of the scorer."""
        frame = self.frame.assign(state=self.state, modality="vision" if self.scorer else "text")
        if self.scorer is None:
            return frame.assign(top5=[[]] * len(frame), top5_score=[[]] * len(frame))
        hois, scores = _best(self.scorer, frame, top, power)  # (n, top)
        known = hois >= 0
        own = [best in several for best, several in zip(hois[:, 0], frame["hoi_ids"], strict=True)]
        return frame.assign(
            top5=[names[line[good]].tolist() for line, good in zip(hois, known, strict=True)],
            top5_score=[line[good].round(4).tolist() for line, good in zip(scores, known, strict=True)],
            score=scores[:, 0],
            correct=own,
        )


def _best(scorer: Scorer, frame: pd.DataFrame, top: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """The `top` HOIs [n, top] (-1 where the object has fewer) and their scores, sigmoid times strength^power."""
    hois = scorer.hoi_of[frame["object_id"].to_numpy()]  # (n, C)
    logits = np.where(hois >= 0, scorer.logits.numpy(), -np.inf)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(logits, order, 1)
    scores = frame["strength"].to_numpy()[:, None] ** power * expit(best)
    return np.where(np.isfinite(best), np.take_along_axis(hois, order, 1), -1), scores


def blended_logits(place: Workplace, bridge: Bridge, moved: Tensor, logits: Tensor, *, centring_only: bool) -> Tensor:
    """The detector's logits [n, C] blended, as fitted on the fit pairs, with cosines of its moved features [n, D]."""
    blend = fit_on_seen(place, class_cosines_of(place, place.fit, bridge, centring_only=centring_only))
    return blend(logits, class_cosines(moved, place.rows["adapted"], place.row_classes, bridge.geometry))


# ---------------------------------------------------------------- the way through the bridge


@torch.no_grad()
def bridge_path(bridge: Bridge, centred: Tensor) -> tuple[list[int], np.ndarray]:
    """Timesteps [S] and unit states [S + 1, n, D] on the way of centred features [n, D]: where they enter, where each
    further evaluation begins, and what comes out."""
    settings = {"entry_step": bridge.entry_step, "num_steps": bridge.num_steps, "solver": bridge.solver}
    settings |= {"last_step": bridge.last_step, "scale": bridge.geometry.scale}
    timesteps, states, predictions = trajectory(bridge.denoiser, centred.to(bridge.device), bridge.schedule, **settings)
    return timesteps, normalise(torch.cat([states, predictions[-1:]])).cpu().numpy()


def trajectory_table(table: EmbeddingTable, bridge: Bridge, pairs: int, seed: int) -> pd.DataFrame:
    """The steps of at most `pairs` pairs through the bridge (see `movement.trajectory_frame`)."""
    centred = table.sample(pairs, seed).select("centred")
    timesteps, path = bridge_path(bridge, torch.from_numpy(centred.vectors))
    return trajectory_frame(table, centred.frame, timesteps, path)
