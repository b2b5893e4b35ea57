"""Class sentences, their embeddings, and the files that keep them (spec defr.md §4, §13)."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib.clip.load import load_clip
from lib.clip.text import encode_text
from lib.data.vocabulary import Vocabulary
from lib.defr.embeddings import EmbeddingsError, LanguageRows, load_embeddings, save_embeddings
from lib.defr.text import class_sentences, clip_rows, ensemble, language_model_rows, language_rows
from lib.settings import DefrSettings

VOCABULARY = Vocabulary(
    ("person", "sports_ball"), ("no_interaction", "sit_on", "throw"), np.array([1, 1, 1]), np.array([1, 2, 0])
)


def test_sentences(tmp_path):
    riding, ride = (["sitting on a", "throwing a"], ["sit on the", "throw the"])
    for how, verbs in (("", riding), ("base_form", ride)):
        expected = [f"a person {verb} sports ball" for verb in (*verbs, "and a")]
        assert class_sentences(VOCABULARY, how) == tuple((sentence,) for sentence in expected)
    names = [VOCABULARY.hoi_name(hoi) for hoi in range(3)]
    file = tmp_path / "sentences.json"
    file.write_text(json.dumps({names[0]: "one", names[1]: ["two", "three"], names[2]: "four"}))
    assert class_sentences(VOCABULARY, file) == (("one",), ("two", "three"), ("four",))
    file.write_text(json.dumps({names[0]: "one"}))
    with pytest.raises(EmbeddingsError, match="2 classes"):
        class_sentences(VOCABULARY, file)


def test_ensemble_averages_unit_vectors():
    table = {"a": [2.0, 0.0], "b": [0.0, 5.0], "c": [-1.0, 0.0]}
    rows = ensemble(lambda flat: torch.tensor([table[s] for s in flat]), [("a", "b"), ("c",)])
    assert torch.allclose(rows, torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]))


def test_clip_rows_are_the_text_towers_up_to_rounding():
    clip = load_clip("random:configs/clip/tiny-clip.json", seed=1)
    before = encode_text(clip, ["a person throwing a sports ball"])
    rows = clip_rows(clip, class_sentences(VOCABULARY))
    assert torch.allclose(rows.unit["clip"][1], F.normalize(before, dim=1)[0], atol=2e-3)
    assert rows.projection.shape == (clip.spec.vision_width, clip.spec.embed_dim)
    assert torch.equal(rows.projection, clip.model.visual.proj.half().float())
    assert torch.equal(encode_text(clip, ["a person throwing a sports ball"]), before)  # the CLIP itself is untouched


def test_our_file_comes_back_and_knows_its_sentences(tmp_path):
    unit = {"clip": F.normalize(torch.randn(3, 4), dim=1), "bert": F.normalize(torch.randn(3, 5), dim=1)}
    rows = LanguageRows(unit, torch.randn(6, 4), {"clip": "x"}, class_sentences(VOCABULARY))
    save_embeddings(tmp_path / "rows.safetensors", rows)
    again = load_embeddings(tmp_path / "rows.safetensors")
    assert again.sentences == rows.sentences and again.models == rows.models
    assert torch.equal(again.projection, rows.projection)
    assert all(torch.equal(again.unit[name], unit[name]) for name in unit)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(EmbeddingsError, match="other sentences"):
        load_embeddings(tmp_path / "rows.safetensors")


def test_public_file(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"bert_w": (3, 5), "simcse_w": (3, 5), "clip_w": (3, 4), "clip_proj": (5, 4)}
    content = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path / "classifier_weights_p32"
    torch.save(content, path)
    rows = load_embeddings(path)
    for name, key in (("bert", "bert_w"), ("simcse", "simcse_w"), ("clip", "clip_w")):
        assert np.array_equal(rows.unit[name].numpy(), content[key])
    assert np.array_equal(rows.projection.numpy(), content["clip_proj"])
    torch.save({"other": content["bert_w"]}, path)
    with pytest.raises(EmbeddingsError, match="other"):
        load_embeddings(path)
    with pytest.raises(EmbeddingsError, match="no file"):
        load_embeddings(tmp_path / "absent")


class _Runs:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_file_with_code_is_refused(tmp_path, capsys):
    torch.save({"bert_w": _Runs()}, tmp_path / "classifier_weights_p32")
    with pytest.raises(EmbeddingsError, match="cannot be read as arrays"):
        load_embeddings(tmp_path / "classifier_weights_p32")
    assert "ran" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A random two-layer BERT with a word list of its own."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", "ball", "on", "person", "sitting", "throwing"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_bert_takes_the_class_token_and_simcse_the_pooler(bert_folder):
    from transformers import BertModel, BertTokenizerFast

    sentences = class_sentences(VOCABULARY)
    model, tokenizer = BertModel.from_pretrained(bert_folder).eval(), BertTokenizerFast.from_pretrained(bert_folder)
    with torch.inference_mode():
        each = [model(**tokenizer(group[0], return_tensors="pt")) for group in sentences]
    bert = F.normalize(torch.cat([output.last_hidden_state[:, 0] for output in each]), dim=1)
    simcse = F.normalize(torch.cat([output.pooler_output for output in each]), dim=1)
    assert torch.allclose(language_model_rows("bert", bert_folder, sentences).rows("bert"), bert, atol=1e-5)
    assert torch.allclose(language_model_rows("simcse", bert_folder, sentences).rows("simcse"), simcse, atol=1e-5)
    with pytest.raises(EmbeddingsError, match="defr.text_model"):
        language_model_rows("bert", bert_folder / "absent", sentences)


def test_rows_of_the_settings(bert_folder, tmp_path):
    settings = DefrSettings(head="bert-linear", text_model=str(bert_folder))
    rows = language_rows(settings, VOCABULARY)
    assert set(rows.unit) == {"bert"} and len(rows.rows("bert")) == 3
    save_embeddings(tmp_path / "rows.safetensors", rows)
    stored = DefrSettings(head="bert", embeddings=str(tmp_path / "rows.safetensors"))
    assert torch.equal(language_rows(stored, VOCABULARY).rows("bert"), rows.rows("bert"))
    assert language_rows(DefrSettings(head="rand"), VOCABULARY) is None
    with pytest.raises(ValueError, match="clip.source"):
        language_rows(DefrSettings(head="clip"), VOCABULARY)
