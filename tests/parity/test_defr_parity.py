"""DEFR: losses, heads, a small CLIP with both towers, box masks and pairs of the public program (parity README §3)."""

from __future__ import annotations

import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.clip.load import ClipModel, load_clip
from lib.clip.released import convert_openai
from lib.clip.text import tokenize
from lib.defr.box_mask import class_token_mask, detection_view, hidden_cells, masked_features
from lib.defr.embeddings import LanguageRows
from lib.defr.heads import build_head
from lib.defr.labels import oversampled
from lib.defr.losses import bce, focal, lse_sign, positive_weights
from lib.defr.model import DefrClassifier
from lib.defr.pairs import box_pair_priors, box_pairs, pair_scores, rescored
from lib.defr.released import load_released
from lib.defr.text import clip_rows
from lib.defr.towers import ClipTower
from lib.defr.train import restart_cosine
from lib.detection.table import Detections

from .recipe import BESIDE, arrays, content, draw, folder_with, needs, report, seed

LOG_SCALE = 4.61


def meets(case: str, quantity: str, found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> None:
    """Report, and demand what the folder's tolerances.json demands of this array."""
    rows = content("tolerances.json")["rows"]
    row = next(row for row in rows if row["file"] == case and re.search(row["arrays"], quantity))
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected)
    found = found.reshape(1) if found.ndim == 0 else found  # scalars are stored as one number
    report(case, quantity, found, expected)
    found, expected = found.double(), expected.double()
    allowed = row.get("atol", 0) + row.get("rtol", 0) * expected.abs() + row.get("rtol_max", 0) * expected.abs().max()
    assert ((found - expected).abs() <= allowed).all(), f"{case} {quantity}: beyond {row}"


def drawn(key: str, *shape: int) -> Tensor:
    return draw(key, shape, seed(folder_with("defr_head.npz")))


# ---------------------------------------------------------------- losses, sampling, schedule


@needs("defr_lse_sign.npz")
@pytest.mark.parametrize("name", ["sign", "bce", "wbce", "focal"])
def test_losses(name: str) -> None:
    data = arrays("defr_lse_sign")
    weight = positive_weights(data["in.wbce.positive_count"], int(data["in.wbce.images"]))
    loss_of = {
        "sign": lse_sign,
        "bce": bce,
        "wbce": lambda s, t: bce(s, t, positive_weight=weight),
        "focal": lambda s, t: focal(s, t, alpha=0.25, gamma=2.0),
    }[name]
    logits = data["in.logits"].clone().requires_grad_()
    each = loss_of(logits, data["in.label"] == 1)
    each.mean().backward()
    assert torch.equal(logits.detach(), data["in.logits"])
    if name == "sign":
        meets("defr_lse_sign", "out.sign.loss_each", each, data["out.sign.loss_each"])
        meets("defr_lse_sign", "out.sign.grad_of_mean", logits.grad, data["out.sign.grad_of_mean"])
    else:
        meets("defr_lse_sign", f"out.{name}.loss", each.mean(), data[f"out.{name}.loss"])
        meets("defr_lse_sign", f"out.{name}.grad", logits.grad, data[f"out.{name}.grad"])
    if name == "wbce":
        meets("defr_lse_sign", "out.wbce.pos_weight", weight, data["out.wbce.pos_weight"])


@needs("defr_lse_sign.npz")
def test_oversampling_and_schedule() -> None:
    data = arrays("defr_lse_sign")
    positive = (data["in.oversampling.targets"] == 1).numpy()
    for key in (key for key in data if key.startswith("out.oversampling")):
        assert np.array_equal(oversampled(positive, int(key.rpartition("_")[2])), data[key].numpy()), key
    (key,) = (key for key in data if key.startswith("out.lr_trace"))
    epochs, iterations, base, period = re.search(r"epochs(\d+)_iters(\d+)_base([\d.e-]+)_T0_(\d+)", key).groups()
    trace = [
        float(base) * restart_cosine(step, int(iterations), int(period))
        for step in range(int(epochs) * int(iterations))
    ]
    meets("defr_lse_sign", key, np.array(trace), data[key])


# ---------------------------------------------------------------- heads


