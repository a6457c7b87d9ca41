"""Workloads, mixes and promises: what is drawn, what is read, and one sentence for each mistake."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.errors import NotFoundError, UsageError
from coterie.plan.mix import mix_named
from coterie.plan.slo import parse_slo
from coterie.plan.workload import ARRIVALS, Load, lengths_named, make_workload
from coterie.plan.workload_file import read_workload

NAMES = ("a", "b", "c")
UNIFORM = mix_named("uniform")


def load(requests=2000, **changes):
    fixed = {"mix": UNIFORM, "prompt": lengths_named("128", "--prompt"), "new": lengths_named("20", "--tokens")}
    return Load(requests, **{**fixed, "rate": 10.0, **changes})


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_arrivals_come_at_the_rate_and_are_the_same_again(arrivals):
    made = make_workload(load(arrivals=arrivals), NAMES)
    assert np.array_equal(made.at_s, make_workload(load(arrivals=arrivals), NAMES).at_s)
    assert (np.diff(made.at_s) >= 0).all()
    assert made.at_s[-1] == pytest.approx(200, rel=0.2)
    gaps = np.diff(made.at_s)
    spread = {"steady": 0.0, "poisson": 1.0, "bursty": 3.0}[arrivals]
    assert gaps.std() / gaps.mean() == pytest.approx(spread, abs=0.4)


def test_another_seed_is_another_workload_and_lengths_do_not_change_arrivals():
    first, second = make_workload(load(), NAMES), make_workload(load(seed=8), NAMES)
    assert not np.array_equal(first.at_s, second.at_s)
    other = make_workload(load(new=lengths_named("geometric:9", "x")), NAMES)
    assert np.array_equal(first.at_s, other.at_s)
    assert np.array_equal(first.expert_index, other.expert_index)


@pytest.mark.parametrize("text", ["7", "uniform:5:9", "geometric:30", "lognormal:50:0.7"])
def test_lengths_have_the_mean_that_they_say(text):
    lengths = lengths_named(text, "--prompt")
    drawn = lengths.draw(np.random.default_rng(1), 20_000)
    assert drawn.min() >= 1
    assert drawn.mean() == pytest.approx(lengths.mean, rel=0.05)


@given(st.sampled_from(["uniform", "zipf:0", "zipf", "zipf:1.7"]), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_what_is_drawn_follows_the_shares(text, experts, seed):
    mix = mix_named(text)
    shares = mix.shares(experts, seed)
    assert shares.sum() == pytest.approx(1)
    counts = np.bincount(mix.draw(experts, 4000, seed), minlength=experts) / 4000
    assert np.abs(counts - shares).max() < 0.05


@pytest.mark.parametrize(("name", "text"), [("m.json", '{"b": 30, "a": 10}'), ("m.csv", "expert,count\na,10\nb,30\n")])
def test_a_measured_mix(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    mix = mix_named(str(tmp_path / name), NAMES)
    assert mix.shares(3, 0).tolist() == [0.25, 0.75, 0.0]
    assert not (mix.draw(3, 500, 1) == 2).any()


def test_a_part_of_a_workload_keeps_its_requests_together():
    made = make_workload(load(100, rate=None, in_flight=10, new=lengths_named("uniform:1:9", "x")), NAMES)
    part = made.only(np.flatnonzero(made.expert_index == 1))
    assert set(part.expert_index) == {1}
    assert part.in_flight == round(10 * len(part) / 100)
    assert part.new_tokens.sum() == made.new_tokens[made.expert_index == 1].sum()


def test_requests_longer_than_the_context_are_cut_or_refused():
    made = make_workload(load(5, prompt=lengths_named("90", "x"), new=lengths_named("20", "x")), NAMES)
    with pytest.raises(UsageError, match=r"request 1 has 90 \+ 20 tokens but the context holds 100; use --clip"):
        made.within(100, clip=False)
    cut = made.within(100, clip=True)
    assert (cut.longest, cut.new_tokens.min()) == (100, 20)
    assert made.within(110, clip=False) is made


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.5,3180,8\n"


def read(tmp_path, text, name="t.csv", limit=None):
    (tmp_path / name).write_text(text)
    return read_workload(tmp_path / name, NAMES, UNIFORM, 3, limit)


def test_an_azure_trace(tmp_path):
    made = read(tmp_path, AZURE)
    assert made.at_s.tolist() == pytest.approx([0, 0.520040], abs=1e-6)
    assert (made.prompt_tokens.tolist(), made.new_tokens.tolist()) == ([4808, 3180], [10, 8])
    assert len(read(tmp_path, AZURE, limit=1)) == 1


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_failed_requests_of_a_trace_are_left_out_and_counted(tmp_path):
    """The first, the last, one with a prompt and one without."""
    rows = ("5,GPT-4,0,0,0,API log", "45,GPT-4,87,30,117,API log", "50,GPT-4,9,0,9,API log", "52,GPT-4,3,1,4,API log")
    made = read(tmp_path, BURST + "\n".join([*rows, rows[0].replace("5", "60", 1), ""]))
    assert (made.at_s.tolist(), made.prompt_tokens.tolist(), made.new_tokens.tolist()) == ([0, 7], [87, 3], [30, 1])
    assert (made.facts["requests"], made.facts["failed_requests_left_out"]) == (2, 3)
    assert "failed_requests_left_out" not in read(tmp_path, BURST + rows[1] + "\n").facts
    with pytest.raises(UsageError, match="no request in it but 1 that failed"):
        read(tmp_path, BURST + rows[0] + "\n")
    with pytest.raises(UsageError, match=r"t.csv:2\] it has 0 tokens"):
        read(tmp_path, BURST + "5,GPT-4,0,7,7,API log\n")


def test_json_lines_name_their_experts(tmp_path):
    rows = [{"timestamp": t, "ContextTokens": 5, "GeneratedTokens": 2, "expert": e} for t, e in ((2, "c"), (3.5, "a"))]
    made = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")
    assert (made.expert_index.tolist(), made.at_s.tolist()) == ([2, 0], [0, 1.5])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (AZURE + "2023-11-16 18:17:05.1,31", "line 4 has no end, so that the file may be cut off in the middle"),
        (AZURE + "2023-11-16 18:17:05.1,31\n", r"t.csv:4\] it has 2 of 3 columns: the file is cut off in the middle"),
        (AZURE + "2023-11-16 18:17:05.1,31,\n", "'' is no number of tokens"),
        (AZURE + "2023-11-16 18:17:05.1,0,2\n", "it has 0 tokens"),
        (AZURE + "yesterday,1,2\n", "'yesterday' is no time"),
        (AZURE + "2023-11-16 18:17:01,1,2\n", "before the request above it; sort the file"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,timestamp\n1,2,3,4\n", r"t.csv:1\] it has 2 columns timestamp"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "it has no column generatedtokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "there is no request in it"),
        ("", "there is no request in it"),
    ],
)
def test_a_damaged_trace_is_one_sentence(tmp_path, text, sentence):
    with pytest.raises(UsageError, match=sentence):
        read(tmp_path, text)


def test_json_lines_cut_off_in_the_middle(tmp_path):
    with pytest.raises(UsageError, match=r"t.jsonl:2\] this line is not JSON: .* the file may be cut off"):
        read(tmp_path, '{"timestamp":1,"ContextTokens":2,"GeneratedTokens":3}\n{"timestamp":2,"Conte\n', "t.jsonl")


def test_json_lines_are_read_as_those_of_questions_and_examples(tmp_path):
    """Blank lines and a byte order mark mean nothing; a separator within a text ends no line; a file must be there."""
    row = '{"timestamp":1,"ContextTokens":2,"GeneratedTokens":3,"note":"a\u2028b"}\n'
    assert read(tmp_path, "\ufeff" + row + "\n \n" + row, "t.jsonl").prompt_tokens.tolist() == [2, 2]
    with pytest.raises(UsageError, match="there are no requests in it"):
        read(tmp_path, "\n \n", "t.jsonl")
    with pytest.raises(UsageError, match=r"t.jsonl:1\] this line is JSON, but no object"):
        read(tmp_path, "[1]\n", "t.jsonl")
    with pytest.raises(NotFoundError, match="there is no such file of requests"):
        read_workload(tmp_path / "none.jsonl", NAMES, UNIFORM, 0)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ('"ContextTokens":2,"Expert":"a"', '"ContextTokens":2', r"t.jsonl:2\] only one of this request and the first"),
        ('"ContextTokens":2', '"ContextTokens":2,"Expert":"a"', r"t.jsonl:2\] only one of this request and the first"),
        ('"ContextTokens":2', '"ContextTokens":2.5', "2.5 is no number of tokens"),
        (
            '"ContextTokens":2',
            '"ContextTokens":2,"Priority":0.5',
            r"t.jsonl:2\] 0.5 is no priority; write a whole number",
        ),
        ('"ContextTokens":2', '"ContextTokens":2,"Priority":"soon"', "'soon' is no priority"),
        ('"ContextTokens":2', '"ContextTokens":true', "True is no number of tokens"),
        ('"ContextTokens":2', '"ContextTokens":2,"timestamp":false', "False is no time"),
        ('"ContextTokens":2', '"ContextTokens":Infinity', "inf is no number of tokens"),
        ('"ContextTokens":2', '"ContextTokens":99999999999999999999', "it has 99999999999999999999 tokens"),
    ],
)
def test_rows_that_do_not_belong_together_or_hold_no_length(tmp_path, first, second, sentence):
    text = "".join(f'{{"timestamp":1,"GeneratedTokens":3,{row}}}\n' for row in (first, second))
    with pytest.raises(UsageError, match=sentence):
        read(tmp_path, text, "t.jsonl")


def test_a_file_may_have_priorities(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens{}\n1,2,3{}\n2,2,3{}\n2,2,3{}\n"
    load = read(tmp_path, text.format(",Priority", ",1", ",-1", ","))
    assert load.ranks.tolist() == [1, -1, 0]
    assert {priority: its.tolist() for priority, its in load.by_priority.items()} == {-1: [1], 0: [2], 1: [0]}
    assert load.only(np.array([0, 2])).ranks.tolist() == [1, 0]
    assert read(tmp_path, text.format("", "", "", "")).priorities is None


def test_so_many_of_a_load_are_behind():
    drawn = make_workload(load(requests=4000, low_priority_share=0.25), NAMES)
    assert 0.22 < drawn.ranks.mean() < 0.28
    same = make_workload(load(requests=4000), NAMES)
    assert np.array_equal(drawn.expert_index, same.expert_index)
    assert same.priorities is None


def test_an_expert_that_does_not_exist(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens,Expert\n1,2,3,a\n2,2,3,d\n"
    with pytest.raises(NotFoundError, match=r"t.csv:3\] there is no expert 'd' among 3"):
        read(tmp_path, text)
    (tmp_path / "m.json").write_text('{"d": 1}')
    with pytest.raises(NotFoundError, match="there is no expert 'd' among 3"):
        mix_named(str(tmp_path / "m.json"), NAMES)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rate": -3.0}, r"--rate\] is -3 requests/s; give a number above 0"),
        ({"rate": math.nan}, "is nan requests/s"),
        ({"rate": None, "in_flight": 0}, r"--in-flight\] is 0"),
        ({"in_flight": 4}, "both are given; give one"),
        ({"rate": None}, "neither is given"),
        ({"arrivals": "lumpy"}, "'lumpy' is not known; use one of poisson, bursty, steady"),
        ({"requests": 0}, r"--requests\] is 0"),
        ({"low_priority_share": 1.0}, r"--behind\] is 1; give a share, from 0 to below 1"),
    ],
)
def test_impossible_loads(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        load(**changes)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-5", "uniform:9:3", "uniform:3", "normal:3", "geometric:x", "lognormal:9:-1"),
        *("1e19", "uniform:1:1e19", "geometric:1e300", "lognormal:100:1000"),
    ],
)
def test_lengths_that_are_none(text):
    with pytest.raises(UsageError, match=r"--prompt\] "):
        lengths_named(text, "--prompt")


def test_lengths_stay_within_what_a_number_holds():
    drawn = lengths_named("lognormal:2000000000:10", "--prompt").draw(np.random.default_rng(1), 1000)
    assert (drawn.min(), drawn.max()) == (1, 1 << 31)


@pytest.mark.parametrize("text", ["lumpy", "zipf:", "zipf:x", "zipf:-1", "none.csv"])
def test_mixes_that_are_none(text):
    with pytest.raises(UsageError, match=r"--mix\] "):
        mix_named(text, NAMES)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("a,1\nb\n", "a line is 'b'"),
        ("a,-1\n", "the count of a is '-1'"),
        ("a,0\n", "no expert is asked for"),
        ("expert,count\na,1\nb,3\na,2\n", "a is counted more than once"),
    ],
)
def test_counts_that_are_none(tmp_path, text, fact):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UsageError, match=fact):
        mix_named(str(tmp_path / "m.csv"), NAMES)


def test_a_promise():
    slo = parse_slo("ttft=1s, tpot=50ms,share=0.9")
    assert (slo.ttft_s, slo.tpot_s, slo.e2e_s, slo.share) == (1.0, 0.05, math.inf, 0.9)
    times = np.array([0.5, 1.0, 1.5]), np.array([0.05, 0.06, 0.01]), np.array([9.0, 9.0, 9.0])
    assert slo.met_by(*times).tolist() == [True, False, False]


@pytest.mark.parametrize("text", ["", "ttft", "ttft=1", "ttft=-1s", "ttft=0s", "speed=1s", "ttft=1s,ttft=2s",
                                  "ttft=1s,share=2", "share=0.9"])  # fmt: skip
def test_promises_that_are_none(text):
    with pytest.raises(UsageError, match=r"--slo\] "):
        parse_slo(text)


@pytest.mark.parametrize("expert", ['["a"]', '{"a": 1}', "7", "true", '"c"', '"\\ud800"'])
def test_what_is_no_experts_name_is_refused(expert, tmp_path):
    (tmp_path / "w.jsonl").write_text(f'{{"timestamp": 1, "prompt_tokens": 2, "new_tokens": 3, "expert": {expert}}}\n')
    with pytest.raises(NotFoundError, match=r"w.jsonl:1\] there is no expert .* among 2"):
        read_workload(tmp_path / "w.jsonl", ["a", "b"], mix_named("uniform"), 0)


@pytest.mark.parametrize("at", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "[1]", "{}", '"soon"', "true", '""'])
def test_what_is_no_time_is_refused(at, tmp_path):
    (tmp_path / "w.jsonl").write_text(f'{{"timestamp": {at}, "prompt_tokens": 2, "new_tokens": 3}}\n')
    with pytest.raises(UsageError, match=r"w.jsonl:1\] .* is no time"):
        read_workload(tmp_path / "w.jsonl", ["a", "b"], mix_named("uniform"), 0)
