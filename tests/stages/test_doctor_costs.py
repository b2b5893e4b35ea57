"""The doctor's formulae against published sizes and against what autograd keeps."""

import pytest
import torch

from lib.clip.load import load_clip
from lib.config import load_config
from lib.data.descriptions import ClassTexts, template_descriptions
from lib.data.hico_classes import OFFICIAL
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.pairs import Instances
from lib.settings import EzHoiSettings
from lib.stages import doctor_costs
from lib.stages.doctor_models import planned_spec


def test_published_towers_and_store_sizes():
    spec, sizes = planned_spec("ViT-B-16"), doctor_costs.Sizes(37_633, 9_658, 600, 80, 117, 100, 600, 100)
    assert (spec.tokens, spec.embed_dim, spec.vision_layers, spec.text_width) == (196, 512, 12, 512)
    patches = doctor_costs.disk(load_config(), spec, sizes)["features/train"] * 196 / 197
    assert patches / 1e9 == pytest.approx(7.55, abs=0.005)  # clip-features-and-detr.md §4
    large = planned_spec("ViT-L-14-336px")
    assert (large.tokens, large.embed_dim, large.image_size) == (576, 768, 336)
    assert doctor_costs.parameters(spec) == pytest.approx(149.6e6, rel=0.01)
    assert doctor_costs.parameters(large) == pytest.approx(427.9e6, rel=0.01)
    # ez-hoi.md Appendix D: all trainable parameters less the dead modules
    assert doctor_costs.trainable(load_config(), spec) == pytest.approx(6_854_337, rel=0.06)
    assert doctor_costs.trainable(load_config(), large) == pytest.approx(14_076_353, rel=0.06)


def test_training_keeps_what_the_formula_says():
    """Bytes that autograd saves for two more images, against the formula for two more images."""
    clip = load_clip("random:configs/clip/tiny-clip.json")
    spec, cfg = clip.spec, load_config(None, ["ezhoi.preset=released"])
    torch.manual_seed(0)
    texts = ClassTexts(template_descriptions(OFFICIAL), {})
    model = build_ezhoi(clip, OFFICIAL, texts, [], EzHoiSettings(class_rows="all")).train()
    boxes = torch.tensor([[5.0, 5, 60, 60], [30, 30, 90, 90], [10, 40, 50, 100]]).repeat(2, 1)

    def saved(images):
        items = [(boxes, torch.ones(6), torch.tensor([0, 0, 1, 2, 3, 4]), 2)] * images
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        pixels = torch.randn(images, 3, spec.image_size, spec.image_size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(pixels, torch.randn(images, spec.tokens, spec.embed_dim), Instances.collate(items))
        return sum(size for size, _ in kept.values()) + 0 * len(output.logits)

    measured = (saved(4) - saved(2)) / 2

    def need(batch):
        cfg.ezhoi.batch_size = batch
        return doctor_costs.training_memory(cfg, spec, 600)

    assert (need(4) - need(2)) / 2 / 1.1 == pytest.approx(measured, rel=0.1)