@cache
def stored_rows() -> LanguageRows:
    width = arrays("defr_head")["in.features"].shape[1]
    joint = arrays("defr_head")["in.features512"].shape[1]
    classes = arrays("defr_lse_sign")["in.label"].shape[1]
    unit = {
        name: F.normalize(drawn(f"classifier_weights.{name}_w", classes, joint if name == "clip" else width), dim=1)
        for name in ("bert", "simcse", "clip")
    }
    return LanguageRows(unit, drawn("classifier_weights.clip_proj", width, joint))


HEADS = [
    *(f"clip.{name}.scale4.61" for name in ("clip", "clip-linear", "bert", "bert-linear", "i-clip", "i-bert", "rand")),
    *(f"clip.{name}.scale4.61" for name in ("rand-linear", "rand-512", "rand-512-linear")),
    *(f"timm.{name}.scale0.0" for name in ("clip", "clip-linear", "bert-linear", "simcse-linear", "rand-linear")),
    "timm.rand.scale4.61",
    "clip.clip.trainable_scale5_clamped_to_4.61",
    "mpii.rand.scale0.0",
]


@needs("defr_head.npz", "defr_lse_sign.npz")
@pytest.mark.parametrize("case", HEADS)
def test_heads(case: str) -> None:
    data, (_, name, scale) = arrays("defr_head"), case.split(".", 2)
    output = next(
        value for key, value in data.items() if re.fullmatch(rf"out\.{re.escape(case)}\.(logits|softmax)", key)
    )
    features = data["in.features512" if "512" in name else "in.features"].clone().requires_grad_()
    trainable = scale.startswith("trainable")
    head = build_head(
        name, features.shape[1], output.shape[1], language=stored_rows(),
        log_scale=5.0 if trainable else float(scale.removeprefix("scale")), trainable=trainable,
    )  # fmt: skip
    with torch.no_grad():
        for key, value in head.state_dict(keep_vars=True).items():
            if name.startswith("rand") and key.startswith("classifier"):
                value.copy_(drawn(f"{name}.{key}", *value.shape))
            elif key == "m_classifier":
                value.add_(0.1 * drawn(key, *value.shape))
    logits = head(features)
    if case.startswith("mpii"):  # the program's quirk for a single-label set
        return meets("defr_head", f"out.{case}.softmax", logits.softmax(dim=1), output)
    meets("defr_head", f"out.{case}.logits", logits, output)
    if f"out.{case}.grad_features" in data:
        lse_sign(logits, arrays("defr_lse_sign")["in.label"] == 1).mean().backward()
        rows = head.classifier.weight if "linear" in name else head.classifier
        meets("defr_head", f"out.{case}.grad_features", features.grad, data[f"out.{case}.grad_features"])
        expected = data[f"out.{case}.grad_classifier_rows_0_4"]
        meets("defr_head", f"out.{case}.grad_classifier_rows_0_4", rows.grad[:5], expected)
        if "linear" in name:
            meets("defr_head", f"out.{case}.grad_bias", head.classifier.bias.grad, data[f"out.{case}.grad_bias"])
    return None


@needs("defr_head.npz", "defr_lse_sign.npz")
def test_rows_in_feature_space() -> None:
    expected = arrays("defr_head")["out.clip_rows_in_feature_space.rows_0_4"]
    meets("defr_head", "out.clip_rows_in_feature_space.rows_0_4", stored_rows().rows("clip")[:5], expected)


# ---------------------------------------------------------------- a small CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> ClipModel:
    """The small CLIP as a user meets one: a file of OpenAI's names, converted to a folder, loaded."""
    folder = tmp_path_factory.mktemp("defr_vit_small")
    torch.save(small_clip(), folder / "archive.pt")
    convert_openai(folder / "archive.pt", folder / "converted")
    return load_clip(f"local-dir:{folder / 'converted'}")


