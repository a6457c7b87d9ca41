"""GGUF files of Gemma 4: the folder that comes out is the one that the file was made of, and what is odd is refused."""

import json

import numpy as np
import pytest
import tokenizers
from tests.model import tiny

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import load_weights_f32, open_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402

ROWS = {
    "inputs": ("gemma4", {}),
    "values": ("gemma4-values", {"attention_bias": False}),
    "narrow": ("gemma4-wide", {}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer.json of two tokens."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
    return path


@pytest.fixture(scope="module", params=ROWS)
def folder(request, tmp_path_factory):
    base, changes = ROWS[request.param]
    class_name, own = tiny.FAMILY_ROWS[base]
    tiny.FAMILY_ROWS["here"] = (class_name, {**own, **changes})
    try:
        return tiny.save(tiny.make("here"), tmp_path_factory.mktemp(request.param), "bf16")
    finally:
        del tiny.FAMILY_ROWS["here"]


def test_the_folder_is_the_one_that_the_file_was_made_of(folder, tokenizer, tmp_path):
    path = gguf_files.write(folder, tmp_path / "model.gguf", "BF16")
    import_gguf(plan_import(path), tmp_path / "expert", tokenizer)
    ours, theirs = open_model(tmp_path / "expert"), open_model(folder)
    assert (ours.key, ours.max_context, ours.kv) == (theirs.key, theirs.max_context, theirs.kv)
    wanted, found = load_weights_f32(theirs), load_weights_f32(ours)
    assert wanted.keys() == found.keys()
    for name, weights in wanted.items():
        np.testing.assert_array_equal(found[name], weights)


def test_quantised(folder, tokenizer, tmp_path):
    path = gguf_files.write(folder, tmp_path / "model.gguf", lambda name: "Q8_0" if "0.attn_output." in name else "F16")
    import_gguf(plan_import(path), tmp_path / "expert", tokenizer)
    values = open_model(tmp_path / "expert").graph.values
    assert values["model.layers.0.self_attn.o_proj.weight"].dtype is DType.Q8


def spoilt(values):
    values[0] = 2.0


def lists(key, value):
    return lambda writer: writer.add_array(f"gemma4.{key}", value)


REFUSED = [
    (lists("attention.head_count_kv", [2, 1, 1, 1, 2, 1]), {}, "head_count_kv is .*: layers of one type differ"),
    (lists("feed_forward_length", [68, 68, 68, 136, 68, 136]), {}, "layers from 3 on should be twice as wide"),
    (lambda w: w.add_uint32("gemma4.rope.dimension_count_swa", 8), {}, "rope.dimension_count_swa is 8 beside"),
    (lambda w: w.add_uint32("gemma4.attention.sliding_window_pattern", 3), {}, "pattern is 3, where 6 flags are"),
    (lambda w: w.add_uint32("gemma4.expert_count", 4), {}, "mixture of experts"),
    (None, {"rope_freqs.weight": spoilt}, "rope_freqs.weight has factors other than"),
]


@pytest.mark.parametrize(("change", "spoil", "sentence"), REFUSED)
def test_what_is_odd_is_refused(change, spoil, sentence, folder_of, tmp_path):
    path = gguf_files.write(folder_of("gemma4"), tmp_path / "model.gguf", change=change, spoil=spoil)
    with pytest.raises((CheckpointError, UnsupportedError), match=sentence):
        plan_import(path)


def test_the_config_says_what_the_file_does(folder_of, tokenizer, tmp_path):
    path = gguf_files.write(folder_of("gemma4"), tmp_path / "model.gguf")
    import_gguf(plan_import(path), tmp_path / "expert", tokenizer)
    raw = json.loads((tmp_path / "expert" / "config.json").read_text())
    assert (raw["head_dim"], raw["global_head_dim"], raw["num_kv_shared_layers"]) == (16, 24, 3)
    assert (raw["use_double_wide_mlp"], raw["attention_k_eq_v"]) == (True, False)
    assert raw["rope_parameters"]["full_attention"]["partial_rotary_factor"] == 0.25
