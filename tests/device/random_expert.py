"""A random expert of any shape in a CPU device's memory, at odd addresses, and the reference that it is compared with.

Knows nothing about files: bytes are put into the slab by hand.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from tests.device.programs import rows

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.packed import pack, unpack
from coterie.core.units import parse_bytes
from coterie.device import Binding
from coterie.devices.cpu.device import CpuDevice
from coterie.graph.compile import compile_graph
from coterie.graph.ir import Kind, Value
from coterie.graph.low_rank import LowRank, linear_weights, with_low_rank
from coterie.graph.reference import KvState, Reference
from coterie.graph.rounding import as_a_cpu_rounds, with_kept_kv
from coterie.graph.vectors import vectors_graph
from coterie.kernels.cpu import rounds_attention
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph, weight_shapes
from coterie.spec.machine import Link, MachineSpec, Tier

SPEC = MachineSpec(
    name="test",
    flops_per_s=0.0,
    flops_source="none",
    tiers=(Tier("dram", parse_bytes("256MiB"), 0.0, "a test"), Tier("disk", parse_bytes("1TiB"), 0.0, "a test")),
    links=(Link("disk", "dram", 0.0, 0.0, "a test"),),
    launch_host_s=0.0,
    launch_device_s=0.0,
    launch_source="none",
    rule_set="cache",
)

BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 67,
    "hidden_size": 33,
    "intermediate_size": 45,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}

# Name -> what differs from BASE: one row per thing that a kernel may get wrong.
SHAPES = {
    "odd": {},
    "one-head": {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
    "mqa": {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 20},
    "mha-80": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 80},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "hidden_size": 52},
    "qk-norm": {**QWEN3, "head_dim": 12},
    "window": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7},
    "tied-one-token-vocabulary": {"tie_word_embeddings": True, "vocab_size": 1},
    "norms-behind": {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "head_dim": 10},
    "gemma": {
        **{"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "num_key_value_heads": 1, "head_dim": 20},
        "tie_word_embeddings": True,
    },
    "gemma2": {
        **{"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 12, "sliding_window": 7},
        **{"query_pre_attn_scalar": 5, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 8.0},
        "hidden_activation": "gelu",
    },
    "gemma3": {
        **{"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 10, "sliding_window": 7},
        **{"sliding_window_pattern": 2, "rope_local_base_freq": 300.0, "query_pre_attn_scalar": 10},
    },
    "rotated-in-part": {
        **{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "head_dim": 16, "sliding_window": 9},
        "partial_rotary_factor": 0.75,
    },
    "not-all-rotated": {
        **{"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0, 1], "head_dim": 12},
        "attention_bias": True,
    },
    "scaled": {
        **{"model_type": "granite", "architectures": ["GraniteForCausalLM"], "embedding_multiplier": 3.0},
        **{"attention_multiplier": 0.3, "residual_multiplier": 0.6, "logits_scaling": 4.0, "tie_word_embeddings": True},
    },
    "norms-behind-and-not-all-rotated": {
        **{"model_type": "exaone4", "architectures": ["Exaone4ForCausalLM"], "sliding_window_pattern": 2},
        **{"sliding_window": 7, "head_dim": 10},
    },
    "interleaved": {
        "model_type": "ernie4_5",
        "architectures": ["Ernie4_5ForCausalLM"],
        "head_dim": 6,
        "use_bias": True,
    },
    "interleaved-in-part": {
        **{"model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "head_dim": 20, "num_attention_heads": 3},
        **{"num_key_value_heads": 1, "partial_rotary_factor": 0.5},
    },
    "branches": {
        **{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 12, "num_experts": 5},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 21, "norm_topk_prob": True, "mlp_only_layers": [0]},
    },
    "branches-by-groups": {
        **{"model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "head_dim": 12, "n_routed_experts": 6},
        **{"num_experts_per_tok": 3, "moe_intermediate_size": 21, "n_group": 3, "topk_group": 2, "n_shared_experts": 2},
        **{"routed_scaling_factor": 1.5, "num_nextn_predict_layers": 0},
    },
    "branches-beside-one": {
        **{"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "num_experts": 5},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 21, "shared_expert_intermediate_size": 36},
    },
    "sinks-and-clipped-gates": {
        **{"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "head_dim": 12, "num_local_experts": 7},
        **{"num_experts_per_tok": 3, "intermediate_size": 21, "sliding_window": 7, "swiglu_limit": 1.1},
    },
    "queries-that-grow": {
        **{"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"], "head_dim": 10},
        "rope_parameters": {
            **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 6, "rope_theta": 1e4},
            **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
        },
    },
    "normed-behind-rope": {
        **{"model_type": "hunyuan_v1_dense", "architectures": ["HunYuanDenseV1ForCausalLM"], "head_dim": 6},
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    "no-gate": {"model_type": "arcee", "architectures": ["ArceeForCausalLM"], "hidden_act": "relu2", "mlp_bias": True},
    "layer-norms": {
        **{"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "partial_rotary_factor": 0.75},
        **{"use_qkv_bias": True, "head_dim": 8, "layer_norm_eps": 1e-4},
    },
    "side-by-side": {
        **{"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "partial_rotary_factor": 0.5},
        **{"use_parallel_residual": True, "num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True},
    },
    "plain-feed-forward": {
        **{"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"], "sliding_window": 7},
        **{"hidden_act": "gelu_pytorch_tanh", "head_dim": 10, "norm_epsilon": 1e-6},
    },
    "side-by-side-with-a-head-bias": {
        **{"model_type": "phi", "architectures": ["PhiForCausalLM"], "partial_rotary_factor": 0.4, "head_dim": 20},
        "hidden_act": "gelu_new",
    },
    "delta-nets": {
        **{"model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"], "num_hidden_layers": 3},
        **{"layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 12},
        **{"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 20},
        **{"linear_value_head_dim": 37, "partial_rotary_factor": 0.5},
    },
    "layers-that-differ": {
        **{"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "sliding_window": 7},
        **{"layer_types": ["full_attention"] * 2, "global_head_dim": 8, "hidden_size_per_layer_input": 21},
        **{"num_kv_shared_layers": 1, "use_double_wide_mlp": True, "rope_theta": None, "final_logit_softcapping": 8.0},
    },
    "branches-beside-the-block": {
        **{"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "enable_moe_block": True},
        **{"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7, "rope_theta": None},
        **{"global_head_dim": 12, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "num_experts": 3},
        **{"hidden_size_per_layer_input": 0, "top_k_experts": 3, "moe_intermediate_size": 21},
    },
    "nets-by-key-heads": {
        **{"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "head_dim": 12, "num_experts": 4},
        **{
            "layer_types": ["linear_attention", "full_attention"],
            "partial_rotary_factor": 0.5,
            "linear_num_key_heads": 2,
        },
        **{"linear_num_value_heads": 4, "linear_key_head_dim": 12, "linear_value_head_dim": 21},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 21, "shared_expert_intermediate_size": 36},
    },
    "short-convolutions": {
        **{"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "num_hidden_layers": 3, "conv_L_cache": 4},
        **{"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 4},
    },
    "state-spaces": {
        **{"model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "num_hidden_layers": 3},
        **{"layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0, "shared_intermediate_size": 45},
        **{"mamba_n_heads": 6, "mamba_d_head": 21, "mamba_d_state": 10, "mamba_n_groups": 2, "mamba_d_conv": 3},
        **{"residual_multiplier": 0.6, "time_step_limit": [0.3, 0.9], "position_embedding_type": "rope"},
    },
    "state-spaces-beside-attention": {
        **{"model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"], "mamba_d_ssm": 74, "mamba_n_heads": 2},
        **{"mamba_d_state": 20, "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.7], "key_multiplier": 0.5},
        **{"mamba_rms_norm": True, "mamba_n_groups": 1},
    },
    "single-blocks": {
        **{"model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "hybrid_override_pattern": "M-*"},
        **{"mamba_num_heads": 4, "mamba_head_dim": 9, "ssm_state_size": 12, "n_groups": 4, "mlp_hidden_act": "relu2"},
    },
    "trained-activation": {"model_type": "apertus", "architectures": ["ApertusForCausalLM"], "hidden_act": "xielu"},
    "wide": {"hidden_size": 192, "intermediate_size": 400, "head_dim": 32, "vocab_size": 1000},
    "adapted": {"attention_bias": True},
}
RANKS = {"adapted": 3}  # of the changes beside all products of a shape


@dataclass
class RandomExpert:
    """Weights as stored and as float32, on one device, with KV pages of `Z` tokens."""

    device: CpuDevice
    shape: str
    dtypes: tuple[DType, ...] = (DType.BF16,)
    rule_set: str = "cache"
    Z: int = 5
    num_blocks: int = 96
    seed: int = 0
    align_bytes: int = 0  # of weights; 0: they follow each other at odd addresses
    share_buffers: bool = False

    def __post_init__(self):
        config = ModelConfig.from_hf(BASE | SHAPES[self.shape], self.shape)
        names = weight_shapes(config)
        # 7 is no multiple of 3: the same projection has different types in different layers
        own = tuple(dtype for dtype in self.dtypes if dtype is not DType.KV8)  # which keys and values are kept in
        types = dict(zip(names, cycle(own), strict=False))
        branches = [name for name in names if ".experts." in name or ".shared_expert." in name]
        types |= dict.fromkeys(branches, own[0])  # those of a layer are of one type
        vectors = [name for name, shape in names.items() if len(shape) != 2 or name.endswith("_bias")]
        types |= {name: DType.BF16 for name in vectors if types[name].is_packed}
        self.graph = decoder_graph(config, types)
        if rank := RANKS.get(self.shape):
            names, self.graph = adapted(names, self.graph, rank, next((t for t in own if t.is_float), DType.BF16))
        if DType.KV8 in self.dtypes:
            self.graph = with_kept_kv(self.graph, DType.KV8)
        self.program = compile_graph(self.graph, self.rule_set, share_buffers=self.share_buffers)
        self.exe = self.device.load(self.program)
        rng = np.random.default_rng(self.seed)
        self.weights, pieces, offsets, end = {}, {}, {}, 0 if self.align_bytes else 1
        for name, shape in names.items():
            center, scale = (1.0, 0.1) if len(shape) == 1 and "norm" in name else (0.0, (*shape[-1:], 1)[0] ** -0.5)
            if name.endswith("act_fn.eps"):  # where two halves of a function meet, which is else broken at 0
                center, scale = -1e-3, 0.0
            values = (center + scale * rng.standard_normal(shape)).astype(np.float32)
            dtype = self.graph.values[name].dtype
            bits = pack(values, dtype) if dtype.is_packed else from_f32(values, dtype)
            wide = unpack(bits, dtype, shape[1]) if dtype.is_packed else to_f32(bits, dtype)
            self.weights[name] = wide.reshape(shape)
            start = end + (-end % self.align_bytes if self.align_bytes else 0)
            offsets[name], end = start, start + bits.nbytes
            pieces[name] = np.frombuffer(bits.tobytes(), dtype=np.uint8)
        self.offsets = tuple(offsets[name] for name in self.program.weights)
        self.extent = self.device.reserve("dram", end)
        for name, piece in pieces.items():
            self.device.memory(self.extent)[offsets[name] : offsets[name] + len(piece)] = piece
        kv = self.program.kv
        self.block_bytes = max(self.Z * kv.bytes_per_token, kv.unit_bytes) + 6
        self.kv = self.device.reserve("dram", self.num_blocks * self.block_bytes)
        self.reference = Reference(self.graph, self.weights)
        state_blocks = kv.state_blocks(self.block_bytes)
        self.state = KvState(self.graph, self.num_blocks, kv.tokens_per_block(self.block_bytes), state_blocks)

    def without_head(self):
        """Let its program give vectors in place of tokens; the reference still computes everything."""
        program = compile_graph(vectors_graph(self.graph), self.rule_set, share_buffers=self.share_buffers)
        kept = [self.program.weights.index(name) for name in program.weights]
        self.offsets = tuple(self.offsets[place] for place in kept)
        self.program, self.exe = program, self.device.load(program)
        return self

    def rounding_as_a_cpu(self):
        """Let the reference round what meets packed weights as a CPU does."""
        self.reference = Reference(as_a_cpu_rounds(self.graph, rounds_attention()), self.weights)
        return self

    def binding(self, step):
        return Binding(self.extent, self.offsets, self.kv, self.block_bytes, step)

    def inspect(self, step):
        """Every stored value of one step on the device."""
        return self.device.inspect(self.exe, self.binding(step))

    def expect(self, step):
        """Every value of the same step by the reference."""
        named = {
            "tokens": step.tokens_T,
            "positions": step.positions_T,
            "sequence": step.sequence_T,
            "block_tables": step.block_tables_BM,
            "rows": step.rows_R,
        }
        return self.reference.run(named, step.sampling, self.state)

    def run(self, step, **options):
        """Sampled tokens of a run."""
        event = self.device.run(self.exe, self.binding(step), **options)
        while not self.device.done(event):
            self.device.wait_any([event])
        return self.device.tokens(event)

    def kv_bytes(self):
        return self.device.memory(self.kv).copy()

    def prompt(self, length, seed=1):
        return np.random.default_rng(seed).integers(0, self.program.vocab_size, length).tolist()


def adapted(names, graph, rank, dtype):
    """Shapes of weights, and a graph, with changes of this rank beside all products; factors have this type."""
    changes, names = {}, dict(names)
    for weight in linear_weights(graph):
        rows, columns = names[weight]
        a, b = (
            Value(f"{weight}.{letter}", shape, dtype, Kind.WEIGHT)
            for letter, shape in (("A", (rank, columns)), ("B", (rows, rank)))
        )
        changes[weight] = LowRank(a, b, 0.5)
        names |= {a.name: a.shape, b.name: b.shape}
    return names, with_low_rank(graph, changes)


@contextmanager
def making():
    """A function that makes experts whose weights lie as on a GPU, on devices that are closed at the end."""
    devices = []

    def make(shape, dtypes, rule_set="cache", seed=0, share_buffers=False):
        devices.append(CpuDevice(SPEC, threads=1))
        how = {"seed": seed, "align_bytes": 16, "share_buffers": share_buffers}
        return RandomExpert(devices[-1], shape, dtypes, rule_set, **how)

    yield make
    for device in devices:
        device.close()


def step_of(*chunks, **options):
    """Rows of (tokens, first position) per sequence, with tables of 24 blocks each."""
    return rows(list(chunks), blocks_per_sequence=24, **options)