def small_clip() -> dict[str, Tensor]:
    record = content("defr_vit_small.json")
    sizes = record["sizes"]
    shapes = {"logit_scale": []}
    for name, shape in record["state_dict_of_the_classifier"].items():
        if name.startswith("visual_encoder."):
            shapes[name.removeprefix("visual_encoder.")] = shape
    width, text, joint = sizes["width"], sizes["text_width"], sizes["joint"]
    context = arrays("defr_vit_small")["text.out.tokens"].shape[1]
    shapes |= {"visual.positional_embedding": [1 + sizes["grid"] ** 2, width], "visual.proj": [width, joint]}
    shapes |= {"token_embedding.weight": [sizes["vocab"], text], "positional_embedding": [context, text]}
    shapes |= {"ln_final.weight": [text], "ln_final.bias": [text], "text_projection": [text, joint]}
    block = {name.split("resblocks.0.")[1]: shape for name, shape in shapes.items() if "resblocks.0." in name}
    for layer in range(sizes["text_layers"]):
        for name, shape in block.items():
            shapes[f"transformer.resblocks.{layer}.{name}"] = [n * text // width for n in shape]
    return {name: drawn(name, *shape) for name, shape in shapes.items()}


def small_model(clip: ClipModel, image_size: int) -> DefrClassifier:
    data, sizes = arrays("defr_vit_small"), content("defr_vit_small.json")["sizes"]
    classes = data[f"{image_size}.out.logits"].shape[1]
    unit = {"clip": F.normalize(drawn("small.clip_w", classes, sizes["joint"]), dim=1)}
    rows = LanguageRows(unit, drawn("small.clip_proj", sizes["width"], sizes["joint"]))
    tower = ClipTower(clip, image_size)
    return DefrClassifier(tower, build_head("clip", tower.width, classes, language=rows, log_scale=LOG_SCALE)).eval()


@needs("defr_vit_small.npz", "defr_head.npz")
def test_image_tower(clip: ClipModel) -> None:
    data = arrays("defr_vit_small")
    for size in content("defr_vit_small.json")["image_sizes"]:
        model, images = small_model(clip, size), data[f"{size}.in.images"]
        positions = model.tower.visual.positional_embedding
        meets("defr_vit_small", f"{size}.out.positional_embedding", positions, data[f"{size}.out.positional_embedding"])
        meets("defr_vit_small", f"{size}.out.feature", model.tower(images), data[f"{size}.out.feature"])
        meets("defr_vit_small", f"{size}.out.logits", model(images), data[f"{size}.out.logits"])
        if f"{size}.out.joint_space_feature" in data:
            found = ClipTower(clip, size, joint=True)(images)
            meets("defr_vit_small", f"{size}.out.joint_space_feature", found, data[f"{size}.out.joint_space_feature"])


@needs("defr_vit_small.npz", "defr_head.npz")
def test_text_tower(clip: ClipModel) -> None:
    data, sentences = arrays("defr_vit_small"), content("defr_vit_small.json")["sentences"]
    assert torch.equal(tokenize(clip, sentences), data["text.out.tokens"])
    rows = clip_rows(clip, [(sentence,) for sentence in sentences])
    meets("defr_vit_small", "text.out.unit_embeddings", rows.unit["clip"], data["text.out.unit_embeddings"])
    meets("defr_vit_small", "text.out.clip_proj_row0", rows.projection[0], data["text.out.clip_proj_row0"])


@needs("defr_vit_small.npz", "defr_head.npz")
def test_public_checkpoint(clip: ClipModel, tmp_path) -> None:
    """A file of the program's names, trained at the largest image size, gives the stored logits."""
    data, record = arrays("defr_vit_small"), content("defr_vit_small.json")
    size = max(record["image_sizes"])
    weights, filled = small_clip(), small_model(clip, size)
    state = {
        "logit_scale": filled.head.logit_scale.data,
        "classifier": filled.head.classifier.data,
        **{f"visual_encoder.{name}": value for name, value in weights.items() if name.startswith("visual.")},
        "visual_encoder.visual.positional_embedding": data[f"{size}.out.positional_embedding"],
    }
    state.pop("visual_encoder.visual.proj")
    shapes = {name: list(value.shape) for name, value in state.items()}
    assert shapes == record["state_dict_of_the_classifier"]
    public = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 9, "model_state_dict": public, "optimizer_state_dict": {}}, tmp_path / "checkpoint_0009.pt")
    model = small_model(clip, size)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert load_released(tmp_path / "checkpoint_0009.pt", model) == 9
    meets("defr_vit_small", f"{size}.out.logits", model(data[f"{size}.in.images"]), data[f"{size}.out.logits"])


