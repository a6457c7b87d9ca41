"""Counting an exported program, on nodes made by hand: what is read, what is a view, what is not known.

The programs that PyTorch really exports are in tests/model/test_exported.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from coterie.core.errors import UsageError
from coterie.graph.cost import Cost
from coterie.models.exported import import_program

F32, BF16 = (SimpleNamespace(name=n, is_floating_point=True, bytes=b) for n, b in (("f32", 4), ("bf16", 2)))
I64 = SimpleNamespace(name="i64", is_floating_point=False, bytes=8)


def tensor(name, shape, dtype=BF16, target="", *args, **kwargs):
    """A node of a graph that torch.export would make, as far as the importer looks."""
    value = SimpleNamespace(shape=shape, dtype=dtype, element_size=lambda: dtype.bytes)
    op = "call_function" if target else "placeholder"
    return SimpleNamespace(name=name, op=op, target=target, args=args, kwargs=kwargs, meta={"val": value})


def program(*nodes, parameters=()):
    return SimpleNamespace(
        graph=SimpleNamespace(nodes=nodes),
        graph_signature=SimpleNamespace(inputs_to_parameters={name: name for name in parameters}),
    )


def test_a_linear_reads_its_weight_once_and_its_input_through_a_view():
    weight, x = tensor("w", (5, 8)), tensor("x", (3, 4, 8))
    view = tensor("v", (12, 8), BF16, "aten.view.default", x, [12, 8])
    y = tensor("y", (12, 5), BF16, "aten.linear.default", view, weight)
    found = import_program(program(weight, x, view, y, parameters=["w"]))
    assert [(op.kind, op.cost) for op in found.ops] == [("linear", Cost(2 * 12 * 5 * 8, 80, 192, 120))]
    assert (found.cost, found.weight_bytes, found.unsupported, found.index_ops) == (found.ops[0].cost, 80, {}, 0)


def test_a_view_of_a_part_reads_the_part_and_an_expanded_one_no_more_than_there_is():
    x = tensor("x", (4, 8))
    part = tensor("p", (4, 3), BF16, "aten.slice.Tensor", x, 1, 0, 3)
    wide = tensor("e", (7, 4, 8), BF16, "aten.expand.default", x, [7, 4, 8])
    neg = tensor("n", (4, 3), BF16, "aten.neg.default", part)
    copy = tensor("c", (7, 4, 8), BF16, "aten.clone.default", wide, memory_format="contiguous")
    same = tensor("d", (4, 3), BF16, "aten.clone.default", neg)  # a dropout outside training
    found = import_program(program(x, part, wide, neg, copy, same))
    assert [(op.kind, op.cost.input_bytes, op.cost.output_bytes) for op in found.ops] == [
        ("neg", 24, 24),
        ("copy", 64, 448),
    ]


def test_a_gather_reads_rows_and_whole_numbers_are_set_apart():
    table, ids = tensor("t", (100, 8)), tensor("i", (3,), I64)
    more = tensor("m", (3,), I64, "aten.add.Tensor", ids, 1)
    zero = tensor("z", (), BF16, "aten.zeros.default", [])
    rows = tensor("r", (3, 8), BF16, "aten.embedding.default", table, more)
    found = import_program(program(table, ids, more, zero, rows, parameters=["t"]))
    assert [(op.kind, op.cost) for op in found.ops] == [("embed", Cost(0, 48, 0, 48))]
    assert found.index_ops == 2


def test_a_softmax_in_a_wider_type_is_a_cast_and_a_softmax():
    x = tensor("x", (2, 6))
    y = tensor("y", (2, 6), F32, "aten.softmax.int", x, -1)
    found = import_program(program(x, y)).by_kind()
    assert found == {"cast": Cost(0, 0, 24, 48), "softmax": Cost(4 * 12, 0, 48, 48)}


def test_in_place_ops_count_as_the_others():
    x = tensor("x", (2, 6))
    found = import_program(program(x, tensor("y", (2, 6), BF16, "aten.add_.Tensor", x, x)))
    assert [(op.kind, op.cost) for op in found.ops] == [("add", Cost(12, 0, 24, 24))]


def test_what_is_not_known_is_counted_and_named():
    x = tensor("x", (2, 6))
    odd = [tensor(f"y{i}", (2, 6), BF16, "aten.cumsum.default", x, 0) for i in range(2)]
    found = import_program(program(x, *odd))
    assert (found.unsupported, found.ops) == ({"aten.cumsum.default": 2}, ())


def test_a_symbolic_dimension_is_named():
    x = tensor("x", ("s0", 6))
    with pytest.raises(UsageError, match="dimension s0 of y is symbolic; export with inputs of fixed shapes"):
        import_program(program(x, tensor("y", ("s0", 6), BF16, "aten.neg.default", x)))
