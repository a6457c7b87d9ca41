"""Gemma 4: agreement with transformers, one answer however it is stepped, what its files hold besides, refusals.

Its layers have heads of two sizes, so that a block of keys and values has layers of two shapes.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.model import differences, tiny
from tests.model.configs import check_refused
from tests.model.runner import Stepper, prompt_logits
from tests.model.test_nested import TEXT, save_whole
from tests.model.theirs import ask, prompt_of, relative_error, typical_error
from tests.model.ways import (
    FP32_TOLERANCE,
    WAYS,
    check_bits,
    check_float32,
    check_packed,
    check_rounded,
    check_theirs,
    check_way,
)

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError, UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.nest import nest
from coterie.device import Sampling
from coterie.graph.compile import compile_graph
from coterie.graph.cost import region_cost
from coterie.graph.eager.rewrite import expand
from coterie.graph.program import KvLayers
from coterie.graph.reference import KvState, Reference
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.config import ModelConfig
from coterie.models.fine_tunes.delta import open_delta
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.model import load_weights_f32, open_model, synthetic_model
from coterie.models.packing import Packing
from coterie.models.registry import decoder_graph

ALL = (*tiny.GEMMA4_ROWS, *tiny.GEMMA4_MOE)
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("row", ALL)
def test_float32(backend, row, folder_of, theirs_of, make_backend):
    check_float32(backend, row, "default", folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ALL)
def test_rounded_types_are_within_the_error_of_transformers(row, dtype, folder_of, theirs_of, make_backend):
    check_rounded("cpu", row, "default", dtype, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("row", ALL)
def test_bits_do_not_depend_on_how_a_prompt_is_cut_or_on_who_is_beside(row, dtype, folder_of, make_backend):
    check_bits(Stepper(make_backend("cpu", open_model(folder_of(row, dtype=dtype)))))


@pytest.mark.parametrize("row", ["gemma4", "gemma4-moe"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_answer(way, row, folder_of, theirs_of, make_backend):
    check_way(Stepper(make_backend("cpu", open_model(folder_of(row)), **WAYS[way])), theirs_of(row))


def test_regions(folder_of):
    """Of a layer with keys and values of its own, and of one that reads those of another."""
    program = compile_graph(open_model(folder_of("gemma4")).graph, "cache")
    kernels = [[r.kernel for r in program.regions if r.stage == f"layers.{layer}"] for layer in (0, 5)]
    block = ["norm_gate_up_gelu_mul", "linear", "norm_add"]
    own_input = ["norm_linear_gelu", "mul_part", "linear", "norm_add"]
    behind = ["attention", "linear", "norm_add", *block, *own_input]
    assert kernels[0] == ["rms_norm", *["linear"] * 3, "rms_norm", "norm_rope_append", *behind]
    assert kernels[1] == ["rms_norm", "linear", "rms_norm", "rope", *behind]


def test_layers_of_both_shapes_lie_in_one_block(folder_of):
    """The larger first; where its size is no multiple of the other's, the next begins at a multiple of its own."""
    even = open_model(folder_of("gemma4-values")).kv  # 2 x 16 of two layers, 1 x 24 of one
    assert even.layers == (KvLayers(2, 2, 2, 16), KvLayers(1, 2, 1, 24))
    assert (even.first_layers, even.bytes_per_token) == ((0, 3), (3 + 1) * 2 * 24 * 4)
    odd = open_model(folder_of("gemma4-wide")).kv  # 1 x 36 and 1 x 16 of two layers each; the last two share
    assert odd.layers == (KvLayers(2, 2, 1, 36), KvLayers(2, 2, 1, 16))
    assert (odd.first_layers, odd.bytes_per_token) == ((0, 5), (5 + 2) * 2 * 16 * 4)
    one = open_model(folder_of("qwen3")).kv
    assert (one.layers, one.first_layers) == ((KvLayers(3, 2, 2, 16),), (0,))


def test_what_layers_cost(folder_of):
    """A layer's input is a part of what all have; shared keys and values are read by each and written by one."""
    program = compile_graph(open_model(folder_of("gemma4")).graph, "none")
    costs = {region.name: region_cost(program, region, Sizes.decode(2, 10)) for region in program.regions}
    assert costs["layers.3/own_input"].input_bytes == 2 * (10 + 10) * 4
    assert (costs["layers.3/own_input"].flops, costs["layers.3/scaled"].flops) == (2 * 10, 2 * 48)
    windowed, full, shared = (costs[f"layers.{layer}/attention"].kv_read_bytes for layer in (2, 1, 5))
    assert (windowed, full, shared) == (2 * 6 * 2 * 2 * 16 * 4, 2 * 10 * 2 * 2 * 24 * 4, full)
    assert sum(cost.kv_write_bytes for cost in costs.values()) == 2 * 4 * (2 * 2 * 2 * 16 + 2 * 2 * 24)


