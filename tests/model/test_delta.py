"""Models with gated delta nets (Qwen3.5): agreement with transformers, and what of a config or a file is refused."""

import pytest
from tests.model import tiny
from tests.model.runner import BACKENDS, Stepper
from tests.model.theirs import GREEDY_FROM, GREEDY_TOKENS, relative_error

from coterie.models.model import open_model

FP32_TOLERANCE = 1e-4  # relative to the largest logit


@pytest.mark.parametrize("row", tiny.DELTA_ROWS)
def test_float32(row, folder_of, theirs_of):
    theirs = theirs_of(row)
    stepper = Stepper(BACKENDS["reference"](open_model(folder_of(row))))
    assert relative_error(stepper.feed((stepper.sequence(), theirs.prompt)), theirs.truth) <= FP32_TOLERANCE
    assert stepper.greedy(theirs.prompt[:GREEDY_FROM], GREEDY_TOKENS) == theirs.greedy
