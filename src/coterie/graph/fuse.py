"""Fusion as data: named rule sets with one row per rule, and the function that cuts a graph into regions by them.

A rule matches consecutive ops of the graph; optional ones may be missing. The edges among them must be exactly the
rule's, and a value that is read inside the region must not be read outside it as well. A graph that only resembles the
pattern is left unfused.

Knows nothing about kernels or cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from coterie.core.errors import UsageError
from coterie.graph.ir import Graph, Kind, Op, norms_all_heads
from coterie.graph.ops import OPS, SCALE
from coterie.graph.program import Region


@dataclass(frozen=True, slots=True)
class Part:
    """One op of a pattern.

    role: its name within the rule.
    kind: the op's kind, or alternatives: "rms_norm|layer_norm".
    reads: (input position, role of the op that produces that input). "q_norm|q" means q if the optional q_norm is
        missing; "norm|" means a value from outside the region if norm is missing.
    optional: the op may be missing.
    dims: the number of dimensions of input 0 and of the output; 0: any.
    by_head: a norm within each head, not across heads.
    scaled: a linear that may have a scale, because the rule's kernel has an operand for it.
    """

    role: str
    kind: str
    reads: tuple[tuple[int, str], ...] = ()
    optional: bool = False
    dims: tuple[int, int] = (0, 0)
    by_head: bool = False
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a rule set. `name`: the kernel's; `reason`: why these ops belong in one kernel.

    alike: roles whose ops must have equal attributes and equal inputs from the second on; all are present or none.
    share: roles whose ops read the same first input.
    heads: roles whose outputs [T, heads, C] have equal T and C, with C even, since kernels process channels in pairs.
    """

    name: str
    pattern: tuple[Part, ...]
    reason: str
    alike: tuple[str, ...] = ()
    share: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


NORM = "rms_norm|layer_norm"
NORM_QKV_ROPE_APPEND = Rule(
    "norm_qkv_rope_append",
    (
        Part("norm", NORM, dims=(2, 2), optional=True),
        *(Part(role, "linear", ((0, "norm|"),), dims=(2, 3)) for role in ("q", "k", "v")),
        Part("q_norm", "rms_norm", ((0, "q"),), optional=True, by_head=True),
        Part("k_norm", "rms_norm", ((0, "k"),), optional=True, by_head=True),
        Part("q_rope", "rope", ((0, "q_norm|q"),), optional=True),
        Part("k_rope", "rope", ((0, "k_norm|k"),), optional=True),
        Part("append", "kv_append", ((0, "k_rope|k_norm|k"), (1, "v"))),
    ),
    "three projections read the (normed) tile, which is never stored; k and v go straight to their KV page",
    alike=("q_rope", "k_rope"),
    share=("q", "k", "v"),
    heads=("q", "k"),
)
NORM_ROPE_APPEND = Rule(
    "norm_rope_append",
    (
        Part("q_norm", "rms_norm"),
        Part("k_norm", "rms_norm"),
        Part("q_rope", "rope", ((0, "q_norm"),), optional=True),
        Part("k_rope", "rope", ((0, "k_norm"),), optional=True),
        Part("append", "kv_append", ((0, "k_rope|k_norm"),)),
    ),
    "a norm over all heads needs a token's whole projection; its result is then rotated and stored in one pass",
    alike=("q_rope", "k_rope"),
    heads=("q_norm", "k_norm"),
)
LINEAR_ADD = Rule(
    "linear_add",
    (Part("linear", "linear", scaled=True), Part("add", "add", ((1, "linear"),))),
    "the residual is added while the output tile is still in registers",
)
BRANCH_DOWN_ADD = Rule(
    "branch_down_add",
    (Part("down", "branch_down"), Part("add", "add", ((1, "down"),))),
    "the residual is added where the outputs of the branches are summed",
)
NORM_GATE_UP_SILU_MUL = Rule(
    "norm_gate_up_silu_mul",
    (
        Part("norm", NORM, dims=(2, 2), optional=True),
        Part("gate", "linear", ((0, "norm|"),)),
        Part("up", "linear", ((0, "norm|"),)),
        Part("act", "silu", ((0, "gate"),)),
        Part("mul", "mul", ((0, "act"), (1, "up")), dims=(2, 2)),
    ),
    "gate and up share the (normed) tile, and only their product is stored, not all three of the widest activations",
    share=("gate", "up"),
)
NORM_GATE_UP_GELU_MUL = Rule(
    "norm_gate_up_gelu_mul",
    tuple(replace(part, kind="gelu") if part.kind == "silu" else part for part in NORM_GATE_UP_SILU_MUL.pattern),
    NORM_GATE_UP_SILU_MUL.reason,
    share=("gate", "up"),
)
GATED_DELTA_NORM = Rule(
    "gated_delta_norm",
    (
        Part("delta", "gated_delta"),
        Part("norm", "rms_norm", ((0, "delta"),), by_head=True),
        Part("act", "silu"),
        Part("mul", "mul", ((0, "norm"), (1, "act"))),
    ),
    "a head's output is normed and gated before it leaves registers",
)
SELECTIVE_SCAN_GATE = Rule(
    "selective_scan_gate",
    (
        Part("scan", "selective_scan"),
        Part("act", "silu"),
        Part("mul", "mul", ((0, "scan"), (1, "act"))),
    ),
    "a head's output is gated before it leaves registers",
)
SIGMOID_MUL = Rule(
    "sigmoid_mul",
    (Part("gate", "sigmoid"), Part("mul", "mul", ((1, "gate"),))),
    "the gated operand is read once, and the sigmoid is never stored",
)
NORM_ADD = Rule(
    "norm_add",
    (
        Part("norm", NORM, dims=(2, 2)),
        Part("add", "add", ((1, "norm"),)),
        Part("scaled", "mul_one", ((0, "add"),), optional=True),
    ),
    "the normed row is added to the residual, and the sum scaled if need be, while it is in registers",
)
TAKE_NORM_LINEAR = Rule(
    "take_norm_linear",
    (
        Part("take", "take_rows", dims=(2, 2)),
        Part("norm", NORM, ((0, "take"),)),
        Part("head", "linear", ((0, "norm"),), dims=(2, 2), scaled=True),
    ),
    "only the rows to be sampled are normed and projected",
)