@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4])
@pytest.mark.parametrize("row", ["gemma4", "gemma4-moe"])
def test_packed(dtype, row, folder_of, tmp_path, make_backend):
    """Choosers stay as they are; the table of inputs is one of the tables."""
    folder, target, packed = folder_of(row, dtype="bf16"), tmp_path / "packed", ("self_attn.q_proj.weight",)
    model = check_packed(folder, Packing(dtype, DType.Q8), target, make_backend, (), packed, typical_error)
    assert not [name for name in model.layout.tensors if "router" in name and model.graph.values[name].dtype.is_packed]
    if row == "gemma4":
        assert model.graph.values["model.embed_tokens_per_layer.weight"].dtype is DType.Q8


@pytest.mark.parametrize("row", ["gemma4", pytest.param("gemma4-moe", marks=pytest.mark.long)])
def test_a_base_and_a_difference(row, folder_of, tmp_path, make_backend):
    """Scores are not scaled: attention is sharp, and what activations lose at 16 bits moves single tokens further."""
    base, packing = folder_of(row), Packing(DType.Q8, DType.Q8)
    tuned = differences.tune(base, tmp_path / "tuned")
    write_delta(base, tuned, tmp_path / "delta", packing)
    model, prompt = open_delta(open_model(base), tmp_path / "delta"), prompt_of(257)
    with torch.no_grad():
        summed = differences.summed(base, tuned, tmp_path / "delta", packing)
        wanted = summed(torch.tensor([prompt])).logits[0].numpy()
    for backend, error, bound in (("reference", relative_error, FP32_TOLERANCE), ("cpu", typical_error, 5e-4)):
        assert error(prompt_logits(make_backend(backend, model), prompt), wanted) <= bound


WHOLE = {"gemma4": "gemma4", "gemma4_unified": "gemma4-unified"}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request, tmp_path_factory):
    """A model that reads images and hears too, as released: with keys of layers that read those of others."""
    folder, row = tmp_path_factory.mktemp("whole") / request.param, WHOLE[request.param]
    prefix, changes = tiny.FAMILY_ROWS[row]
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}
    sections = {"vision_config": vision if prefix == "Gemma4" else {"mm_embed_dim": 16, "mm_posemb_size": 4}}
    audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 24}
    sections["audio_config"] = audio if prefix == "Gemma4" else {"audio_embed_dim": 16}
    first = {"gemma4": 254, "gemma4-unified": 250}[row]  # that no answer has: transformers takes these for images
    tokens = {name: first + i for i, name in enumerate(("image_token_id", "video_token_id", "audio_token_id"))}
    unread = {"k_proj.weight": (48, 48), "v_proj.weight": (48, 48), "k_norm.weight": (24,)} if row == "gemma4" else {}
    more = {f"model.language_model.layers.5.self_attn.{name}": torch.ones(shape) for name, shape in unread.items()}
    return save_whole(prefix, TEXT | changes, folder, more, **sections, **tokens)


def test_the_text_model_inside_one_that_reads_images(whole, make_backend):
    model, theirs = open_model(whole), ask(whole, "fp32")
    assert (model.part_of, model.config.family) == (whole.name, f"{whole.name}_text")
    assert not [name for name in model.checkpoint.tensors if "vision" in name or "audio" in name]
    check_theirs(make_backend("cpu", model), theirs)


