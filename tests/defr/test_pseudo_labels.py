"""Labels written by a teacher: regions, aggregation and filter by hand; captioners against themselves."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.defr.labels import ABSENT, AMBIGUOUS, POSITIVE, UNKNOWN, RecognitionLabels
from lib.defr.pseudo_labels import agreement, pair_unions, pseudo_labels, regions_of, teacher_scores
from lib.defr.teacher import TeacherError, captioner_teacher
from lib.detection.proposals import Proposals

SENTENCES = ["a person riding a bicycle", "a person and a dog", "a cat"]


def test_regions_are_the_image_its_quarters_and_the_unions():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    regions = regions_of(image, np.array([[1.0, 2.0, 4.5, 6.0], [3.0, 3.0, 3.0, 3.0]]))
    assert [region.size for region in regions] == [(8, 6), (4, 3), (4, 3), (4, 3), (4, 3), (4, 4), (1, 1)]
    assert np.asarray(regions[3])[0, 0] == 24 and np.asarray(regions[5])[0, 0] == 17


def test_unions_follow_the_product_of_scores():
    boxes = torch.tensor([[0.0, 0, 2, 2], [5, 5, 6, 6], [1, 1, 9, 3]])
    found = Proposals(boxes, torch.tensor([0.9, 0.5, 0.8]), torch.tensor([0, 0, 7]), n_human=2)
    # pairs: (0,1) .45, (0,2) .72, (1,0) .45, (1,2) .40
    assert pair_unions(found, 2).tolist() == [[0, 0, 9, 3], [0, 0, 6, 6]]
    assert pair_unions(found, 9).shape == (4, 4)
    assert pair_unions(Proposals(boxes[:1], found.scores[:1], found.labels[:1], 1), 3).shape == (0, 4)


def test_an_image_is_as_sure_as_its_surest_region():
    scores = iter([torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 4.0]])])
    steps = []
    image = Image.new("RGB", (4, 4))
    given = [(image, np.zeros((0, 4)))] * 2
    found = teacher_scores(given, lambda regions: next(scores), temperature=2.0, step=lambda: steps.append(1))
    sure = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(found, [[sure(1), 0.5], [sure(-2), sure(2)]], rtol=1e-6)
    assert len(steps) == 2


def test_positive_needs_the_quantile_and_the_top_classes():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.3], [0.1, 0.1, 0.2], [0.3, 0.2, 0.25], [0.0, 0.0, 0.0]])
    labels = pseudo_labels("abcde", scores, quantile=0.75, band=0.5, top=1)
    assert labels.values.tolist() == [
        [POSITIVE, AMBIGUOUS, ABSENT],  # 0.8 passes the quantile of its class, but is only second in its image
        [AMBIGUOUS, POSITIVE, AMBIGUOUS],
        [ABSENT, ABSENT, AMBIGUOUS],
        [POSITIVE, AMBIGUOUS, AMBIGUOUS],
        [ABSENT, ABSENT, ABSENT],
    ]
    with pytest.raises(ValueError, match="found quantile 0.5, band 0.9.*defr.teacher_quantile"):
        pseudo_labels("abcde", scores, quantile=0.5, band=0.9)


def test_agreement_counts_only_what_the_truth_knows():
    truth = RecognitionLabels(("a", "b"), np.array([[POSITIVE, ABSENT, UNKNOWN], [AMBIGUOUS, POSITIVE, ABSENT]]))
    pseudo = RecognitionLabels(("a", "b"), np.array([[POSITIVE, POSITIVE, POSITIVE], [POSITIVE, AMBIGUOUS, ABSENT]]))
    told = agreement(pseudo, truth)
    assert told["precision"] == 0.5 and told["recall"] == 0.5 and told["positives an image"] == 2
    assert told["left out"] == pytest.approx(1 / 6) and told["classes without a positive"] == 0


@pytest.fixture(scope="module", params=["blip", "vit-gpt2"])
def captioner(request, tmp_path_factory):
    """A tiny captioner with random weights, saved as transformers saves real ones."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )  # fmt: skip

    folder = tmp_path_factory.mktemp(request.param)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    if request.param == "blip":
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = sizes | {"vocab_size": 5 + len(words), "encoder_hidden_size": 16, "bos_token_id": 2, "sep_token_id": 3,
                        "pad_token_id": 0, "eos_token_id": 3, "max_position_embeddings": 20}  # fmt: skip
        vision = sizes | {"image_size": 16, "patch_size": 8}
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        vit = ViTModel(ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 image_size=16, patch_size=8))  # fmt: skip
        gpt = GPT2LMHeadModel(GPT2Config(vocab_size=5 + len(words), n_positions=20, n_embd=24, n_layer=1, n_head=2,
                                         add_cross_attention=True, bos_token_id=2, eos_token_id=3))  # fmt: skip
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit.config, gpt.config)
        config.decoder_start_token_id = 2
        model = VisionEncoderDecoderModel(config=config, encoder=vit, decoder=gpt)
    model.eval().save_pretrained(folder)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder, model


def test_a_captioner_scores_as_its_own_loss_says(captioner):
    folder, model = captioner
    regions = [Image.fromarray(np.random.default_rng(k).integers(0, 255, (20, 24, 3), np.uint8)) for k in range(2)]
    scores = captioner_teacher(folder, SENTENCES, batch_size=2)(regions)
    assert scores.shape == (2, 3) and scores.std() > 0
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    pixels = processor(regions, return_tensors="pt")["pixel_values"]
    for r in range(2):
        for c, sentence in enumerate(SENTENCES):  # one at a time through the whole model: no padding, no batch
            ids = torch.tensor([[2, *tokenizer(sentence, add_special_tokens=False)["input_ids"], 3]])
            words = {"input_ids" if "Blip" in type(model).__name__ else "decoder_input_ids": ids}
            with torch.no_grad():
                logits = model(pixel_values=pixels[r : r + 1], **words).logits[0]
            each = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            assert scores[r, c] == pytest.approx(each.mean().item(), abs=1e-5)


def test_a_folder_without_a_captioner_is_refused(tmp_path):
    with pytest.raises(TeacherError, match="found no config.json.*\n.*defr.teacher"):
        captioner_teacher(tmp_path, SENTENCES)
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="found a bert model, expected one of"):
        captioner_teacher(tmp_path, SENTENCES)
