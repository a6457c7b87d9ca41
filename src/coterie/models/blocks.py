"""The blocks of a decoder as ops: embedding, attention, feed-forward, head. Families differ by flags only.

Knows nothing about config files, checkpoints or devices. The order of ops is what the fusion rules match.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Symbol
from coterie.graph.branch.ops import ADD_BIAS, ALPHA, CHOOSE, CLIPPED, DOWN, GATE_UP, GELU_UP, LIMIT, TOP_K
from coterie.graph.ir import Attr, Graph, Kind
from coterie.graph.latent.ops import APPEND, ATTEND, QUERIES, VALUES
from coterie.graph.ops import CAP, GROWTH, GROWTH_STEP, INTERLEAVED, KV_ROWS
from coterie.models.appending import scaled
from coterie.models.branches import Branches
from coterie.models.distance import alibi_slopes
from coterie.models.family import NAMES, FeedForward
from coterie.models.latent import LATENT_EPS, Latent
from coterie.models.recurrent import RecurrentBlocks

T, B, R = Symbol.T, Symbol.B, Symbol.R
XIELU_NUMBERS: tuple[tuple[str, Shape], ...] = (("alpha_p", (1,)), ("alpha_n", (1,)), ("beta", ()), ("eps", ()))
LOCAL = "inv_freq_local"  # frequencies of layers with a window, if they differ
TABLES = EMBED_WEIGHT, HEAD_WEIGHT = NAMES.embed, NAMES.head  # the names in every decoder family that real devices run


@dataclass(frozen=True, slots=True)
class Decoder(RecurrentBlocks):
    """Builds one graph, block by block."""

    def build(self, images: str = "", image_token: int = 0) -> Graph:
        """The whole step, from tokens to sampled tokens; rows of `images`, if any, replace the image tokens."""
        self._declare()
        x = self._embed()
        if images:
            x = self._op("merge_rows", "merged", (x, "tokens", images), token=image_token)
        for layer in range(self.config.num_layers):
            x = self._layer(x, layer)
        self._head(x)
        return self.builder.build()

    def _declare(self) -> None:
        c, b, names = self.config, self.builder, self.config.names
        self._declare_rows()
        if c.alibi:
            b.value("slopes", (c.num_heads,), DType.F32, Kind.CONSTANT, alibi_slopes(c.num_heads))
        elif not names.positions:
            b.value("inv_freq", (len(c.rope.inv_freq),), DType.F32, Kind.CONSTANT, c.rope.inv_freq)
            if c.local_rope:
                b.value(LOCAL, (len(c.local_rope.inv_freq),), DType.F32, Kind.CONSTANT, c.local_rope.inv_freq)
        k = c.latent.names.down if c.latent else names.qkv or names.k
        own = self.dtypes[f"{names.norm}.weight"]
        k_dtype = self.dtypes[f"{names.layer.format(c.attending_layers[0])}{k}.weight"] if c.attending_layers else own
        self._declare_kv(k_dtype if k_dtype.is_float else own)
        self._declare_states()

    def _declare_rows(self, *more: str) -> None:
        """Declare the row inputs of a step: per token (with `more`), per sequence and per row."""
        of_tokens = dict.fromkeys(("tokens", "positions", "sequence", *more), T)
        for name, symbol in (of_tokens | {"block_tables": B, "rows": R}).items():
            self.builder.value(name, (symbol,), DType.I32, Kind.INPUT)
        self.builder.value("sampling", (R,), DType.F32, Kind.INPUT)

    def _declare_kv(self, dtype: DType) -> None:
        c = self.config
        row: Shape = (1, 1, c.latent.rank + c.latent.rotated) if c.latent else (2, c.num_kv_heads, c.head_dim)
        if not c.attending_layers:  # a dummy number per token, which nothing reads: sequences need blocks all the same
            self.builder.value("kv", (1, 1, 1, 1), dtype, Kind.STATE)
            return
        self.builder.value("kv", (len(c.attending_layers), *row), dtype, Kind.STATE)

    def _embed(self) -> str:
        c = self.config
        self.builder.stage = "embed"
        table = self._weight(c.names.embed, (c.vocab_size, c.hidden_size))
        x = self._op("embed", "x", ("tokens", table), None, **scaled(self._embed_scale()))
        if c.names.positions:
            rows = c.max_context + c.position_offset
            inputs = (x, "positions", self._weight(c.names.positions, (rows, c.hidden_size)))
            x = self._op("add_positions", "positioned", inputs, offset=c.position_offset)
        return self._norm("norm", x, c.names.embed_norm) if c.names.embed_norm else x

    def _embed_scale(self) -> float:
        c = self.config
        return self._rounded(c.embed_scale, c.names.embed) if c.rounds_embed_scale else c.embed_scale

    def _layer(self, x: str, layer: int) -> str:
        self.builder.stage = f"layers.{layer}"
        names, prefix = self.config.names, self.config.names.layer.format(layer)
        first = names.shared_norm if self.config.parallel_norms == 1 else names.attention_norm
        bare = layer == 0 and self.config.encoder is not None and not self.config.encoder.first_norm
        h = self._norm("input_norm", x, prefix + first) if first and not bare else x
        if self.config.parallel_norms:
            two = self.config.parallel_norms == 2
            feed_forward_input = self._norm("post_norm", x, prefix + names.feed_forward_norm) if two else h
            o = self._attention(h, layer, prefix)
            both = self._op("add", "both", (o, self._feed_forward(feed_forward_input, prefix)))
            return self._op("add", "out", (x, both))
        o = self._token_mixer(h, layer, prefix)
        if names.attention_out_norm:
            o = self._norm("attention_out_norm", o, prefix + names.attention_out_norm)
        x = self._op("add", "attention_out", (x, o))
        h = self._norm("post_norm", x, prefix + names.feed_forward_norm) if names.feed_forward_norm else x
        branches = self.config.branches
        with_branches = branches if branches and layer in branches.layers else None
        if with_branches and with_branches.shared:
            shared = self._shared(h, prefix, with_branches)
            x = x if names.feed_forward_out_norm else self._op("add", "shared_out", (x, shared))
        wide = self._feed_forward_or_branches(x, h, layer, prefix)
        if with_branches and with_branches.shared and names.feed_forward_out_norm:  # of the sum of both
            wide = self._op("add", "both", (shared, wide))
        if names.feed_forward_out_norm:
            wide = self._norm("feed_forward_out_norm", wide, prefix + names.feed_forward_out_norm)
        out = self._op("add", "out", (x, wide))
        return self._biased(out, prefix, with_branches) if with_branches and with_branches.clipped else out

    def _token_mixer(self, h: str, layer: int, prefix: str) -> str:
        """The token mixer: attention, a recurrent block in its place, or the sum of both."""
        spaces = self.config.state_spaces
        made = self._recurrent(h, layer, prefix)
        if made and not (spaces and spaces.parallel_to_attention):
            return made
        o = self._attention(h, layer, prefix)
        return self._op("add", "mixed", (made, o)) if made else o

    def _feed_forward_or_branches(self, x: str, h: str, layer: int, prefix: str) -> str:
        """The output of the branches or the plain block; `x` is the residual, `h` its norm."""
        branches = self.config.branches
        has = branches is not None and layer in branches.layers
        return self._branches(h, prefix, branches) if branches and has else self._feed_forward(h, prefix)

    def _attention(self, h: str, layer: int, prefix: str) -> str:
        """Parts of a fused projection are taken right before they are read: they are views, which join their reader."""
        c = self.config
        if c.latent:
            return self._latent_attention(h, layer, prefix, c.latent)
        part = self._fused_qkv(h, prefix) if c.names.qkv else self._qkv(h, prefix)
        turns = not (c.alibi or c.names.positions or layer in c.layers_without_rope)
        q = self._rope("q", part("q"), layer) if turns else ""
        k = self._rope("k", part("k"), layer) if turns else part("k")
        if c.qk_norm and c.qk_norm_after_rope:
            q, k = (self._head_norm(name, x, prefix) for name, x in (("q", q or part("q")), ("k", k)))
        kept = c.attending_layers.index(layer)
        self.builder.op("kv_append", "kv_append", (k, part("v"), *KV_ROWS, "kv"), ("kv",), layer=kept)
        scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale
        attrs: dict[str, Attr] = {"layer": kept, "scale": scale}
        shape: Shape = (T, c.num_heads, c.head_dim)
        by_distance = self._by_distance()
        if by_distance:
            y = self._op("relative_attention", "attention", (part("q"), *KV_ROWS, *by_distance, "kv"), shape, **attrs)
        elif c.alibi:
            y = self._op("alibi_attention", "attention", (part("q"), *KV_ROWS, "slopes", "kv"), shape, **attrs)
        else:
            attrs["window"] = c.windows[layer]
            attrs |= {CAP: c.attention_cap} if c.attention_cap else {}
            attrs |= {GROWTH: c.rope.growth, GROWTH_STEP: c.rope.growth_step} if c.rope.growth else {}
            sinks = (self._weight(prefix + c.names.sinks, (c.num_heads,)),) if c.names.sinks else ()
            y = self._op("attention", "attention", (q or part("q"), *KV_ROWS, "kv", *sinks), shape, **attrs)
        if c.names.attention_gate:
            of_heads = self._linear("gates", h, prefix + c.names.attention_gate, shape, bias=False)
            y = self._op("mul", "gated", (y, self._op("sigmoid", "opened", (of_heads,), shape)), shape)
        if c.gated_attention:
            gate = self._op("sigmoid", "opened", (self._half("gates", 1),), shape)
            y = self._op("mul", "gated", (y, gate), shape)
        return self._linear("o", y, prefix + c.names.o, (T, c.hidden_size), c.o_bias, c.residual_scale)

    def _by_distance(self) -> tuple[str, ...]:
        """Table and buckets of attention with a bias by distance; decoders have none, or ALiBi (handled apart)."""
        return ()

    def _qkv(self, h: str, prefix: str) -> Callable[[str], str]:
        """Separate projections; returns the function from a part's name to its value. A gate follows its query head."""
        c = self.config
        queries = c.num_heads * (1 + c.gated_attention)
        kv_shape: Shape = (T, c.num_kv_heads, c.head_dim)
        parts = {
            "q": self._linear("q", h, prefix + c.names.q, (T, queries, c.head_dim), c.qkv_bias),
            "k": self._linear("k", h, prefix + c.names.k, kv_shape, c.qkv_bias),
            "v": self._linear("v", h, prefix + c.names.v, kv_shape, c.qkv_bias),
        }
        if c.gated_attention:
            parts["q"] = self._half("queries", 0)
        if c.qk_norm and not c.qk_norm_after_rope:
            parts |= {name: self._head_norm(name, parts[name], prefix) for name in "qk"}
        return parts.__getitem__

    def _latent_attention(self, h: str, layer: int, prefix: str, latent: Latent) -> str:
        """Keys and values are not materialised: the key projection is absorbed into the queries (latent/ops.py)."""
        c, names = self.config, latent.names
        H, N, R, P = c.num_heads, latent.plain, latent.rank, latent.rotated
        turns: dict[str, Attr] = {"scale": c.rope.scale, **({INTERLEAVED: 1} if c.rope.interleaved else {})}
        x, q_name = h, c.names.q
        if latent.query_rank:
            x = self._linear("q_down", h, prefix + names.q_down, (T, latent.query_rank), c.qkv_bias)
            norm = self._weight(f"{prefix}{names.q_norm}.weight", (latent.query_rank,))
            x = self._op("rms_norm", "q_down_norm", (x, norm), (T, latent.query_rank), eps=LATENT_EPS)
            q_name = names.q_up
        q = self._linear("q", x, prefix + q_name, (T, H, N + P), bias=False)
        down = self._linear("latent", h, prefix + names.down, (T, R + P), c.qkv_bias)
        kept = c.attending_layers.index(layer)
        read = (down, self._weight(f"{prefix}{names.norm}.weight", (R,)), *KV_ROWS, "inv_freq", "kv")
        self.builder.op(APPEND, "latent_append", read, ("kv",), layer=kept, eps=LATENT_EPS, **turns)
        up = self._weight(f"{prefix}{names.up}.weight", (H * (N + latent.values), R))
        q = self._op(QUERIES, "latent_q", (q, up, "positions", "inv_freq"), (T, H, R + P), **turns)
        y = self._op(ATTEND, "attention", (q, *KV_ROWS, "kv"), (T, H, R), layer=kept, scale=latent.scale)
        y = self._op(VALUES, "attended", (y, up), (T, H, latent.values))
        return self._linear("o", y, prefix + c.names.o, (T, c.hidden_size), c.o_bias, c.residual_scale)

    def _half(self, name: str, which: int) -> str:
        """A view of the queries (0) or the gates (1) in a gated layer's query projection."""
        c = self.config
        shape: Shape = (T, c.num_heads, c.head_dim)
        return self._op("take_heads", name, (f"{self.builder.stage}/q",), shape, of=2, first=which, count=1)

    def _head_norm(self, name: str, x: str, prefix: str) -> str:
        names = {"q": self.config.names.q_norm, "k": self.config.names.k_norm}
        return self._norm(f"{name}_norm", x, prefix + names[name], self.config.qk_norm_all_heads)

    def _fused_qkv(self, h: str, prefix: str) -> Callable[[str], str]:
        """One projection; its heads come in groups: the query heads that share a key head, that key, its value."""
        c = self.config
        share = c.num_heads // c.num_kv_heads
        shape: Shape = (T, c.num_kv_heads * (share + 2), c.head_dim)
        qkv = self._linear("qkv", h, prefix + c.names.qkv, shape, c.qkv_bias)

        def take(name: str) -> str:
            first, count = {"q": (0, share), "k": (share, 1), "v": (share + 1, 1)}[name]
            taken: Shape = (T, c.num_kv_heads * count, c.head_dim)
            return self._op("take_heads", name, (qkv,), taken, of=share + 2, first=first, count=count)

        return take

    def _rope(self, name: str, x: str, layer: int) -> str:
        c = self.config
        is_local = c.local_rope is not None and c.windows[layer] > 0
        rope = c.local_rope if c.local_rope and is_local else c.rope
        inputs = (x, "positions", LOCAL if is_local else "inv_freq")
        pairs: dict[str, Attr] = {INTERLEAVED: 1} if rope.interleaved else {}
        return self._op("rope", f"{name}_rope", inputs, self._shape(x), scale=rope.scale, **pairs)

    def _feed_forward(self, h: str, prefix: str, width: int = 0, names: tuple[str, str, str] | None = None) -> str:
        """The plain feed-forward block, possibly of another width and with other names for gate, up and down."""
        c = self.config
        inner: Shape = (T, width or c.intermediate_size)
        gate_name, up_name, down_name = (prefix + name for name in names or (c.names.gate, c.names.up, c.names.down))
        if c.feed_forward.is_gated:
            gate = self._linear("gate", h, gate_name, inner, c.mlp_bias)
            up = self._linear("up", h, up_name, inner, c.mlp_bias)
            if c.feed_forward is FeedForward.GATED_SILU:
                gated = self._op("silu", "silu", (gate,), inner)
            else:
                gated = self._op("gelu", "gelu", (gate,), inner, form=c.feed_forward.gelu_form)
            wide = self._op("mul", "mul", (gated, up), inner)
        else:
            up = self._linear("up", h, up_name, inner, c.mlp_bias)
            if c.feed_forward is FeedForward.XIELU:
                place = prefix + c.names.xielu
                read = (up, *(self._weight(place + name, shape) for name, shape in XIELU_NUMBERS))
                wide = self._op("xielu", "xielu", read, inner)
            elif c.feed_forward in (FeedForward.RELU, FeedForward.RELU_SQUARED):
                wide = self._op(c.feed_forward.value, "relu", (up,), inner)
            else:
                wide = self._op("gelu", "gelu", (up,), inner, form=c.feed_forward.gelu_form)
        return self._linear("down", wide, down_name, (T, c.hidden_size), c.mlp_bias or c.down_bias, c.residual_scale)

    def _shared(self, h: str, prefix: str, branches: Branches) -> str:
        """Output of the shared branch; it precedes the others, whose kernels leave token lists for each other."""
        if branches.names.shared_chooser:
            return self._branches(h, prefix, branches.shared_alone, "shared_")
        return self._feed_forward(h, prefix, branches.shared, branches.names.shared)

    def _branches(self, h: str, prefix: str, branches: Branches, of: str = "", seen: str = "") -> str:
        """The weighted sum of the outputs of a token's branches. The matrices are read in the order of the ops.

        `seen`: the chooser's input, if it differs from that of the branches.
        """
        c, names, choice = self.config, branches.names, branches.choice
        biased, shape = branches.clipped is not None, (T, branches.count)
        logits = self._linear(of + "chooser", seen or h, prefix + names.chooser, shape, biased, choice.logits_scale)
        taken: dict[str, Attr] = {TOP_K: branches.taken}
        how = taken | choice.attrs() | scaled(c.residual_scale * choice.scale)
        bias = self._weight(prefix + names.bias, (branches.count,)) if choice.biased else ""
        factors = (self._weight(prefix + names.factors, (branches.count,)),) if choice.factors else ()
        chosen = self._op(CHOOSE, of + "chosen", (logits, bias, *factors), (T, branches.count), **how)

        def matrices(name: str, shape: Shape) -> tuple[str, ...]:
            places = (prefix + names.branch.format(branch) for branch in range(branches.count))
            return tuple(self._weight(f"{place}{name}.weight", shape) for place in places)

        up: Shape = (branches.intermediate_size, c.hidden_size)
        inner: Shape = (T, branches.taken, branches.intermediate_size)
        read = (h, chosen, *matrices(names.gate, up), *matrices(names.up, up))
        if branches.clipped:
            biases = (names.gate_bias, names.up_bias)
            read += tuple(self._weight(prefix + bias, (branches.count, branches.intermediate_size)) for bias in biases)
            clip: dict[str, Attr] = dict(zip((ALPHA, LIMIT), branches.clipped, strict=True))
            wide = self._op(CLIPPED, of + "branch_gate_up", read, inner, **taken, **clip)
        elif c.feed_forward is FeedForward.GATED_SILU:
            wide = self._op(GATE_UP, of + "branch_gate_up", read, inner, **taken)
        else:
            wide = self._op(GELU_UP, of + "branch_gate_up", read, inner, **taken, form=c.feed_forward.gelu_form)
        down = matrices(names.down, (c.hidden_size, branches.intermediate_size))
        return self._op(DOWN, of + "branch_down", (wide, chosen, *down), None, **taken)

    def _biased(self, x: str, prefix: str, branches: Branches) -> str:
        """Add the branches' output biases, weighed like the outputs; only here is their sum complete on all ranks."""
        bias = self._weight(prefix + branches.names.down_bias, (branches.count, self.config.hidden_size))
        read = (x, f"{self.builder.stage}/chosen", bias)
        return self._op(ADD_BIAS, "biased", read, None, **{TOP_K: branches.taken})

    def _head(self, x: str) -> None:
        c = self.config
        self.builder.stage = "head"
        taken = self._op("take_rows", "rows", (x, "rows"), (R, c.hidden_size))
        h = self._norm("norm", taken, c.names.norm)
        head = c.names.embed if c.tied_embeddings else c.names.head
        table = self._weight(head, (c.vocab_size, c.hidden_size))
        name = "raw_logits" if c.logits_cap else "logits"
        bias = self._weight(c.names.head.removesuffix("weight") + "bias", (c.vocab_size,)) if c.head_bias else ""
        logits = self._op("linear", name, (h, table, bias), (R, c.vocab_size), **scaled(c.logits_scale))
        if c.logits_cap:
            logits = self._op("softcap", "logits", (logits,), (R, c.vocab_size), cap=c.logits_cap)
        self.builder.value("next_tokens", (R,), DType.I32, Kind.OUTPUT)
        self.builder.op("sample", "sample", (logits, "sampling"), ("next_tokens",))