NORM_LINEAR = Rule(
    "norm_linear",
    (Part("norm", "layer_norm", dims=(2, 2)), Part("linear", "linear", ((0, "norm"),))),
    "one projection reads the normed tile, which is never stored",
)
NORM_LINEAR_GELU = Rule(
    "norm_linear_gelu",
    (
        Part("norm", NORM, dims=(2, 2), optional=True),
        Part("linear", "linear", ((0, "norm|"),), dims=(0, 2)),
        Part("gelu", "gelu", ((0, "linear"),)),
    ),
    "the layer's widest activation is stored once, after its gelu",
)
LINEAR_MUL_SWAP = Rule(
    "linear_mul_swap",
    (
        Part("linear", "linear"),
        Part("mul", "mul_table", ((0, "linear"),)),
        Part("swap", "swap", ((0, "mul"),)),
    ),
    "the product's tile is scaled in registers and written already transposed",
)

PROJECTIONS = Rule(
    "projections",
    (Part("q", "linear"), Part("k", "linear"), Part("v", "linear")),
    "three weights that are adjacent in memory are multiplied as one matrix",
    share=("q", "k", "v"),
)
GATE_UP = Rule(
    "gate_up",
    (Part("gate", "linear"), Part("up", "linear")),
    "two weights that are adjacent in memory are multiplied as one matrix",
    share=("gate", "up"),
)
SILU_MUL = Rule(
    "silu_mul",
    (Part("silu", "silu"), Part("mul", "mul", ((0, "silu"),))),
    "the activated gate is multiplied while it is in registers",
)
ROPES = Rule(
    "ropes",
    (Part("q", "rope"), Part("k", "rope")),
    "queries and keys share the angles in one pass",
    alike=("q", "k"),
)

# "none" is the unfused baseline: every op a kernel. "cache" is for CPUs and GPUs: five regions a layer.
# "section" is for dataflow machines: a whole stage (embedding, a decoder layer, head) is one region, mapped in space.
# "epilogue" is how a GPU compiler fuses the paper's Figure 3 (the middle row of its Table I).
# "served" is what serving software of 2023 launched (vLLM 0.1 and 0.2, models/llama.py): merged projections, SiLU with
# its product, q and k in one rope; every other op is a kernel of its own.
# A view joins the op after it, which reads through it; "o0" is the exception: every op is a kernel, views copy.
SECTION, O0 = "section", "o0"
RULE_SETS: Mapping[str, tuple[Rule, ...]] = {
    "none": (),
    "cache": (
        *(NORM_QKV_ROPE_APPEND, NORM_ROPE_APPEND, LINEAR_ADD, NORM_GATE_UP_SILU_MUL, NORM_ADD, TAKE_NORM_LINEAR),
        *(NORM_GATE_UP_GELU_MUL, NORM_LINEAR_GELU, NORM_LINEAR, BRANCH_DOWN_ADD),
        *(GATED_DELTA_NORM, SIGMOID_MUL, SELECTIVE_SCAN_GATE),
    ),
    "epilogue": (LINEAR_MUL_SWAP,),
    "served": (PROJECTIONS, GATE_UP, SILU_MUL, ROPES),
    SECTION: (),
    O0: (),
}
KERNEL_SETS = ("none", "cache")  # rule sets whose regions real devices have kernels for


def fuse(graph: Graph, rule_set: str) -> tuple[Region, ...]:
    """Cut a verified graph into regions, in execution order; at each op, the first matching rule wins.

    Raises UsageError for an unknown rule set.
    """
    if rule_set not in RULE_SETS:
        raise UsageError("rule set", f"{rule_set!r} is unknown", f"use one of {', '.join(RULE_SETS)}")
    readers = _readers(graph)
    if rule_set == SECTION:
        stages = groupby(graph.ops, key=lambda op: op.stage)
        runs = (tuple(run) for _, run in stages)
        return tuple(_region(graph, index, SECTION, ops, readers) for index, ops in enumerate(runs))
    regions: list[Region] = []
    at = 0
    while at < len(graph.ops):
        views = () if rule_set == O0 else _views(graph, at)
        at += len(views)
        found = next((m for rule in RULE_SETS[rule_set] if (m := _match(graph, rule, at, readers))), None)
        kernel, ops = found if found is not None else (graph.ops[at].kind, (graph.ops[at],))
        regions.append(_region(graph, len(regions), kernel, (*views, *ops), readers, len(views)))
        at += len(ops)
    return tuple(regions)


