"""The named configurations of DEFR (spec defr.md §8), put together from backbone, head and loss, with published rows.

    python -m lib.defr.configurations configs/defr        # writes one settings file a configuration

Names are the stems of the public program's files, so that results can be traced; two rows of its table have no file
there and are ours.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.runs import write_text

README = "README of the DEFR repository"
CONFIRMED = f"{README}; the row's configuration is confirmed"
MATCHED = f"{README}; the row is matched by name"
CHECKPOINT = "name of a public checkpoint"


@dataclass(frozen=True)
class Published:
    """mAP on HICO in percent: Full, and Few@1 / 5 / 10 where the source states them."""

    full: float
    few: tuple[float, float, float] | None
    source: str


@dataclass(frozen=True)
class Configuration:
    """One settings file. settings: section -> key -> value. ours: not shipped by the authors."""

    name: str
    title: str
    settings: Mapping[str, Mapping[str, Any]]
    published: Published | None = None
    note: str = ""
    needs: tuple[str, ...] = field(default=())
    ours: bool = False


@dataclass(frozen=True)
class Backbone:
    """What all configurations of a backbone share. epochs: of BCE."""

    title: str
    lr: float
    bce_epochs: int
    clip: str
    timm: str = ""
    batch_size: int = 128


B32, B16 = "weights/ViT-B-32", "weights/ViT-B-16"
DETR = "weights/detr-r50-hicodet"
BACKBONES = {
    "im1k": Backbone("ImageNet ViT-B/32", 1e-4, 20, B32, "vit_base_patch32_224.augreg_in21k_ft_in1k"),
    "im21k": Backbone("ImageNet-21k ViT-B/32", 1e-4, 20, B32, "vit_base_patch32_224.augreg_in21k"),
    "clip": Backbone("CLIP ViT-B/32", 1.5e-5, 40, B32),
    "p16": Backbone("CLIP ViT-B/16", 5e-6, 40, B16, batch_size=32),
}
HEADS = {
    "rand": "random rows, cosine",
    "rand512": "random rows in CLIP's joint space, cosine",
    "randlinear": "random linear layer",
    "bert": "BERT rows, cosine",
    "bertlinear": "linear layer from BERT rows",
    "simcselinear": "linear layer from SimCSE rows",
    "clip": "CLIP text rows, cosine",
    "cliplinear": "linear layer from CLIP text rows",
}
LOSSES = {"bce": "BCE", "sign": "LSE-Sign", "wbce": "weighted BCE"}

ROWS = {
    "im1k_randlinear_bce": Published(37.77, (7.91, 13.45, 14.88), MATCHED),
    "im1k_randlinear_sign": Published(44.07, (14.30, 20.03, 22.64), CONFIRMED),
    "im1k_bertlinear_bce": Published(50.56, (20.12, 27.75, 29.96), MATCHED),
    "im1k_bertlinear_sign": Published(53.45, (27.23, 35.09, 37.10), MATCHED),
    "im1k_cliplinear_bce": Published(51.51, (24.77, 31.23, 33.42), MATCHED),
    "im1k_cliplinear_sign": Published(54.73, (34.75, 39.78, 40.84), CONFIRMED),
    "im1k_simcselinear_sign": Published(53.75, (30.26, 37.73, 40.04), MATCHED),
    "im1k_rand_sign": Published(32.0, None, CHECKPOINT),
    "im1k_clip_sign": Published(51.3, None, CHECKPOINT),
    "clip_randlinear_bce": Published(34.15, (6.21, 9.44, 11.93), MATCHED),
    "clip_randlinear_sign": Published(36.84, (9.48, 13.90, 15.85), CONFIRMED),
    "clip_rand_sign": Published(33.0, None, CHECKPOINT),
    "clip_clip_bce": Published(57.88, (42.17, 45.71, 46.56), MATCHED),
    "clip_clip_sign": Published(60.50, (49.61, 52.60, 52.86), CONFIRMED),
    "p16": Published(65.6, (52.7, 56.9, 57.2), "the paper's abstract; Few@5 and Few@10 from a secondary listing"),
    "clip_bert_bce": Published(44.36, (15.35, 21.75, 24.72), MATCHED),
    "clip_bert_sign": Published(50.96, (24.80, 31.68, 33.57), MATCHED),
}
EPOCHS = {  # where they are not those of backbone and loss
    "clip_randlinear_sign": 20, "clip_rand_sign": 40, "clip_rand512_bce": 20, "clip_rand512_sign": 20,
}  # fmt: skip
SHIPPED = {
    "im1k": "randlinear_bce randlinear_sign bertlinear_bce bertlinear_sign cliplinear_bce cliplinear_sign"
    " simcselinear_sign rand_bce rand_sign bert_bce bert_sign clip_sign",
    "im21k": "rand_bce rand_sign bert_bce bert_sign clip_bce clip_sign"
    " randlinear_bce randlinear_sign bertlinear_bce bertlinear_sign cliplinear_bce cliplinear_sign",
    "clip": "randlinear_bce randlinear_sign rand_bce rand_sign rand512_bce rand512_sign clip_bce clip_sign clip_wbce"
    " clip_wbce_baseline",
}
NOTES = {
    "im1k": "'ImageNet-1k' is what the program's timm default resolves to: pre-trained on 21k, tuned on 1k.",
    "p16": "The published checkpoint's file name says lr 7.5e-6 where the public settings say 5e-6.",
    "clip_clip_wbce_baseline": "No image is repeated: the only one without oversampling.",
    "clip_bert": "No such file was published for these two rows; this one is ours, its head is a guess.",
}


def configurations() -> dict[str, Configuration]:
    """Every named configuration by name: 35 of the public program and two of ours."""
    names = [f"{group}_{rest}" for group, rests in SHIPPED.items() for rest in rests.split()]
    found = [_configuration(name, *_parts(name)) for name in names]
    found.append(_configuration("p16", "p16", "clip", "sign"))
    found += [_configuration(f"clip_bert_{loss}", "clip", "bert", loss, ours=True) for loss in ("bce", "sign")]
    return {configuration.name: configuration for configuration in found}


def to_yaml(configuration: Configuration) -> str:
    """A settings file: what it reproduces, the command, what it needs and expects, the settings that differ."""
    published = configuration.published
    expected = "no published number."
    if published is not None:
        few = "" if published.few is None else " / Few@1 {} / Few@5 {} / Few@10 {}".format(*map(_number, published.few))
        expected = f"full {_number(published.full)}{few} mAP on HICO ({published.source})."
    boxes = "detector" in configuration.settings
    head = [
        f"DEFR, {configuration.title}.",
        f"  {command(configuration)}",
        *(["Notebook 06 needs 01's boxes for its detection without training only."] if boxes else []),
        "Hardware: the public program takes 8 V100; here defr.batch_size is that of all processes. Time not measured.",
        f"Needs: {'; '.join(configuration.needs)}.",
        f"Expected: {expected}",
        *([configuration.note] if configuration.note else []),
    ]
    lines = [line for text in head for line in textwrap.wrap(text, 118, initial_indent="# ", subsequent_indent="#   ")]
    for section, values in configuration.settings.items():
        lines += [f"{section}:", *(f"  {key}: {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def command(configuration: Configuration) -> str:
    """What runs a settings file on real data: recognition alone, after notebook 01 where 06 looks at boxes as well."""
    name = configuration.name
    notebooks = "01,06" if "detector" in configuration.settings else "06"
    return f'make run CONFIG=configs/defr/{name}.yaml RUN=runs/{name} SET="--notebooks {notebooks}"'


def _parts(name: str) -> tuple[str, str, str]:
    """Backbone, head and loss in a name; what follows the loss (`baseline`) is a variant."""
    backbone, head, loss = name.split("_")[:3]
    return backbone, head, loss


def _configuration(name: str, group: str, head: str, loss: str, *, ours: bool = False) -> Configuration:
    backbone = BACKBONES[group]
    clip_source = f"local-dir:{backbone.clip}"
    needs = ["HICO-DET's images, instance files and anno.mat below data.root"]
    defr: dict[str, Any] = {"labels": "data/hicodet/anno.mat"}
    settings: dict[str, dict[str, Any]] = {"data": {"root": "data/hicodet"}}
    if not backbone.timm or head.startswith(("clip", "rand")):  # a random head is compared with CLIP's rows
        settings["clip"] = {"source": clip_source}
        needs.append(f"CLIP converted to {backbone.clip}")
    if not backbone.timm:
        settings["detector"] = {"source": DETR}
        needs.append(f"DETR converted to {DETR}")
    if backbone.timm:
        weights = f"weights/{backbone.timm}/model.safetensors"
        defr |= {"backbone": backbone.timm, "weights": weights}
        needs.append(f"timm's {weights}")
    for source, folder in (("bert", "bert-base-uncased"), ("simcse", "sup-simcse-bert-base-uncased")):
        if head.startswith(source):
            defr["text_model"] = f"weights/{folder}"
            needs.append(f"weights/{folder}")
    linear = head.endswith("linear")
    defr["head"] = head.replace("linear", "-linear").replace("rand512", "rand-512")
    if linear and backbone.timm:
        defr["log_scale"] = 0.0
    if not head.startswith("rand"):
        defr["sentences"] = "base_form"
    defr |= {"loss": loss, "lr": backbone.lr}
    defr["epochs"] = EPOCHS.get(name, 10 if loss == "sign" else backbone.bce_epochs)
    if backbone.batch_size != 128:
        defr["batch_size"] = backbone.batch_size
    if name.endswith("baseline"):
        defr["min_samples"] = 1
    defr["variants"] = "[own]"  # the row itself, not the comparison of starts and losses
    note = NOTES.get(name) or NOTES.get(f"{group}_{head}" if ours else group, "")
    title = f"{backbone.title}, {HEADS[head]}, {LOSSES[loss]}"
    return Configuration(name, title, settings | {"defr": defr}, ROWS.get(name), note, tuple(needs), ours)


def _number(value: float) -> str:
    return f"{value:.2f}".removesuffix("0")


def _value(value: Any) -> str:
    # YAML 1.1 reads 1e-4 as text: a float needs its point
    return f"{value:.1e}" if isinstance(value, float) and 0 < value < 1e-2 else str(value)


def main() -> None:
    """Write the settings files of all configurations into a folder."""
    parser = argparse.ArgumentParser(prog="python -m lib.defr.configurations", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives one YAML a configuration")
    folder = parser.parse_args().folder
    for name, configuration in configurations().items():
        write_text(folder / f"{name}.yaml", to_yaml(configuration))


if __name__ == "__main__":
    main()
