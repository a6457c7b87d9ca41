"""GGUF files of DeepSeek, GLM-4.5 and LFM2: older and newer forms of one model, and what is odd is refused."""

import numpy as np
import pytest

from coterie.checkpoint.folder import SINGLE
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.gguf.convert import plan_import
from coterie.models.model import open_model

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[gguf]'")
from tests.model import gguf_files  # noqa: E402
from tests.model.gguf_files import imported  # noqa: E402


def test_latent_attention_of_older_files_is_the_same(gguf_folder_like, two_tokens, tmp_path):
    """Rows of keys and values of all heads in one tensor, and widths of heads in the place of those of what is kept."""
    folder = gguf_folder_like("deepseek-v3")

    def older(writer):
        for key, size in (("key_length", 16 + 8), ("value_length", 12), ("key_length_mla", 0), ("value_length_mla", 0)):
            writer.add_uint32(f"deepseek2.attention.{key}", size)

    (tmp_path / "older").mkdir()
    _, _, newer = imported(folder, two_tokens, tmp_path, "BF16")
    _, _, whole = imported(folder, two_tokens, tmp_path / "older", "BF16", split_kv=False, change=older)
    assert (whole.path / SINGLE).read_bytes() == (newer.path / SINGLE).read_bytes()
    assert whole.key == newer.key == open_model(folder).key


def test_quantised_rows_of_heads_become_bfloat16(gguf_folder_like, two_tokens, tmp_path):
    """They are read head by head; of keys a file has the columns."""
    sizes = {"hidden_size": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
    folder = gguf_folder_like("deepseek-v3", dtype="fp32", **sizes)
    path, _, model = imported(
        folder, two_tokens, tmp_path, lambda name: "Q8_0" if "k_b." in name or "v_b." in name else "F32"
    )
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    assert model.graph.values[name].dtype is DType.BF16
    source = plan_import(path).sources[name]
    whole = source.values(0, source.shape[0])
    assert whole.shape == (4 * 64, 32)
    for first, last in ((0, 1), (60, 70), (255, 256)):
        np.testing.assert_array_equal(source.values(first, last), whole[first:last])


def test_layers_that_predict_further_ahead_are_not_read(gguf_folder_like, two_tokens, tmp_path):
    folder = gguf_folder_like("glm4-moe")

    def more(writer):
        writer.add_block_count(4)
        writer.add_nextn_predict_layers(1)
        writer.add_tensor("blk.3.nextn.eh_proj.weight", np.zeros((2, 3), np.float32))

    _, _, model = imported(folder, two_tokens, tmp_path, "BF16", change=more)
    assert model.key == open_model(folder).key


@pytest.mark.parametrize(
    ("row", "change", "without", "kind", "said"),
    [
        (
            "glm4-moe",
            lambda w: w.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX),
            (),
            UnsupportedError,
            "= 1",
        ),
        ("glm4-moe", lambda w: w.add_nextn_predict_layers(3), (), CheckpointError, "nextn_predict_layers is 3 of 3"),
        ("lfm2", lambda w: w.add_head_count_kv(2), (), CheckpointError, "head_count_kv is 2, where 4 numbers"),
        ("lfm2", lambda w: w.add_head_count_kv([0, 1, 2, 0]), (), CheckpointError, r"\[0, 1, 2, 0\], where 4 numbers"),
        ("deepseek-v3", lambda w: w.add_rope_dimension_count(0), (), CheckpointError, "key_length is 0"),
        ("deepseek-v3", None, ("blk.1.attn_v_b.weight",), CheckpointError, "blk.1.attn_kv_b.* is missing"),
        ("deepseek-v3", None, ("blk.1.exp_probs_b.bias",), CheckpointError, "exp_probs_b.* is missing"),
    ],
)
def test_what_is_odd_is_refused(row, change, without, kind, said, gguf_folder_like, tmp_path):
    path = gguf_files.write(gguf_folder_like(row), tmp_path / "bad.gguf", change=change, without=without)
    with pytest.raises(kind, match=said):
        plan_import(path)