# As keys of the released configs say it; what each has and the others have not.
SMALL = {
    **{"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_attention_heads": 8},
    **{"num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "num_kv_shared_layers": 20},
    **{"use_double_wide_mlp": True, "hidden_size_per_layer_input": 256, "attention_k_eq_v": False},
    **{"layer_types": ([SLIDING] * 4 + [FULL]) * 7, "sliding_window": 512, "enable_moe_block": False},
}
BRANCHED = {
    **{"hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "num_attention_heads": 16},
    **{"num_key_value_heads": 8, "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 2},
    **{"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 128},
    **{"top_k_experts": 8, "moe_intermediate_size": 704, "layer_types": ([SLIDING] * 5 + [FULL]) * 5},
    **{"sliding_window": 1024, "use_bidirectional_attention": "vision", "num_kv_shared_layers": 0},
}


def released(text):
    raw = {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "vision_config": {"depth": 1}}
    return raw | {"text_config": {"model_type": "gemma4_text", "vocab_size": 262_144, "rms_norm_eps": 1e-6, **text}}


def test_configs_as_released():
    """Of the shapes of E2B and 26B-A4B."""
    small = ModelConfig.from_hf(released(SMALL), "small")
    assert (small.attending_layers, small.layered.shared_width) == (tuple(range(15)), 12_288)
    sources = [small.layered.kv_source_layer(layer, small.windows) for layer in (14, 15, 18, 19, 34)]
    assert sources == [14, 13, 13, 14, 14]
    assert (len(small.local_rope.inv_freq), len(small.rope.inv_freq)) == (128, 256)
    assert (small.rope.inv_freq[63] > 0, small.rope.inv_freq[64:]) == (True, (0.0,) * 192)
    kept = synthetic_model(released(SMALL), "small").kv
    assert (kept.layers, kept.first_layers) == ((KvLayers(3, 2, 1, 512), KvLayers(12, 2, 1, 256)), (0, 6))
    assert kept.bytes_per_token == 2 * (3 * 512 + 12 * 256) * 2
    large = ModelConfig.from_hf(released(BRANCHED), "large")
    assert (large.layered.full_heads, large.layered.full_dim, large.layered.inputs) == (2, 512, 0)
    assert (large.branches.count, large.branches.taken, len(large.branches.layers)) == (128, 8, 30)
    assert (large.branches.choice.normalised, large.branches.choice.logits_scale) == (True, 2816**-0.5)


def test_a_config_that_leaves_out_what_it_may():
    """The last layer sees all, whatever its type says."""
    bare = {key: SMALL[key] for key in ("hidden_size", "num_key_value_heads", "num_attention_heads")}
    found = ModelConfig.from_hf(released(bare | {"num_hidden_layers": 7, "intermediate_size": 10}), "bare")
    assert found.windows == (512,) * 5 + (0, 0)
    assert (found.layered.inputs, found.layered.full_dim, found.rope.kind) == (256, 512, "proportional")


def test_heads_of_layers_without_a_window_are_others_where_their_keys_are_their_values():
    """Else the number that configs have for them means nothing."""
    for same, heads in ((True, 2), (False, 8)):
        config = ModelConfig.from_hf(released(BRANCHED | {"attention_k_eq_v": same}), "large")
        assert config.layered.full_heads == heads


def test_the_scale_of_a_layers_inputs_is_rounded_to_the_type_of_their_table(folder_of):
    config = open_model(folder_of("gemma4")).config
    for dtype, scale in ((DType.F32, float(np.float32(10**0.5))), (DType.BF16, 3.15625)):
        graph = decoder_graph(config, defaultdict(lambda kind=dtype: kind), DType.F32)
        assert [op.attrs["scale"] for op in graph.ops if op.outputs == ("embed/looked_up",)] == [scale]


REFUSED = [
    ({"num_kv_shared_layers": 5}, "num_kv_shared_layers is 5; it must be so few of the 6 layers that one of each type"),
    ({"num_kv_shared_layers": 9}, "num_kv_shared_layers is 9"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all' is not supported"),
    ({"per_layer_config": {"1": {"head_dim": 24}}}, "per_layer_config gives layers of one type different heads"),
    (
        {"per_layer_config": {"1": {"sliding_window": 9}}},
        "per_layer_config gives sliding_window, which is not supported",
    ),
    ({"per_layer_config": {str(i): {"num_key_value_heads": 3} for i in (1, 3, 5)}}, "3 key/value heads of 16 channels"),
    ({"per_layer_config": {"0": {"head_dim": 24}}}, "per_layer_config gives layers of one type different heads"),
    ({"per_layer_config": {str(i): {"head_dim": 15} for i in (1, 3, 5)}}, "key/value heads of 15 channels"),
    ({"vocab_size_per_layer_input": 100}, "vocab_size_per_layer_input is 100; it must be at least vocab_size 257"),
    ({"hidden_size_per_layer_input": 12}, "embed_tokens_per_layer.weight has shape .* but config.json wants .257, 72"),
    ({"enable_moe_block": True}, "num_experts is missing"),
    ({"query_pre_attn_scalar": 4}, "attention scaling, which is not supported"),
    ({"attn_logit_softcapping": 50.0}, "attention logit softcapping, which is not supported"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_is_refused(changes, sentence, folder_of, tmp_path):
    check_refused(folder_of("gemma4"), tmp_path / "changed", changes, sentence)


def test_scores_are_capped_where_a_config_of_such_layers_caps_them(folder_of):
    """No released one does."""
    config = replace(open_model(folder_of("gemma4")).config, attention_cap=30.0)
    graph = decoder_graph(config, defaultdict(lambda: DType.F32), DType.F32)
    verify(graph)
    assert [op.attrs["cap"] for op in graph.ops if op.kind == "attention"] == [30.0] * config.num_layers


@pytest.mark.parametrize(("row", "op"), [("gemma4", "embed/looked_up"), ("gemma4-values", "layers.0/scaled")])
def test_it_is_not_mapped_in_space(row, op, folder_of):
    graph = open_model(folder_of(row)).graph
    with pytest.raises(UnsupportedError, match=rf"{op}\] op .* has no normal form, so it cannot be mapped in space"):
        [nest(graph, one, Sizes.decode(1, 4)) for one in graph.ops]


def test_the_kernels_of_pytorch_compute_the_same(folder_of):
    model = open_model(folder_of("gemma4"))
    rows = {"tokens": np.arange(5, 9), "positions": np.arange(4), "sequence": np.zeros(4, int), "rows": np.array([3])}
    rows["block_tables"] = np.array([[0]])
    found = []
    for graph in (model.graph, expand(model.graph)):
        verify(graph)
        values = Reference(graph, load_weights_f32(model)).run(rows, [Sampling()], KvState(graph, 1, 8))
        found.append(values["head/logits"])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)


def test_it_is_not_split_over_units(folder_of):
    with pytest.raises(UsageError, match="layers of different heads, with inputs of their own, are not split over 2"):
        shard(open_model(folder_of("gemma4")).graph, 2)
