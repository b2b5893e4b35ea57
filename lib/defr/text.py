"""Sentences of the classes and their embeddings by BERT, SimCSE and CLIP, from local folders (spec defr.md §4)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from open_clip.model import convert_weights_to_lp
from torch import Tensor
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.data.vocabulary import NO_INTERACTION, Vocabulary, noun_phrase
from lib.defr.embeddings import EmbeddingsError, LanguageRows, load_embeddings
from lib.defr.heads import family_of
from lib.settings import DefrSettings

LANGUAGE_MODELS = ("bert", "simcse")  # bert-base-uncased; princeton-nlp/sup-simcse-bert-base-uncased


def language_rows(settings: DefrSettings, vocabulary: Vocabulary, clip: ClipModel | None = None) -> LanguageRows | None:
    """What the head of the settings starts from: its embeddings file, or rows computed now; None for random heads.

    clip: for heads of CLIP rows without a file. Others need `defr.text_model`, the folder of their language model.
    """
    source = family_of(settings.head).rows
    if source == "random":
        return None
    if settings.embeddings:
        return load_embeddings(settings.embeddings)
    sentences = class_sentences(vocabulary, settings.sentences)
    if source != "clip":
        return language_model_rows(source, settings.text_model, sentences)
    if clip is None:
        raise ValueError(f"defr.head {settings.head}: found no CLIP, expected a loaded one; mend: set clip.source")
    return clip_rows(clip, sentences)


def class_sentences(vocabulary: Vocabulary, how: Path | str = "") -> tuple[tuple[str, ...], ...]:
    """Sentences of every HOI class, in class order; several a class are an ensemble.

    how: "" for "a person riding a bicycle", "base_form" for the published pattern, "a person ride the bicycle" (§4), or
    a JSON file of `verb object` -> sentence or list of sentences. No interaction is "a person and a bicycle" in both.
    """
    hois = range(vocabulary.num_hois)
    if not how:
        return tuple((vocabulary.hoi_label(hoi).removeprefix("a photo of "),) for hoi in hois)
    if how == "base_form":
        return tuple((_base_form(vocabulary, hoi),) for hoi in hois)
    content, names = json.loads(Path(how).read_text()), [vocabulary.hoi_name(hoi) for hoi in hois]
    missing = [name for name in names if not content.get(name)]
    if missing:
        raise EmbeddingsError(
            how, f"no sentence for {len(missing)} classes ({missing[:3]})", f"one or more for all {len(names)}",
            "add them under the class's name, such as `ride bicycle`",
        )  # fmt: skip
    return tuple((content[name],) if isinstance(content[name], str) else tuple(content[name]) for name in names)


def _base_form(vocabulary: Vocabulary, hoi: int) -> str:
    verb = vocabulary.verbs[vocabulary.hoi_verb[hoi]]
    thing = vocabulary.objects[vocabulary.hoi_object[hoi]]
    if verb == NO_INTERACTION:
        return f"a person and {noun_phrase(thing)}"
    return f"a person {verb.replace('_', ' ')} the {thing.replace('_', ' ')}"


def ensemble(encode: Callable[[list[str]], Tensor], sentences: Sequence[Sequence[str]]) -> Tensor:
    """Unit rows [C, E]: the mean of every class's unit sentence vectors, normalised again."""
    flat = [sentence for group in sentences for sentence in group]
    vectors = F.normalize(encode(flat).float().cpu(), dim=-1)  # (S, E)
    owner = torch.repeat_interleave(torch.arange(len(sentences)), torch.tensor([len(group) for group in sentences]))
    summed = torch.zeros(len(sentences), vectors.shape[1]).index_add_(0, owner, vectors)
    return F.normalize(summed, dim=-1)


def clip_rows(clip: ClipModel, sentences: Sequence[Sequence[str]]) -> LanguageRows:
    """CLIP's rows and visual projection, from weights rounded to fp16 and computed in fp32, as published (§4).

    Archives of OpenAI are fp16 already; the rounding matters for weights trained in fp32.
    """
    model = copy.deepcopy(clip.model)
    convert_weights_to_lp(model, torch.float16)  # linear, attention and projection tensors; no embedding, no norm
    rounded = replace(clip, model=model.float())
    unit = ensemble(lambda flat: encode_text(rounded, flat), sentences)
    return LanguageRows(
        {"clip": unit}, model.visual.proj.detach().cpu(), {"clip": clip.spec.id}, tuple(map(tuple, sentences))
    )


def language_model_rows(source: str, folder: Path | str, sentences: Sequence[Sequence[str]]) -> LanguageRows:
    """Rows of a transformers BERT in a local folder: source "bert" ([CLS] of the last layer) or "simcse" (pooler)."""
    from transformers import AutoModel, AutoTokenizer

    if source not in LANGUAGE_MODELS:
        raise ValueError(f"language model: found {source!r}, expected one of {LANGUAGE_MODELS}")
    if not (Path(folder) / "config.json").is_file():
        raise EmbeddingsError(
            folder, "no config.json", f"the folder of a {source} model and its tokenizer", "set defr.text_model"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    @torch.inference_mode()
    def encode(flat: list[str]) -> Tensor:
        vectors = []
        for start in range(0, len(flat), 64):
            batch = tokenizer(
                flat[start : start + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            output = model(**batch)
            vectors.append(output.last_hidden_state[:, 0] if source == "bert" else output.pooler_output)
        return torch.cat(vectors).clone()

    return LanguageRows(
        {source: ensemble(encode, sentences)}, None, {source: str(folder)}, tuple(map(tuple, sentences))
    )
