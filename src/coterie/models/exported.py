"""Flops and bytes of a model that PyTorch exported: `torch.export.export(...)` on the meta device, no weights needed.

    exported = torch.export.export(model, inputs).run_decompositions({})
    import_program(exported).cost

An op is counted with the numbers of graph/cost.py, as the kernel that PyTorch eager launches; views are read through.
What the table lacks is counted and named, never guessed. Torch itself is not imported: the program is an argument.
Knows nothing about families: the other way to a model's cost, its config (registry.py), must give the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from coterie.core.errors import UsageError
from coterie.graph.cost import PER_ELEMENT, Cost
from coterie.graph.flops import SOFTMAX_FLOPS


@dataclass(frozen=True, slots=True)
class ImportedOp:
    """A kernel: its kind is that of the op table where it has one, its name that of the exported node."""

    kind: str
    name: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class Imported:
    """What was counted. `unsupported`: ops that the table lacks, by name; `index_ops`: whole numbers and constants."""

    ops: tuple[ImportedOp, ...]
    unsupported: Mapping[str, int]
    index_ops: int
    weight_bytes: int

    @property
    def cost(self) -> Cost:
        """The sum over all kernels."""
        return sum((op.cost for op in self.ops), Cost())

    def by_kind(self) -> dict[str, Cost]:
        """The sum over the kernels of each kind."""
        found: dict[str, Cost] = {}
        for op in self.ops:
            found[op.kind] = found.get(op.kind, Cost()) + op.cost
        return found


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


def import_program(exported: Any) -> Imported:
    """Count an ExportedProgram. Raises UsageError for symbolic dimensions."""
    return _Import(exported).run()


@dataclass(slots=True)
class _Import:
    exported: Any
    ops: list[ImportedOp] = field(default_factory=list)
    unsupported: Counter[str] = field(default_factory=Counter)
    index_ops: int = 0
    roots: dict[str, Any] = field(default_factory=dict)  # a view -> the node that made its numbers

    def run(self) -> Imported:
        signature = self.exported.graph_signature
        parameters = set(signature.inputs_to_parameters)
        for node in self.exported.graph.nodes:
            if node.op == "call_function":
                self._node(node, parameters)
        weights = sum(_bytes(n) for n in self.exported.graph.nodes if n.name in parameters and n.op == "placeholder")
        return Imported(tuple(self.ops), dict(self.unsupported), self.index_ops, weights)

    def _node(self, node: Any, parameters: set[str]) -> None:
        name = _name(node)
        if name in CHECKS:
            return
        if name in VIEWS or (name == "clone" and not node.kwargs):
            self.roots[node.name] = self._root(next(_tensors(node)))
            return
        if not _is_float(node) or not any(True for _ in _tensors(node)):
            self.index_ops += 1
            return
        if name not in RULES and name not in ELEMENTWISE:
            self.unsupported[str(node.target)] += 1
            return
        kind, flops = RULES[name](node) if name in RULES else _elementwise(node, ELEMENTWISE[name])
        if name == "softmax" and _dtype(node) != _dtype(next(_tensors(node))):
            self._widened(node)
            self.ops.append(ImportedOp(kind, node.name, Cost(flops, 0, _bytes(node), _bytes(node))))
            return
        self.ops.append(ImportedOp(kind, node.name, self._moved(node, name, flops, parameters)))

    def _widened(self, node: Any) -> None:
        """A softmax in a wider type than its input is two kernels: a cast, and the softmax in the wider type."""
        narrow = _bytes(next(_tensors(node)))
        self.ops.append(ImportedOp("cast", f"{node.name}_cast", Cost(0, 0, narrow, _bytes(node))))

    def _moved(self, node: Any, name: str, flops: int, parameters: set[str]) -> Cost:
        """Each operand is read once, of a view no more than it shows; whole numbers (ids, positions) are left out."""
        weights = inputs = 0
        seen: set[str] = set()
        for operand in _tensors(node):
            root = self._root(operand)
            if operand.name in seen or not _is_float(root):
                continue
            seen.add(operand.name)
            size = _bytes(node) if name == "embedding" else min(_bytes(operand), _bytes(root))
            if root.name in parameters:
                weights += size
            else:
                inputs += size
        return Cost(flops, weights, inputs, _bytes(node))

    def _root(self, node: Any) -> Any:
        return self.roots.get(node.name, node)


_Count = tuple[str, int]


def _elementwise(node: Any, kind: str) -> _Count:
    return kind, PER_ELEMENT[kind] * _count(node)


def _linear(node: Any) -> _Count:
    """Two flops for each number put out and each that it sums, one more for a bias."""
    x, _, *bias = _tensors(node)
    return "linear", _count(node) * (2 * _shape(x)[-1] + len(bias))


def _addmm(node: Any) -> _Count:
    _, x, _ = _tensors(node)
    return "linear", _count(node) * (2 * _shape(x)[-1] + 1)


def _matmul(node: Any) -> _Count:
    x, y = _tensors(node)
    return ("matmul" if len(_shape(y)) > 2 else "linear"), _count(node) * 2 * _shape(x)[-1]


def _baddbmm(node: Any) -> _Count:
    _, x, _ = _tensors(node)
    return "alibi_scores", _count(node) * (2 * _shape(x)[-1] + 2)


def _mean(node: Any) -> _Count:
    return "mean", _count(next(_tensors(node)))


def _convolution(node: Any) -> _Count:
    """A number put out sums over the weights of its channel."""
    _, weight, *bias = _tensors(node)
    return "linear", _count(node) * (2 * prod(_shape(weight)[1:]) + len(bias))


def _fused_attention(node: Any) -> _Count:
    """Every score of the rectangle."""
    q, k, *_ = _tensors(node)
    scores = prod(_shape(q)[:-1]) * _shape(k)[-2]
    return "attention", scores * (4 * _shape(q)[-1] + SOFTMAX_FLOPS)


RULES: Mapping[str, Callable[[Any], _Count]] = {
    "linear": _linear,
    "mm": _matmul,
    "addmm": _addmm,
    "bmm": _matmul,
    "matmul": _matmul,
    "baddbmm": _baddbmm,
    "mean": _mean,
    "conv2d": _convolution,
    "convolution": _convolution,
    "scaled_dot_product_attention": _fused_attention,
}


def _name(node: Any) -> str:
    """`aten.mul.Tensor` is mul, and so is the mul_ that works in place."""
    namespace, _, rest = str(node.target).partition(".")
    name = rest.partition(".")[0] if namespace == "aten" else str(getattr(node.target, "__name__", node.target))
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def _tensors(node: Any) -> Iterator[Any]:
    """The operands that are tensors, those in lists too."""
    for argument in (*node.args, *node.kwargs.values()):
        for operand in argument if isinstance(argument, list | tuple) else (argument,):
            if hasattr(operand, "meta") and hasattr(_value(operand), "shape"):
                yield operand


def _value(node: Any) -> Any:
    """The tensor that a node makes; the first of several."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, list | tuple) else value


def _shape(node: Any) -> tuple[int, ...]:
    dims = tuple(_value(node).shape)
    symbolic = [dim for dim in dims if not isinstance(dim, int)]
    if symbolic:
        fact = f"dimension {symbolic[0]} of {node.name} is symbolic"
        raise UsageError("exported program", fact, "export with inputs of fixed shapes")
    return dims


def _count(node: Any) -> int:
    return prod(_shape(node))


def _bytes(node: Any) -> int:
    return _count(node) * int(_value(node).element_size())


def _dtype(node: Any) -> Any:
    return _value(node).dtype


def _is_float(node: Any) -> bool:
    return bool(_dtype(node).is_floating_point)
