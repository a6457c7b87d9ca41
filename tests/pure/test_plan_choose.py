"""What plans come to in all, limits on it, and what a file of requests asks for: numbers that can be told by hand."""

import numpy as np
import pytest

from coterie.core.errors import UsageError
from coterie.plan.choose import CHEAPEST, MIN_POWER, Choice, Limits, Option, choices, parse_power
from coterie.plan.offered_load import busiest_rate, from_file
from coterie.plan.workload import Workload


def option(part, machine, machines, power_w, price):
    return Option(part, machine, machines, power_w, price)


OPTIONS = (
    option(0, "small", 9, 5400.0, 81000.0), option(0, "large", 1, 8000.0, 400000.0), option(0, "odd", 2, None, None),
    option(1, "large", 1, 8000.0, 400000.0), option(1, "many", 10, 1000.0, 500000.0),
)  # fmt: skip


def test_one_machine_for_all_parts_and_the_best_of_each():
    found = {choice.name: choice for choice in choices(OPTIONS)}
    assert list(found) == ["large", CHEAPEST, MIN_POWER]
    assert (found["large"].machines, found["large"].power_w, found["large"].price) == (2, 16000.0, 800000.0)
    assert [o.machine for o in found[CHEAPEST].options] == ["small", "large"]
    assert found[CHEAPEST].price == 481000.0
    assert [o.machine for o in found[MIN_POWER].options] == ["small", "many"]
    assert found[MIN_POWER].machines == 19


def test_what_is_best_and_one_machine_is_said_once():
    assert [choice.name for choice in choices(OPTIONS[:2])] == ["small", "large"]
    assert choices(()) == ()


def test_nothing_is_cheapest_where_a_part_has_no_price():
    unpriced = [option(o.part, o.machine, o.machines, o.power_w, None) for o in OPTIONS]
    assert [choice.name for choice in choices(unpriced)] == ["large", MIN_POWER]


def test_limits_say_by_how_much_or_that_it_is_not_known():
    large = Choice("large", OPTIONS[1:2])
    assert large.exceeds(Limits()) == large.exceeds(Limits(8000.0, 400000.0)) == ""
    assert large.exceeds(Limits(power_w=7500.0)) == "500 W above the power allowed"
    assert large.exceeds(Limits(7500.0, 1.0)) == "500 W above the power allowed; 399,999 above the price allowed"
    assert Choice("odd", OPTIONS[2:3]).exceeds(Limits(price=1.0)) == "its price is not known"


@pytest.mark.parametrize(("text", "watts"), [("20kW", 20000.0), ("800W", 800.0), (" 1.5kW", 1500.0)])
def test_power_is_read_with_its_unit(text, watts):
    assert parse_power(text, "--max-power") == watts


@pytest.mark.parametrize("text", ["20", "kW", "-3kW", "0W", "infkW", "nanW", "20 MW", ""])
def test_what_is_no_power_is_refused(text):
    with pytest.raises(UsageError, match="write 20kW or 800W"):
        parse_power(text, "--max-power")


def test_the_busiest_minute_is_the_rate():
    quiet, busy = np.arange(0.0, 600.0, 10.0), 300.0 + np.arange(0.0, 60.0, 0.5)
    assert busiest_rate(np.sort(np.concatenate([quiet, busy]))) == pytest.approx((120 + 6) / 60)
    assert busiest_rate(np.array([0.0, 1.0, 2.0, 3.0])) == pytest.approx(4 / 3)
    assert busiest_rate(np.zeros(3)) == busiest_rate(np.zeros(0)) == 0.0


def requests(at_s):
    count = len(at_s)
    lengths = np.arange(1, count + 1), np.full(count, 5)
    return Workload(("a", "b", "c"), np.arange(count) % 2, np.asarray(at_s, float), *lengths)


def test_a_file_says_who_is_asked_how_long_and_how_often():
    found = from_file(requests([0.0, 1.0, 2.0, 3.0]), None)
    assert found.shares.tolist() == [0.5, 0.5, 0.0]
    assert (found.prompt_tokens, found.new_tokens, found.rate) == (2.5, 5.0, pytest.approx(4 / 3))
    assert "busiest minute" in found.description
    faster = from_file(requests([0.0, 1.0, 2.0, 3.0]), 8.0)
    assert (faster.rate, faster.requests.at_s.tolist()) == (8.0, [0.0, 1 / 6, 1 / 3, 0.5])
    with pytest.raises(UsageError, match="4 requests come at one time; give --rate"):
        from_file(requests([0.0] * 4), None)


def test_some_experts_requests_have_their_own_numbers():
    part = from_file(requests([0.0, 1.0, 2.0, 3.0]), None).of((1, 2), ("b", "c"), 1)
    assert (part.names, part.expert_index.tolist(), part.at_s.tolist()) == (("b", "c"), [0], [1.0])
