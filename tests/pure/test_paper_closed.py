"""The paper's own arithmetic gives the paper's own values, to the last printed digit."""

from __future__ import annotations

from importlib.resources import files

import pytest

from coterie.core.errors import NotFoundError
from coterie.plan.paper.arithmetic import (
    DGX,
    LONG,
    NODES,
    SHORT,
    dgx_nodes,
    fitted_latencies,
    least_squares,
    left_out_error,
    nodes,
    sn40l_nodes,
)
from coterie.plan.paper.coe import table_5
from coterie.plan.paper.exhibits import EXHIBITS, exhibits
from coterie.plan.paper.published import published
from coterie.plan.paper.row import Kind, Method
from coterie.plan.paper.text import error_text, number

# The fair comparison serves prompts on three machines: the quick suite looks at its parts (test_paper_fair.py).
EACH = [pytest.param(name, marks=pytest.mark.long if name == "fair" else ()) for name in EXHIBITS]
CLOSED = {"table-1": 3, "figure-1": 12, "figure-12": 16, "figure-13": 21, "table-5": 16}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_within_rounding_of_every_published_value(name: str) -> None:
    (exhibit,) = exhibits([name])
    rows = [row for row in exhibit.rows if row.method is Method.CLOSED_FORM]
    assert len(rows) == CLOSED[name] == len(published(name))
    off = {}
    for row in rows:
        value = published(name)[row.row]
        assert row.published == value.value
        assert row.ours is not None
        if abs(row.ours - value.value) > value.within:
            off[row.row] = (row.ours, value.value, value.within)
    assert not off


def test_what_was_printed_is_not_given_more_room_than_its_digits() -> None:
    """Rounding of the last digit; a hundredth or 10 ms where a drawing was read; counts are exact."""
    for name in ("table-1", "table-4", "table-5", "figure-10", "figure-11", "figure-13"):
        raw_values = published(name).values() if name != "figure-10" else ()
        for value in raw_values:
            digits = f"{value.value:.2f}".rstrip("0")
            decimals = len(digits.split(".")[1])
            if value.row != "model switching, vs H100":  # printed as 15 and as 16
                assert value.within <= 0.5 * 10.0**-decimals or (decimals == 0 and value.within <= 0.5), value
    for value in published("figure-12").values():
        assert value.within <= 0.01 * value.value


def test_a_given_row_uses_nothing_that_was_read_back() -> None:
    node = nodes()
    assert node["A100"].expert_ms[SHORT] == 136.5
    assert node["H100"].expert_ms[SHORT] == 97.6
    assert node["A100"].switch_ms == pytest.approx(437.5)
    assert {name: node[name].kind for name in NODES} == {"A100": Kind.GIVEN, "H100": Kind.GIVEN, "SN40L": Kind.FITTED}
    for exhibit in exhibits(["figure-1", "figure-12", "table-5"]):
        for row in exhibit.rows:
            if row.method is Method.CLOSED_FORM and "SN40L" in row.row:
                assert row.kind is Kind.FITTED, row


def test_times_read_back_are_in_the_ranges_that_the_ratios_allow() -> None:
    """Ranges from trying every time of one millisecond steps against the rounded ratios of Table V."""
    node = nodes()
    for name, low, high in (("SN40L", 339, 401), ("A100", 1068, 1303), ("H100", 763, 932)):
        assert low <= node[name].expert_ms[LONG] <= high
    left_out = {constant.name: constant.left_out_error for constant in fitted_latencies()}
    assert len(left_out) == 5
    assert all(error is not None and error < 0.05 for error in left_out.values())


def test_a_batch_pays_a_router_and_every_prompt_its_expert_and_switch() -> None:
    for name in DGX:
        node = nodes()[name]
        one, eight = node.latency_ms(1, SHORT, miss=True), node.latency_ms(8, SHORT, miss=True)
        assert eight - one == pytest.approx(7 * (node.expert_ms[SHORT] + node.switch_ms))
        assert one - node.latency_ms(1, SHORT, miss=False) == pytest.approx(node.switch_ms)


def test_counts_of_nodes_never_fall_with_experts() -> None:
    for count in (dgx_nodes, sn40l_nodes):
        found = [count(experts) for experts in range(1, 1000)]
        assert found == sorted(found)
    assert (dgx_nodes(850), sn40l_nodes(850)) == (19, 1)


def test_least_squares_finds_what_made_the_values_and_says_how_it_would_have_done_without_each() -> None:
    matrix = [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]
    target = [2.0, 5.0, 8.0, 11.0]
    assert least_squares(matrix, target, target) == pytest.approx([2.0, 3.0])
    assert left_out_error(matrix, target, target) == pytest.approx(0.0, abs=1e-12)
    wrong = [2.0, 5.0, 8.0, 22.0]
    error = left_out_error(matrix, wrong, wrong)
    assert error is not None
    assert error > 0.1
    assert left_out_error(matrix[:2], target[:2], target[:2]) is None
    with pytest.raises(ValueError, match="cannot be told"):
        least_squares([[1.0, 1.0], [2.0, 2.0]], [1.0, 2.0], [1.0, 1.0])


@pytest.mark.parametrize("name", EACH)
def test_every_row_has_kind_method_unit_and_source(name: str) -> None:
    for exhibit in exhibits([name]):
        assert exhibit.rows
        assert len({(row.row, row.method, row.kind) for row in exhibit.rows}) == len(exhibit.rows)
        for row in exhibit.rows:
            assert row.exhibit == exhibit.title
            assert isinstance(row.kind, Kind)
            assert isinstance(row.method, Method)
            assert row.unit
            assert row.source
            assert row.ours is not None or row.note, f"{row.row} is not modelled, and does not say why"
            assert (row.method is Method.CLOSED_FORM) <= (row.kind is not Kind.PREDICTED)


@pytest.mark.parametrize("name", EACH)
def test_an_exhibit_with_fitted_rows_lists_its_constants(name: str) -> None:
    for exhibit in exhibits([name]):
        uses = any(row.kind is Kind.FITTED for row in exhibit.rows)
        assert uses == bool(exhibit.fitted), exhibit.name
        assert all(constant.fitted_to and constant.unit for constant in exhibit.fitted)


def test_exhibits_come_in_order_and_an_unknown_one_is_named() -> None:
    assert [e.name for e in exhibits(["table-5", "table-1"])] == ["table-1", "table-5"]
    with pytest.raises(NotFoundError, match=r"\[figure-2\] there is no such exhibit; use one of table-1"):
        exhibits(["figure-2"])


def test_numbers_as_people_read_them() -> None:
    assert [number(x) for x in (None, 19.0, 39.4615, 12345.6)] == ["-", "19", "39.46", "12,346"]
    assert [error_text(x) for x in (None, -1e-5, 0.0123, -0.5, 11.0)] == ["-", "+0.0%", "+1.2%", "-50.0%", "x12"]
    assert error_text(0.25, signed=False) == "25.0%"


def test_what_a_dgx_can_hold_is_sourced_and_not_read_back() -> None:
    rows = [row for row in table_5().rows if row.row.startswith("first count of experts out of memory")]
    assert {(row.method, row.kind) for row in rows} == {
        (Method.CLOSED_FORM, Kind.GIVEN),
        (Method.MACHINE, Kind.PREDICTED),
    }
    for name in ("dgx-a100", "dgx-h100"):
        machine = (files("coterie.spec") / "machines" / f"{name}.toml").read_text("utf-8")
        (line,) = (line for line in machine.splitlines() if line.startswith("capacity = { value = 2048"))
        assert "MLPerf" in line
        assert "assumed" not in line
