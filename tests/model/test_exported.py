"""Two ways to a model's cost, its config and what PyTorch exports, agree to the flop and the byte; gaps are named.

Long, since the first export of a process takes ten seconds.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

import pytest
import torch
from tests.model.exported import count
from tests.model.test_eager_kernels import ATEN, TINY
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from coterie.core.dtypes import DType
from coterie.core.shapes import Sizes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import region_cost
from coterie.graph.eager.rewrite import expand
from coterie.graph.ir import Kind
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph
from coterie.models.zoo import zoo_config

pytestmark = pytest.mark.long
TOKENS = 8
# Kinds that are counted under another name when they come from ATen.
SAME = {**ATEN, "angles": "mul", "scores": "matmul", "mix": "matmul", "to_float": "cast", "context_softmax": "softmax"}
SAME |= {"group_scores": "matmul", "copy": "copy", "linear": "linear", "sub": "sub", "square": "square"}
# The mask is made otherwise; ours takes rows and samples them. Nothing else may differ.
OURS_ALONE = ("mask", "take_rows", "sample")


class Logits(torch.nn.Module):
    """A model that gives its logits alone, with a cache that starts empty."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=True).logits


class Decode(torch.nn.Module):
    """A model that gives the logits of one token behind a cache, which is an input."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, *states):
        cache = DynamicCache(config=self.model.config)
        for layer, keys, values in zip(cache.layers, states[::2], states[1::2], strict=True):
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.keys, layer.values = keys, values
            layer.cumulative_length = keys.shape[2]  # what a sliding window keeps apart
        return self.model(ids, past_key_values=cache, use_cache=True).logits


def export(raw, attention="eager", context=0):
    """Export a model on the meta device, which holds no bytes of it: its prefill, or a step that makes a context."""
    raw = {key: value for key, value in raw.items() if key not in ("architectures", "torch_dtype")}
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.bfloat16)
        ids = torch.zeros(1, 1 if context else TOKENS, dtype=torch.long)
        shape = (1, config.num_key_value_heads, context - 1, 32 // 4) if context else ()
        states = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2 * config.num_hidden_layers)]
    if context:
        return lowered(Decode(model.eval()), ids, *states)
    return lowered(Logits(model.eval()), ids)


def lowered(module, *inputs):
    """The exported program, ATen ops as PyTorch launches them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs).run_decompositions({})


def theirs(counted):
    return {kind: (c.flops, c.weight_bytes, c.input_bytes, c.output_bytes) for kind, c in counted.by_kind().items()}


def ours(raw, context=0):
    """Flops and bytes of floating-point operands by kind: of a prefill that wants every logit, or of a decode step."""
    graph = expand(decoder_graph(ModelConfig.from_hf(raw, "tiny"), defaultdict(lambda: DType.BF16), DType.BF16))
    program = compile_graph(graph, "none")
    prefill = Sizes(TOKENS, 1, TOKENS, TOKENS, TOKENS * (TOKENS + 1) // 2)
    sizes = Sizes.decode(1, context) if context else prefill
    found: dict[str, tuple[int, ...]] = {}
    for region in program.regions:
        if region.kernel in OURS_ALONE:
            continue
        cost = region_cost(program, region, sizes)
        rows = (graph.values[name] for name in region.inputs if name)
        whole = sum(4 * sizes.count(v.shape) for v in rows if v.kind is Kind.INPUT and v.dtype is DType.I32)
        kind = SAME.get(region.kernel, region.kernel)
        each = (cost.flops, cost.weight_bytes, cost.input_bytes + cost.kv_read_bytes - whole, cost.output_bytes)
        found[kind] = tuple(a + b for a, b in zip(found.get(kind, (0, 0, 0, 0)), each, strict=True))
    return found


def merged(counts):
    """PyTorch has one cat, one add, one mul; so has the comparison."""
    found: dict[str, tuple[int, ...]] = {}
    for kind, each in counts.items():
        name = {"scale": "mul", "shift": "add", "kv_cat": "cat"}.get(kind, kind)
        name = "matmul" if name == "bmm" else name
        found[name] = tuple(a + b for a, b in zip(found.get(name, (0, 0, 0, 0)), each, strict=True))
    return found


def two_layers(raw):
    layers = "n_layer" if raw["model_type"] == "bloom" else "num_hidden_layers"
    return {**raw, layers: 2}


@pytest.mark.parametrize("name", ["llama", "grouped", "mistral", "qwen3"])
def test_export_and_config_agree(name):
    raw = two_layers(TINY[name])
    counted = count(export(raw))
    assert not counted.unsupported
    wanted = merged(ours(raw))
    found = merged(theirs(counted))
    found.pop("mask")
    assert found == wanted


@pytest.mark.parametrize("name", ["llama", "grouped", "mistral"])
def test_a_decode_step_agrees_but_for_the_copy_that_one_token_needs_not(name):
    raw = two_layers(TINY[name])
    found, wanted = merged(theirs(count(export(raw, context=13)))), merged(ours(raw, context=13))
    found.pop("mask")
    heads = 2 * 2 * 32  # behind attention, in both layers: 32 numbers of two bytes, read and written
    copies = wanted.pop("copy")
    assert found.pop("copy", (0, 0, 0, 0)) == (0, 0, copies[2] - heads, copies[3] - heads)
    assert found == wanted


@pytest.mark.parametrize("name", ["llama-2-7b", "mistral-7b"])
def test_export_and_config_agree_at_full_width(name):
    """One layer of the published shape: its weights are never made."""
    raw = {**zoo_config(name), "num_hidden_layers": 1}
    found = merged(theirs(count(export(raw))))
    found.pop("mask")
    assert found == merged(ours(raw))


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_export_and_config_agree_on_what_matters_for_other_families(name):
    """Tables of slopes and angles are made in another way; matrices, norms, scores and copies are the same."""
    raw = two_layers(TINY[name])
    counted = count(export(raw))
    assert not counted.unsupported
    wanted, found = merged(ours(raw)), merged(theirs(counted))
    same = {"linear", "matmul", "softmax", "layer_norm", "embed", "neg", "gelu", "tanh", "alibi_scores"} & set(wanted)
    assert {"linear", "matmul", "softmax", "layer_norm"} <= same
    assert {kind: found[kind] for kind in same} == {kind: wanted[kind] for kind in same}


def test_fused_attention_is_one_op_of_the_same_flops():
    raw = two_layers(TINY["llama"])
    fused, plain = count(export(raw, "sdpa")), count(export(raw))
    assert sum(kind == "attention" for kind, _ in fused.ops) == 2
    assert fused.weight_bytes == plain.weight_bytes
    assert fused.cost.weight_bytes == plain.cost.weight_bytes
    assert fused.cost.output_bytes < plain.cost.output_bytes


def test_what_the_table_lacks_is_counted_and_named():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.cumsum(torch.sort(x)[0], 0) + torch.cumsum(x, 0)

    counted = count(lowered(Odd(), torch.zeros(4)))
    assert counted.unsupported == {"aten.sort.default": 1, "aten.cumsum.default": 2}
    assert [kind for kind, _ in counted.ops] == ["add"]
