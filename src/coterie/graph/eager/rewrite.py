"""A graph in the kernels that PyTorch eager launches for it, as Hugging Face's modelling code spells the ops out.

    rms_norm     cast, square, mean, + eps, rsqrt, x * r, cast, * weight
    rope         x * cos + cat(-right half, left half) * sin; the tables of cos and sin once per step
    attention    cat k and v to the cache, repeat their heads, q @ k.T, * scale, + mask, cast, softmax, cast, @ v, copy

Every score of the padded rectangle is computed, then masked. What PyTorch runs as one kernel stays one op (linear,
silu, layer_norm, exact gelu). Under the rule set "none" a region is a kernel of PyTorch; under "o0" views are kernels.
Two simplifications: the mask, some ten kernels on positions, is one op; the last norm works on sampled rows only.
Knows nothing about machines, or how many kernels a model launches: the op table says that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Shape, Symbol
from coterie.graph.ir import Attr, Graph, Kind, Op, Value, norms_all_heads
from coterie.graph.ops import SCALE

T, S, TS = Symbol.T, Symbol.S, Symbol.TS


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the modelling files of families.

    `wide_softmax`: scores are cast to float32 for the softmax. `repeats_first`: heads of k and v are repeated for the
    query heads that share them before caching, not after. `scales_queries`: queries are scaled, and the scores are
    scaled again, by 1.
    """

    wide_softmax: bool = True
    repeats_first: bool = False
    scales_queries: bool = False


DIALECTS: Mapping[str, Dialect] = {
    "falcon": Dialect(wide_softmax=False, repeats_first=True),
    "opt": Dialect(scales_queries=True),
}


def expand(graph: Graph) -> Graph:
    """The same computation, kernel by kernel; the values of the graph keep their names.

    Raises UnsupportedError for attention with growth or sinks.
    """
    return _Expansion(graph, DIALECTS.get(graph.name, Dialect())).run()


@dataclass(slots=True)
class _Expansion:
    graph: Graph
    dialect: Dialect
    values: dict[str, Value] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    contexts: dict[int, tuple[str, str]] = field(default_factory=dict)  # layer -> its whole contexts, keys and values
    pending: dict[str, Op] = field(default_factory=dict)  # views without a reader so far, by output name
    stage: str = ""

    def run(self) -> Graph:
        self.values.update(self.graph.values)
        embedding = next((op.stage for op in self.graph.ops if op.kind in ("embed", "embed_part")), "")
        for op in self.graph.ops:
            if embedding and self.stage == embedding and op.stage != embedding:
                self._once_per_step()
            self.stage = op.stage
            rule = RULES.get(op.kind, _kept)
            rule(self, op)
        return Graph(self.graph.name, MappingProxyType(self.values), tuple(self.ops))

    def emit(
        self, kind: str, name: str, inputs: tuple[str, ...], like: str, shape: Shape | None = None, **attrs: Attr
    ) -> str:
        """Append a kernel whose result has the type of `like`, and its shape unless one is given.

        `name` is a value of the original graph, which the kernel then produces, or a new intermediate.
        """
        made = replace(self.values[like], name=name, shape=shape or self.values[like].shape)
        kind_of = self.graph.values[name].kind if name in self.graph.values else Kind.TENSOR
        self.values[name] = replace(made, kind=kind_of)
        self.append(Op(kind, name, self.stage, inputs, (name,), MappingProxyType(dict(attrs))))
        return name

    def append(self, op: Op) -> None:
        """Append an op, after the pending views that it reads."""
        self.ops += [self.pending.pop(name) for name in op.inputs if name in self.pending]
        self.ops.append(op)

    def cast(self, name: str, x: str, dtype: DType) -> str:
        """`x` cast to `dtype`; `x` itself if it has that type already."""
        if self.values[x].dtype is dtype:
            return x
        self.emit("cast", name, (x,), x)
        self.values[name] = replace(self.values[name], dtype=dtype)
        return name

    def shape(self, name: str) -> Shape:
        return self.values[name].shape

    def size(self, name: str, axis: int) -> int:
        dim = self.shape(name)[axis]
        return dim if isinstance(dim, int) else 0

    def _once_per_step(self) -> None:
        """Emit what all layers share: tables of cos and sin, masks, position biases."""
        x = next(op.outputs[0] for op in self.graph.ops if op.stage == self.stage)
        for op in self.graph.ops:
            if op.kind == "rope" and _table(op, "cos") not in self.values:
                self._tables(op, x)
            if op.kind in ("attention", "alibi_attention") and _mask(op) not in self.values:
                window = int(op.attrs.get("window", 0))
                self.emit("mask", _mask(op), ("positions", "sequence"), x, (TS, 1), window=window)
            if op.kind == "alibi_attention" and f"{op.inputs[4]}/bias" not in self.values:
                heads = len(self.graph.values[op.inputs[4]].data)
                self.emit("alibi", f"{op.inputs[4]}/bias", ("positions", "sequence", op.inputs[4]), x, (S, heads))

    def _tables(self, op: Op, x: str) -> None:
        frequencies, dtype = self.graph.values[op.inputs[2]], self.values[x].dtype
        half = len(frequencies.data)
        at = _table(op, "")
        self.emit("to_float", f"{at}p", ("positions",), x, (T, 1))
        self.values[f"{at}p"] = replace(self.values[f"{at}p"], dtype=DType.F32)
        angles = self.emit("angles", f"{at}angles", (f"{at}p", frequencies.name), f"{at}p", (T, half))
        both = self.emit("cat", f"{at}both", (angles, angles), angles, (T, 2 * half), **_in_turn(op))
        for wave in ("cos", "sin"):
            raw = self.emit(wave, f"{at}{wave}_raw", (both,), both)
            last = self.values[x].dtype is DType.F32
            name = _table(op, wave) if last else f"{at}{wave}_wide"
            scaled = self.emit("scale", name, (raw,), raw, factor=op.number("scale"))
            self.cast(_table(op, wave), scaled, dtype)


