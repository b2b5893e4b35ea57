"""Text banks, bridges, and what each of them does to the predictions of a trained EZ-HOI.

    text_bank/captions   captions through the frozen CLIP text tower
    text_bank/adapted    captions and class sentences through the text tower as EZ-HOI left it
    text_bank/vision     pair features, a control: a diffusion of them cannot know the text
    bridge/<bank>        the diffusion model of a bank

The matching bridge for a detector is `adapted`; `captions` on a detector whose text was adapted afterwards is the
"wrong order", refused unless it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lib.bridge.bundle import Bridge, check_compatible
from lib.bridge.geometry import modality_mean
from lib.bridge.scoring import Blend, Ensemble, class_cosines, fit_blend
from lib.bridge.text_bank import (
    TextBank,
    adapted_bank,
    caption_bank,
    embed,
    template_id,
    templates_of,
    text_mean,
    vision_control,
)
from lib.bridge.training import SAMPLER_SETTINGS, closed_form_bridge, train_bridge
from lib.clip.text import encode_text
from lib.clip.text_space import TextSpace, clip_text_space
from lib.engine.checkpoints import remove_checkpoints
from lib.engine.distributed import is_first
from lib.engine.launch import launch
from lib.engine.progress import Progress
from lib.ezhoi.predict import PairTable, hoi_predictions
from lib.runs import Artifact, Run, atomic_write, fingerprint
from lib.settings import Config
from lib.stages import inputs
from lib.stages.detector import classes_of, evaluate, load_ezhoi, seen_training_set

BANKS = ("captions", "adapted", "vision")


# ---------------------------------------------------------------- notebook 03


def text_bank(cfg: Config, run: Run, kind: str) -> Artifact:
    """The vectors whose distribution a bridge learns: texts in one of the two text spaces, or the vision control."""
    if kind not in BANKS:
        raise ValueError(f"text bank: found {kind!r}, expected one of {BANKS}")
    clip, sentences, templates = inputs.clip_model(cfg, run), inputs.captions(cfg, run), _templates(cfg)
    classes = inputs.dataset(cfg, run, "train").vocabulary.class_sentences()
    parents: list[Artifact | str] = {
        "captions": lambda: [clip.spec.weights_sha256],
        "adapted": lambda: [run.existing("ezhoi")],
        "vision": lambda: [run.existing("pairs/fit")],
    }[kind]()
    settings = {"template": template_id(templates), "texts": fingerprint("texts", sentences)}

    def make(folder: Path) -> dict:
        source = f"{len(sentences)} sentences, {kind}"
        if kind == "captions":
            bank = caption_bank(clip, sentences, templates, source)
        elif kind == "adapted":
            text = load_ezhoi(cfg, run).text
            bank = adapted_bank(text, parents[0].fingerprint, sentences, classes, templates, source)
        else:
            features = torch.from_numpy(PairTable.load(parents[0].path).features)
            bank = vision_control(features, clip_text_space(clip, template=template_id(templates)))
        bank.save(folder)
        return {"texts": len(bank), "dim": bank.dim, "text_space": bank.space.id}

    return run.artifact(f"text_bank/{kind}", settings, make, parents)


def _templates(cfg: Config) -> list[str]:
    return templates_of(cfg.text_bank.template, cfg.text_bank.templates)


def bridge(cfg: Config, run: Run, kind: str) -> Artifact:
    """Train the diffusion model of a text bank."""
    bank = run.existing(f"text_bank/{kind}")
    shaping = {name: value for name, value in asdict(cfg.bridge).items() if name not in SAMPLER_SETTINGS}

    def make(folder: Path) -> dict:
        return launch(_train, cfg, bank.path, folder, settings=cfg.launch, device=inputs.device(cfg))[0]

    return run.artifact(f"bridge/{kind}", {"bridge": shaping, "seed": cfg.seed}, make, [bank])


def _train(cfg: Config, bank: Path, folder: Path) -> dict:
    """What every process of a launch does of the training; the first one writes."""
    with Progress(f"bridge, {bank.name}", cfg.bridge.steps, curve="loss") as progress:

        def report(step: int, _: int, values: Mapping[str, float]) -> None:
            progress.step(step - progress.done, loss=values["loss"])
            progress.record(loss=values["loss"])

        info = train_bridge(
            TextBank.load(bank), cfg.bridge, folder, seed=cfg.seed, device=inputs.device(cfg), progress=report
        )
    if is_first():
        remove_checkpoints(folder)
    return info


def before(cfg: Config, run: Run) -> None:
    """Train the bridge of captions where EZ-HOI is to be trained around it afterwards (`ezhoi.bridge: captions`)."""
    if cfg.ezhoi.bridge == "captions":
        text_bank(cfg, run, "captions")
        bridge(cfg, run, "captions")


# ---------------------------------------------------------------- notebook 04


@dataclass
class Workplace:
    """What every variant shares: pairs of the fit and test images, class rows as the detector and as CLIP has them."""

    fit: PairTable
    test: PairTable
    seen: Tensor  # [N_fit, C] bool: entries that may be fitted on (seen HOIs of the detected object)
    rows: dict[str, Tensor]  # "adapted": the detector's own class rows [K, D]; "plain": those of the frozen tower
    spaces: dict[str, TextSpace]  # of either
    encode: dict[str, Callable[[Sequence[str]], Tensor]]  # of either: the live text tower with the bank's templates
    classes: list[str]  # class sentences in the order of the vocabulary
    row_classes: Tensor  # [K, C]
    vision_mean: Tensor  # [D]


def workplace(cfg: Config, run: Run) -> Workplace:
    """Load the pairs and the classifier once for all variants."""
    model = load_ezhoi(cfg, run)
    fit, test = (PairTable.load(run.existing(f"pairs/{split}").path) for split in ("fit", "test"))
    _, valid = seen_training_set(cfg, run, inputs.dataset(cfg, run, "train"))
    with torch.no_grad():
        rows = {"adapted": model.text().cpu(), "plain": model.text.plain.cpu()}
    clip, templates = inputs.clip_model(cfg, run), _templates(cfg)
    template = template_id(templates)
    spaces = {
        "adapted": replace(model.text.space(run.existing("ezhoi").fingerprint), template=template),
        "plain": clip_text_space(clip, template=template),
    }
    encode = {
        "adapted": lambda sentences: embed(model.text.encode, sentences, templates),
        "plain": lambda sentences: embed(lambda texts: encode_text(clip, texts), sentences, templates),
    }
    return Workplace(
        fit,
        test,
        valid[torch.tensor(fit.frame["object"].to_numpy())],
        rows,
        spaces,
        encode,
        inputs.dataset(cfg, run, "train").vocabulary.class_sentences(),
        (model.text.average > 0).float().cpu(),
        modality_mean(torch.from_numpy(fit.features)),
    )


def load_bridge(
    cfg: Config, run: Run, kind: str, place: Workplace, texts: str = "adapted", allow_mismatch: bool = False
) -> tuple[Bridge, bool]:
    """The bridge of a bank with this detector's vision mean, and whether its text space was let pass on purpose.

    kind: a bank, or `prototype`: the closed-form optimal denoiser of the adapted bank. texts: the class rows that it
    will be compared with.
    """
    adapted = TextBank.load(run.existing("text_bank/adapted").path)
    if kind == "prototype":
        found = closed_form_bridge(adapted, cfg.bridge)
    else:
        found = Bridge.load(run.existing(f"bridge/{kind}").path)
    if kind == "vision":  # learnt centred features; the class text keeps its own mean
        found = replace(found, geometry=replace(found.geometry, text_mean=text_mean(adapted)))
    found = found.with_vision_mean(place.vision_mean).with_settings(cfg.bridge)
    mismatch = check_compatible(
        found,
        place.spaces[texts],
        place.rows[texts].shape[1],
        scale=cfg.bridge.scale,
        classes=place.classes,
        text_rows=place.rows[texts],
        encode=place.encode[texts],
        features=torch.from_numpy(place.fit.features),
        allow_mismatch=allow_mismatch or cfg.bridge.allow_text_space_mismatch,
        command=f"make run RUN={run.root} SET='--notebooks 03' (trains bridge/adapted on this detector's own text)",
    )
    return found.walking_on(inputs.device(cfg), cfg.compile), mismatch


@dataclass
class Variant:
    """Test logits of one way to use (or not use) a bridge, what was fitted, and what it cost."""

    logits: Tensor  # [N, C]
    blend: Blend
    seconds_per_pair: float


def class_cosines_of(
    place: Workplace, table: PairTable, bridge: Bridge, texts: str = "adapted", *, centring_only: bool = False
) -> Tensor:
    """Cosines [N, C] of the pairs of a table, bridged (or only centred), with the class rows named `texts`."""
    move = bridge.geometry.vision if centring_only else bridge
    moved = move(torch.from_numpy(table.features))
    return class_cosines(moved, place.rows[texts], place.row_classes, bridge.geometry)


def fit_on_seen(place: Workplace, cosines: Tensor, *, alone: bool = False) -> Blend:
    """Blend of the detector's logits with cosines [N_fit, C], fitted on seen entries of the fit pairs.

    alone: the cosine replaces the detector's logit instead of blending with it.
    """
    logits, labels = torch.from_numpy(place.fit.logits), torch.from_numpy(place.fit.labels).float()
    if alone:
        return fit_blend(torch.zeros_like(logits), cosines, labels, place.seen, weights=1)
    return fit_blend(logits, cosines, labels, place.seen)


def score_variant(
    place: Workplace, bridge: Bridge, texts: str = "adapted", *, centring_only: bool = False
) -> tuple[Variant, Variant]:
    """Test logits blended with the detector's, and those of the cosines alone; arguments as in `class_cosines_of`."""
    fit = class_cosines_of(place, place.fit, bridge, texts, centring_only=centring_only)
    started = time.perf_counter()
    test = class_cosines_of(place, place.test, bridge, texts, centring_only=centring_only)
    seconds = (time.perf_counter() - started) / max(len(test), 1)
    logits = torch.from_numpy(place.test.logits)
    blends = (fit_on_seen(place, fit, alone=alone) for alone in (False, True))
    blended, alone = (Variant(blend(logits, test), blend, seconds) for blend in blends)
    return blended, alone


