"""Image-level recognition AP equals DEFR's meter."""

import numpy as np
import pytest
import torch

from lib.evaluation.average_precision import RECALL_GRIDS
from lib.evaluation.recognition import FEW_SHOT, recognition_ap, recognition_means

from .recipe import arrays, content, needs

pytestmark = needs("defr_recognition_ap.npz", "defr_recognition_ap.json")
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def case():
    return {name: value.numpy() for name, value in arrays("defr_recognition_ap").items()}


@pytest.mark.parametrize(
    ("known_object", "integration", "expected"),
    [
        (False, "11-point", "out.ap_default"),
        (True, "11-point", "out.ap_known_object"),
        (False, "int", "out.ap_int"),
        (False, "auc", "out.ap_auc"),
    ],
)
def test_class_aps(case, known_object, integration, expected):
    ap = recognition_ap(case["in.score"], case["in.label"], known_object=known_object, integration=integration)
    np.testing.assert_allclose(ap, case[expected], rtol=0, atol=TOLERANCE)


def test_means(case):
    aps = [recognition_ap(case["in.score"], case["in.label"], known_object=mode) for mode in (False, True)]
    stored = content("defr_recognition_ap.json")
    means = recognition_means(*aps, FEW_SHOT)
    assert {name: len(classes) for name, classes in FEW_SHOT.items()} == stored["few_sizes"]
    names = {"default": "full"} | {name: name for name in stored["map"] if name != "default"}
    for name, own in names.items():
        assert means[f"mAP_{own}"] == pytest.approx(stored["map"][name], abs=TOLERANCE), name


def test_thresholds_are_those_of_torch():
    assert RECALL_GRIDS["11-point"].tolist() == torch.linspace(0, 1, 11, dtype=torch.float64).tolist()
