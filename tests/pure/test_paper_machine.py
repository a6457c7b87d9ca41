"""Rows of the machine: predicted from a file and a graph, by rules that hold whatever the numbers are."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from types import ModuleType

import pytest

from coterie.core.shapes import Sizes
from coterie.plan.paper import machine, samba, table4
from coterie.plan.paper.arithmetic import BATCHES, LONG, NODES, SHORT
from coterie.plan.paper.exhibits import exhibits
from coterie.plan.paper.machine import Expert, spec, switch_s, weight_bytes, with_link_share
from coterie.plan.paper.published import published
from coterie.plan.paper.row import Kind, Method
from coterie.plan.paper.samba import MODEL, expert, modelled_nodes, node_spec

BESIDE = ("table-1", "figure-1", "figure-11", "figure-12", "figure-13", "table-4", "table-5")


@pytest.mark.parametrize("name", BESIDE)
def test_every_published_value_has_a_predicted_machine_row(name: str) -> None:
    (exhibit,) = exhibits([name])
    rows = {row.row: row for row in exhibit.rows if row.method is Method.MACHINE and row.kind is Kind.PREDICTED}
    assert list(rows) == list(published(name))
    assert all(row.ours is not None and row.ours > 0 for row in rows.values())


@pytest.mark.parametrize("module", [machine, samba])
def test_what_predicts_reads_no_published_value(module: ModuleType) -> None:
    """Neither the data files nor the times that the arithmetic read back from them."""
    tree = ast.parse(inspect.getsource(module))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & {"published", "data", "constant", "nodes", "compare", "fitted_latencies"}


def test_a_switch_is_the_weights_over_the_link() -> None:
    size = weight_bytes(MODEL)
    assert size == 2 * 6_738_415_616  # the parameters of Llama-2-7B
    for name, rate in (("A100", 32e9), ("H100", 64e9)):
        assert switch_s(node_spec(name), size) == pytest.approx(size / rate, rel=1e-3)
    assert switch_s(node_spec("SN40L"), size) == pytest.approx(size / 1e12, rel=1e-3)


def test_the_node_of_the_paper_has_no_result_of_the_paper_in_it() -> None:
    """Its file derives the share of DDR from Fig. 12; here it is section VI-C's rate."""
    used = node_spec("SN40L")
    link = used.link("ddr", "hbm")
    assert link.achieved_bytes_per_s == pytest.approx(1e12)
    assert "section VI-C" in link.share_source
    again = with_link_share(spec("SN40L"), 0.5, "half")
    assert again.tier("ddr").achieved_bytes_per_s == pytest.approx(again.tier("ddr").bytes_per_s / 2)
    assert again.tier("hbm") == spec("SN40L").tier("hbm")


def test_answers_cost_what_their_steps_cost() -> None:
    for name in NODES:
        run = expert(name)
        steps = [run.step(Sizes.prefill(1, 128)), *(run.step(Sizes.decode(1, 128 + i)) for i in range(1, 20))]
        assert run.answer_s(128, 20) == pytest.approx(sum(step.seconds for step in steps), rel=2e-3)
        assert run.answer_s(128, 1) == steps[0].seconds


def test_more_bandwidth_or_fewer_tokens_never_cost_more() -> None:
    for name in NODES:
        run = expert(name)
        fast = replace(
            run.spec, tiers=tuple(replace(tier, bytes_per_s=tier.bytes_per_s * 2) for tier in run.spec.tiers)
        )
        assert Expert(fast, run.model, run.rule_set, run.orchestration).answer_s(128, 20) < run.answer_s(128, 20)
        node = modelled_nodes()[name]
        assert node.expert_ms[SHORT] < node.expert_ms[LONG]
        assert node.router_ms[1] <= node.router_ms[8] < 8 * node.router_ms[1]
        assert set(node.router_ms) == set(BATCHES)


def test_speculation_gives_its_tokens() -> None:
    """A chance of 0 gives one token, of nearly 1 all; the sum of a geometric series between."""
    assert table4.tokens_per_step(0.0, 8) == 1.0
    assert table4.tokens_per_step(0.999999, 8) == pytest.approx(9.0, rel=1e-4)
    assert table4.tokens_per_step(0.5, 3) == pytest.approx(1 + 0.5 + 0.25 + 0.125)


def test_the_fitted_acceptance_balances_its_rows_and_alone_makes_one_exact() -> None:
    large = ("llama-3.1-70b", "llama-3.1-405b")
    accepted = table4.acceptance(*large)
    ratios = [table4.speculative_per_s(model, accepted) / published("table-4")[model].value for model in large]
    assert ratios[0] * ratios[1] == pytest.approx(1.0, rel=1e-3)
    one = table4.acceptance(large[0])
    assert table4.speculative_per_s(large[0], one) == pytest.approx(published("table-4")[large[0]].value, rel=1e-3)
    left, constant = exhibits(["table-4"])[0].fitted
    assert 0 < left.value < 1
    assert constant.value == accepted
    assert constant.left_out_error is not None