def score_ensemble(place: Workplace, alone: Variant, weight: float) -> Variant:
    """Scores with and without the bridge averaged at a fixed weight, as the old guide does; nothing is fitted."""
    logits = Ensemble(weight)(torch.from_numpy(place.test.logits), alone.logits)
    return Variant(logits, Blend(weight), alone.seconds_per_pair)


def choose_entry_step(cfg: Config, run: Run, place: Workplace) -> pd.DataFrame:
    """Fit loss of the matching bridge at every depth of evaluation.entry_steps: seen pairs only, no test image."""
    bridge, _ = load_bridge(cfg, run, "adapted", place)
    rows = []
    for depth in cfg.evaluation.entry_steps:
        walked = bridge.with_sampler(entry_step=depth)
        blend = fit_on_seen(place, class_cosines_of(place, place.fit, walked))
        rows.append({"entry_step": depth, "fit_loss": blend.loss, "weight": blend.weight})
    return pd.DataFrame(rows)


def comparison(cfg: Config, run: Run) -> Artifact:
    """Predictions of the detector alone and of every variant: blended and alone, at every step budget and depth.

    The headline bridge enters at the depth with the lowest fit loss; everything else is an ablation beside it.
    """
    parents = [run.existing(kind) for kind in ("pairs/fit", "pairs/test", "bridge/adapted", "bridge/captions")]
    tried = ("entry_steps", "step_budgets", "ensemble", "fit_images")
    settings = {"evaluation": {name: getattr(cfg.evaluation, name) for name in tried}}
    settings["prior_power"] = cfg.ezhoi.prior_power
    settings["sampler"] = {name: getattr(cfg.bridge, name) for name in SAMPLER_SETTINGS}

    def make(folder: Path) -> dict:
        place = workplace(cfg, run)
        depths = choose_entry_step(cfg, run, place)
        depth = int(depths.loc[depths["fit_loss"].idxmin(), "entry_step"])
        data = inputs.dataset(cfg, run, "test")
        rows = []
        with Progress("bridge variants", 2 * len(HEADLINE) - 2 + len(_ablations(cfg))) as progress:
            for name, variant, facts in _variants(cfg, run, place, depth):
                table = hoi_predictions(place.test.frame, variant.logits, classes_of(cfg, data), cfg.ezhoi.prior_power)
                atomic_write(folder / f"{name}.parquet", lambda stream, table=table: table.to_parquet(stream))
                fitted = {key: value for key, value in asdict(variant.blend).items()}
                rows.append({"variant": name, **facts, **fitted, "us_per_pair": 1e6 * variant.seconds_per_pair})
                progress.step()
        variants, chosen = pd.DataFrame(rows), depths.assign(chosen=depths["entry_step"] == depth)
        atomic_write(folder / "variants.parquet", lambda stream: variants.to_parquet(stream))
        atomic_write(folder / "entry_steps.parquet", lambda stream: chosen.to_parquet(stream))
        return {"entry_step": depth, "variants": len(rows)}

    return run.artifact("predictions/bridges", settings, make, parents)