def _views(graph: Graph, at: int) -> tuple[Op, ...]:
    """The run of views that starts at `at`, if an op of the same stage follows that reads through them."""
    end = at
    while (
        end + 1 < len(graph.ops) and OPS[graph.ops[end].kind].view and graph.ops[end + 1].stage == graph.ops[at].stage
    ):
        end += 1
    return graph.ops[at:end]


def _readers(graph: Graph) -> dict[str, set[int]]:
    """Value name -> the positions of the ops that read it."""
    readers: dict[str, set[int]] = defaultdict(set)
    for position, op in enumerate(graph.ops):
        for name in op.inputs:
            readers[name].add(position)
    return readers


def _match(graph: Graph, rule: Rule, at: int, readers: Mapping[str, set[int]]) -> tuple[str, tuple[Op, ...]] | None:
    bound: dict[str, Op] = {}
    position = at
    for part in rule.pattern:
        op = graph.ops[position] if position < len(graph.ops) else None
        if op is not None and op.stage == graph.ops[at].stage and _fits(graph, part, op, bound):
            bound[part.role] = op
            position += 1
        elif not part.optional:
            return None
    if not _agree(graph, rule, bound):
        return None
    inside = set(range(at, position))
    hidden = [
        op.outputs[0] for op in graph.ops[at : position - 1] if graph.values[op.outputs[0]].kind is not Kind.STATE
    ]
    wanted = [name for name in hidden if readers[name] - inside or graph.values[name].kind is Kind.OUTPUT]
    leaking = [name for name in wanted if readers[name] & inside]
    unused = [name for name in hidden if not readers[name]]
    return None if leaking or unused else (rule.name, graph.ops[at:position])


def _agree(graph: Graph, rule: Rule, bound: Mapping[str, Op]) -> bool:
    """Whether the ops agree as the rule demands, and all norms share one offset (a kernel has one operand for it)."""
    alike, share, heads = (
        [op for role, op in bound.items() if role in roles] for roles in (rule.alike, rule.share, rule.heads)
    )
    if len({(op.inputs[1:], tuple(sorted(op.attrs.items()))) for op in alike}) > 1 or 0 < len(alike) < len(rule.alike):
        return False
    shapes = [graph.values[op.outputs[0]].shape for op in heads]
    if not all(len(shape) == 3 and isinstance(shape[2], int) and shape[2] % 2 == 0 for shape in shapes):
        return False
    of_norms = {op.offset for op in bound.values() if op.kind in NORM.split("|")}
    return all(len(found) <= 1 for found in ({op.inputs[0] for op in share}, {(s[0], s[2]) for s in shapes}, of_norms))


def _fits(graph: Graph, part: Part, op: Op, bound: Mapping[str, Op]) -> bool:
    """Whether an op has the part's kind and dimensions, and reads from the ops matched so far exactly as it says."""
    if op.kind not in part.kind.split("|") or (op.kind == "linear" and SCALE in op.attrs and not part.scaled):
        return False
    made = {o.outputs[0] for o in bound.values()}
    inside = {(position, name) for position, name in enumerate(op.inputs) if name in made}
    wanted = set()
    for position, roles in part.reads:
        producer = next((bound[role] for role in roles.split("|") if role in bound), None)
        if producer is not None:
            wanted.add((position, producer.outputs[0]))
        elif not roles.endswith("|"):
            return False
    if part.by_head and norms_all_heads(graph, op):
        return False
    found = (len(graph.values[name].shape) for name in (op.inputs[0], op.outputs[0]))
    return inside == wanted and all(want in (0, have) for want, have in zip(part.dims, found, strict=True))


def _region(
    graph: Graph, index: int, kernel: str, ops: tuple[Op, ...], readers: Mapping[str, set[int]], num_views: int = 0
) -> Region:
    """The first `num_views` ops are views that the others read through; the region is named after the others."""
    made = {name for op in ops for name in op.outputs if graph.values[name].kind is not Kind.STATE}
    inputs = tuple(dict.fromkeys(name for op in ops for name in op.inputs if name and name not in made))
    names = {op.name for op in ops}
    outputs = []
    for name in dict.fromkeys(name for op in ops for name in op.outputs):
        outside = any(graph.ops[p].name not in names for p in readers[name])
        if outside or graph.values[name].kind is not Kind.TENSOR or not readers[name]:
            outputs.append(name)
    stage, first = ops[0].stage, ops[num_views].name
    name = first if len(ops) - num_views == 1 else f"{stage}/{kernel}({first.removeprefix(stage + '/')})"
    return Region(index, name, kernel, stage, ops, inputs, tuple(outputs))
