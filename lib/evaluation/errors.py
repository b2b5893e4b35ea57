"""What scoring says about files it cannot use."""

from __future__ import annotations

from lib.errors import FoundExpected


class PredictionError(FoundExpected):
    """Predictions or ground truth that cannot be scored: file, finding, expectation, mend."""


class MissingPredictionError(PredictionError, FileNotFoundError):
    """There is no such file."""
