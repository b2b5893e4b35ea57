"""EZ-HOI's public checkpoints, in and out (spec ez-hoi.md §7.1, Appendix C).

A `ckpt_*.pt` holds far more than is alive: CLIP three times, DETR, text-side modules that no gradient ever reached. It
lacks the prompt bases, without which its visual prompts mean nothing; they are replayed from the random stream.
Importing accounts for every tensor: used, known to be dead, a copy of CLIP or DETR, or refused.

    python -m lib.ezhoi.released import ckpt.pt weights/uv --clip local-dir:weights/vit-b16 --annotations instances.json
    python -m lib.ezhoi.released export weights/uv ckpt.pt --clip local-dir:weights/vit-b16 --annotations instances.json
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.clip.load import ClipModel, load_clip
from lib.clip.text import tokenize
from lib.data.descriptions import ClassTexts, template_descriptions
from lib.data.hico_det import read_hico_det
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.model import EzHoi, build_ezhoi
from lib.ezhoi.random_stream import ClipDimensions, fingerprint_problems, replay
from lib.ezhoi.released_export import export_released
from lib.ezhoi.released_format import (
    PROMPTS,
    ROWS,
    TOWER,
    ReleasedCheckpoint,
    ReleasedError,
    account,
    public_name,
    read_released,
    settings_of,
    starts,
)
from lib.ezhoi.weights import load_model_weights, read_record, save_model
from lib.runs import file_sha256
from lib.settings import EzHoiSettings

__all__ = ["PromptBasesWarning", "ReleasedError", "export_released", "import_released", "read_released"]


class PromptBasesWarning(UserWarning):
    """The replayed prompt bases are not those that the checkpoint was trained with."""


def import_released(
    path: Path | str,
    clip: ClipModel,
    vocabulary: Vocabulary,
    folder: Path | str,
    *,
    texts: ClassTexts | None = None,
    prompt_bases: Tensor | None = None,
) -> EzHoi:
    """Turn a checkpoint into our model, written to `folder` and returned in evaluation mode (spec §7.1).

    clip: the CLIP that it was trained on. vocabulary: that of its annotations. texts: for --act_descriptor alone.
    prompt_bases: [T, 2, Wt] if they are known; else those in the file (our exports), else the replayed ones, checked
    against both fingerprints: a mismatch raises PromptBasesWarning and is recorded in model.json.
    Raises ReleasedError for a checkpoint of another CLIP or vocabulary and for tensors of unknown meaning.
    """
    checkpoint = read_released(path)
    settings = settings_of(checkpoint, clip.spec)
    copies = _copies_of_clip(checkpoint, clip)
    rows = _rows(checkpoint, clip, vocabulary)
    bases, origin = _prompt_bases(checkpoint, clip, settings, prompt_bases)
    if texts is None:
        texts = ClassTexts(template_descriptions(vocabulary), {})
    with torch.random.fork_rng(devices=[]):  # initial values are drawn only to be overwritten
        model = build_ezhoi(clip, vocabulary, texts, [], settings, rows)
    wanted = {name: public_name(name) for name in model.state_dict() if name != "prompts.bases"}
    missing = [public for public in wanted.values() if public not in checkpoint.tensors]
    if missing:
        raise ReleasedError(
            checkpoint.path, f"no {', '.join(missing[:3])} ({len(missing)} missing)",
            "every tensor of the parts that the file has", "the file is damaged; download it again",
        )  # fmt: skip
    left = account(checkpoint, set(wanted.values()) | copies)
    own = {"prompts.bases": bases} | {name: checkpoint.tensors[public] for name, public in wanted.items()}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ReleasedError(
            checkpoint.path, f"shapes of another model ({error})", "the parts of the published program",
            "give the CLIP and, with --bases, the prompt bases of this checkpoint",
        ) from None  # fmt: skip
    source = {
        "file": checkpoint.path.name, "sha256": file_sha256(checkpoint.path), "iteration": checkpoint.iteration,
        "epoch": checkpoint.epoch,
    }  # fmt: skip
    record = {"released": source, "prompt_bases": origin, "left_out": left | {"copy of CLIP": len(copies)}}
    save_model(Path(folder), model, clip.spec, settings, record)
    return model.eval()


def _prompt_bases(
    checkpoint: ReleasedCheckpoint, clip: ClipModel, settings: EzHoiSettings, given: Tensor | None
) -> tuple[Tensor, dict]:
    """[T, 2, Wt] bases and where they come from: the caller, the file, or the replayed stream."""
    if given is not None:
        return given, {"from": "the caller"}
    if checkpoint.prompt_bases is not None:
        return checkpoint.prompt_bases, {"from": "the file"}
    stream = replay(ClipDimensions.of(clip.spec), settings.prompt_depth, settings.prompt_length)
    problems = fingerprint_problems(checkpoint.tensors, stream)
    if problems:
        warnings.warn(_not_exact(checkpoint.path, problems), PromptBasesWarning, stacklevel=3)
    return stream.bases, {"from": "the replayed random stream", "problems": problems}


def _not_exact(path: Path, problems: list[str]) -> str:
    return (
        f"{path}: THE VISUAL PROMPTS OF THIS CHECKPOINT CANNOT BE RECOVERED EXACTLY.\n"
        "  The file does not hold its prompt bases, and the random stream replayed from seed 66 is not the one it was"
        f" trained with ({len(problems)} mismatches, the first: {problems[0]}).\n"
        "  Another seed, other flags or another torch made it. The imported model runs, but with foreign prompts;"
        " do not report its numbers as the released model's.\n"
        "  mend: ask the authors for the bases ([levels, 2, text width]) and give them with --bases"
    )


def _copies_of_clip(checkpoint: ReleasedCheckpoint, clip: ClipModel) -> set[str]:
    """Names of the checkpoint's CLIP tensors, once they are seen to equal the given CLIP's."""
    own, copies = clip.model.state_dict(), set()
    for name, value in checkpoint.tensors.items():
        inside = name.removeprefix("clip_head.").removeprefix("text_encoder.")
        mine = own.get(name.replace(TOWER, "visual.", 1) if name.startswith(TOWER) else inside)
        if not name.startswith("clip_head.") or mine is None:
            continue
        if not torch.equal(value.float(), mine.cpu()):
            raise ReleasedError(
                checkpoint.path,
                f"another CLIP: {name} {starts(value)}",
                f"{clip.spec.id}, where it {starts(mine)}",
                "give the CLIP that the checkpoint was trained on with --clip",
            )
        copies.add(name)
    return copies


def _rows(checkpoint: ReleasedCheckpoint, clip: ClipModel, vocabulary: Vocabulary) -> np.ndarray:
    """Ascending HOI ids of the class rows: the sentences whose token embeddings the checkpoint holds."""
    path, suffix = checkpoint.path, checkpoint.evaluated
    labels, prompts = (checkpoint.tensors[name + suffix].float() for name in (ROWS, PROMPTS))
    verbs = len(vocabulary.verbs)
    if labels.dim() != 2 or labels.shape[1] != verbs or len(labels) != len(prompts):
        raise ReleasedError(
            f"{path}:{ROWS}{suffix}", f"shape {tuple(labels.shape)} beside {len(prompts)} prompts",
            f"[{len(prompts)}, {verbs}] for the {verbs} verbs of the annotations",
            "give the annotations it was trained on; the public 600-class mode divides 0 by 0 and has no models",
        )  # fmt: skip
    if not torch.equal(labels.sum(1), torch.ones(len(labels))) or not torch.equal(labels, labels.square()):
        raise ReleasedError(
            f"{path}:{ROWS}{suffix}", "rows that are not one-hot", "one verb a row", "--label_learning is not supported"
        )
    sentences = vocabulary.class_sentences()
    embedding, tokens = clip.model.token_embedding.weight, tokenize(clip, sentences)  # (H, context)
    found = []
    for row, (prompt, verb) in enumerate(zip(prompts.to(clip.device), labels.argmax(1).tolist(), strict=True)):
        same = _sentences_of(prompt, embedding, tokens)
        expected = [hoi for hoi in same if vocabulary.hoi_verb[hoi] == verb]
        if not expected:
            raise ReleasedError(
                f"{path}:{PROMPTS}{suffix} row {row}",
                repr(sentences[same[0]]) if same else f"{_read(clip, prompt)!r}, which is no class of the annotations",
                f"a sentence of verb {vocabulary.verbs[verb]!r}, as {ROWS}{suffix} says",
                "give the annotations that it was trained on (public V-COCO models hold HICO-DET's sentences by"
                " mistake, spec §2.7, and cannot be imported)",
            )
        found.append(expected[0])
    if len(set(found)) != len(found):
        twice = Counter(found).most_common(1)[0][0]
        raise ReleasedError(f"{path}:{PROMPTS}", f"{sentences[twice]!r} twice", "each class once", "use another file")
    return np.array(sorted(found), np.int64)


def _sentences_of(prompt: Tensor, embedding: Tensor, tokens: Tensor) -> list[int]:
    """Which token sequences [H, context] have exactly the embeddings `prompt` [context, Wt]."""
    left = torch.arange(len(tokens), device=tokens.device)
    for slot, vector in enumerate(prompt):
        left = left[(embedding[tokens[left, slot]] == vector).all(1)]
    return left.tolist()


def _read(clip: ClipModel, prompt: Tensor) -> str:
    """The words whose embeddings are nearest to `prompt`."""
    tokens = torch.cdist(prompt, clip.model.token_embedding.weight).argmin(1).tolist()
    text = clip.tokenizer.decode(tokens)
    return text.replace("<start_of_text>", "").split("<end_of_text>")[0].strip()


# ---------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.ezhoi.released", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, target in (("import", "checkpoint", "folder"), ("export", "folder", "checkpoint")):
        command = commands.add_parser(name)
        command.add_argument(source, type=Path)
        command.add_argument(target, type=Path)
        command.add_argument("--clip", required=True, help="local-dir:FOLDER of the CLIP it was trained on")
        command.add_argument("--annotations", type=Path, required=True, help="instances_*2015.json: names of classes")
    commands.choices["import"].add_argument("--bases", type=Path, help=".npy file [levels, 2, text width]")
    options = parser.parse_args(arguments)
    clip = load_clip(options.clip)
    vocabulary = read_hico_det(options.annotations, options.annotations.parent, "test").vocabulary
    if options.command == "import":
        bases = torch.from_numpy(np.load(options.bases)) if options.bases else None
        model = import_released(options.checkpoint, clip, vocabulary, options.folder, prompt_bases=bases)
        record, count = read_record(options.folder), sum(value.numel() for value in model.parameters())
        print(f"{options.folder}: {len(model.text.rows)} class rows, {count:,} parameters", end="; ")
        print(f"prompt bases from {record['prompt_bases']['from']}; left out: {record['left_out']}")
        return
    record = read_record(options.folder)
    settings = EzHoiSettings(**record["settings"])
    texts = ClassTexts(template_descriptions(vocabulary), {})
    model = build_ezhoi(clip, vocabulary, texts, [], settings, np.array(record["rows"]))
    load_model_weights(options.folder, model, clip.spec)
    print(export_released(model, clip, options.checkpoint))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:  # all of ours say what to mend
        raise SystemExit(str(error)) from None
