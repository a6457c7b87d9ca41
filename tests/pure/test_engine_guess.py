"""Tokens that are guessed ahead: the answers are those of one token a step, whatever is guessed, kept and refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import engine_world
import numpy as np
import pytest
from engine_world import GuessedDevice, Words, alone, ask, run_all, text_of, world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_serving import policies, requests

from coterie.core.errors import CapacityError, UsageError
from coterie.engine.batch import Guessed
from coterie.engine.policy import CPU_FLOPS_PER_BYTE, MAX_GUESSES, Balance, Policy
from coterie.engine.request import ChoiceParams
from coterie.engine.sequence import Sequence
from coterie.engine.speculate.draft import RIGHT, AcceptanceRate
from coterie.engine.speculate.guess import Guesser, Price, _sources, keep_guesses
from coterie.engine.speculate.lookup import Lookup, Tally
from coterie.engine.speculate.prediction import Prediction
from coterie.engine.speculate.propose import Proposal
from coterie.graph.compile import compile_graph
from coterie.models.zoo import zoo_model
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine


@pytest.fixture(autouse=True)
def _device(monkeypatch):
    monkeypatch.setattr(engine_world, "TellingDevice", GuessedDevice)


def several(w):
    """Tokens and rows of the runs that had guesses."""
    sizes = [(binding.rows.sizes, steps) for _, _, binding, steps in w.device.runs]
    return [(size.T, size.R) for size, _ in sizes if size.T == size.R > size.B]


def both_happened(w):
    metrics = w.engine.metrics
    return 0 < metrics.accepted_tokens < metrics.guessed_tokens


def test_guesses_save_steps_and_change_no_token():
    asked = ask("r", "few-a", prompt=(1, 2, 1, 0, 2), max_tokens=34)
    steps = {}
    for guesses in (0, 3, MAX_GUESSES):
        w = world({"few-a": 4}, 4, policy=Policy(max_steps=1, max_guesses=guesses))
        w.engine.submit(asked)
        got = run_all(w)["r"]
        assert got.tokens == alone(asked)
        assert w.engine.metrics.drawn_tokens == 34
        steps[guesses] = w.engine.metrics.steps
        assert both_happened(w) == (guesses != 0)
        timings = got.last.timings
        counted = w.engine.metrics.guessed_tokens, w.engine.metrics.accepted_tokens
        assert (timings.guessed_tokens, timings.accepted_tokens) == counted
        assert max([T for T, _ in several(w)], default=0) <= 1 + guesses
    assert steps[MAX_GUESSES] < steps[0] == 34
    assert f"({counted[1]} of {counted[0]} drafts accepted)" in str(w.engine.metrics)


@settings(max_examples=25, deadline=None)
@given(
    requests, policies, st.integers(5, 12), st.integers(8, 30), st.integers(1, 4), st.sampled_from([0, 2, MAX_GUESSES])
)
def test_everyone_is_served_as_if_alone(items, policy, near, kv_blocks, arrivals, guesses):
    w = world({"few-a": 2, "b": 3, "few-b": 4}, near, kv_blocks, replace(policy, max_guesses=guesses))
    names, asked, got = {"a": "few-a", "b": "b", "c": "few-b", "d": "few-b"}, [], {}
    for number, (expert, prompt, max_tokens, ends) in enumerate(items):
        few = [token % 3 for token in prompt]
        how = {"end_ids": (2,) * (number % 3), "ignore_end": not ends}
        request = ask(f"r{number}", names[expert], few, 3 * max_tokens, **how)
        try:
            w.engine.submit(request)
        except CapacityError:
            continue
        asked.append(request)
        if number % arrivals == 0:
            for output in w.engine.step():
                got.setdefault(output.request_id, []).append(output.token_ids)
    for name, result in run_all(w).items():
        got.setdefault(name, []).append(result.tokens)
    for request in asked:
        assert sum(got[request.request_id], ()) == alone(request)
    assert w.pool.free_blocks == w.pool.num_blocks
    assert all(rows <= min(policy.max_batch, policy.max_step_tokens) for _, rows in several(w))


def test_an_answer_ends_within_its_guesses():
    """At an end token, at a stop string and at its length: nothing behind that is shown, counted or shared."""
    prompt = (1, 2, 1, 0, 2)
    whole = alone(ask("r", "few-a", prompt, 34))
    ends, lengths = set(), range(1, 34)
    for length in lengths:
        w = world({"few-a": 4}, 4, max_steps=1, max_guesses=MAX_GUESSES)
        text = text_of(whole[:length])
        given = {"end": {"end_ids": (whole[length - 1],), "ignore_end": False}, "length": {}, "stop": {}}
        given["stop"] = {"stop": (text[-4:],), "detokenizer": Words()}
        for name, fields in given.items():
            limit = length if name == "length" else 34
            w.engine.submit(ask(name, "few-a", prompt, limit, **fields))
            got = run_all(w)[name]
            first = whole.index(whole[length - 1]) + 1
            count = {"end": first, "length": length, "stop": len(got.tokens)}[name]
            assert got.tokens == whole[:count]
            assert got.last.finish_reason == ("length" if name == "length" else "stop")
            assert got.last.timings.accepted_tokens <= got.last.timings.guessed_tokens
            if name == "stop":
                assert got.text == text_of(whole)[: text_of(whole).index(text[-4:])]
            ends.add((name, several(w) != []))
    assert {("length", True), ("stop", True)} <= ends


def test_what_is_kept_ends_with_an_end_token():
    """Though what was guessed behind it was drawn as well."""
    sequence = Sequence(ask("r", "few-a", (1, 2), 20, end_ids=(2,), ignore_end=False), 40, 0.0)
    by_row = [[5], [2], [7], [9]]
    batch = SimpleNamespace(guessed=[Guessed(sequence, 0, 1, (5, 2, 7))])
    assert keep_guesses(batch, by_row) == (3, 1)
    assert (by_row[0], sequence.computed, sequence.guessed, sequence.accepted) == ([5, 2], 1, 3, 1)


def test_who_is_chosen_for_on_the_host_is_guessed_for_in_the_same_steps():
    chosen = ask("c", "few-a", (1, 2, 1, 0, 2), 30, choice=ChoiceParams(logit_bias=((1, 0.5),)))
    drawn = ask("d", "few-a", (1, 2, 1, 0, 2, 1), 30)
    w = world({"few-a": 4}, 4, max_guesses=MAX_GUESSES)
    w.device.logits = lambda event, rows: np.zeros((len(rows), engine_world.VOCAB), np.float32)
    for request in (chosen, drawn):
        w.engine.submit(request)
    got = run_all(w)
    assert got["d"].tokens == alone(drawn)
    assert got["c"].tokens == (1,) * 30
    assert got["c"].last.timings.accepted_tokens > 0
    assert got["d"].last.timings.accepted_tokens > 0
    assert {(T, R) for T, R in several(w) if T > 3}


def test_a_prediction_is_guessed_from_its_first_token_on_and_changes_none():
    plain = ask("r", "a", (1, 2), 30)
    wanted = alone(plain)
    changed, steps = (*wanted[:9], 49, 48, *wanted[12:], 47), {}  # one of those that were changed comes elsewhere
    for said, counts in ((wanted, (30, 0)), (changed, (28, 2)), ((), (0, 0)), ((1, 47) * 5, (0, 10))):
        w = world({"a": 4}, 4, policy=Policy(max_steps=1, max_guesses=MAX_GUESSES))
        w.engine.submit(replace(plain, prediction=said))
        got = run_all(w)["r"]
        assert got.tokens == wanted
        steps[said] = w.engine.metrics.steps
        assert (got.last.timings.predicted_tokens, got.last.timings.unpredicted_tokens) == counts
    assert 4 == steps[wanted] <= steps[changed] < steps[()]
    w = world({"a": 4}, 4, policy=Policy(max_guesses=0))
    w.engine.submit(replace(plain, prediction=wanted))
    got = run_all(w)["r"]
    assert (got.tokens, got.last.timings.predicted_tokens, got.last.timings.unpredicted_tokens) == (wanted, 0, 0)


def test_cancelled_and_failing_sequences_leave_only_what_was_drawn():
    w = world({"few-a": 4}, 4, max_steps=1, max_guesses=MAX_GUESSES)
    prompt = (1, 2, 1, 0, 2)
    first, then = ask("r", "few-a", prompt, 34), ask("s", "few-a", prompt + alone(ask("s", "few-a", prompt, 10)), 24)
    w.engine.submit(first)
    tokens = ()
    while w.engine.metrics.accepted_tokens < 6:
        tokens += sum((output.token_ids for output in w.engine.step()), ())
    assert tokens == alone(first)[: len(tokens)]
    w.engine.cancel("r")
    assert run_all(w)["r"].last.finish_reason == "cancelled"
    w.engine.submit(then)
    got = run_all(w)["s"]
    assert got.tokens == alone(then)
    assert got.last.timings.cached_tokens > 0
    w.engine.submit(replace(then, request_id="t"))
    for _ in range(4):
        w.engine.step()
    w.device.broken.add("run")
    assert run_all(w)["t"].last.error is not None
    w.device.broken.clear()
    w.engine.submit(replace(then, request_id="u"))
    assert run_all(w)["u"].tokens == alone(then)


def test_a_long_answer_shares_what_was_accepted_with_its_next_turn():
    w = world({"few-a": 4}, 4, max_steps=1, max_guesses=MAX_GUESSES)
    said = (1, 2, 1, 0, 2)
    for turn in range(3):
        request = ask(f"r{turn}", "few-a", said, 9)
        w.engine.submit(request)
        got = run_all(w)[f"r{turn}"]
        assert got.tokens == alone(request)
        said += (*got.tokens, turn)
        per_block = w.pool.tokens_per_block(w.experts["few-a"].kv)
        known = (len(request.prompt_ids) - 2) // per_block * per_block  # without the last token, and what was added
        assert got.last.timings.cached_tokens == (known if turn else 0)


def test_what_cannot_be_rolled_back_is_not_guessed():
    w = world({"few-a": 4}, 4)
    guesser, sequence = Guesser(Policy(max_guesses=15), w.device), Sequence(ask("r", "few-a", (1, 2) * 9, 20), 40, 0.0)
    plain = w.experts["few-a"]
    recurrent = replace(plain, kv=replace(plain.kv, state_units=1, unit_bytes=8))
    assert guesser.guess(replace(recurrent, expert_id="other"), [sequence], 1) is None
    assert guesser.guess(plain, [sequence], 1) == [(1, 2) * 7 + (1,)]


def test_what_is_served_under_a_name_since_is_another_expert():
    """Nothing of the one before counts: whether it can be guessed for, its price, how often it was right."""
    w = world({"few-a": 4}, 4)
    guesser, sequence = Guesser(Policy(max_guesses=15), w.device), Sequence(ask("r", "few-a", (1, 2) * 9, 20), 40, 0.0)
    plain = w.experts["few-a"]
    assert guesser.guess(plain, [sequence], 1)
    before = guesser._known(plain)
    guesser.renewed("few-a")
    assert guesser._known(plain) is not before
    recurrent = replace(plain, kv=replace(plain.kv, state_units=1, unit_bytes=8))
    assert guesser.guess(recurrent, [sequence], 1) is None


def test_where_all_are_certain_everyone_is_guessed_for_first(monkeypatch):
    w = world({"few-a": 4}, 4)
    sequences = [Sequence(ask(name, "few-a", (1, 2), 20), 40, 0.0) for name in "rs"]
    seen = {"r": Proposal([1, 2, 3], [1.0, 1.0, 1.0]), "s": Proposal([4], [1.0])}
    monkeypatch.setattr("coterie.engine.speculate.guess._propose", lambda one, *_: seen[one.request.request_id])
    for rows, wanted in ((4, [(1,), (4,)]), (5, [(1, 2), (4,)]), (2, None)):
        guesser = Guesser(Policy(max_guesses=15, max_batch=rows), w.device)
        assert guesser.guess(w.experts["few-a"], sequences, 1) == wanted


def test_a_prediction_is_asked_before_what_was_said():
    request = replace(ask("r", "few-a", (1, 2), 20), prediction=(3, 4))
    assert [type(source) for source in _sources(Sequence(request, 40, 0.0), Tally())] == [Prediction, Lookup]


def price(weight_bytes, flops, row_flops, kv_bytes=0.0):
    return Price(weight_bytes + flops / 2.5, row_flops / 2.5, row_flops / 2.5, 0.0, kv_bytes)


def test_guesses_are_worth_their_price():
    """How many: by how likely they are, none where rows are dear or chances small. Of an expert of 500M weights."""
    made = Guesser(Policy(), world({"a": 1}, 1).device)
    sequence = SimpleNamespace(tokens=[0] * 100)

    def count(chance, price, sequences=1, steps=1):
        chances = [(chance ** (place + 1), -place, 0) for place in range(15)]
        return made._counts(price, [sequence] * sequences, chances, steps)

    bf16, int4 = price(2**30, 2**30, 2**30), price(2**28, 2**30, 2**30)
    assert [count(chance, bf16)[0] for chance in (0.3, 0.6, 0.8, 1.0)] == [0, 1, 3, 15]
    assert [count(chance, int4)[0] for chance in (0.3, 0.6, 0.8, 1.0)] == [0, 0, 1, 15]
    small = price(2**20, 2**20, 2**20)
    assert count(0.8, small, steps=8)[0] == 0 < count(0.8, small, steps=1)[0]
    # Beside one that gains nothing a step takes at most half as long again.
    assert 0 < count(1.0, bf16, sequences=2)[0] < 5


def test_a_price_counts_rows_and_what_each_of_them_sees():
    """Positions are seen by each row, and their keys and values read once for all rows of a sequence."""
    made, (short, long) = Price(100, 10, 7, 0.5, 2), (SimpleNamespace(tokens=[0] * length) for length in (3, 5))
    assert made.step([short, long]) == 100 + 7 + (3 + 5) * 2.5
    assert made.step([long] * 6) == 100 + 3 * 7 + 2 * 10 + 6 * 5 * 2.5
    assert [made.guess(long, rows) for rows in (2, 4, 5, 16)] == [9.5, 9.5, 12.5, 12.5]


def test_prices_come_from_the_program():
    model = zoo_model("llama-2-7b")
    exe = SimpleNamespace(program=compile_graph(model.graph, "cache"))
    found = Price.of(SimpleNamespace(exe=exe, kv=model.kv), Balance(few=5.0, more=2.5))
    weights = 6.6e9  # without the table of embeddings
    assert found.first == pytest.approx(2 * weights + 2 * weights / 2.5, rel=0.02)
    assert found.row == pytest.approx(2 * weights / 2.5, rel=0.02)
    assert found.few == pytest.approx(2 * weights / 5.0, rel=0.02)
    assert found.kv == 2 * 32 * 4096 * 2
    assert found.seen == pytest.approx(32 * (4 * 4096 + 32 * 5) / 2.5)


@pytest.mark.parametrize(("machine", "guesses"), [("epyc-2core", MAX_GUESSES), ("h100", 0), ("sn40l-node", 0)])
def test_accelerators_guess_nothing_unless_told_nor_do_small_experts(machine, guesses):
    spec = load_machine(machine)
    assert Policy().guesses_of(2**30, spec) == guesses
    assert Policy().guesses_of(2**20, spec) == 0
    assert Policy(max_guesses=3).guesses_of(2**20, spec) == 3
    assert (Policy().constrained_guesses_of(spec), Policy(max_guesses=3).constrained_guesses_of(spec)) == (
        guesses,
        3,
    )  # of any expert
    bytes_per_s = spec.tier(spec.run_tier).achieved_bytes_per_s
    share = pytest.approx(spec.achieved_flops_per_s / bytes_per_s)
    assert Policy().balance_of(spec) == Balance(share, share)


def test_a_machine_whose_speed_is_unknown_has_a_balance():
    plain = replace(this_machine(), flops_per_byte=0.0, few_flops_per_byte=0.0)
    wide = replace(plain, flops_per_byte=6.0, few_flops_per_byte=12.0)
    assert Policy().balance_of(plain) == Balance(CPU_FLOPS_PER_BYTE, CPU_FLOPS_PER_BYTE)
    assert Policy().balance_of(wide) == Policy().balance_of(plain, of_kernels=True) == Policy().balance_of(plain)
    assert Policy().balance_of(wide, of_kernels=True) == Balance(few=12.0, more=6.0)
    assert Policy(flops_per_byte=7).balance_of(wide, of_kernels=True) == Balance(7, 7)
    with pytest.raises(UsageError, match="max_guesses is -1; give 0 or more"):
        Policy(max_guesses=-1)


def test_shares_move_with_what_is_counted():
    share = AcceptanceRate()
    assert share.value == RIGHT
    for _ in range(300):
        share.count(0, 1)
    assert share.value < 0.02
    assert share.for_new_answer().value == RIGHT  # a bad answer is held against no other
    for _ in range(100):
        share.count(1, 1)
    assert 0.8 < share.value < 1
    assert share.for_new_answer().value == share.value
