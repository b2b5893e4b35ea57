"""Descriptions of HOI classes written by a local transformers model, as the file of blocks of spec ez-hoi.md §4.1.

    python -m lib.data.describe MODEL ANNOTATIONS OUT

MODEL is a folder with a text-generation or an image-text-to-text model; nothing is ever downloaded.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lib.data.descriptions import template_descriptions
from lib.data.hico_det import read_hico_det
from lib.data.vcoco import vcoco_vocabulary
from lib.data.vocabulary import Vocabulary
from lib.runs import append_jsonl, file_sha256, read_jsonl, write_text

PROMPT = (
    "Describe in two short sentences what {label} looks like: the posture of the person, the hands, the object and"
    " where the two are. Answer with the description only."
)
_WEIGHTS = (".safetensors", ".bin")


def describe_classes(
    model_folder: Path | str,
    vocabulary: Vocabulary,
    out_path: Path | str,
    prompt: str = PROMPT,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 96,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one description an HOI class to `out_path`, greedily decoded, and return the path.

    Each finished batch is a line in `<out_path>.jsonl`, whose first line states model, prompt and classes: a run that
    was interrupted goes on from there, with the batches an uninterrupted one would have, and a finished one is not
    repeated. `out_path` itself appears whole or not at all. A class for which the model writes nothing gets the
    template, with a warning.

    prompt: question with `{label}` in place of "a photo of a person riding a bicycle".
    progress: called with (classes done, all classes) after each batch.
    Raises FileNotFoundError without a model, FileExistsError for a file that was not written here or was written with
    another model, prompt or vocabulary, and ValueError for a prompt without `{label}`.
    """
    folder, out_path = Path(model_folder), Path(out_path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'config.json'}: found no model, expected a folder that transformers' save_pretrained wrote"
            "\n  mend: copy a model here beforehand; nothing is downloaded"
        )
    if "{label}" not in prompt:
        raise ValueError(
            f"prompt: found {prompt!r}, expected {{label}} in it\n  mend: put {{label}} where the class goes"
        )
    labels = [vocabulary.hoi_label(hoi) for hoi in range(vocabulary.num_hois)]
    weights = {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.suffix in _WEIGHTS}
    head = {"weights": weights, "prompt": prompt, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    log = out_path.with_name(f"{out_path.name}.jsonl")
    texts = _resume(out_path, log, head | {"labels": labels})
    if len(texts) < len(labels):
        write = _load_writer(folder, max_new_tokens, device)
        for start in range(len(texts), len(labels), batch_size):
            texts += map(
                _clean, write([prompt.replace("{label}", label) for label in labels[start : start + batch_size]])
            )
            append_jsonl(log, {"texts": texts[start:]})
            if progress:
                progress(len(texts), len(labels))
    if silent := [hoi for hoi, text in enumerate(texts) if not text]:
        warnings.warn(f"{log}: the model wrote nothing for {len(silent)} classes; they get the template", stacklevel=2)
        template = template_descriptions(vocabulary)
        texts = [text or template[hoi] for hoi, text in enumerate(texts)]
    blocks = [
        f"{number}. {label[0].upper()}{label[1:]}:\n   - Description: {text}\n"
        for number, (label, text) in enumerate(zip(labels, texts, strict=True), start=1)
    ]
    write_text(out_path, "\n".join(blocks))
    return out_path


def _resume(out_path: Path, log: Path, head: dict[str, Any]) -> list[str]:
    """Texts of the whole batches in the log, which is begun, or rewritten without a line that a kill cut."""
    records = read_jsonl(log)
    if (records and records[0] != head) or (not records and out_path.exists()):
        other = [name for name in head if records and records[0].get(name) != head[name]]
        raise FileExistsError(
            f"{log if records else out_path}: found a file written "
            + (f"with another {', '.join(other)}" if records else "elsewhere")
            + ", expected none or one of this very run\n  mend: choose another name, or remove it and its .jsonl"
        )
    write_text(log, "".join(json.dumps(record) + "\n" for record in records or [head]))
    return [text for record in records[1:] for text in record["texts"]]


def _load_writer(folder: Path, max_new_tokens: int, device: str) -> Callable[[Sequence[str]], list[str]]:
    """A function that answers a batch of questions, put through the model's chat template if it has one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sees = type(AutoConfig.from_pretrained(folder, local_files_only=True)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = auto.from_pretrained(folder, local_files_only=True, dtype="auto").to(device).eval()
    processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(folder, local_files_only=True)
    tokenizer = processor.tokenizer if sees else processor
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token

    def asked(question: str) -> str:
        if not processor.chat_template:
            return question
        content = [{"type": "text", "text": question}] if sees else question
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    @torch.inference_mode()
    def write(questions: Sequence[str]) -> list[str]:
        plain = not processor.chat_template  # a chat template already holds the special tokens
        inputs = tokenizer(
            [asked(question) for question in questions], return_tensors="pt", padding=True, add_special_tokens=plain
        ).to(device)
        tokens = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return write


def _clean(text: str) -> str:
    """One line without colons, which end a description in the file, up to the last whole sentence if there is one."""
    text = " ".join(text.replace(":", ",").split())
    return text[: text.rfind(".") + 1] or text


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; ANNOTATIONS is an HICO-DET or a V-COCO instance file."""
    parser = argparse.ArgumentParser(prog="python -m lib.data.describe", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a transformers model")
    parser.add_argument("annotations", type=Path, help="instances_*.json, for its classes")
    parser.add_argument("out", type=Path, help="description file to write")
    parser.add_argument("--prompt", default=PROMPT, help="question with {label} in it")
    parser.add_argument("--batch-size", type=int, default=8, help="classes a forward")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    options = parser.parse_args(arguments)
    vocabulary = _vocabulary(options.annotations)
    describe_classes(
        options.model, vocabulary, options.out, options.prompt, batch_size=options.batch_size, device=options.device,
        progress=lambda done, total: print(f"{done}/{total} classes", flush=True),
    )  # fmt: skip
    print(f"{options.out}: {vocabulary.num_hois} descriptions; use it with data.descriptions={options.out}")


def _vocabulary(annotations: Path) -> Vocabulary:
    if annotations.is_file() and '"action_to_object"' in annotations.read_text():
        return vcoco_vocabulary(annotations)
    return read_hico_det(annotations, annotations.parent, "train").vocabulary


if __name__ == "__main__":
    main()
