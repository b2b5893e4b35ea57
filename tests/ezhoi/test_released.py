"""Public checkpoints in and out: nothing lost, nothing guessed, the rest refused (spec ez-hoi.md §7.1, App. D 2)."""

import json
import os
import warnings
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from lib.clip.load import ClipModel, load_clip, read_spec, tokenizer_of
from lib.data.descriptions import ClassTexts, template_act_descriptors, template_descriptions
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.adapters import BottleneckAdapter, DecoderLayer, InstanceAdapter
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.pairs import Instances
from lib.ezhoi.released import (
    PromptBasesWarning,
    ReleasedError,
    export_released,
    import_released,
    main,
    read_released,
)
from lib.ezhoi.weights import load_model_weights, read_record
from lib.settings import PRESETS, EzHoiSettings

TINY = "random:configs/clip/tiny-clip.json"
LEARNER = "clip_head.prompt_learner."
VOCABULARY = Vocabulary(
    ("person", "bicycle", "dog", "bench"),
    ("carry", "hold", "no_interaction", "ride"),
    np.array([1, 1, 1, 2, 2, 2, 3, 3]),
    np.array([1, 2, 3, 0, 1, 2, 2, 1]),
)
TEXTS = ClassTexts(template_descriptions(VOCABULARY), {}, template_act_descriptors(VOCABULARY))


@pytest.fixture(scope="module")
def clip():
    return load_clip(TINY)


def build(clip, **changes):
    """A model whose every parameter was moved, as training does."""
    torch.manual_seed(5)
    model = build_ezhoi(clip, VOCABULARY, TEXTS, [], replace(EzHoiSettings(**PRESETS["released"]), **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@torch.no_grad()
def logits_of(model, clip):
    generator, size = torch.Generator().manual_seed(1), clip.spec.image_size
    corner = torch.rand(5, 2, generator=generator) * size * 0.6
    boxes = torch.cat([corner, corner + size * 0.3], dim=1)
    instances = Instances.collate([(boxes, torch.rand(5, generator=generator), torch.tensor([0, 0, 1, 2, 3]), 2)])
    images = torch.randn(1, 3, size, size, generator=generator)
    memory = F.normalize(torch.randn(1, clip.spec.tokens, clip.spec.embed_dim, generator=generator), dim=-1)
    return model(images, memory, instances).logits


@pytest.fixture(scope="module")
def model(clip):
    return build(clip)


@pytest.fixture(scope="module")
def released(clip, model, tmp_path_factory):
    """A checkpoint with every tensor of the public program but the detector's."""
    return export_released(model, clip, tmp_path_factory.mktemp("released"))


@pytest.fixture
def edited(released, tmp_path):
    """A copy of the checkpoint with tensors changed, added or (None) removed."""

    def edit(changes, **top_level):
        state = torch.load(released, weights_only=True) | top_level
        tensors = state["model_state_dict"] | changes
        state["model_state_dict"] = {name: value for name, value in tensors.items() if value is not None}
        torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "edited.pt")
        return tmp_path / "edited.pt"

    edit.tensors = torch.load(released, weights_only=True)["model_state_dict"]
    return edit


# ---------------------------------------------------------------- in and out


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text_adapter": True, "act_descriptors": True},
        {"regions": "HO+U", "prior": "be", "instance_adapters": "end", "image_prompts": False, "prompt_depth": 2},
        {"regions": "U", "pair_adapter": False, "instance_adapters": "none", "prompt_length": 3},
    ],
    ids=["published", "live text behind the tower", "other parts", "few parts"],
)
def test_a_model_survives_the_way_out_and_in(clip, tmp_path, changes):
    model = build(clip, **changes)
    path = export_released(model, clip, tmp_path)
    assert path == tmp_path / "ckpt_00000_00.pt"
    again = import_released(path, clip, VOCABULARY, tmp_path / "ours", texts=TEXTS)
    assert torch.allclose(logits_of(model, clip), logits_of(again, clip), atol=1e-5)
    assert torch.allclose(model.prompts.folded(), again.prompts.folded(), atol=1e-5)
    wanted = replace(EzHoiSettings(**PRESETS["released"]), **changes)
    depth = min(wanted.prompt_depth, clip.spec.vision_layers)
    settings = EzHoiSettings(**read_record(tmp_path / "ours")["settings"])
    assert settings == replace(wanted, preset="released", prompt_depth=depth)


def test_what_was_imported_loads_like_any_trained_model(clip, released, tmp_path):
    model = import_released(released, clip, VOCABULARY, tmp_path)
    again = build(clip)
    record = load_model_weights(tmp_path, again, clip.spec)
    assert torch.equal(logits_of(model, clip), logits_of(again, clip))
    assert record["released"]["file"] == "ckpt_00000_00.pt" and len(record["released"]["sha256"]) == 64
    assert record["prompt_bases"] == {"from": "the file"}
    counted = sum(record["left_out"].values()) + len(model.state_dict()) - 1
    assert counted == len(read_released(released).tensors)  # every tensor is accounted for, bases are none of them


def test_an_import_draws_nothing_from_the_global_stream(clip, released, tmp_path):
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    import_released(released, clip, VOCABULARY, tmp_path)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------- prompt bases