# ---------------------------------------------------------------- detection


@needs("defr_box_mask.npz", "defr_vit_small.npz", "defr_head.npz")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mode", ["block", "released", "none"])
@torch.no_grad()
def test_box_mask(clip: ClipModel, mode: str, layers: int) -> None:
    data, record = arrays("defr_box_mask"), content("defr_box_mask.json")
    model = small_model(clip, record["image_size"])
    tower = model.tower
    hidden = hidden_cells(data["in.box_h"], data["in.box_o"], tower.grid, tower.patch_size)
    assert torch.equal(hidden, data["out.hidden_cells"])
    features = masked_features(tower, data["in.image"], hidden, mode=mode, layers=layers, chunk=3)
    logits = model.head(features)
    priors = torch.stack([data["in.prior_scalar_h"], data["in.prior_scalar_o"]])[:, :, None].repeat(
        1, 1, logits.shape[1]
    )
    priors[:, :, ::3] = 0
    # pairs whose boxes cover no cell see the whole image here, as defr.md recommends: compared with mode `none`
    blind = hidden.flatten(1).all(1) & (mode == "block")
    found = {"feature": features, "logits": logits, "score": pair_scores(logits, priors)}
    for quantity, value in found.items():
        name = f"out.K{layers}.{mode}.{quantity}"
        if name in data:
            expected = torch.where(blind[:, None], data[f"out.K{layers}.none.{quantity}"], data[name])
            meets("defr_box_mask", name, value, expected)


def test_blind_pairs_are_the_only_deviation() -> None:
    hidden = torch.tensor([[[True, True]], [[True, False]]])
    mask = class_token_mask(hidden, "block")
    assert mask.tolist() == [[0, 0, 0], [0, -torch.inf, 0]]


@needs("defr_pairs.npz")
@pytest.mark.skipif(not (BESIDE.parent / "facts").is_dir(), reason="no ../shared/facts: HICO's objects and classes")
def test_pairs() -> None:
    data, facts = arrays("defr_pairs"), BESIDE.parent / "facts"
    objects = json.loads((facts / "hico_objects.json").read_text())["objects"]
    valid = torch.zeros(len(objects), max(row["hoi_last"] for row in objects) + 1, dtype=torch.bool)
    for row in objects:
        valid[row["hico_alpha_id"], row["hoi_first"] : row["hoi_last"] + 1] = True
    person = next(row["hico_alpha_id"] for row in objects if row["name"] == "person")
    detections = Detections(data["in.boxes"], data["in.scores"], data["in.labels_hico_alpha"])
    pairs = box_pairs(detections, person)
    assert torch.equal(torch.stack(pairs), data["out.pair_index_human_object"])
    assert torch.equal(detections.labels[pairs.object], data["out.object_class"])
    priors = box_pair_priors(detections, pairs, valid)
    assert torch.equal((priors[0] > 0).sum(1), data["out.valid_hoi_count"])
    meets("defr_pairs", "out.prior_h", priors[0].amax(1), data["out.prior_h"])
    meets("defr_pairs", "out.prior_o", priors[1].amax(1), data["out.prior_o"])
    meets("defr_pairs", "out.prior_class_sum", priors.double().sum((0, 2)), data["out.prior_class_sum"])


@needs("defr_pairs.npz", "defr_vit_small.npz", "defr_head.npz")
def test_detection_view_and_weighting(clip: ClipModel) -> None:
    data = arrays("defr_pairs")
    tower = ClipTower(clip, data["out.transform.image48"].shape[1])
    image, boxes = detection_view(data["in.image"], data["in.boxes"], tower)
    meets("defr_pairs", "out.transform.image48", image, data["out.transform.image48"])
    for row, name in enumerate(("out.transform.box_h", "out.transform.box_o")):
        meets("defr_pairs", name, boxes[row], data[name])
    for key in (key for key in data if key.startswith("out.rescore")):
        powers = [float(power) for power in re.search(r"h(\d+)_o(\d+)_i(\d+)", key).groups()]
        meets("defr_pairs", key, rescored(data["in.rescore.scores"], data["in.rescore.priors"], powers), data[key])
