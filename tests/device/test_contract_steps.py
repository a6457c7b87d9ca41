"""What every device must keep of steps: tokens, batches, pieces of prompts, and logits.

Knows nothing about which device it is given; what only devices with bytes can show asks `synthetic()`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.device.contract import PROMPT, WARM, broken_range, needs_bytes, prompt_rows
from tests.device.programs import V, loaded, rows

from coterie.core.errors import TransferError, UnsupportedError
from coterie.device import Sampling
from coterie.engine.history import History
from coterie.engine.request import ChoiceParams
from coterie.graph.compile import compile_graph
from coterie.graph.sampling import draw


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_n_steps_equal_n_single_steps(desk, sampling):
    loaded(desk)
    settings = [sampling, dataclasses.replace(sampling, seed=11)]
    other = [1, 2, 3]
    first = desk.tokens(desk.run(rows([(PROMPT, 0), (other, 0)], settings)))[0]
    single, last = [], first
    for step in range(6):
        chunks = [([last[0]], len(PROMPT) + step), ([last[1]], len(other) + step)]
        last = desk.tokens(desk.run(rows(chunks, settings)))[0]
        single.append(last)
    again = desk.tokens(desk.run(rows([(PROMPT, 0), (other, 0)], settings)))[0]
    assert again == first
    chunks = [([first[0]], len(PROMPT)), ([first[1]], len(other))]
    assert desk.tokens(desk.run(rows(chunks, settings), steps=6)) == single


def test_steps_stop_after_an_end_token(desk):
    loaded(desk)
    first = desk.tokens(desk.run(prompt_rows(sampling=[WARM])))[0][0]
    decode = [([first], len(PROMPT))]
    free = [token for (token,) in desk.tokens(desk.run(rows(decode, [WARM]), steps=8))]
    assert len(free) == 8
    end = free[3]
    stop = free.index(end) + 1
    ended = desk.tokens(desk.run(rows(decode, [WARM], end_ids=((end, V),)), steps=8))
    assert [token for (token,) in ended] == free[:stop]


def test_an_interrupt_ends_one_run_after_a_step(desk):
    loaded(desk)
    first = desk.tokens(desk.run(prompt_rows()))[0]
    decode = rows([(first, len(PROMPT))])
    free = desk.tokens(desk.run(decode, steps=6))
    assert len(free) == 6
    desk.device.interrupt()
    assert desk.tokens(desk.run(decode, steps=6)) == free[:1]
    assert desk.tokens(desk.run(decode, steps=6)) == free


def test_an_interrupt_at_any_time_leaves_a_prefix(desk):
    loaded(desk)
    first = desk.tokens(desk.run(prompt_rows()))[0]
    decode = rows([(first, len(PROMPT))])
    free = desk.tokens(desk.run(decode, steps=8))
    for delay_s in (0.0, 1e-5, 1e-4):
        run = desk.run(decode, steps=8, gates=desk.fetch())
        desk.device.wait_any([run], until=desk.device.now() + delay_s)
        desk.device.interrupt()
        desk.device.interrupt()
        drawn = desk.tokens(run)
        assert 1 <= len(drawn) <= 8
        assert drawn == free[: len(drawn)]
        desk.tokens(desk.run(decode))


def test_many_steps_of_a_prefill_are_refused(desk):
    loaded(desk)
    with pytest.raises(ValueError, match="steps"):
        desk.run(prompt_rows(), steps=2)


def test_chunked_prefill_equals_whole(desk):
    loaded(desk)
    whole = desk.tokens(desk.run(prompt_rows()))
    for cut in (1, 2, 4):
        desk.run(rows([(PROMPT[:cut], 0)]))
        assert desk.tokens(desk.run(rows([(PROMPT[cut:], cut)]))) == whole


def test_a_batch_equals_each_alone(desk):
    loaded(desk)
    prompts = [PROMPT, [1], [40, 41, 42, 43, 44, 45, 46]]
    settings = [Sampling(), WARM, dataclasses.replace(WARM, seed=99)]
    together = desk.tokens(desk.run(rows([(prompt, 0) for prompt in prompts], settings)))[0]
    alone = [desk.tokens(desk.run(rows([(p, 0)], [s])))[0][0] for p, s in zip(prompts, settings, strict=True)]
    assert together == alone
    assert all(0 <= token < V for token in together)


def test_logits_are_those_that_the_step_drew_from(desk):
    needs_bytes(desk.device)
    loaded(desk)
    prompts = [PROMPT, [1], [40, 41, 42, 43, 44, 45, 46]]
    step = rows([(prompt, 0) for prompt in prompts], [Sampling(), WARM, dataclasses.replace(WARM, seed=99)])
    unshared = desk.device.load(compile_graph(desk.graph, desk.device.spec.rule_set, share_buffers=False))
    expected = desk.device.inspect(unshared, desk.binding(step))["head/logits"]
    for _ in range(2):  # the second time captured, on a device that captures
        event = desk.run(step)
        (drawn,) = desk.tokens(event)
        found = desk.device.logits(event, [2, 0, 1])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[[2, 0, 1]])
        for row, (prompt, settings) in enumerate(zip(prompts, step.sampling, strict=True)):
            (one,) = desk.device.logits(event, [row])
            assert draw(one, settings, len(prompt) - 1) == drawn[row]
    found[:] = 0  # they are the caller's
    assert desk.device.logits(event, [0]).any()


def changing(params, prompt, answer=()):
    """Settings with a history of this prompt and answer."""
    history = History(params, prompt)
    for token in answer:
        history.note(token)
    return dataclasses.replace(WARM, changes=history.changes())


@pytest.mark.parametrize(
    "params", [ChoiceParams(repetition_penalty=1.9), ChoiceParams(None, 0.5, 1.5, 1.2, ((3, 9.0),))]
)
def test_logits_are_changed_before_a_token_is_drawn_and_by_what_each_step_drew(desk, params):
    needs_bytes(desk.device)
    loaded(desk)
    prompts = [PROMPT, [40, 41, 42], [9]]
    begin = rows([(prompt, 0) for prompt in prompts], [changing(params, prompts[0]), WARM, changing(params, [9])])
    if not desk.device.changes_logits():
        with pytest.raises(ValueError, match="changed"):
            desk.run(begin)
        return
    event = desk.run(begin)
    (last,) = desk.tokens(event)
    for row, settings in enumerate(begin.sampling):
        assert draw(desk.device.logits(event, [row])[0], settings, len(prompts[row]) - 1) == last[row]
    answers = [[token] for token in last]
    for step in range(7):
        chunks = [([a[-1]], len(p) + step) for a, p in zip(answers, prompts, strict=True)]
        settings = [changing(params, prompts[0], answers[0]), WARM, changing(params, [9], answers[2])]
        event = desk.run(rows(chunks, settings))
        (drawn,) = desk.tokens(event)
        found = desk.device.logits(event, range(3))
        wanted = [draw(z, s, len(p) + step) for z, s, p in zip(found, settings, prompts, strict=True)]
        assert drawn == wanted
        for answer, token in zip(answers, drawn, strict=True):
            answer.append(token)
    chunks = [([a[0]], len(p)) for a, p in zip(answers, prompts, strict=True)]
    settings = [changing(params, prompts[0], answers[0][:1]), WARM, changing(params, [9], answers[2][:1])]
    together = desk.tokens(desk.run(rows(chunks, settings), steps=7))
    assert [list(column) for column in zip(*together, strict=True)] == [answer[1:] for answer in answers]
    plain = desk.tokens(desk.run(rows(chunks, [WARM] * 3), steps=7))  # nothing of it is left behind
    assert [step[1] for step in plain] == answers[1][1:]
    assert plain != together


def test_changes_of_tokens_that_are_none_are_refused(desk):
    needs_bytes(desk.device)
    loaded(desk)
    with pytest.raises(ValueError, match="chang"):
        desk.run(prompt_rows(sampling=[changing(ChoiceParams(logit_bias=((V, 1.0),)), PROMPT)]))


def test_logits_of_more_rows_than_sequences(desk):
    """Those of a prompt that is scored, behind those that are sampled, in any order."""
    needs_bytes(desk.device)
    loaded(desk)
    two = rows([(PROMPT, 0), ([40, 41, 42, 43, 44, 45, 46], 0)])
    picked = [*two.rows_R, 3, 1, 2, len(PROMPT)]
    step = dataclasses.replace(two, rows_R=np.array(picked, dtype=np.int32), sampling=(WARM, *[Sampling()] * 5))
    unshared = desk.device.load(compile_graph(desk.graph, desk.device.spec.rule_set, share_buffers=False))
    expected = desk.device.inspect(unshared, desk.binding(step))["head/logits"]
    event = desk.run(step)
    (drawn,) = desk.tokens(event)
    found = desk.device.logits(event, range(6))
    np.testing.assert_array_equal(found, expected)
    assert drawn[0] == draw(found[0], WARM, len(PROMPT) - 1)
    assert drawn[1:] == found[1:].argmax(axis=1).tolist()
    alone = desk.run(rows([(PROMPT[:2], 0)]))
    assert desk.tokens(alone)[0][0] == drawn[3]


def test_logits_of_a_decode_step_of_fewer_sequences_than_its_bucket(desk):
    needs_bytes(desk.device)
    loaded(desk)
    prompts = [PROMPT, [1, 2], [9]]
    (last,) = desk.tokens(desk.run(rows([(prompt, 0) for prompt in prompts])))
    for _ in range(3):
        chunks = [([token], len(prompt)) for token, prompt in zip(last, prompts, strict=True)]
        event = desk.run(rows(chunks, [WARM] * 3))
        (drawn,) = desk.tokens(event)
        logits = desk.device.logits(event, range(3))
        assert [draw(z, WARM, len(p)) for z, p in zip(logits, prompts, strict=True)] == drawn


def test_logits_are_there_until_the_next_run_and_of_one_step_only(desk):
    needs_bytes(desk.device)
    loaded(desk)
    first = desk.run(prompt_rows())
    ((token,),) = desk.tokens(first)
    for row in (1, -1):
        with pytest.raises(ValueError, match="rows"):
            desk.device.logits(first, [row])
    several = desk.run(rows([([token], len(PROMPT))]), steps=2)
    desk.wait(several)
    inspected = desk.run(prompt_rows())
    desk.wait(inspected)
    desk.device.inspect(desk.exe, desk.binding(prompt_rows()))
    for event in (first, several, inspected):
        with pytest.raises(ValueError, match=str(event.event_id)):
            desk.device.logits(event, [0])
    failed = desk.run(prompt_rows(), gates={"embed": desk.device.fetch(desk.weights, broken_range(desk.layout))})
    desk.wait(failed)
    with pytest.raises(TransferError):
        desk.device.logits(failed, [0])


def test_who_computes_no_numbers_has_no_logits(desk):
    if not desk.device.synthetic():
        pytest.skip("this device computes numbers")
    loaded(desk)
    event = desk.run(prompt_rows())
    desk.wait(event)
    with pytest.raises(UnsupportedError, match="no numbers"):
        desk.device.logits(event, [0])


def test_no_rows_is_a_step_without_tokens(desk):
    loaded(desk)
    event = desk.run(rows([]))
    desk.wait(event)
    assert desk.device.tokens(event).shape == (1, 0)


def test_tokens_that_are_not_sampled_need_no_row(desk):
    loaded(desk)
    step = dataclasses.replace(prompt_rows(), rows_R=np.zeros(0, dtype=np.int32), sampling=())
    event = desk.run(step)
    desk.wait(event)
    assert desk.device.tokens(event).shape == (1, 0)
