"""The loop nest of every op. To add an op, add a row to NESTS.

Knows nothing about machines or tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Sizes
from coterie.dataflow.loops import GATHER, Access, Index, Loop, MakeNest, Nest, Tag, axes, dims, flat, over
from coterie.dataflow.nest_grad import GRAD_NESTS
from coterie.graph.ir import Graph, Kind, Op, norms_all_heads
from coterie.graph.ops import BF16, ROUNDING


def nest(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """The normal form of an op for a step of these sizes. Raises UnsupportedError for an op without a row."""
    row = NESTS.get(op.kind)
    of_layers = op.kind == "embed" and len(graph.values[op.outputs[0]].shape) > 2  # per-layer embeddings of a token
    if row is None or of_layers:
        fact = f"op {op.kind} has no normal form, so it cannot be mapped in space"
        raise UnsupportedError(f"{graph.name}: {op.name}", fact, "add a row to dataflow/nest.py, or use another model")
    return row(graph, op, sizes)


def _elementwise(reduced: int = 0, ordered: bool = False) -> MakeNest:
    """Operands of the output's rank share all its loops; each output needs all of the last `reduced` dimensions."""

    def row(graph: Graph, op: Op, sizes: Sizes) -> Nest:
        out = op.outputs[0] if graph.values[op.outputs[0]].kind is not Kind.STATE else op.inputs[0]
        shape = dims(graph, out, sizes)
        index = axes("d", len(shape))
        first = Tag.SEQUENTIAL if ordered else Tag.PARALLEL
        tags = [first if i == 0 else Tag.PARALLEL for i in range(len(shape) - reduced)] + [Tag.REDUCTION] * reduced
        loops = tuple(Loop(f"d{i}", size, tags[i]) for i, size in enumerate(shape))
        reads = []
        for name in filter(None, op.inputs):
            rank = len(graph.values[name].shape)
            whole = graph.values[name].kind in (Kind.INPUT, Kind.TENSOR) and rank == len(shape)
            if whole:
                reads.append(Access(name, index))
            elif op.kind in ("add_table", "mul_table"):
                reads.append(Access(name, ((), *index[1:])))
            elif graph.values[name].kind in (Kind.WEIGHT, Kind.CONSTANT):
                reads.append(Access(name, index[len(shape) - rank :]))
            else:
                by_row = graph.values[name].shape[:1] == graph.values[out].shape[:1]
                reads.append(Access(name, (index[0] if by_row else (), *((),) * (rank - 1))))
        return Nest(op, loops, tuple(reads), (Access(op.outputs[0], index),), by_token=ordered)

    return row


