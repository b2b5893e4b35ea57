"""Descriptions through local models that the tests build: a tiny GPT-2 and a tiny LLaVA with random weights."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lib.data import describe
from lib.data.describe import describe_classes, main
from lib.data.descriptions import read_descriptions, template_descriptions
from lib.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    ("person", "bicycle", "sports_ball"), ("hold", "ride", "no_interaction"),
    np.array([1, 1, 1, 2, 2]), np.array([0, 1, 2, 0, 2]),
)  # fmt: skip
SENTENCE = "describe a photo of person holding riding and bicycle sports ball arms bent ."
WORDS = ["[UNK]", "[PAD]", "<image>", *SENTENCE.split()]
CHAT = (
    "{% for m in messages %}{{ m['role'] }}"
    " {{ m['content'] if m['content'] is string else m['content'][0]['text'] }}{% endfor %}"
)


def tokenizer(**more):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", **more)


def save_gpt2(folder, seed=0, chat=False):
    torch.manual_seed(seed)
    size = {"vocab_size": len(WORDS), "n_positions": 256, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=None, initializer_range=1.0))
    model.save_pretrained(folder)
    words = tokenizer()
    words.chat_template = CHAT if chat else None
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


def written(model, out, **more):
    options = {"prompt": "describe {label} .", "batch_size": 2, "max_new_tokens": 6, "device": "cpu"} | more
    return describe_classes(model, VOCABULARY, out, **options)


def test_the_file_is_what_the_reader_of_blocks_reads(gpt2, tmp_path):
    seen = []
    out = written(gpt2, tmp_path / "d.txt", progress=lambda *step: seen.append(step))
    texts = read_descriptions(out, VOCABULARY)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert out.read_text().startswith("1. A photo of a person holding a bicycle:\n   - Description: ")
    assert len(set(texts)) > 1 and all(set(text.split()) <= set(WORDS) for text in texts)
    logged = [json.loads(line) for line in (tmp_path / "d.txt.jsonl").read_text().splitlines()]
    assert logged[0]["prompt"] == "describe {label} ."
    assert [len(record["texts"]) for record in logged[1:]] == [2, 2, 1]


def test_greedy_text_is_the_models_own(gpt2, tmp_path):
    """Left padding must not change what the model says: each class alone, token by token."""
    texts = read_descriptions(written(gpt2, tmp_path / "d.txt", batch_size=5), VOCABULARY)
    model, words = GPT2LMHeadModel.from_pretrained(gpt2).eval(), tokenizer()
    for hoi, text in enumerate(texts):
        ids = words(f"describe {VOCABULARY.hoi_label(hoi)} .", return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        said = words.decode(ids[0, start:], skip_special_tokens=True)
        assert text == (describe._clean(said) or template_descriptions(VOCABULARY)[hoi])


def test_resumed_equals_uninterrupted(gpt2, tmp_path):
    whole = written(gpt2, tmp_path / "whole.txt").read_text()

    class Killed(Exception):
        pass

    def kill(done, total):
        raise Killed

    with pytest.raises(Killed):
        written(gpt2, tmp_path / "cut.txt", progress=kill)
    assert not (tmp_path / "cut.txt").exists()
    log = tmp_path / "cut.txt.jsonl"
    log.write_text(log.read_text() + '{"texts": ["half a li')  # the kill came amid the second line
    done = []
    again = written(gpt2, tmp_path / "cut.txt", progress=lambda *step: done.append(step[0]))
    assert done == [4, 5]
    assert again.read_text() == whole
    assert log.read_text() == (tmp_path / "whole.txt.jsonl").read_text()


def test_a_finished_file_needs_no_model_again(gpt2, tmp_path, monkeypatch):
    out = written(gpt2, tmp_path / "d.txt")
    text = out.read_text()
    monkeypatch.setattr(describe, "_load_writer", lambda *_: pytest.fail("the model was loaded"))
    assert written(gpt2, out).read_text() == text


def test_another_model_or_prompt_does_not_go_on(gpt2, tmp_path):
    out = written(gpt2, tmp_path / "d.txt")
    with pytest.raises(FileExistsError, match=r"another prompt(?s:.*)mend"):
        written(gpt2, out, prompt="describe the {label}")
    with pytest.raises(FileExistsError, match="another weights"):
        written(save_gpt2(tmp_path / "other", seed=1), out)
    mine = tmp_path / "mine.txt"
    mine.write_text("written by hand")
    with pytest.raises(FileExistsError, match="elsewhere"):
        written(gpt2, mine)
    assert mine.read_text() == "written by hand"


def test_a_model_that_writes_nothing_gets_the_template(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(describe, "_load_writer", lambda *_: lambda questions: [" \n" for _ in questions])
    with pytest.warns(UserWarning, match="nothing for 5 classes"):
        out = written(gpt2, tmp_path / "d.txt")
    assert read_descriptions(out, VOCABULARY) == template_descriptions(VOCABULARY)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Arms: bent.\n Legs  apart. And the", "Arms, bent. Legs apart."),
        ("no full stop", "no full stop"),
        (" \n ", ""),
    ],
)
def test_cleaning(said, kept):
    assert describe._clean(said) == kept


def test_the_chat_template_is_used(gpt2, tmp_path):
    chat = save_gpt2(tmp_path / "chat", chat=True)
    texts = {name: written(folder, tmp_path / f"{name}.txt").read_text() for name, folder in [("p", gpt2), ("c", chat)]}
    assert texts["p"] != texts["c"]


def test_a_vision_language_model_writes_too(tmp_path):
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=1.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>"))
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    LlavaProcessor(CLIPImageProcessor(), tokenizer(), patch_size=4, chat_template=CHAT).save_pretrained(
        tmp_path / "llava"
    )
    texts = read_descriptions(written(tmp_path / "llava", tmp_path / "d.txt"), VOCABULARY)
    assert len(texts) == 5


def test_no_model_and_no_label_are_refused(gpt2, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: found no model(?s:.*)nothing is downloaded"):
        written(tmp_path / "gpt2", tmp_path / "d.txt")
    with pytest.raises(ValueError, match="label"):
        written(gpt2, tmp_path / "d.txt", prompt="describe it")


def test_the_command_reads_both_kinds_of_annotations(gpt2, tmp_path, capsys):
    hico = {
        "objects": ["person", "bicycle"], "verbs": ["hold", "ride"], "correspondence": [[0, 1, 0], [1, 1, 1]],
        "filenames": [], "size": [], "annotation": [],
    }  # fmt: skip
    vcoco = {
        "objects": ["background", "person", "tennis racket"], "classes": ["hold obj", "hit instr"],
        "action_to_object": [[2, 1], [2]], "annotations": [], "images": [],
    }  # fmt: skip
    for name, content, last in [
        ("hico", hico, "2. A photo of a person riding a bicycle:"),
        ("vcoco", vcoco, "3. A photo of a person hitting with a tennis racket:"),
    ]:
        annotations, out = tmp_path / f"{name}.json", tmp_path / f"{name}.txt"
        annotations.write_text(json.dumps(content))
        main([str(gpt2), str(annotations), str(out), "--device", "cpu", "--prompt", "describe {label}"])
        assert out.read_text().splitlines()[-2] == last
        assert f"data.descriptions={out}" in capsys.readouterr().out
