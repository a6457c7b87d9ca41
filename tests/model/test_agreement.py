"""Agreement with transformers: logits, greedy tokens and the error of each type, for every family and rope kind."""

import pytest
from tests.model import tiny
from tests.model.runner import BACKENDS
from tests.model.ways import check_float32, check_rounded

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
