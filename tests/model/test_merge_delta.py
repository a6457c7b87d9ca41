"""Deltas merged into their base: an ordinary expert with the sums of the weights, which computes what the two do."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.model import differences, tiny
from tests.model.runner import Stepper
from tests.model.test_difference import INT8, made
from tests.model.test_merge import logits_of
from tests.model.theirs import prompt_of, relative_error

from coterie.checkpoint.folder import CONFIG, SINGLE
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UsageError
from coterie.graph.ir import Kind, Value
from coterie.models.fine_tunes import merge_delta
from coterie.models.fine_tunes.delta import delta_name, open_delta
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.fine_tunes.merge import check_merge, merge_folder
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

OURS = 1e-4  # relative to the largest logit: float32 products in another order, and 16 bits of activations
ROWS = ["llama-biases", "llama-tied", "phi3-partial", "mixtral", "qwen3.5", "granite4-h", "nemotron-h", "mamba2"]
ROWS += [pytest.param(row, marks=pytest.mark.long) for row in ("gemma2", "qwen3-moe", "phi-gqa", "starcoder2")]


@pytest.mark.parametrize("row", ROWS)
def test_beside_the_delta_as_it_is_served(row, folder_of, tmp_path, make_backend, monkeypatch):
    """Joined matrices, tied embeddings, biases, branches; rows in pieces that are not all of one size."""
    monkeypatch.setattr(merge_delta, "PIECE_WEIGHTS", 700)
    base, tuned, folder = made(row, folder_of, tmp_path)
    merged = merge_folder(base, folder, tmp_path / "out")
    assert {path.name for path in merged.folder.iterdir()} == {path.name for path in tuned.iterdir()}
    kept, before = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(there / SINGLE).items()}
        for there in (merged.folder, tuned)
    )
    assert kept == before
    wanted = differences.summed(base, tuned, folder, INT8)
    theirs = tiny.load(merged.folder).state_dict()
    for name, tensor in wanted.state_dict().items():
        np.testing.assert_array_equal(theirs[name], tensor, err_msg=name)
    beside, alone = open_delta(open_model(base), folder), open_model(merged.folder)
    assert alone.key == open_model(tuned).key
    prompt = prompt_of(alone.config.vocab_size)
    found = [Stepper(make_backend("cpu", model)) for model in (beside, alone)]
    logits = [stepper.feed((stepper.sequence(), prompt)) for stepper in found]
    assert relative_error(logits[1], logits_of(wanted, prompt)) <= OURS
    assert relative_error(logits[1], logits[0]) <= 2 * OURS  # each may be so far from the truth
    assert all(0.2 < kind.change < 0.4 and kind.rounding < 1e-5 for kind in merged.kinds)
    assert not merged.untied


@pytest.mark.parametrize("packed", [False, True])
def test_sums_are_rounded_once_to_the_bases_type(packed, folder_of, tmp_path):
    """bfloat16; of a packed base what its weights are worth, in the type that the fine-tune's config declares."""
    base, packing = folder_of("llama-tied", dtype="bf16"), Packing(DType.Q2, DType.Q4)
    tuned = differences.tune(base, tmp_path / "tuned", only="proj")
    if packed:
        declared = json.loads((tuned / CONFIG).read_text())
        (tuned / CONFIG).write_text(json.dumps({**declared, "dtype": "bfloat16"}))
        base = quantize_folder(base, tmp_path / "packed", Packing(DType.Q4, DType.Q8)).folder
    write_delta(base, tuned, tmp_path / "delta", packing)
    merged = merge_folder(base, tmp_path / "delta", tmp_path / "out")
    beside = open_delta(open_model(base), tmp_path / "delta")
    parts, found = load_weights_f32(beside), open_model(merged.folder)
    assert {value.dtype for value in found.graph.weights} == {DType.BF16}
    for name, values in load_weights_f32(found).items():
        exact = parts[name] + parts.get(delta_name(name), np.float32(0))
        np.testing.assert_allclose(values, exact, rtol=2**-8, atol=1e-30)
        if delta_name(name) not in parts and not packed:
            np.testing.assert_array_equal(values, parts[name])
    kinds = {kind.kind: kind for kind in merged.kinds}
    assert ("embed_tokens" in kinds) == packed  # equal weights are left out, which a packed base has not
    assert all(0 < kind.rounding < 0.1 for kind in merged.kinds)


def test_what_the_base_has_otherwise_or_not_at_all(folder_of, tmp_path):
    """A base in shards with one matrix for embedding and head; a fine-tune with two, and more tokens."""
    tuned = tiny.load(folder_of("llama"))
    tuned.resize_token_embeddings(260)
    tiny.save(tuned, tmp_path / "tuned")
    base = tiny.save(tiny.load(folder_of("llama-tied")), tmp_path / "base", max_shard_size="40KB")
    write_delta(base, tmp_path / "tuned", tmp_path / "delta", INT8)
    merged = merge_folder(base, tmp_path / "delta", tmp_path / "out")
    assert (merged.untied, merged.vocab_size) == (True, 260)
    assert {"embed_tokens", "lm_head"} <= {kind.kind for kind in merged.kinds}  # no sums, but changed
    stored, wanted = load_file(merged.folder / SINGLE), tuned.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(stored[name], wanted[name])


def test_what_does_not_fit_is_refused(folder_of, tmp_path, monkeypatch):
    base, tuned, folder = made("llama", folder_of, tmp_path)
    with pytest.raises(CheckpointError, match=r"is a difference from other weights than those of .*; use the base"):
        merge_folder(tuned, folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is a difference from other weights"):
        check_merge(tuned, folder)
    with pytest.raises(CheckpointError, match="holds a fine-tune's difference from its base, where a whole model"):
        merge_folder(folder, folder, tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        merge_folder(base, folder, tuned)
    worth = merge_delta.weight_rows_f32
    monkeypatch.setattr(merge_delta, "weight_rows_f32", lambda *given: worth(*given) * np.float32(3e38))
    with pytest.raises(CheckpointError, match="is infinite or not a number in F32"), np.errstate(over="ignore"):
        merge_folder(base, folder, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("types", [(DType.BF16, DType.F16), (DType.F16, DType.BF16), (DType.BF16, DType.BF16)])
def test_weights_of_two_types_that_are_put_together_have_one_that_holds_both(types):
    weights = [Value(f"w{rows}", (rows, 8), dtype, Kind.WEIGHT) for rows, dtype in zip((4, 2), types, strict=True)]
    entry = merge_delta._entry(SimpleNamespace(path="x"), "qkv", None, weights)
    assert (entry.dtype, entry.shape) == (DType.BF16 if types[0] == types[1] else DType.F32, (6, 8))
