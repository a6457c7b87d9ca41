"""The kernels of graph/eager are those that transformers launches: the dispatches of a layer, counted by name."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from coterie.core.dtypes import DType
from coterie.graph.compile import compile_graph
from coterie.graph.eager.rewrite import expand
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph

# What PyTorch does without a kernel: other shapes and strides of the same numbers.
VIEWS = {
    *("view", "t", "transpose", "unsqueeze", "expand", "slice", "_unsafe_view", "permute", "select", "alias"),
    *("detach", "squeeze", "split", "unbind", "lift_fresh"),
}
# Our kernels by the name of PyTorch's. A linear is mm, or addmm with a bias; a gather by a list of one is an index.
ATEN = {
    **dict.fromkeys(("add", "add_", "shift", "add_mask"), "add"),
    **dict.fromkeys(("mul", "scale", "mul_last", "mul_weight", "mul_heads", "div_"), "mul"),
    **dict.fromkeys(("cat", "kv_cat"), "cat"),
    **dict.fromkeys(("scores", "mix", "bmm", "group_scores", "group_mix"), "bmm"),
    **dict.fromkeys(("context_softmax", "softmax", "_softmax"), "softmax"),
    **dict.fromkeys(("copy", "clone", "index"), "copy"),
    **dict.fromkeys(("linear", "mm", "addmm"), "linear"),
    **dict.fromkeys(("cast", "_to_copy"), "cast"),
    **dict.fromkeys(("square", "pow"), "square"),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), "layer_norm"),
    **dict.fromkeys(("alibi_scores", "baddbmm"), "alibi_scores"),
}
COMMON = {"vocab_size": 64, "hidden_size": 32, "tie_word_embeddings": False}
LLAMA = {**COMMON, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
TINY = {
    "llama": {"model_type": "llama", **LLAMA, "num_key_value_heads": 4},
    "grouped": {"model_type": "llama", **LLAMA, "num_key_value_heads": 2},
    "mistral": {"model_type": "mistral", **LLAMA, "num_key_value_heads": 2, "sliding_window": 16},
    "bloom": {"model_type": "bloom", "vocab_size": 64, "hidden_size": 32, "n_head": 4},
    "opt": {
        **{"model_type": "opt", "vocab_size": 64, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48},
        **{"num_attention_heads": 4, "max_position_embeddings": 64},
    },
    "falcon": {
        **{"model_type": "falcon", "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2},
        **{"new_decoder_architecture": True, "parallel_attn": True, "bias": False, "alibi": False},
    },
    "qwen3": {"model_type": "qwen3", **LLAMA, "num_key_value_heads": 2, "head_dim": 8},
}


class Kernels(TorchDispatchMode):
    """Counts what is dispatched and is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.names[ATEN.get(name, name)] += 1
        return func(*args, **(kwargs or {}))


def launched(raw, layers, decode):
    """Kernels of a prefill, or of a decode step behind it, of a random model with so many layers."""
    raw = dict(raw)
    config = AutoConfig.for_model(raw.pop("model_type"), **raw, num_hidden_layers=layers)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.bfloat16).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        first = model(ids, use_cache=True) if decode else None
        with Kernels() as kernels:
            model(ids[:, :1] if first else ids, past_key_values=first and first.past_key_values, use_cache=True)
    return kernels.names


def ours(raw):
    """Kernels of the second layer, by our table."""
    config = ModelConfig.from_hf({**raw, "num_hidden_layers": 2}, "tiny")
    graph = decoder_graph(config, defaultdict(lambda: DType.BF16), DType.BF16)
    program = compile_graph(expand(graph), "none")
    kinds = (region.kernel for region in program.regions if region.stage == "layers.1")
    return Counter(ATEN.get(kind, kind) for kind in kinds)


@pytest.mark.parametrize("name", TINY)
def test_a_layer_launches_the_kernels_of_the_table(name):
    layer = launched(TINY[name], 2, decode=False) - launched(TINY[name], 1, decode=False)
    assert ours(TINY[name]) == layer


@pytest.mark.parametrize(
    "name", ["grouped", *(pytest.param(n, marks=pytest.mark.long) for n in TINY if n != "grouped")]
)
def test_a_decode_step_launches_one_copy_less(name):
    """Behind attention: with one token, heads before tokens and tokens before heads are the same bytes."""
    layer = launched(TINY[name], 2, decode=True) - launched(TINY[name], 1, decode=True)
    assert ours(TINY[name]) - layer == Counter({"copy": 1})
    assert not layer - ours(TINY[name])
