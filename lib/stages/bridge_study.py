"""What notebooks 03 and 04 ask beside one number a variant: what was learnt, how sure that is, what is lost.

nearest_texts        which texts do samples of the diffusion resemble?
against_closed_form  how much of the text does it know by heart?
validation_grid      entry step x evaluations x centring x radius, blended; judged on validation pairs, no test image
intervals            mAP of every variant, and its difference to the detector, with 95 % intervals over images
second_labels        pairs with two true classes: are both still there after the bridge?
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.bridge.bundle import Bridge
from lib.bridge.geometry import modality_mean, normalise
from lib.bridge.samplers import sample
from lib.bridge.scoring import class_cosines
from lib.bridge.text_bank import TextBank
from lib.bridge.training import closed_form_bridge
from lib.engine.progress import Progress
from lib.evaluation.bootstrap import group_means, image_draws, interval, resampled_ap
from lib.evaluation.hico_det import class_groups
from lib.ezhoi.predict import PairTable
from lib.runs import Run, atomic_write
from lib.settings import Config
from lib.stages import inputs
from lib.stages.bridging import HEADLINE, Workplace, class_cosines_of, fit_on_seen, load_bridge, workplace
from lib.stages.detector import evaluation

# ---------------------------------------------------------------- notebook 03


def nearest_texts(cfg: Config, run: Run, kind: str, count: int = 8) -> pd.DataFrame:
    """Sentences of the bank nearest to samples walked from pure noise: does the denoiser know the text?"""
    bank, bridge = (
        TextBank.load(run.existing(f"text_bank/{kind}").path),
        Bridge.load(run.existing(f"bridge/{kind}").path),
    )
    noise = normalise(torch.randn(count, bank.dim, generator=torch.Generator().manual_seed(cfg.seed)))
    settings = {"entry_step": len(bridge.schedule), "num_steps": 20, "solver": bridge.solver}
    samples = normalise(
        sample(bridge.denoiser, noise, bridge.schedule, last_step=0, scale=bridge.geometry.scale, **settings)
    )
    texts = bridge.geometry.text(bank.vectors)
    before, (after, nearest) = (noise @ texts.T).amax(dim=1), (samples @ texts.T).max(dim=1)
    columns = {
        "nearest text": [bank.labels[i] for i in nearest.tolist()],
        "cosine": after,
        "cosine of the noise": before,
    }
    return pd.DataFrame(columns)


def against_closed_form(cfg: Config, run: Run, kind: str = "adapted", count: int = 512) -> pd.DataFrame:
    """How much of the text has the denoiser learnt by heart? The trained bridge beside the closed-form optimum.

    Both carry the same `count` fit pairs. One row a denoiser: cosine to the nearest text of the bank, share of pairs
    that land on one (cosine above 0.99), and cosine to where the closed form takes the same pair. A network that
    repeats its texts behaves as the closed form does.
    """
    bank = TextBank.load(run.existing(f"text_bank/{kind}").path)
    features = torch.from_numpy(PairTable.load(run.existing("pairs/fit").path).features)
    mean = modality_mean(features)
    closed = closed_form_bridge(bank, cfg.bridge).with_vision_mean(mean)
    trained = Bridge.load(run.existing(f"bridge/{kind}").path).with_vision_mean(mean).with_center(cfg.bridge.center)
    optimum, texts = closed(features[:count]), closed.geometry.text(bank.vectors)
    rows = []
    for name, moved in (("trained", trained(features[:count])), ("closed form", optimum)):
        nearest = (moved @ texts.T).amax(dim=1)
        row = {"nearest text": nearest, "on a text": nearest > 0.99, "cosine to closed form": (moved * optimum).sum(1)}
        rows.append({"denoiser": name} | {key: float(value.float().mean()) for key, value in row.items()})
    return pd.DataFrame(rows).set_index("denoiser")


# ---------------------------------------------------------------- notebook 04


def validation_grid(cfg: Config, run: Run) -> pd.DataFrame:
    """Fitted blend of the matching bridge under every combination of settings, on seen pairs of validation images.

    One row a combination: center, scale (radius walked / radius learnt), entry_step, num_steps (0: features centred,
    not bridged), weight and fit_loss of the blend, gain = loss of the detector alone less fit_loss, and alone_loss,
    that of the cosine without the detector's logit. Kept as the artefact `bridge_grid`.
    """
    grid = {name: getattr(cfg.evaluation, name) for name in ("centers", "scales", "entry_steps", "step_budgets")}
    settings = {"grid": grid, "sampler": {name: getattr(cfg.bridge, name) for name in ("solver", "last_step")}}
    combinations = [
        (center, scale, depth, min(steps, depth))
        for center, scale, depth, steps in itertools.product(*grid.values())
        if steps <= depth or steps == min(grid["step_budgets"])
    ]

    def make(folder: Path) -> dict:
        place = workplace(cfg, run)
        matching, _ = load_bridge(cfg, run, "adapted", place)
        rows = []
        with Progress("validation grid", len(grid["centers"]) + len(combinations)) as progress:
            for center in grid["centers"]:
                rows.append(_fitted(place, matching.with_center(center), centring_only=True))
                progress.step()
            for center, scale, depth, steps in combinations:
                bridge = matching.with_center(center).with_sampler(entry_step=depth, num_steps=steps)
                rows.append(_fitted(place, _at_radius(bridge, scale)) | {"scale": scale})
                progress.step()
        table = pd.DataFrame(rows)
        atomic_write(folder / "grid.parquet", lambda stream: table.to_parquet(stream))
        return {"combinations": len(table)}

    artifact = run.artifact("bridge_grid", settings, make, [run.existing("pairs/fit"), run.existing("bridge/adapted")])
    return pd.read_parquet(artifact.path / "grid.parquet")


def _at_radius(bridge: Bridge, factor: float) -> Bridge:
    """The bridge walked on a sphere that is `factor` times the one its network learnt."""
    return replace(bridge, geometry=replace(bridge.geometry, scale=factor * bridge.geometry.scale))


def _fitted(place: Workplace, bridge: Bridge, centring_only: bool = False) -> dict:
    cosines = class_cosines_of(place, place.fit, bridge, centring_only=centring_only)
    blend, alone = fit_on_seen(place, cosines), fit_on_seen(place, cosines, alone=True)
    steps = (0, 0) if centring_only else (bridge.entry_step, bridge.num_steps)
    return {
        "center": bridge.geometry.center, "scale": 1.0, "entry_step": steps[0], "num_steps": steps[1],
        "weight": blend.weight, "fit_loss": blend.loss, "gain": blend.loss_unblended - blend.loss,
        "alone_loss": alone.loss,
    }  # fmt: skip


def intervals(cfg: Config, run: Run, names: tuple[str, ...] = HEADLINE) -> pd.DataFrame:
    """mAP of every variant and group of classes with its 95 % interval over test images, and against the detector.

    One row a (variant, group): classes (how many), mAP, low, high; difference to `ezhoi`, difference_low,
    difference_high (all in points; nan for `ezhoi` itself) and, in a word, what that interval says.
    names: variants of notebook 04; `ezhoi` comes first. Kept as the artefact `bridge_intervals`.
    """
    names = ("ezhoi", *(name for name in names if name != "ezhoi"))
    compared = run.existing("predictions/bridges")

    def make(folder: Path) -> dict:
        data = inputs.dataset(cfg, run, "test")
        unseen, rare = inputs.unseen(cfg, run), inputs.dataset(cfg, run, "train").rare().tolist()
        draws = image_draws(len(data.images), cfg.evaluation.bootstrap, cfg.seed)
        rows = []
        with Progress("intervals", len(names)) as progress:
            for name in names:
                predictions = pd.read_parquet(compared.path / f"{name}.parquet")
                result = evaluation(cfg, run, predictions)
                groups = class_groups(result, unseen or None, rare)
                means = group_means(resampled_ap(predictions, result, data.truth(), draws), groups)
                if name == "ezhoi":
                    own = {group: (result.ap[members], means[group]) for group, members in groups.items()}
                for group, members in groups.items():
                    if members.any():
                        rows.append(_interval_row(name, group, result.ap[members], means[group], *own[group]))
                progress.step()
        table = pd.DataFrame(rows)
        atomic_write(folder / "intervals.parquet", lambda stream: table.to_parquet(stream))
        return {"draws": len(draws)}

    settings = {"draws": cfg.evaluation.bootstrap, "seed": cfg.seed, "names": list(names)}
    artifact = run.artifact("bridge_intervals", settings, make, [compared])
    return pd.read_parquet(artifact.path / "intervals.parquet")


def _interval_row(
    name: str, group: str, ap: np.ndarray, drawn: np.ndarray, own_ap: np.ndarray, own_drawn: np.ndarray
) -> dict:
    low, high = interval(drawn, 100 * ap.mean())
    row = {"variant": name, "group": group, "classes": len(ap), "mAP": 100 * ap.mean(), "low": low, "high": high}
    if name == "ezhoi":
        return row | {"difference": np.nan, "difference_low": np.nan, "difference_high": np.nan, "verdict": ""}
    difference = 100 * (ap.mean() - own_ap.mean())
    low, high = interval(drawn - own_drawn, difference)
    verdict = "helps" if low > 0 else "hurts" if high < 0 else "no difference"
    return row | {"difference": difference, "difference_low": low, "difference_high": high, "verdict": verdict}


def second_labels(cfg: Config, run: Run) -> pd.DataFrame:
    """Does the bridge erase the second of two true classes (multi-label collapse, spec diffusion-bridge.md §1.4)?

    Test pairs with at least two true classes, ranked by cosine alone. One row a way of moving them (centred, then the
    matching bridge and the closed form at every entry step): both_on_top (share of pairs whose two best classes are
    true), second_rank (median rank of the second-best true class, 1 is best), first_rank, pairs.
    """
    place = workplace(cfg, run)
    rows = np.flatnonzero(place.test.labels.sum(1) >= 2)
    labels = torch.from_numpy(place.test.labels[rows]) > 0  # (M, C)
    features = torch.from_numpy(place.test.features[rows])
    found = []
    for kind, label in (("adapted", "trained"), ("prototype", "closed form")):
        bridge, _ = load_bridge(cfg, run, kind, place)
        moved = [(0, bridge.geometry.vision(features))]
        moved += [(depth, bridge.with_sampler(entry_step=depth)(features)) for depth in cfg.evaluation.entry_steps]
        for depth, vectors in moved:
            cosines = class_cosines(vectors, place.rows["adapted"], place.row_classes, bridge.geometry)
            found.append({"denoiser": label, "entry_step": depth} | label_ranks(cosines, labels))
    return pd.DataFrame(found)


def label_ranks(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Ranks of the true classes; scores [M, C], labels [M, C] bool with at least two true classes a row."""
    order = scores.argsort(1, descending=True)
    sorted_labels = labels.gather(1, order)  # (M, C), best class first
    true_so_far = sorted_labels.cumsum(1)
    first, second = ((true_so_far < k).sum(1) + 1 for k in (1, 2))  # ranks, from 1
    return {
        "pairs": len(scores),
        "both_on_top": float((second == 2).float().mean()) if len(scores) else float("nan"),
        "first_rank": float(first.float().median()) if len(scores) else float("nan"),
        "second_rank": float(second.float().median()) if len(scores) else float("nan"),
    }
