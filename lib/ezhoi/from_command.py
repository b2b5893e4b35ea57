"""A command line of EZ-HOI or of its diffusion-bridge fork -> the settings of this workbench.

    python -m lib.ezhoi.from_command "python main_tip_finetune.py --zs --zs_type unseen_verb --num_classes 117 ..."

takes the command in quotes or not, a script that holds it, or standard input (`-`), and prints YAML for `lib.config`.
Its head names every flag that does nothing upstream, stops there, works against its user, or is done elsewhere here
(spec ez-hoi.md §2.8, §6, §9.2). Exit code: 0 equivalent; 1 printed, but the command switches on something that does
not exist here; 2 refused.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lib.config import load_config
from lib.ezhoi.old_command import (
    DEAD,
    ELSEWHERE,
    FLAGS,
    MISSING,
    SETTING,
    STOPS,
    Flag,
    Given,
    Refused,
    known_flag,
    read_command,
)  # fmt: skip

HARMFUL, PREPARE = "harmful", "prepare"

HEADINGS = {
    PREPARE: "Once, before the first run:",
    ELSEWHERE: "Done elsewhere:",
    DEAD: "No effect in the public program, left out:",
    STOPS: "Stops the public program:",
    HARMFUL: "Beware:",
    MISSING: "Does not exist here, so the settings below are NOT equivalent:",
}

PARTS = ("use_insadapter", "img_clip_pt", "img_align", "unseen_pt_inj")  # each puts something into a checkpoint
ZERO_SHOT = ("default", "rare_first", "non_rare_first", "unseen_object", "unseen_verb", *(f"uc{i}" for i in range(5)))


@dataclass
class Translation:
    """Settings by dotted key (only what differs from the defaults), and notes by heading."""

    command: str
    run: str = ""
    settings: dict[str, Any] = field(default_factory=lambda: {"ezhoi.preset": "released"})
    notes: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in HEADINGS})

    @property
    def complete(self) -> bool:
        """Whether everything that the command switches on exists here."""
        return not self.notes[MISSING]

    def yaml(self) -> str:
        """The settings file: a head of comments, then the settings."""
        lines = [*_comment(f"From: {self.command}"), *_comment(f"Run:  {self.run}")]
        for kind, heading in HEADINGS.items():
            if self.notes[kind]:
                lines += [f"# {heading}", *(line for note in self.notes[kind] for line in _comment(f"  {note}"))]
        tree = OmegaConf.create()
        for key, value in self.settings.items():
            OmegaConf.update(tree, key, value)
        return "\n".join([*lines, OmegaConf.to_yaml(tree)])


def _comment(text: str) -> list[str]:
    indent = "#" + " " * (6 if text[0] != " " else 5)
    return textwrap.wrap(
        text, 118, initial_indent="# ", subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def translate(text: str) -> Translation:
    """Settings and notes of a command. Raises Refused for a command that cannot or must not be translated."""
    program, given, processes = read_command(text)
    words = [word for name, values in given.items() for word in (f"--{name}", *values)]
    new = Translation(shlex.join([f"{program}.py", *words]))
    alike: dict[tuple[str, str], list[str]] = {}
    for name, flag in FLAGS.items():
        if flag.key and name in given:
            new.settings[flag.key] = _convert(name, flag, given[name])
        elif flag.key and flag.absent is not None:
            new.settings[flag.key] = flag.absent
    for name, values in given.items():
        flag = known_flag(name)
        if flag.kind != SETTING and " ".join(values) != flag.harmless:
            alike.setdefault((flag.kind, flag.says), []).append(f"--{name}")
    for (kind, says), names in alike.items():
        new.notes[kind].append(f"{', '.join(names)}: {says}")
    for part in (_data, _files, _model, _training, _bridge):
        part(given, new)
    if "batch-size" in given:
        new.settings["ezhoi.batch_size"] = _count(given, "batch-size") * _count(given, "world-size", processes)
    base = OmegaConf.structured(load_config(None, ["ezhoi.preset=released"]))
    told = {key: value for key, value in new.settings.items() if value != OmegaConf.select(base, key)}
    new.settings = {"ezhoi.preset": "released"} | told
    return new


def _convert(name: str, flag: Flag, values: list[str]) -> Any:
    try:
        return flag.of(" ".join(values))
    except (ValueError, KeyError):
        raise Refused(f"--{name}: found {' '.join(values)!r}, expected a value for {flag.key}") from None


def _count(given: Given, name: str, absent: int = 0) -> int:
    found = _one(given, name, str(absent))
    if not found.isdigit():
        raise Refused(f"--{name}: found {found!r}, expected a whole number")
    return int(found)


def _one(given: Given, name: str, absent: str = "") -> str:
    return given[name][0] if name in given else absent


def _choice(given: Given, name: str, absent: str, choices: Sequence[str]) -> str:
    value = _one(given, name, absent)
    if value not in choices:
        raise Refused(f"--{name}: found {value!r}, expected one of {', '.join(choices)}")
    return value


def _data(given: Given, new: Translation) -> None:
    vcoco = _choice(given, "dataset", "hicodet", ("hicodet", "vcoco")) == "vcoco"
    root = _one(given, "data-root", "vcoco" if vcoco else "hicodet").removeprefix("./").rstrip("/")
    split = _choice(given, "zs_type", "rare_first", ZERO_SHOT)
    new.settings |= {"data.root": root, "data.zero_shot": split if "zs" in given else "default"}
    if vcoco and "zs" in given:
        raise Refused("--zs with --dataset vcoco: V-COCO has no zero-shot split; drop --zs")
    if vcoco:
        new.settings |= {"data.kind": "vcoco", "data.images": "mscoco2014"}

    classes = {"24": "verb", "236": "hoi"} if vcoco else {"117": "verb", "600": "hoi"}
    new.settings["ezhoi.classes"] = classes[_choice(given, "num_classes", next(iter(classes)), tuple(classes))]
    if _one(given, "num_classes") == "600":
        new.notes[HARMFUL].append(
            "--num_classes 600: upstream's label table still holds verb ids, so classes from 117 on are 0/0. Here every"
            " HOI class has its own sentence, logit and targets (ezhoi.classes: hoi)"
        )
    if vcoco and _one(given, "num_classes") != "24":
        new.notes[STOPS].append("V-COCO without --num_classes 24: 117 is assumed, 236 is not implemented")
    if vcoco:
        new.notes[HARMFUL].append("V-COCO's class sentences come from HICO-DET's list upstream; here they are its own")

    files = {"llava": "vcoco_HOI_descrip.txt" if vcoco else "hico_HOI_descrip.txt", "fix": ""}
    files["llava2"] = files["llava"] if vcoco else "hico_HOI_descrip_2.txt"
    described = files[_choice(given, "vlmtxt", "llava", ("llava", "llava2", "fix"))]
    new.settings["data.descriptions"] = f"{root}/{described}" if described else ""
    if not described:
        new.notes[HARMFUL].append(
            "--vlmtxt fix: upstream tells classes apart by their names alone; here a template describes them, so other"
            " sentences may stand for a verb"
        )
    if "act_descriptor" in given:
        new.settings["data.act_descriptors"] = f"{root}/all_act_descriptor.txt"
    if "unseen_pt_inj" in given and vcoco:
        new.notes[ELSEWHERE].append("--unseen_pt_inj: V-COCO has no unseen class; data.differences may name a file")
    elif "unseen_pt_inj" in given:
        new.settings["data.differences"] = f"{root}/zs_possibility/{split}_diff.txt"
        if "zs" not in given:
            new.notes[HARMFUL].append(
                f"no --zs: nothing is withheld, and yet the difference file of {split} adds its rows to the class text;"
                " kept, since published numbers were made so"
            )
        elif split.startswith("uc"):
            new.notes[STOPS].append(f"--unseen_pt_inj with --zs_type {split}: there is no difference file of it")
            new.settings["data.differences"] = ""
    if "zs_type" in given and "zs" not in given:
        new.notes[HARMFUL].append(f"--zs_type {split} without --zs: the model is trained on every class")


def _files(given: Given, new: Translation) -> None:
    archive = _one(given, "clip_dir_vit", "checkpoints/pretrained_CLIP/ViT-B-16.pt")
    detr = _one(given, "pretrained")
    clip = f"weights/{Path(archive).stem}"
    dataset = "vcoco" if "data.kind" in new.settings else "hicodet"
    detector = f"weights/{Path(detr).stem}" if detr else f"weights/detr-r50-{dataset}"
    new.settings |= {"clip.source": f"local-dir:{clip}", "detector.source": detector}
    prepare = new.notes[PREPARE]
    prepare.append(f"python -m lib.clip.released {shlex.quote(archive)} {clip}")
    if detr:
        prepare.append(f"python -m lib.detection.released {shlex.quote(detr)} {detector}")
    else:
        prepare.append(f"python -m lib.detection.released <a trained DETR; the command names none> {detector}")
    if "resume" in given:
        checkpoint, root = _one(given, "resume"), new.settings["data.root"]
        new.settings["ezhoi.init_from"] = f"weights/{Path(checkpoint).stem}"
        annotations = f"{root}/instances_{'vcoco_test' if dataset == 'vcoco' else 'test2015'}.json"
        prepare.append(
            f"python -m lib.ezhoi.released import {shlex.quote(checkpoint)} weights/{Path(checkpoint).stem}"
            f" --clip local-dir:{clip} --annotations {annotations}"
        )


def _model(given: Given, new: Translation) -> None:
    position = _choice(given, "adapter_pos", "all", ("all", "front", "end", "last", "random"))
    if position == "random":
        new.notes[MISSING].append("--adapter_pos random: which layers were drawn is written nowhere; `all` is set")
    layers = position if position != "random" else "all"
    new.settings["ezhoi.instance_adapters"] = layers if "use_insadapter" in given else "none"
    regions = _choice(given, "logits_type", "HO+U+T", ("HO", "HO+U", "U", "HO+U+T"))
    new.settings["ezhoi.regions"] = regions.removesuffix("+U+T")
    if regions == "HO+U+T":
        named = "--logits_type HO+U+T" if "logits_type" in given else "no --logits_type (its default is HO+U+T)"
        new.notes[STOPS].append(f"{named}: only HO, HO+U and U exist; HO, the published one, is set")
    if "txtcls_pt" not in given:
        new.notes[STOPS].append("no --txtcls_pt: without the prompts that do nothing the forward pass crashes")


def _training(given: Given, new: Translation) -> None:
    name = Path(_one(given, "output-dir", "mine")).name
    notebooks = "01-04" if "use_diffusion_bridge" in given else "01-02"
    new.run = f'make run CONFIG=configs/{name}.yaml RUN=runs/{name} SET="--notebooks {notebooks}"'
    if "batch-size" not in given and "eval" not in given:
        new.notes[HARMFUL].append("no --batch-size: ezhoi.batch_size stays at 8 images a step, over all GPUs")
    absent = [f"--{part}" for part in PARTS if part not in given]
    if "resume" in given and absent:
        new.notes[HARMFUL].append(
            f"--resume without {', '.join(absent)}: upstream leaves these parts of the checkpoint out without a word,"
            " here loading refuses; give the flags of the training command"
        )
    for rate in ("lr-vit", "lr-head"):
        if "lr" in given and rate not in given:
            new.settings[FLAGS[rate].key] = _convert("lr", FLAGS[rate], given["lr"])
    if "eval" in given:
        new.settings["ezhoi.epochs"] = 0
        if "resume" not in given:
            new.notes[HARMFUL].append("--eval without --resume measures an untrained model; set ezhoi.init_from")
    elif "resume" in given:
        new.notes[HARMFUL].append(
            "--resume brings back the old optimiser with its learning rate and epoch, whatever the flags say, and skips"
            " tensors whose names differ. Here the weights start a new training with the rates and epochs below; an"
            " interrupted run goes on when the same `make run` is given again"
        )


def _bridge(given: Given, new: Translation) -> None:
    if "use_diffusion_bridge" not in given:
        if any(name.startswith("diffusion_") for name in given):
            new.notes[HARMFUL].append("--diffusion_* without --use_diffusion_bridge: no bridge is used")
        return
    told: dict[str, Any] = {}
    if config := _one(given, "diffusion_config"):
        new.notes[STOPS].append("--diffusion_config: the fork's parser never got this flag")
        if Path(config).is_file():
            told = OmegaConf.to_container(OmegaConf.load(config))
        else:
            new.notes[PREPARE].append(f"{config} is not here: 600 steps and scale 5 are assumed")
    mean = _one(given, "diffusion_text_mean", str(told.get("text_mean_path", "a text mean of captions")))
    for flag in ("txt_align", "act_descriptor"):
        if flag in given and "adapted" not in Path(mean).name:
            raise Refused(
                f"--{flag} with a bridge that learnt captions ({mean}): the class text is moved after the bridge has"
                " learnt where text lies, so features would be carried to a place that the classes have left."
                f"\n  mend: drop --{flag} (constant text, which a caption bridge fits); or drop --use_diffusion_bridge,"
                " train, and let notebook 03 learn bridge/adapted on that detector's own text."
                "\n  To measure the mismatch on purpose: bridge.allow_text_space_mismatch=true in notebook 04"
            )

    depth = _count(given, "diffusion_inference_steps", told.get("inference_steps", 600))
    if not 1 <= depth <= 1000:
        raise Refused(f"diffusion inference steps: found {depth}, expected 1 to 1000 (the depth of the schedule)")
    new.settings |= {
        "bridge.center": "text",
        "bridge.scale": float(told.get("scale_factor", 5.0)),
        "bridge.denoiser": "unet1d",
        "bridge.entry_step": depth,
        "bridge.num_steps": min(depth, 600) if config else depth,
        "bridge.solver": "reference",
        "text_bank.captions": "data/coco/annotations/captions_train2014.json",
    }
    model = _one(given, "diffusion_model_path", str(told.get("model_path", "")))
    read = f"; {model} itself is read by lib.bridge.released" if model else ""
    new.notes[PREPARE].append(f"the bridge: notebook 03 trains it on text_bank.captions{read}")
    new.notes[STOPS].append("--use_diffusion_bridge: a kernel size is read as embedding size, so no real file loads")
    new.notes[HARMFUL] += [
        f"the fork's step count is depth and number of evaluations in one: {new.settings['bridge.num_steps']} network"
        " evaluations a pair. 6 walk as deep: remove bridge.num_steps and bridge.solver",
        "pair features are centred with the mean of the text (bridge.center: text); remove it to take their own, as the"
        " paper does",
    ]
    if "eval" not in given and config:
        steps = int(told.get("training_steps", 100))
        new.settings |= {"ezhoi.bridge": f"weights/{Path(model).stem or 'bridge'}", "ezhoi.bridge_steps": [steps]}
        new.notes[HARMFUL].append(
            "the bridge inside training cuts the gradient upstream: nothing but the logit scale learns. Here it passes"
            " straight through (ezhoi.bridge_grad; none repeats upstream). ezhoi.bridge names a folder that notebook 03"
            f" of another run writes, runs/<run>/bridge/captions, with this CLIP and bridge.entry_step={steps}. To"
            " train without the bridge and evaluate with it, as its paper does, remove both ezhoi.bridge lines"
        )
    elif "eval" not in given:
        new.notes[ELSEWHERE].append(
            "the bridge in training: the fork's main branch bridges in evaluation only; so here"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the settings file of the command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    text = sys.stdin.read() if words == ["-"] else words[0] if len(words) == 1 else shlex.join(words)
    if len(words) == 1 and len(text) < 256 and Path(text).is_file():
        text = Path(text).read_text()
    try:
        new = translate(text)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 2
    print(new.yaml(), end="")
    for note in new.notes[MISSING]:
        print(f"not here: {note}", file=sys.stderr)
    return 0 if new.complete else 1


if __name__ == "__main__":
    sys.exit(main())
