"""Errors about files say the four things, and come out of a worker process whole."""

import pickle

import pytest

from lib.bridge.old_pickles import LegacyError
from lib.clip.load import ClipLoadError
from lib.data.restricted_pickle import PickleError
from lib.defr.embeddings import EmbeddingsError
from lib.defr.labels import LabelError
from lib.detection.detr import DetectorError
from lib.ezhoi.released import ReleasedError
from lib.ezhoi.weights import WeightsError


@pytest.mark.parametrize(
    "kind",
    [ClipLoadError, DetectorError, EmbeddingsError, LabelError, LegacyError, PickleError, ReleasedError, WeightsError],
)
def test_an_error_survives_pickling(kind):
    error = kind("a/file", "nothing", "something", "make it")
    assert str(error) == "a/file: found nothing, expected something\n  mend: make it"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and isinstance(again, ValueError) and str(again) == str(error)
