"""Command lines of EZ-HOI and its diffusion-bridge fork: every flag and what it is here, and how a command is read.

Sources: spec ez-hoi.md §2.8 (status of every flag), §6 (recipe), §8 (one image), §9.2 (bridge).
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

SETTING, ELSEWHERE, DEAD = "setting", "elsewhere", "dead"
STOPS, MISSING = "stops", "missing"


@dataclass(frozen=True)
class Flag:
    """What a flag of the public programs is here.

    says: setting it becomes, or why it becomes none. key: set where the flag maps to one setting by itself; `of` turns
    its text into the value, `absent` is the value that a command without the flag means (None: our default).
    takes: "one" value | "none" (a switch) | "any". harmless: value at which the flag changes nothing.
    """

    kind: str
    says: str
    key: str = ""
    of: Callable[[str], Any] = str
    absent: Any = None
    takes: str = "one"
    harmless: str | None = None


def _to(key: str, of: Callable[[str], Any] = str, absent: Any = None) -> Flag:
    return Flag(SETTING, key, key, of, absent)


def _switch(key: str, on: Any, off: Any = None) -> Flag:
    return Flag(SETTING, key, key, lambda _: on, off, "none")


def _dead(says: str = "parsed, never used") -> Flag:
    return Flag(DEAD, says, takes="any")


def _stops(says: str, harmless: str | None = None) -> Flag:
    return Flag(STOPS, says, takes="any", harmless=harmless)


def _missing(says: str, harmless: str | None = None) -> Flag:
    return Flag(MISSING, says, takes="any", harmless=harmless)


def _elsewhere(says: str) -> Flag:
    return Flag(ELSEWHERE, says, takes="any")


_UNUSED = (
    "CSC", "CLASS_TOKEN_POSITION", "LA", "LA_weight", "box_proj", "use_mlp_proj", "use_mean", "num_shot",
    "use_multi_hot", "label_choice", "vis_embed_dim", "obj_affordance", "txt_mem_init", "clip_type",
    "repeat_factor_sampling", "self_mem_path", "visual_mode",
)  # fmt: skip
_DETR = (
    "backbone", "dilation", "position-embedding", "hidden-dim", "enc-layers", "dec-layers", "dim-feedforward",
    "dropout", "nheads", "num-queries", "pre-norm", "no-aux-loss",
)  # fmt: skip
_CRASHES = (
    "use_distill", "use_consistloss", "multi_cross", "d_detr", "tpt", "pseudo_label", "txtcls_descrip",
)  # fmt: skip
_PREFIX_PROMPTS = ("init_txtcls_pt", "seperate_pre_pt", "clip_test", "fix_txt_pt")
_ONE_IMAGE = ("self_image_path", "index", "action", "action-score-thresh")

FLAGS: dict[str, Flag] = {
    # data and classes
    "dataset": Flag(SETTING, "data.kind: hico | vcoco"),
    "data-root": Flag(SETTING, "data.root"),
    "partitions": _elsewhere("training and test split are both read, each where it belongs"),
    "zs": Flag(SETTING, "data.zero_shot; absent: default", takes="none"),
    "zs_type": Flag(SETTING, "data.zero_shot, with --zs"),
    "num_classes": Flag(SETTING, "ezhoi.classes: verb (117; V-COCO 24) | hoi (600; V-COCO 236)"),
    "vlmtxt": Flag(SETTING, "data.descriptions: file 1 (llava) | file 2 (llava2) | '' (fix)"),
    # files
    "clip_dir_vit": Flag(SETTING, "clip.source, after a conversion"),
    "pretrained": Flag(SETTING, "detector.source, after a conversion"),
    "resume": Flag(SETTING, "ezhoi.init_from, after an import"),
    "file1": _dead("the union-feature pickle is demanded but never opened"),
    "clip_img_file": _elsewhere("no pickle an image: notebook 01 extracts CLIP's patch tokens of both splits"),
    # vision side
    "use_insadapter": Flag(SETTING, "ezhoi.instance_adapters; absent: none", takes="none"),
    "adapter_pos": Flag(SETTING, "ezhoi.instance_adapters: all | front | end | last"),
    "adapter_num_layers": _missing("an instance adapter has one decoder layer", "1"),
    "prior_type": _to("ezhoi.prior"),
    "prior_method": _missing("a prior token is an instance, not a pair and not a learned token", "0"),
    "N_CTX": _to("ezhoi.prompt_length", int),
    "tune_LY": _to("ezhoi.prompt_depth", int),
    "emb_dim": _missing("adapters are 64 wide", "64"),
    "img_clip_pt": _switch("ezhoi.image_prompts", True, False),
    "deunify_pt": _missing("visual prompts are projected from shared bases"),
    "pt_begin_layer": _missing("visual prompts enter at the first layer", "0"),
    "img_align": _switch("ezhoi.pair_adapter", True, False),
    "logits_type": Flag(SETTING, "ezhoi.regions: HO | HO+U | U"),
    "feat_mask_type": _to("ezhoi.roi_dropout", {"0": 0.2, "1": 0.0}.__getitem__),
    "use_weight_pred": _missing("the logit scale is one learned number"),
    # text side
    "txtcls_pt": _dead("writes prompts behind the token that is read; ezhoi.preset=prefix is the live form"),
    "unseen_pt_inj": _switch("ezhoi.unseen_prompts", True, False),
    "txt_align": _switch("ezhoi.text_adapter", True),
    "act_descriptor": _switch("ezhoi.act_descriptors", True),
    "fix_mem": _switch("ezhoi.semantic_weight", 0.0),
    "label_learning": _missing("the table of rows and classes is fixed"),
    "without_unseen_name": _missing("rows of unseen classes stay in the text during training"),
    "finetune_allcls_utpl": _missing("difference texts are read for unseen classes only"),
    "origin_ctx": _missing("no contrastive loss between prompts and class text"),
    # training
    "epochs": _to("ezhoi.epochs", int, 20),
    "batch-size": Flag(SETTING, "ezhoi.batch_size = images a GPU x GPUs"),
    "world-size": Flag(SETTING, "a factor of ezhoi.batch_size"),
    "lr-vit": _to("ezhoi.lr_vit", float),
    "lr-head": _to("ezhoi.lr_head", float),
    "lr": Flag(STOPS, "an ambiguous short form of --lr-vit, --lr-head and --lr-drop; sets both rates here"),
    "lr-drop": _to("ezhoi.lr_step", int),
    "weight-decay": _to("ezhoi.weight_decay", float),
    "clip-max-norm": _to("ezhoi.clip_norm", float),
    "alpha": _to("ezhoi.alpha", float),
    "gamma": _to("ezhoi.gamma", float),
    "seed": _to("seed", int, 66),
    "device": _to("device", lambda name: "auto" if name == "cuda" else name),
    "num-workers": _to("ezhoi.workers", int),
    "print-interval": _to("ezhoi.log_every", int),
    "output-dir": Flag(SETTING, "the run folder, RUN=runs/<name>"),
    "port": _elsewhere("one process, no port"),
    # proposals, scores, evaluation
    "box-score-thresh": _to("detector.score_threshold", float),
    "min-instances": _to("detector.min_instances", int),
    "max-instances": _to("detector.max_instances", int),
    "fg-iou-thresh": _missing("a pair is positive from IoU 0.5 of both boxes", "0.5"),
    "hyper_lambda": _to("ezhoi.prior_power", float),
    "use_gt_boxes": _missing("pairs come from the detector"),
    "eval": Flag(SETTING, "ezhoi.epochs: 0", takes="none"),
    "cache": _elsewhere("a run keeps every pair in pairs/ and scored ones in predictions/, as parquet"),
    "sanity": _elsewhere("data.train_limit and data.test_limit make a short run"),
    # one image
    **dict.fromkeys(_ONE_IMAGE, _elsewhere("python -m lib.ezhoi.infer --help")),
    # the fork's bridge
    "use_diffusion_bridge": Flag(SETTING, "bridge.*, and ezhoi.bridge while training", takes="none"),
    "diffusion_config": Flag(SETTING, "bridge.*, ezhoi.bridge_steps"),
    "diffusion_model_path": Flag(SETTING, "a bridge folder"),
    "diffusion_text_mean": Flag(SETTING, "computed again in notebook 03"),
    "diffusion_inference_steps": Flag(SETTING, "bridge.entry_step and bridge.num_steps"),
    "diffusion_embed_dim": _elsewhere("read from CLIP"),
    # nothing, or the end of the program
    **dict.fromkeys(_UNUSED, _dead()),
    **dict.fromkeys(_DETR, _elsewhere("the folder of the converted DETR says how it is built")),
    **dict.fromkeys(_CRASHES, _stops("crash or debugger stop")),
    **dict.fromkeys(_PREFIX_PROMPTS, _stops("a crash; ezhoi.preset=prefix has prompts that the class text sees")),
    "fill_zs_verb_type": _stops("crash or debugger stop", harmless="0"),
    "vis_tor": _stops("crash or debugger stop", harmless="1"),
}

# flags known by how they begin
FAMILIES: dict[str, Flag] = {
    "clip_visual_": _dead("dimensions are read from the weights"),
    "clip_text_": _dead("dimensions are read from the weights"),
    "mem_": _dead(),
}

# programs that users paste, by the end of their name: where their work is done here ("" = translated)
SCRIPTS = {
    "main_tip_finetune": "",
    "inference": "",
    "hicodet_extract": "notebook 01 extracts patch tokens",
    "vcoco_extract": "notebook 01 extracts patch tokens",
    "test_extraction": "there is no model code to patch: notebook 02 keeps the features of every pair",
    "train_hoi_diffusion": "notebook 03 trains the bridge",
    "extract_adapted_embeddings": "notebook 05 collects text, raw, centred and bridged features",
    "visualize_embedding_distributions": "notebook 05 draws and measures them",
    "test_visual_diffusion": "notebook 04 compares with and without the bridge",
}


class Refused(ValueError):
    """A command that cannot or must not be translated; says why and what to do."""


Given = dict[str, list[str]]  # name as in FLAGS -> its values


def read_command(text: str) -> tuple[str, Given, int]:
    """(program, flags, processes named before the program) of a shell command or script.

    Skips environment assignments, launchers, redirections and comments. Raises Refused for none, several or
    unknown programs, an unknown flag, or a flag with too few or too many values.
    """
    commands = []
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        try:
            commands += [shlex.split(part, comments=True) for part in re.split(r"&&|\|\||;|\|", line)]
        except ValueError as error:
            raise Refused(f"{line.strip()[:80]}: {error}; expected one whole shell command") from None
    found = [command for command in commands if any(_program(word) or word.startswith("--") for word in command)]
    if len(found) != 1:
        raise Refused(f"found {len(found)} commands of the public programs, expected one; give it alone")
    words = found[0]
    start = next((at for at, word in enumerate(words) if _program(word)), -1)
    if start < 0 and not words[0].startswith("--"):
        raise Refused(f"found {' '.join(words[:3])!r}, expected a command with main_tip_finetune.py")
    program = _program(words[start]) if start >= 0 else "main_tip_finetune"
    if SCRIPTS[program]:
        raise Refused(f"{program}.py has no settings to translate: {SCRIPTS[program]}")
    launcher = " ".join(words[: max(start, 0)])
    processes = re.search(r"--nproc[-_]per[-_]node[= ](\d+)", launcher)
    return program, _read_flags(words[start + 1 :]), int(processes[1]) if processes else 1


def _program(word: str) -> str:
    """Key of SCRIPTS that a word of a command names, or ''."""
    stem = word.rpartition("/")[2].removesuffix(".py")
    return next((name for name in SCRIPTS if stem == name or (word.endswith(".py") and stem.endswith(name))), "")


def _read_flags(words: Sequence[str]) -> Given:
    given: Given = {}
    values: list[str] | None = None
    for word in words:
        if re.match(r"\d?&?>|&$", word):  # a redirection ends the command
            break
        if "$" in word:
            raise Refused(f"found the shell variable in {word!r}, expected its value")
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = given[_known(name)] = [value] if equals else []
        elif values is None:
            raise Refused(f"found {word!r} before any flag, expected --flag value")
        else:
            values.append(word)
    for name, values in given.items():
        takes, count = known_flag(name).takes, len(values)
        if takes != "any" and count != (takes == "one"):
            expected = "one value" if takes == "one" else "no value (it is a switch)"
            raise Refused(f"--{name}: found {' '.join(values) or 'no value'}, expected {expected}")
    return given


def _known(name: str) -> str:
    """The flag's name in the tables; dashes and underscores count as one."""
    plain = name.replace("-", "_")
    for known in FLAGS:
        if known.replace("-", "_") == plain:
            return known
    if any(plain.startswith(family) for family in FAMILIES):
        return plain
    near = difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.0)[0]
    raise Refused(f"--{name}: unknown flag; did you mean --{near}?")


def known_flag(name: str) -> Flag:
    """The table's entry of a name that `read_command` returned."""
    return FLAGS.get(name) or next(flag for family, flag in FAMILIES.items() if name.startswith(family))
