"""Agreement with transformers: logits, greedy tokens and the error of each type, for every family and rope kind."""

import pytest
from tests.model import tiny
from tests.model.runner import BACKENDS, Stepper
from tests.model.theirs import GREEDY_FROM, GREEDY_TOKENS, relative_error, typical_error

from coterie.models.model import open_model

FP32_TOLERANCE = 1e-4  # relative to the largest logit
OTHERS = [case for case in tiny.EVERY_CASE if case not in tiny.CASES]
ROUNDED = [
    ("llama", "llama3"),
    ("mistral", "default"),
    ("qwen2", "yarn"),
    ("qwen3", "default"),
    ("llama-tied", "default"),
    ("olmo2", "default"),
    ("phi3-window", "default"),
    ("phi3-partial", "longrope"),
    ("smollm3", "default"),
    ("exaone4", "default"),
    ("granite", "default"),
    ("gemma", "default"),
    ("gemma2", "default"),
    ("gemma3", "default"),
    ("olmo3", "default"),
    ("ernie", "default"),
    ("ministral3", "yarn"),
    ("hunyuan", "dynamic"),
    ("stablelm", "default"),
    ("starcoder2", "default"),
]

# Where the fourth or the sixth token of 40 takes one branch of two that are 2e-4 or 2e-3 apart, of numbers near 1:
# what they are turned to, and all that attend to them, is another model's answer.
TURNED = [("olmoe-one", "yarn-all", "fp16"), ("olmoe-one", "yarn", "bf16")]


def check_float32(backend, row, rope, folder_of, theirs_of, make_backend):
    theirs = theirs_of(row, rope)
    backend = make_backend(backend, open_model(tiny.expert(folder_of(row, rope))))
    stepper = Stepper(backend)
    assert relative_error(stepper.feed((stepper.sequence(), theirs.prompt)), theirs.truth) <= FP32_TOLERANCE
    assert stepper.greedy(theirs.prompt[:GREEDY_FROM], GREEDY_TOKENS) == theirs.greedy


def check_rounded(backend, row, rope, dtype, folder_of, theirs_of, make_backend):
    """Nearer to float32 than the type itself; with branches, whose choice rounding may turn over, for most tokens.

    A token whose next two branches weigh nearly the same takes the other one in some arithmetic, ours or theirs: what
    the largest error is then depends on who met such a token, and no type bounds it.
    """
    theirs = theirs_of(row, rope, dtype)
    stepper = Stepper(make_backend(backend, open_model(tiny.expert(folder_of(row, rope, dtype)))))
    error_of, own = (relative_error, theirs.own_error)
    if row in tiny.BRANCHED:
        error_of, own = (typical_error, theirs.own_typical_error)
    assert 0 < error_of(stepper.feed((stepper.sequence(), theirs.prompt)), theirs.truth) <= own


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("row", "rope"), tiny.CASES)
def test_float32(backend, row, rope, folder_of, theirs_of, make_backend):
    check_float32(backend, row, rope, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("row", "rope"), ROUNDED)
def test_rounded_types_are_within_the_error_of_transformers(
    backend, row, rope, dtype, folder_of, theirs_of, make_backend
):
    check_rounded(backend, row, rope, dtype, folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize(("row", "rope"), OTHERS)
def test_every_family_with_every_rope(row, rope, folder_of, theirs_of, make_backend):
    check_float32("cpu", row, rope, folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize(
    ("row", "rope", "dtype"),
    [(*case, dtype) for case in tiny.EVERY_CASE for dtype in ("bf16", "fp16") if (*case, dtype) not in TURNED],
)
def test_every_family_with_every_rope_in_rounded_types(row, rope, dtype, folder_of, theirs_of, make_backend):
    check_rounded("cpu", row, rope, dtype, folder_of, theirs_of, make_backend)
