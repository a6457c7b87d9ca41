"""LLaVA: tower, projector and text give what transformers gives; the tower launches the kernels of the table."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from tests.model.test_eager_kernels import ATEN, Kernels
from tests.pure.graphs import Choice
from transformers import AutoConfig, AutoModelForImageTextToText

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.shapes import Sizes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.graph.eager.rewrite import expand
from coterie.graph.reference import KvState, Reference
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.config import ModelConfig
from coterie.models.families.llava import llava_graph, llava_text_graph
from coterie.models.zoo import zoo_config, zoo_graph

IMAGE = 59
RAW = {
    "model_type": "llava",
    "image_token_index": IMAGE,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "text_config": {
        **{"model_type": "llama", "vocab_size": 60, "hidden_size": 24, "intermediate_size": 40},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
        **{"rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    },
    "vision_config": {
        **{"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 36, "num_hidden_layers": 3},
        **{"num_attention_heads": 2, "image_size": 12, "patch_size": 4, "hidden_act": "quick_gelu"},
    },
}
TOKENS = np.array([5, *[IMAGE] * 9, 7, 11, 3])


def theirs(raw=RAW, seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**raw)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def their_name(name):
    """A weight of the published files under the name that transformers gives it today."""
    for old, new in (
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


def test_the_reference_agrees_with_transformers():
    model, pixels = theirs(), torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(TOKENS)[None], pixel_values=pixels).logits[0].numpy()
    graph = llava_graph(RAW, "tiny", defaultdict(lambda: DType.F32), DType.F32)
    verify(graph)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    own = {value.name: weights[their_name(value.name)].reshape(value.shape) for value in graph.weights}
    patches = pixels.numpy()[0].reshape(3, 3, 4, 3, 4).transpose(1, 3, 0, 2, 4).reshape(9, 48)
    rows = {
        "tokens": TOKENS,
        "positions": np.arange(13),
        "sequence": np.zeros(13, int),
        "block_tables": np.array([[0, 1, 2, 3]]),
        "rows": np.arange(13),
        "patches": patches,
    }
    for each in (graph, expand(graph)):
        found = Reference(each, own).run(rows, [Choice()] * 13, KvState(each, 4, 4))["head/logits"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())


def test_a_layer_of_the_tower_launches_the_kernels_of_the_table():
    counts = []
    for layers in (3, 4):
        model = theirs({**RAW, "vision_config": {**RAW["vision_config"], "num_hidden_layers": layers}})
        tower = model.to(torch.bfloat16).model.vision_tower
        with torch.no_grad(), Kernels() as kernels:
            tower(torch.zeros(1, 3, 12, 12, dtype=torch.bfloat16))
        counts.append(kernels.names)
    graph = llava_graph(RAW, "tiny", defaultdict(lambda: DType.BF16), DType.BF16)
    program = compile_graph(expand(graph), "none")
    kinds = (region.kernel for region in program.regions if region.stage == "vision.layers.1")
    assert Counter(ATEN.get(kind, kind) for kind in kinds) == counts[1] - counts[0]


def test_parameters_are_those_of_the_files_but_for_the_layer_that_is_not_used():
    """7,063,427,072 in the headers of llava-hf/llava-1.5-7b-hf; the 24th layer and the norm behind it are not run."""
    last = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    graph = zoo_graph("llava-1.5-7b")
    assert sum(int(np.prod(value.shape)) for value in graph.weights) == 7_063_427_072 - last - 2 * 1024


def test_a_decode_step_leaves_the_tower_out():
    whole, text = zoo_graph("llava-1.5-7b"), zoo_graph("llava-1.5-7b", "decode")
    assert [stage for stage in whole.stages if not stage.startswith("vision")] == list(text.stages)
    sizes = Sizes.prefill(2, 700)
    tower = program_cost(compile_graph(whole, "section"), sizes).flops
    tower -= program_cost(compile_graph(text, "section"), sizes).flops
    # 23 layers of 577 rows: 2 flops for each parameter of a matrix, and attention of all rows to all.
    matrices = 2 * 577 * 23 * (4 * 1024**2 + 2 * 1024 * 4096)
    matrices += 2 * 576 * (588 * 1024 + 1024 * 4096 + 4096**2)
    assert abs(tower / (2 * (matrices + 4 * 577**2 * 1024 * 23)) - 1) < 0.02


@pytest.mark.parametrize("degree", [2, 8])
def test_the_tower_is_split_too(degree):
    own = shard(zoo_graph("llava-1.5-7b"), degree)
    verify(own)
    heads = own.values["vision.layers.0/attention"].shape[1]
    assert heads == 16 // degree
    assert sum(op.kind == "all_reduce" for op in own.ops) == 2 * 23 + 1 + 1 + 2 * 32


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"vision_feature_layer": 2}, CheckpointError, "vision_feature_layer is 2; it must be from -3 to -1"),
        ({"vision_feature_select_strategy": "full"}, UnsupportedError, "class row is kept"),
        ({"vision_config": {"model_type": "siglip"}}, UnsupportedError, "no clip_vision_model"),
        ({"projector_hidden_act": "relu"}, UnsupportedError, "projector_hidden_act 'relu' is not supported"),
        ({"text_config": {}}, CheckpointError, "text_config is missing"),
    ],
)
def test_what_is_not_modelled_is_refused(change, error, sentence):
    with pytest.raises(error, match=sentence):
        llava_graph({**RAW, **change}, "tiny", defaultdict(lambda: DType.F32), DType.F32)


def test_it_is_not_served():
    with pytest.raises(UnsupportedError, match="llava"):
        ModelConfig.from_hf(zoo_config("llava-1.5-7b"), "llava-1.5-7b")


def test_a_text_model_whose_layers_have_inputs_of_their_own_is_refused():
    text = {**RAW["text_config"], "model_type": "gemma4_text", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
    for make in (llava_graph, llava_text_graph):
        with pytest.raises(UnsupportedError, match="gemma4_text has inputs of its layers for each token"):
            make({**RAW, "text_config": text}, "config.json", defaultdict(lambda: DType.F32), DType.F32)