def _table(op: Op, wave: str) -> str:
    return f"{op.inputs[2]}*{op.number('scale'):g}{'/in_turn' if op.interleaved else ''}/{wave}"


def _in_turn(op: Op) -> dict[str, Attr]:
    """The attribute of `cat` that interleaves the two channels of each pair, if the rope does."""
    return {"in_turn": 1} if op.interleaved else {}


def _mask(op: Op) -> str:
    return f"mask/{int(op.attrs.get('window', 0))}"


def _kept(e: _Expansion, op: Op) -> None:
    e.append(op)


def _rms_norm(e: _Expansion, op: Op) -> None:
    x, weight = op.inputs
    y = op.outputs[0]
    wide = e.cast(f"{y}/wide", x, DType.F32)
    square = e.emit("square", f"{y}/square", (wide,), wide)
    one: Shape = (e.shape(x)[0], 1, 1) if norms_all_heads(e.graph, op) else (*e.shape(x)[:-1], 1)
    mean = e.emit("mean", f"{y}/mean", (square,), square, one)
    shifted = e.emit("shift", f"{y}/shifted", (mean,), mean, number=op.number("eps"))
    r = e.emit("rsqrt", f"{y}/rsqrt", (shifted,), shifted)
    normed = e.emit("mul_last", f"{y}/normed", (wide, r), wide)
    if op.offset:  # offset and weight are applied in float32, before the cast
        _narrowed(e, y, e.emit("mul_weight", f"{y}/scaled", (normed, weight), normed, offset=op.offset), x)
        return
    narrow = e.cast(f"{y}/narrow", normed, e.values[x].dtype)
    e.emit("mul_weight", y, (narrow, weight), x)


def _scaled_apart(e: _Expansion, op: Op) -> None:
    """The op's scale becomes an op of its own."""
    if SCALE not in op.attrs:
        e.append(op)
        return
    y = op.outputs[0]
    attrs = {key: value for key, value in op.attrs.items() if key != SCALE}
    product = e.emit(op.kind, f"{y}/unscaled", op.inputs, y, e.shape(y), **attrs)
    e.emit("scale", y, (product,), y, factor=op.scale)


def _narrowed(e: _Expansion, y: str, wide: str, like: str) -> None:
    """Produce y from `wide`, in the type of `like`."""
    kind = "copy" if e.values[wide].dtype is e.values[like].dtype else "cast"
    e.emit(kind, y, (wide,), like)


def _softcap(e: _Expansion, op: Op) -> None:
    e.emit("scale", op.outputs[0], (_capped(e, op.outputs[0], op.inputs[0], op.cap),), op.inputs[0], factor=op.cap)