def test_bases_are_replayed_and_proved_by_both_fingerprints(clip, model, edited, tmp_path):
    path = edited({}, prompt_bases=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = import_released(path, clip, VOCABULARY, tmp_path / "ours")
    assert read_record(tmp_path / "ours")["prompt_bases"] == {"from": "the replayed random stream", "problems": []}
    assert torch.allclose(logits_of(model, clip), logits_of(again, clip), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("clip_head.text_encoder.transformer.resblocks.2.txtcls_adapter.down_proj_mem.weight", "(i)"),
        (f"{LEARNER}txtcls_pt_adapter.down_proj_mem.weight", "(ii)"),
    ],
)
def test_a_wrong_fingerprint_is_loud_and_recorded(clip, edited, tmp_path, name, which):
    path = edited({name: edited.tensors[name] + 1e-3}, prompt_bases=None)
    with pytest.warns(PromptBasesWarning, match="CANNOT BE RECOVERED EXACTLY") as caught:
        import_released(path, clip, VOCABULARY, tmp_path / "ours")
    assert caught[0].filename == __file__
    (problem,) = read_record(tmp_path / "ours")["prompt_bases"]["problems"]
    assert problem.startswith(which)


def test_given_bases_come_first(clip, released, tmp_path):
    bases = torch.ones(4, 2, clip.spec.text_width)
    model = import_released(released, clip, VOCABULARY, tmp_path, prompt_bases=bases)
    assert torch.equal(model.prompts.bases, bases)
    with pytest.raises(ReleasedError, match="prompts.bases"):
        import_released(released, clip, VOCABULARY, tmp_path, prompt_bases=bases[:3])


# ---------------------------------------------------------------- refusals