def _rms_norm(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Needs a whole row: the last axis, or, for a norm over all heads, the last two, flattened in its weight."""
    if not norms_all_heads(graph, op):
        return _elementwise(reduced=1)(graph, op, sizes)
    found = _elementwise(reduced=2)(graph, op, sizes)
    x, weight = found.reads
    return replace(found, reads=(x, replace(weight, index=(flat(x.index[1:]),))))


def _linear(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """If rows are quantised before the product, they are needed whole: the largest value determines the scale."""
    online = op.attrs.get(ROUNDING, BF16) == BF16
    x, y = op.inputs[0], op.outputs[0]
    k, n = dims(graph, x, sizes)[1:], dims(graph, y, sizes)[1:]
    k_index, n_index = axes("k", len(k)), axes("n", len(n))
    loops = (
        Loop("t", dims(graph, y, sizes)[0], Tag.PARALLEL),
        *over("n", n),
        *over("k", k, Tag.REDUCTION, online),
    )
    reads = [Access(x, (("t",), *k_index)), Access(op.inputs[1], (flat(n_index), flat(k_index)))]
    reads += [Access(name, (flat(n_index),)) for name in op.inputs[2:] if name]
    return Nest(op, loops, tuple(reads), (Access(y, (("t",), *n_index)),))


def _gather(table: int, rows: int) -> MakeNest:
    """Rows of operand `table` selected by operand `rows`; all other operands are read row by row."""

    def row(graph: Graph, op: Op, sizes: Sizes) -> Nest:
        shape = dims(graph, op.outputs[0], sizes)
        index = axes("d", len(shape))
        reads = [Access(name, index[: len(graph.values[name].shape)]) for name in op.inputs]
        reads[table] = Access(op.inputs[table], (GATHER, *index[1:]), by=op.inputs[rows])
        return Nest(op, over("d", shape), tuple(reads), (Access(op.outputs[0], index),))

    return row


def _put_rows(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Walks rows of the result; each needs all indices, and so the whole operand, to find its rows."""
    shape = dims(graph, op.outputs[0], sizes)
    index = axes("d", len(shape))
    reads = (Access(op.inputs[0], ((), *index[1:])), Access(op.inputs[1], ((),)))
    return Nest(op, over("d", shape), reads, (Access(op.outputs[0], index),))


def _take_heads(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Takes some heads of each group of heads."""
    t, heads, channels = dims(graph, op.outputs[0], sizes)
    count = op.integer("count")
    size = {"t": t, "g": heads // count, "j": count, "c": channels}
    index: tuple[Index, ...] = (("t",), ("g", "j"), ("c",))
    loops = tuple(Loop(name, n, Tag.PARALLEL) for name, n in size.items())
    return Nest(op, loops, (Access(op.inputs[0], index),), (Access(op.outputs[0], index),))


def _all_gather(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Each rank has part of the columns, so rows are walked: the ranks' tiles together are a tile of all columns."""
    shape = dims(graph, op.outputs[0], sizes)
    ranks = op.integer("ranks")
    columns = axes("d", len(shape))[1:]
    loops = (
        Loop("t", shape[0], Tag.PARALLEL),
        Loop("r", ranks, Tag.PARALLEL),
        *(
            Loop(name, n // ranks if i == 0 else n, Tag.PARALLEL)
            for i, ((name,), n) in enumerate(zip(columns, shape[1:], strict=True))
        ),
    )
    whole: tuple[Index, ...] = (("t",), ("r", *columns[0]), *columns[1:])
    return Nest(op, loops, (Access(op.inputs[0], (("t",), *columns)),), (Access(op.outputs[0], whole),), by_token=True)


def _attention(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Keys are an online reduction (running maximum, sum, weighted sum), so they can stream too.

    The state is walked along with the queries: a token sees only itself and earlier tokens, which are appended first.
    """
    t, heads, channels = dims(graph, op.inputs[0], sizes)
    context = max(1, sizes.context_tokens // max(1, sizes.B))
    loops = (
        Loop("t", t, Tag.PARALLEL),
        Loop("h", heads, Tag.PARALLEL),
        Loop("s", context, Tag.REDUCTION, online=True),
        Loop("c", channels, Tag.REDUCTION),
        Loop("e", channels, Tag.PARALLEL),
    )
    reads = [Access(op.inputs[0], (("t",), ("h",), ("c",)))]
    for name in filter(None, op.inputs[1:]):
        value = graph.values[name]
        by_token = value.kind is Kind.STATE or value.shape[:1] == graph.values[op.inputs[0]].shape[:1]
        reads.append(Access(name, (("t",) if by_token else (), *((),) * (len(value.shape) - 1))))
    return Nest(op, loops, tuple(reads), (Access(op.outputs[0], (("t",), ("h",), ("e",))),), by_token=True)


def _group_attention(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """All rows of a group see each other, so whole groups are walked; a single group by rows, with its keys whole."""
    rows, heads, channels = dims(graph, op.inputs[0], sizes)
    group = op.integer("group")
    single = rows == group
    loops = (
        *(() if single else (Loop("g", rows // group, Tag.PARALLEL),)),
        Loop("t", group, Tag.PARALLEL),
        Loop("h", heads, Tag.PARALLEL),
        Loop("s", group, Tag.REDUCTION, online=True),
        Loop("c", channels, Tag.REDUCTION),
        Loop("e", channels, Tag.PARALLEL),
    )
    row: Index = ("t",) if single else ("g", "t")
    reads = [Access(op.inputs[0], (row, ("h",), ("c",)))]
    keys: Index = () if single else ("g", "s")
    reads += [Access(op.inputs[1], (keys, ("h",), ("c",))), Access(op.inputs[2], (keys, ("h",), ("e",)))]
    return Nest(op, loops, tuple(reads), (Access(op.outputs[0], (row, ("h",), ("e",))),))


def _grouped(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Walks whole groups of rows, to each of which a row is added, or from which one is dropped."""
    x = dims(graph, op.inputs[0], sizes)
    group = op.integer("group")
    columns = axes("d", len(x) - 1)
    loops = (
        Loop("g", max(1, x[0] // group), Tag.PARALLEL),
        Loop("t", group, Tag.PARALLEL),
        *over("d", x[1:]),
    )
    rows: Index = ("g", "t")
    reads = [Access(op.inputs[0], (rows, *columns))]
    reads += [Access(name, columns) for name in op.inputs[1:]]
    return Nest(op, loops, tuple(reads), (Access(op.outputs[0], (rows, *columns)),))


def _swap(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """[g, outer, middle | inner] becomes [g, inner, middle | outer]; loops of a single iteration are omitted."""
    whole = sizes.count(graph.values[op.inputs[0]].shape)
    outer, middle, inner = (op.integer(name) for name in ("outer", "middle", "inner"))
    size = {"g": whole // (outer * middle * inner), "o": outer, "m": middle, "i": inner}
    loops = tuple(Loop(name, n, Tag.PARALLEL) for name, n in size.items())

    def index(*names: str) -> Index:
        return tuple(name for name in names if size[name] > 1) or names[:1]

    read = Access(op.inputs[0], (index("g", "o", "m"), index("i")))
    return Nest(op, loops, (read,), (Access(op.outputs[0], (index("g", "i", "m"), index("o"))),))


NESTS: Mapping[str, MakeNest] = {
    **dict.fromkeys(("embed", "embed_part"), _gather(table=1, rows=0)),
    "rms_norm": _rms_norm,
    "layer_norm": _elementwise(reduced=1),
    "linear": _linear,
    "rope": _elementwise(reduced=1),
    "kv_append": _elementwise(ordered=True),
    "attention": _attention,
    "alibi_attention": _attention,
    "group_attention": _group_attention,
    **dict.fromkeys(("add", "sub", "scale", "mul", "silu", "gelu", "softcap", "relu", "relu_squared"), _elementwise()),
    **dict.fromkeys(
        ("add_bias", "add_table", "mul_table", "sample", "all_reduce", "silu_dx", "gelu_dx"), _elementwise()
    ),
    **dict.fromkeys(("rms_norm_dx", "layer_norm_dx", "rope_dx", "loss_dx"), _elementwise(reduced=1)),
    **dict.fromkeys(("add_positions", "merge_rows"), _gather(table=2, rows=1)),
    "take_rows": _gather(table=0, rows=1),
    "take_heads": _take_heads,
    "first_row": _grouped,
    "drop_first": _grouped,
    "swap": _swap,
    "all_gather": _all_gather,
    "take_rows_dx": _put_rows,
    **GRAD_NESTS,
}