def _capped(e: _Expansion, y: str, x: str, cap: float) -> str:
    """tanh(x / cap)."""
    small = e.emit("scale", f"{y}/small", (x,), x, factor=1.0 / cap)
    return e.emit("tanh", f"{y}/tanh", (small,), x)


def _rope(e: _Expansion, op: Op) -> None:
    """If only part of each head is rotated, heads are sliced first and joined again afterwards."""
    x, y = op.inputs[0], op.outputs[0]
    channels, rotated = e.size(x, -1), 2 * len(e.graph.values[op.inputs[2]].data)
    if rotated == channels:
        _rotated(e, op, x, y)
        return
    turning: Shape = (*e.shape(x)[:-1], rotated)
    passing: Shape = (*e.shape(x)[:-1], channels - rotated)
    first = e.emit("slice", f"{y}/first", (x,), x, turning, first=0, count=rotated)
    rest = e.emit("slice", f"{y}/rest", (x,), x, passing, first=rotated, count=channels - rotated)
    turned = _rotated(e, op, first, f"{y}/rotated")
    e.emit("cat", y, (turned, rest), x)


def _rotated(e: _Expansion, op: Op, x: str, y: str) -> str:
    half: Shape = (*e.shape(x)[:-1], e.size(x, -1) // 2)
    count = e.size(x, -1) // 2
    straight = e.emit("mul_heads", f"{y}/straight", (x, _table(op, "cos")), x)
    every: dict[str, Attr] = {"step": 2} if op.interleaved else {}
    right = e.emit("slice", f"{y}/right", (x,), x, half, first=1 if op.interleaved else count, count=count, **every)
    turned = e.emit("neg", f"{y}/neg", (right,), right)
    left = e.emit("slice", f"{y}/left", (x,), x, half, first=0, count=count, **every)
    halves = e.emit("cat", f"{y}/cat", (turned, left), x, None, **_in_turn(op))
    across = e.emit("mul_heads", f"{y}/across", (halves, _table(op, "sin")), x)
    return e.emit("add", y, (straight, across), x)


def _kv_append(e: _Expansion, op: Op) -> None:
    layer = op.integer("layer")
    state = e.values[op.inputs[5]]
    names = []
    for which, part in enumerate(("keys", "values")):
        x = op.inputs[which]
        heads, channels = e.size(x, 1), e.size(x, 2)
        e.values[state.name] = replace(state, shape=(*state.shape[:2], heads, channels))
        name = f"{op.name}/{part}"
        seen = e.emit("heads_first", f"{name}/new", (x,), x)
        e.values[name] = replace(e.values[x], name=name, shape=(S, heads, channels))
        attrs = MappingProxyType({"layer": layer, "which": which})
        e.append(Op("kv_cat", name, e.stage, (seen, *op.inputs[2:]), (name, state.name), attrs))
        names.append(name)
    e.contexts[layer] = (names[0], names[1])


def _attention(e: _Expansion, op: Op) -> None:
    if op.growth or op.sinks:
        fact = f"attention {'with sinks' if op.sinks else 'whose queries grow'} is not written as kernels of PyTorch"
        raise UnsupportedError(f"{e.graph.name}: {op.name}", fact, "expand a model without")
    q, y = op.inputs[0], op.outputs[0]
    heads = e.size(q, 1)
    keys, values = (_repeated(e, f"{y}/{context}", context, heads) for context in e.contexts[op.integer("layer")])
    rows = ("positions", "sequence")
    scale = op.number("scale")
    if e.dialect.scales_queries:
        q, scale = e.emit("scale", f"{y}/small", (q,), q, factor=scale), 1.0
    seen = (e.emit("heads_first", f"{y}/q", (q,), q), e.emit("heads_first", f"{y}/k", (keys,), keys))
    if op.kind == "alibi_attention":
        bias = f"{op.inputs[4]}/bias"
        scaled = e.emit("alibi_scores", f"{y}/scores", (*seen, bias, *rows), q, (TS, heads), scale=scale)
    else:
        scores = e.emit("scores", f"{y}/scores", (*seen, *rows), q, (TS, heads))
        scaled = e.emit("scale", f"{y}/scaled", (scores,), scores, factor=scale)
    if op.cap:
        scaled = e.emit("scale", f"{y}/capped", (_capped(e, f"{y}/cap", scaled, op.cap),), scaled, factor=op.cap)
    masked = e.emit("add_mask", f"{y}/masked", (scaled, _mask(op)), scaled)
    p = _softmax(e, op, masked, rows)
    mixed = e.emit("mix", f"{y}/mixed", (p, values, *rows), q)
    e.emit("copy", y, (mixed,), q)


def _softmax(e: _Expansion, op: Op, x: str, rows: tuple[str, ...] = ()) -> str:
    """Over each token's context if `rows` are given, else over the last axis; in float32 if the dialect casts."""
    y, kind = op.outputs[0], "context_softmax" if rows else "softmax"
    wide = e.cast(f"{y}/wide", x, DType.F32) if e.dialect.wide_softmax else x
    p = e.emit(kind, f"{y}/p", (wide, *rows), wide)
    return e.cast(f"{y}/narrow", p, e.values[x].dtype)


def _repeated(e: _Expansion, name: str, x: str, heads: int) -> str:
    """A view that repeats each head, then a copy that materialises it."""
    own, channels = e.size(x, 1), e.size(x, 2)
    if own == heads:
        return x
    shape: Shape = (e.shape(x)[0], heads, channels)
    shown = e.emit("repeat_heads", f"{name}/shown", (x,), x, shape, times=heads // own)
    return e.emit("copy", name, (shown,), shown)


def _take_heads(e: _Expansion, op: Op) -> None:
    """A view; if heads are repeated before caching, copies: q made contiguous, k and v gathered and repeated."""
    x, y = op.inputs[0], op.outputs[0]
    if not e.dialect.repeats_first:
        e.pending[y] = op
        return
    of = op.integer("of")
    taken = e.emit("take_heads", f"{y}/taken", (x,), x, e.graph.values[y].shape, **dict(op.attrs))
    if op.integer("first") == 0 or of == 3:
        e.emit("copy", y, (taken,), taken)
        return
    gathered = e.emit("copy", f"{y}/gathered", (taken,), taken)
    _repeated(e, y, gathered, e.size(taken, 1) * (of - 2))


def _group_attention(e: _Expansion, op: Op) -> None:
    q, k, v = op.inputs
    y, group = op.outputs[0], op.integer("group")
    seen = tuple(e.emit("heads_first", f"{y}/{name}", (x,), x) for name, x in (("q", q), ("k", k)))
    scores = e.emit("group_scores", f"{y}/scores", seen, q, (*e.shape(q)[:2], group), group=group)
    scaled = e.emit("scale", f"{y}/scaled", (scores,), scores, factor=op.number("scale"))
    p = _softmax(e, op, scaled)
    seen_v = e.emit("heads_first", f"{y}/v", (v,), v)
    mixed = e.emit("group_mix", f"{y}/mixed", (p, seen_v), q, group=group)
    e.emit("copy", y, (mixed,), q)


def _gelu(e: _Expansion, op: Op) -> None:
    x, y, form = op.inputs[0], op.outputs[0], op.attrs["form"]
    if form == "erf":
        e.append(op)
    elif form == "sigmoid":
        scaled = e.emit("scale", f"{y}/scaled", (x,), x, factor=1.702)
        sigmoid = e.emit("sigmoid", f"{y}/sigmoid", (scaled,), x)
        e.emit("mul", y, (x, sigmoid), x)
    else:
        half = e.emit("scale", f"{y}/half", (x,), x, factor=0.5)
        linear = e.emit("scale", f"{y}/linear", (x,), x, factor=0.79788456)
        cubic = e.emit("scale", f"{y}/cubic", (x,), x, factor=0.044715)
        square = e.emit("mul", f"{y}/square", (cubic, x), x)
        shifted = e.emit("shift", f"{y}/shifted", (square,), x, number=1.0)
        inner = e.emit("mul", f"{y}/inner", (linear, shifted), x)
        tanh = e.emit("tanh", f"{y}/tanh", (inner,), x)
        outer = e.emit("shift", f"{y}/outer", (tanh,), x, number=1.0)
        e.emit("mul", y, (half, outer), x)


RULES: Mapping[str, Callable[[_Expansion, Op], None]] = {
    "embed": _scaled_apart,
    "embed_part": _scaled_apart,
    "linear": _scaled_apart,
    "rms_norm": _rms_norm,
    "rope": _rope,
    "kv_append": _kv_append,
    "attention": _attention,
    "alibi_attention": _attention,
    "group_attention": _group_attention,
    "take_heads": _take_heads,
    "gelu": _gelu,
    "softcap": _softcap,
}