def refused(path, clip, tmp_path, *words, vocabulary=VOCABULARY):
    with pytest.raises(ReleasedError) as error:
        import_released(path, clip, vocabulary, tmp_path / "ours")
    message = str(error.value)
    assert all(word in message for word in ("found", "expected", "mend", *words)), message
    assert not (tmp_path / "ours").exists()


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_files_that_are_no_checkpoint(clip, released, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {name: tmp_path / f"{name}.pt" for name in ("malicious", "half", "empty", "detr", "list")}
    torch.save({"model_state_dict": {"label_HO": Attack()}}, files["malicious"])
    files["half"].write_bytes(released.read_bytes()[: released.stat().st_size // 2])
    files["empty"].write_bytes(b"")
    torch.save({"model_state_dict": {"query_embed.weight": torch.zeros(2, 2)}}, files["detr"])
    torch.save([1, 2], files["list"])
    words = {"malicious": "mkdir", "half": "half.pt", "empty": "broken file", "detr": "DETR", "list": "0 tensors"}
    for name, path in files.items():
        refused(path, clip, tmp_path, words[name])
    refused(tmp_path / "absent.pt", clip, tmp_path, "no file")
    assert not (tmp_path / "attacked").exists()


def test_another_clip(clip, released, edited, tmp_path):
    refused(released, load_clip(TINY, seed=1), tmp_path, "another CLIP", "--clip")
    wider = torch.zeros(2 * clip.spec.vision_width, clip.spec.text_width)
    refused(edited({f"{LEARNER}proj.weight": wider}), clip, tmp_path, "another backbone", "'vision width': 256")
    gelu = replace(clip, spec=replace(clip.spec, activation="gelu"))
    refused(released, gelu, tmp_path, "activation gelu", "quick_gelu")


def test_rows_that_contradict_each_other_name_row_and_sentence(clip, edited, tmp_path):
    labels, prompts = edited.tensors["label_HO"].clone(), edited.tensors[f"{LEARNER}token_prompts"].clone()
    labels[2] = labels[2].roll(1)
    row = build(clip).text.rows[2]
    words = ("row 2", repr(VOCABULARY.class_sentences()[row]), VOCABULARY.verbs[(VOCABULARY.hoi_verb[row] + 1) % 4])
    refused(edited({"label_HO": labels}), clip, tmp_path, *words)
    foreign = clip.model.token_embedding(clip.tokenizer(["A photo of a person riding a horse."])).detach()
    prompts[2] = foreign[0]
    words = ("row 2", "a photo of a person riding a horse", "no class")
    refused(edited({f"{LEARNER}token_prompts": prompts}), clip, tmp_path, *words)
    refused(edited({"label_HO": edited.tensors["label_HO"] * 0.9}), clip, tmp_path, "one-hot", "label_learning")
    other = Vocabulary(("person", "kite"), ("fly",), np.array([1]), np.array([0]))
    refused(edited({}), clip, tmp_path, "label_HO", "1 verbs", vocabulary=other)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("strange.weight", torch.zeros(1), ["unknown meaning", "strange.weight"]),
        ("weight_pred.0.weight", torch.zeros(1), ["--use_weight_pred"]),
        ("vcoco_rela.weight", torch.zeros(1), ["V-COCO"]),
        ("logit_scale_HO", torch.tensor(float("nan")), ["not finite", "logit_scale_HO"]),
        ("vis_fuse.2.bias", None, ["vis_fuse.2.bias", "damaged"]),
        ("vis_fuse.2.bias", torch.zeros(3), ["vis_fuse.2.bias", "shapes"]),
        ("priors_downproj.layers.0.weight", torch.zeros(128, 7), ["prior tokens 7 wide", "--prior_method"]),
        ("label_HO", None, ["label_HO", "EZ-HOI"]),
    ],
)
def test_tensors_that_do_not_belong(clip, edited, tmp_path, name, value, words):
    refused(edited({name: value}), clip, tmp_path, *words)


def test_copies_of_the_detector_and_of_the_forks_bridge_are_left_out(clip, model, edited, tmp_path):
    path = export_released(model, clip, tmp_path / "whole.pth", detector={"query_embed.weight": torch.zeros(2)})
    extra = read_released(path).tensors | {"diffusion_bridge.model.weight": torch.zeros(2)}
    again = import_released(edited(extra), clip, VOCABULARY, tmp_path / "ours")
    left = read_record(tmp_path / "ours")["left_out"]
    assert left["copy of the DETR file"] == 1 and left["the fork's bridge, to be read from its own file"] == 1
    assert torch.allclose(logits_of(model, clip), logits_of(again, clip), atol=1e-5)


def test_models_trained_without_names_bring_the_rows_of_evaluation(clip, edited, tmp_path):
    keep = torch.tensor([0, 2, 3])
    rows = {
        "label_HO": edited.tensors["label_HO"],
        f"{LEARNER}token_prompts": edited.tensors[f"{LEARNER}token_prompts"],
    }
    changes = {f"{name}_eval": value for name, value in rows.items()} | {name: v[keep] for name, v in rows.items()}
    model = import_released(edited(changes), clip, VOCABULARY, tmp_path / "ours")
    assert len(model.text.rows) == len(edited.tensors["label_HO"])


def test_what_the_public_format_cannot_say_is_not_exported(clip, tmp_path):
    with pytest.raises(ReleasedError, match="behind the end token"):
        export_released(build(clip, text_prompts="prefix"), clip, tmp_path)
    with pytest.raises(ReleasedError, match="divides 0 by 0"):
        export_released(build(clip, classes="hoi"), clip, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- counts


def hollow_clip(name):
    """A CLIP without weights."""
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(name))
    return ClipModel(model, tokenizer_of(read_spec(model, name, "none", "")), None, read_spec(model, name, "none", ""))


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "public", "ours"),
    [("ViT-B-16-quickgelu", 6_854_337, 6_364_289), ("ViT-L-14-336-quickgelu", 14_076_353, 13_419_905)],
)
def test_parameter_counts(name, public, ours, monkeypatch):
    """What we train and the public program's dead modules add up to what it trains (App. D 2)."""
    clip = hollow_clip(name)
    spec = clip.spec
    for module in ("lib.ezhoi.text", "lib.ezhoi.model"):
        monkeypatch.setattr(f"{module}.encode_text", lambda _, texts: torch.zeros(len(texts), spec.embed_dim))
    model = build_ezhoi(clip, VOCABULARY, TEXTS, [], EzHoiSettings(**PRESETS["released"]), np.arange(8))
    text_side = BottleneckAdapter(spec.text_width, spec.text_width, self_attention=False)
    unseen = BottleneckAdapter(spec.text_width, spec.text_width, self_attention=True)
    spare = BottleneckAdapter(spec.embed_dim, spec.embed_dim, self_attention=True).down_proj_prior
    ctx = 2 * spec.text_width
    cross_only = [m for m in model.modules() if isinstance(m, DecoderLayer) and not m.has_self_attention]
    assert sum(isinstance(m, InstanceAdapter) for m in model.modules()) == spec.vision_layers
    norms = 2 * 64 * (len(cross_only) + 1)  # norm1 in every cross-only layer, that of the text side's adapter too
    dead = size_of(text_side) + size_of(unseen) + size_of(spare) + ctx + norms
    assert (size_of(model), size_of(model) + dead) == (ours, public)


# ---------------------------------------------------------------- command


def test_command(clip, released, tmp_path, capsys):
    triples = np.stack([np.arange(8), VOCABULARY.hoi_object, VOCABULARY.hoi_verb], axis=1).tolist()
    names = {"objects": VOCABULARY.objects, "verbs": VOCABULARY.verbs, "correspondence": triples}
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(names | {"annotation": [], "filenames": [], "size": []}))
    common = ["--clip", TINY, "--annotations", str(file)]
    main(["import", str(released), str(tmp_path / "ours"), *common])
    assert "prompt bases from the file" in capsys.readouterr().out
    main(["export", str(tmp_path / "ours"), str(tmp_path / "back.pt"), *common])
    first, second = (read_released(path).tensors for path in (released, tmp_path / "back.pt"))
    np.save(tmp_path / "bases.npy", torch.load(released, weights_only=True)["prompt_bases"].numpy())
    main(["import", str(released), str(tmp_path / "ours"), *common, "--bases", str(tmp_path / "bases.npy")])
    assert "prompt bases from the caller" in capsys.readouterr().out
    assert first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)
