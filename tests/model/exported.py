"""Flops and bytes of what `torch.export` gives on the meta device, with the numbers of graph/cost.py.

An op is counted as the kernel that PyTorch eager launches; views are read through. What the table lacks is counted and
named, never guessed. Knows nothing about families: the other way to a model's cost, its config, must give the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

from coterie.graph.cost import PER_ELEMENT, Cost
from coterie.graph.flops import SOFTMAX_FLOPS

# Other shapes and strides of the same numbers. A clone that asks for no layout is a dropout outside training.
VIEWS = {
    *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice"),
    *("select", "alias", "detach", "split", "split_with_sizes", "unbind", "getitem", "dropout"),
}
CHECKS = {"_assert_tensor_metadata", "sym_size", "_assert_scalar"}
# ATen name -> kind of the op table, for ops that cost so much per number put out.
ELEMENTWISE = {
    **{name: name for name in ("add", "sub", "mul", "neg", "cos", "sin", "rsqrt", "silu", "gelu", "sigmoid", "tanh")},
    **{"cat": "cat", "_to_copy": "cast", "clone": "copy", "index": "copy", "repeat": "copy", "contiguous": "copy"},
    **{"pow": "square", "div": "mul", "rsub": "sub", "embedding": "embed", "where": "mask", "_softmax": "softmax"},
    **{"layer_norm": "layer_norm", "native_layer_norm": "layer_norm", "softmax": "softmax", "masked_fill": "mask"},
}


@dataclass
class Counted:
    """(kind, cost) of each kernel; `unsupported`: ops that the table lacks, by name; bytes of all weights."""

    ops: list[tuple[str, Cost]] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)
    weight_bytes: int = 0

    @property
    def cost(self):
        """The sum over all kernels."""
        return sum((cost for _, cost in self.ops), Cost())

    def by_kind(self):
        """The sum over the kernels of each kind."""
        found = {}
        for kind, cost in self.ops:
            found[kind] = found.get(kind, Cost()) + cost
        return found


def count(exported):
    """An ExportedProgram with fixed shapes, counted."""
    found, roots = Counted(), {}  # a view -> the node that made its numbers
    parameters = set(exported.graph_signature.inputs_to_parameters)
    nodes = exported.graph.nodes
    found.weight_bytes = sum(_bytes(n) for n in nodes if n.name in parameters and n.op == "placeholder")
    for node in (one for one in nodes if one.op == "call_function"):
        name, operands = _name(node), list(_tensors(node))
        if name in CHECKS:
            continue
        if name in VIEWS or (name == "clone" and not node.kwargs):
            roots[node.name] = roots.get(operands[0].name, operands[0])
        elif not _is_float(node) or not operands:
            pass  # whole numbers and constants
        elif name not in RULES and name not in ELEMENTWISE:
            found.unsupported[str(node.target)] += 1
        else:
            kind, flops = RULES[name](node, *operands) if name in RULES else _elementwise(node, ELEMENTWISE[name])
            if name == "softmax" and _value(node).dtype != _value(operands[0]).dtype:  # in a wider type: a cast first
                found.ops.append(("cast", Cost(0, 0, _bytes(operands[0]), _bytes(node))))
                found.ops.append((kind, Cost(flops, 0, _bytes(node), _bytes(node))))
            else:
                found.ops.append((kind, _moved(node, operands, name, flops, roots, parameters)))
    return found


def _moved(node, operands, name, flops, roots, parameters):
    """Each operand is read once, of a view no more than it shows; whole numbers (ids, positions) are left out."""
    read = {True: 0, False: 0}
    for operand in {one.name: one for one in operands}.values():
        root = roots.get(operand.name, operand)
        if _is_float(root):
            size = _bytes(node) if name == "embedding" else min(_bytes(operand), _bytes(root))
            read[root.name in parameters] += size
    return Cost(flops, read[True], read[False], _bytes(node))


def _elementwise(node, kind):
    return kind, PER_ELEMENT[kind] * _count(node)


def _linear(node, x, _, *bias):
    """Two flops for each number put out and each that it sums, one more for a bias."""
    return "linear", _count(node) * (2 * _shape(x)[-1] + len(bias))


def _matmul(node, x, y):
    return ("matmul" if len(_shape(y)) > 2 else "linear"), _count(node) * 2 * _shape(x)[-1]


def _fused_attention(node, q, k, *_):
    """Every score of the rectangle."""
    return "attention", prod(_shape(q)[:-1]) * _shape(k)[-2] * (4 * _shape(q)[-1] + SOFTMAX_FLOPS)


RULES = {
    "linear": _linear,
    "mm": _matmul,
    "addmm": lambda node, bias, x, weight: _linear(node, x, weight, bias),
    "bmm": _matmul,
    "matmul": _matmul,
    "baddbmm": lambda node, _, x, __: ("alibi_scores", _count(node) * (2 * _shape(x)[-1] + 2)),
    "mean": lambda node, x: ("mean", _count(x)),
    "scaled_dot_product_attention": _fused_attention,
}


def _name(node):
    """`aten.mul.Tensor` is mul, and so is the mul_ that works in place."""
    namespace, _, rest = str(node.target).partition(".")
    name = rest.partition(".")[0] if namespace == "aten" else str(getattr(node.target, "__name__", node.target))
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def _tensors(node):
    """The operands that are tensors, those in lists too."""
    for argument in (*node.args, *node.kwargs.values()):
        for operand in argument if isinstance(argument, list | tuple) else (argument,):
            if hasattr(operand, "meta") and hasattr(_value(operand), "shape"):
                yield operand


def _value(node):
    """The tensor that a node makes; the first of several."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, list | tuple) else value


def _shape(node):
    return tuple(_value(node).shape)


def _count(node):
    return prod(_shape(node))


def _bytes(node):
    return _count(node) * _value(node).element_size()


def _is_float(node):
    return _value(node).dtype.is_floating_point
