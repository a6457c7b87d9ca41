"""The blocks of a decoder as ops: embedding, attention, feed-forward, head. Families differ by flags only.

Knows nothing about config files, checkpoints or devices. The order of ops is what the fusion rules match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Symbol, trailing
from coterie.graph.ir import Attr, Graph, GraphBuilder, Kind
from coterie.models.config import ModelConfig

T, B, R = Symbol.T, Symbol.B, Symbol.R
EMBED_WEIGHT, HEAD_WEIGHT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Decoder:
    """Builds one graph: `config` says what, `dtypes` the element type of each weight in the file.

    `activations` is the type in which a machine stores intermediates; real devices run F32.
    """

    config: ModelConfig
    dtypes: Mapping[str, DType]
    builder: GraphBuilder
    activations: DType = DType.F32

    def build(self) -> Graph:
        """The whole step, from tokens to sampled tokens."""
        self._declare()
        x = self._embed()
        for layer in range(self.config.num_layers):
            x = self._layer(x, layer)
        self._head(x)
        return self.builder.build()

    def _declare(self) -> None:
        c, b = self.config, self.builder
        for name in ("tokens", "positions", "sequence"):
            b.value(name, (T,), DType.I32, Kind.INPUT)
        b.value("block_tables", (B,), DType.I32, Kind.INPUT)
        b.value("rows", (R,), DType.I32, Kind.INPUT)
        b.value("sampling", (R,), DType.F32, Kind.INPUT)
        b.value("inv_freq", (c.head_dim // 2,), DType.F32, Kind.CONSTANT, c.rope.inv_freq)
        k_dtype = self.dtypes["model.layers.0.self_attn.k_proj.weight"]
        kv_dtype = self.dtypes["model.norm.weight"] if k_dtype.is_packed else k_dtype
        b.value("kv", (c.num_layers, 2, c.num_kv_heads, c.head_dim), kv_dtype, Kind.STATE)

    def _embed(self) -> str:
        c = self.config
        self.builder.stage = "embed"
        return self._op("embed", "x", ("tokens", self._weight(EMBED_WEIGHT, (c.vocab_size, c.hidden_size))))

    def _layer(self, x: str, layer: int) -> str:
        self.builder.stage = f"layers.{layer}"
        prefix = f"model.layers.{layer}."
        x = self._attention(x, layer, prefix)
        return self._feed_forward(x, prefix)

    def _attention(self, x: str, layer: int, prefix: str) -> str:
        c = self.config
        attn = prefix + "self_attn."
        q_shape: Shape = (T, c.num_heads, c.head_dim)
        kv_shape: Shape = (T, c.num_kv_heads, c.head_dim)
        h = self._norm("input_norm", x, prefix + "input_layernorm.weight")
        q = self._linear("q", h, attn + "q_proj", q_shape, c.qkv_bias)
        k = self._linear("k", h, attn + "k_proj", kv_shape, c.qkv_bias)
        v = self._linear("v", h, attn + "v_proj", kv_shape, c.qkv_bias)
        if c.qk_norm:
            q = self._norm("q_norm", q, attn + "q_norm.weight")
            k = self._norm("k_norm", k, attn + "k_norm.weight")
        q = self._op("rope", "q_rope", (q, "positions", "inv_freq"), self._shape(q), scale=c.rope.scale)
        k = self._op("rope", "k_rope", (k, "positions", "inv_freq"), self._shape(k), scale=c.rope.scale)
        rows = ("positions", "sequence", "block_tables", "kv")
        self.builder.op("kv_append", "kv_append", (k, v, *rows), ("kv",), layer=layer)
        attrs: dict[str, Attr] = {"layer": layer, "scale": c.head_dim**-0.5, "window": c.windows[layer]}
        y = self._op("attention", "attention", (q, *rows), q_shape, **attrs)
        o = self._linear("o", y, attn + "o_proj", (T, c.hidden_size), c.o_bias)
        return self._op("add", "attention_out", (x, o))

    def _feed_forward(self, x: str, prefix: str) -> str:
        c = self.config
        mlp = prefix + "mlp."
        inner: Shape = (T, c.intermediate_size)
        h = self._norm("post_norm", x, prefix + "post_attention_layernorm.weight")
        gate = self._linear("gate", h, mlp + "gate_proj", inner, c.mlp_bias)
        up = self._linear("up", h, mlp + "up_proj", inner, c.mlp_bias)
        silu = self._op("silu", "silu", (gate,), inner)
        mul = self._op("mul", "mul", (silu, up), inner)
        down = self._linear("down", mul, mlp + "down_proj", (T, c.hidden_size), c.mlp_bias)
        return self._op("add", "out", (x, down))

    def _head(self, x: str) -> None:
        c = self.config
        self.builder.stage = "head"
        taken = self._op("take_rows", "rows", (x, "rows"), (R, c.hidden_size))
        h = self._norm("norm", taken, "model.norm.weight")
        head = EMBED_WEIGHT if c.tied_embeddings else HEAD_WEIGHT
        table = self._weight(head, (c.vocab_size, c.hidden_size))
        logits = self._op("linear", "logits", (h, table, ""), (R, c.vocab_size))
        self.builder.value("next_tokens", (R,), DType.I32, Kind.OUTPUT)
        self.builder.op("sample", "sample", (logits, "sampling"), ("next_tokens",))

    def _op(self, kind: str, name: str, inputs: tuple[str, ...], shape: Shape | None = None, **attrs: Attr) -> str:
        """Append an op with one output of `shape` (by default [T, hidden]) and return the output's name."""
        b = self.builder
        y = b.value(f"{b.stage}/{name}", shape or (T, self.config.hidden_size), self.activations, Kind.TENSOR)
        b.op(kind, name, inputs, (y,), **attrs)
        return y

    def _norm(self, name: str, x: str, weight: str) -> str:
        shape = self._shape(x)
        return self._op("rms_norm", name, (x, self._weight(weight, shape[-1:])), shape, eps=self.config.norm_eps)

    def _linear(self, name: str, x: str, prefix: str, shape: Shape, bias: bool) -> str:
        rows, columns = trailing(shape), trailing(self._shape(x))
        weight = self._weight(prefix + ".weight", (rows, columns))
        return self._op("linear", name, (x, weight, self._weight(prefix + ".bias", (rows,)) if bias else ""), shape)

    def _weight(self, name: str, shape: Shape) -> str:
        return self.builder.value(name, shape, self.dtypes[name], Kind.WEIGHT)

    def _shape(self, value: str) -> Shape:
        return self.builder.shape(value)