# variant -> (bank of its bridge, class text it meets); beside them the detector, centring, and the fixed ensemble
BRIDGED = {
    "bridge": ("adapted", "adapted"),
    "bridge_raw": ("captions", "plain"),
    "wrong_order": ("captions", "adapted"),
    "wrong_mean": ("adapted", "adapted"),
    "prototype": ("prototype", "adapted"),
    "vision_control": ("vision", "adapted"),
}
HEADLINE = ("ezhoi", "centred", "bridge", "ensemble", *list(BRIDGED)[1:])
ON_PURPOSE = ("wrong_order", "vision_control")  # ablations whose text space is not the classifier's


def _ablations(cfg: Config) -> list[tuple[str, dict]]:
    budgets = [("budget", {"num_steps": steps}) for steps in cfg.evaluation.step_budgets]
    return budgets + [("depth", {"entry_step": depth}) for depth in cfg.evaluation.entry_steps]


def _variants(cfg: Config, run: Run, place: Workplace, depth: int) -> Iterator[tuple[str, Variant, dict]]:
    def walked(bridge: Bridge, **sampler: int) -> Bridge:
        sampler = {"entry_step": depth} | sampler
        if "num_steps" in sampler:
            sampler["num_steps"] = min(sampler["num_steps"], sampler["entry_step"])
        return bridge.with_sampler(**sampler)

    def facts(bridge: Bridge | None, mismatch: bool = False) -> dict:
        steps = (bridge.entry_step, bridge.num_steps) if bridge else (0, 0)
        return {"entry_step": steps[0], "num_steps": steps[1], "text_space_mismatch": mismatch}

    yield "ezhoi", Variant(torch.from_numpy(place.test.logits), Blend(0.0), 0.0), facts(None)
    for name, (kind, texts) in BRIDGED.items():
        found, mismatch = load_bridge(cfg, run, kind, place, texts, allow_mismatch=name in ON_PURPOSE)
        found = walked(found)
        if name == "bridge":
            matching = found
        if name == "wrong_mean":  # the text mean taken off vision, as the public fork does
            found = found.with_center("text")
        if name == "bridge":
            blended, alone = score_variant(place, found, centring_only=True)
            yield "centred", blended, facts(None)
            yield "centred_alone", alone, facts(None)
        blended, alone = score_variant(place, found, texts)
        yield name, blended, facts(found, mismatch)
        yield f"{name}_alone", alone, facts(found, mismatch)
        if name == "bridge":
            yield "ensemble", score_ensemble(place, alone, cfg.evaluation.ensemble), facts(found, mismatch)
    for kind, sampler in _ablations(cfg):
        tried = walked(matching, **sampler)
        yield f"{kind}_{next(iter(sampler.values()))}", score_variant(place, tried)[0], facts(tried)


def evaluate_comparison(cfg: Config, run: Run) -> pd.DataFrame:
    """One row a variant: mAP on the test split, sampler, blend, cost; recorded in the run's metrics."""
    folder = run.existing("predictions/bridges").path
    variants = pd.read_parquet(folder / "variants.parquet")
    rows = []
    for row in variants.to_dict("records"):
        name, predictions = row["variant"], pd.read_parquet(folder / f"{row['variant']}.parquet")
        scores = evaluate(cfg, run, predictions)
        if name in HEADLINE:
            run.record(name, **scores, blend_weight=row["weight"], us_per_pair=row["us_per_pair"])
            run.record(name, text_space_mismatch=bool(row["text_space_mismatch"]))
        else:
            run.record("ablation", **{f"{name}_{key}": value for key, value in scores.items()})
        rows.append(row | {key: scores.get(key, float("nan")) for key in ("mAP_full", "mAP_unseen", "mAP_seen")})
    return pd.DataFrame(rows)
