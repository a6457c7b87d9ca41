"""A router that asks a model, on the CPU: the demo's brackets expert says yes or no, and so two experts are named.

ask -> a request like any other -> its answer -> decide -> the expert's request.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.system.commands import run
from tests.system.test_python import open_held
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Options, Query
from coterie.composition.composition import PRESETS
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CapacityError, NotFoundError, RequestError, UnsupportedError

EXPERTS = PRESETS / "demo" / "experts"
BALANCED, UNBALANCED, NEITHER = "Are the brackets in ([]) balanced?", "Are the brackets in ([)] balanced?", "hello"
FILE = """
name = "judge"
[router]
kind = "llm"
checkpoint = "{experts}/brackets"
question = "{{prompt}}"
max_tokens = {max_tokens}
fallback = "maybe"
[[expert]]
name = "yes"
checkpoint = "{experts}/letter-count"
[[expert]]
name = "no"
checkpoint = "{experts}/reversal"
[[expert]]
name = "maybe"
checkpoint = "{experts}/general"
"""


def write(folder: Path, max_tokens: int = 40) -> str:
    path = folder / "judge.toml"
    path.write_text(FILE.format(experts=EXPERTS, max_tokens=max_tokens))
    return str(path)


@pytest.fixture
def judge(tmp_path):
    with Coterie.open(write(tmp_path)) as coterie:
        yield coterie


@pytest.mark.parametrize(
    ("prompt", "expert", "unsure"), [(BALANCED, "yes", False), (UNBALANCED, "no", False), (NEITHER, "maybe", True)]
)
def test_the_models_answer_names_the_expert_that_answers(judge, prompt, expert, unsure):
    answer = judge.ask(prompt)
    assert (answer.expert, answer.route.is_fallback) == (expert, unsure)
    assert answer.finish_reason == "stop"
    assert 0 < answer.routed_s < answer.ttft_s <= answer.total_s
    assert "router's model" in answer.route.reason
    assert answer.text == judge.ask(Query.text(prompt, model=expert)).text, "the expert reads the prompt as it is"
    assert judge.route(Query.text(prompt)).expert == expert
    assert judge.idle


def test_many_prompts_at_once_go_where_each_goes_alone(judge):
    prompts = [BALANCED, NEITHER, UNBALANCED] * 4
    alone = {prompt: judge.ask(prompt) for prompt in dict.fromkeys(prompts)}
    before = judge.parts.engine.metrics.admitted
    answers = judge.ask_all([Query.text(prompt) for prompt in prompts])
    assert judge.parts.engine.metrics.admitted - before == 2 * len(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert (answer.expert, answer.token_ids) == (alone[prompt].expert, alone[prompt].token_ids)
    assert ROUTER in judge.parts.all_weights.resident()
    assert ROUTER not in judge.parts.cache.resident(), "it lives beside the experts, never in their place"
    judge.parts.engine.check_integrity()


def test_an_address_or_a_model_asks_nobody(judge):
    before = judge.parts.engine.metrics.admitted
    addressed, named = judge.ask(f"@no {BALANCED}"), judge.ask(Query.text(BALANCED, model="maybe"))
    assert (addressed.expert, named.expert) == ("no", "maybe")
    assert addressed.routed_s == named.routed_s == 0
    assert judge.parts.engine.metrics.admitted - before == 2


def test_a_conversation_stays_unless_another_leads_by_the_margin(judge):
    turns = (Message("user", UNBALANCED), Message("assistant", "no"), Message("user", NEITHER))
    unsure = judge.ask(Query(turns, previous_expert="no"))
    assert (unsure.expert, unsure.route.is_fallback) == ("no", False)
    again = (*turns[:2], Message("user", BALANCED))
    assert judge.ask(Query(again, previous_expert="no")).expert == "yes"
    with pytest.raises(NotFoundError, match="no expert 'nobody'"):
        judge.ask(Query(again, previous_expert="nobody"))


def test_a_query_that_is_cancelled_while_a_model_is_asked_ends_with_one_chunk(judge):
    gone, stays = judge.submit(Query.text(BALANCED)), judge.submit(Query.text(UNBALANCED))
    judge.cancel(gone)
    chunks = []
    while not judge.idle:
        chunks += judge.step()
    (last,) = [chunk for chunk in chunks if chunk.request_id == gone]
    assert last.answer.finish_reason == "cancelled"
    assert (last.text, last.token_ids) == ("", ())
    assert [c.answer.expert for c in chunks if c.request_id == stays and c.last] == ["no"]


def test_who_looks_on_hears_of_each_end_while_a_model_is_asked(judge, monkeypatch):
    happened = []
    judge.watch.follow(happened.append)
    judge.cancel(judge.submit(Query.text(BALANCED)))
    judge.abandon([judge.submit(Query.text(BALANCED))])
    while not judge.idle:
        judge.step()
    monkeypatch.setattr(judge._parts.engine, "submit", refuse)
    with pytest.raises(RequestError):
        judge.submit(Query.text(BALANCED))
    about = [one for one in happened if "/ask-" not in one.facts.get("request", "")]
    begun = {one.facts["request"] for one in about if one.what == "routing"}
    ends = [(one.facts["request"], one.facts["reason"], one.facts["was"]) for one in about if one.what == "ended"]
    assert sorted(end[1:] for end in ends) == [("cancelled", "routing")] * 2 + [("refused", "routing")]
    assert {request for request, *_ in ends} == begun


def refuse(request):
    raise RequestError(request.request_id, "cannot be asked")


def test_leaving_a_stream_early_stops_what_was_asked(judge):
    stream = judge.stream(Query.text(BALANCED))
    next(stream)
    stream.close()
    asked = judge.submit(Query.text(BALANCED))
    judge.abandon([asked])
    while not judge.idle:
        assert judge.step() == []
    assert judge.ask(BALANCED).expert == "yes"


def test_routing_keeps_what_others_say_meanwhile(judge):
    other = judge.submit(Query.text(NEITHER, model="no"))
    assert judge.route(Query.text(BALANCED)).expert == "yes"
    said = []
    while not judge.idle:
        said += judge.step()
    assert "".join(chunk.text for chunk in said) == said[-1].answer.text
    assert said[-1].request_id == other


def test_routing_keeps_no_thread_from_an_expert_that_is_there(tmp_path):
    coterie, arrives, waits = open_held(write(tmp_path))
    with coterie, ThreadPoolExecutor(2) as pool:
        coterie.ask(Query.text(BALANCED, model="yes"))
        arrives.clear()
        route = pool.submit(coterie.route, Query.text(UNBALANCED))
        assert waits.wait(20)
        answer = pool.submit(coterie.ask, Query.text(BALANCED, model="yes"))
        try:
            assert answer.result(10).hit
            assert not route.done()
        finally:
            arrives.set()
        assert route.result().expert == "no"
        assert coterie.idle


def test_a_prompt_too_long_for_the_routers_model_is_refused_at_once(judge):
    with pytest.raises((RequestError, CapacityError), match="tokens"):
        judge.submit(Query.text("(" * 5000))
    assert judge.idle
    assert judge.ask(BALANCED).expert == "yes"


def test_a_prompt_too_long_for_the_expert_goes_to_another(tmp_path):
    write_expert(tmp_path / "short", 1, max_position_embeddings=8)
    path = Path(write(tmp_path))
    path.write_text(path.read_text().replace(f"{EXPERTS}/general", "short"))
    with Coterie.open(str(path)) as coterie:
        answer = coterie.ask(NEITHER * 3)
        assert answer.expert != "maybe"
        assert answer.route.reason.startswith("maybe has a context of 8 tokens, and the prompt ")
        with pytest.raises(RequestError, match="context of this expert holds 8"):
            coterie.ask(Query.text(NEITHER * 3, "maybe"))


def test_what_the_expert_refuses_ends_the_query_alone(tmp_path):
    tools = ({"type": "function", "function": {"name": "now"}},)
    with Coterie.open(write(tmp_path)) as coterie:
        with_tools = replace(Query.text(NEITHER), tools=tools)
        refused, stays = coterie.submit(with_tools), coterie.submit(Query.text(BALANCED))
        chunks = []
        while not coterie.idle:
            chunks += coterie.step()
        ends = {chunk.request_id: chunk for chunk in chunks if chunk.last}
        assert isinstance(ends[refused].error, RequestError)
        assert ends[stays].answer.expert == "yes"
        with pytest.raises(RequestError, match="has no chat template that takes tools"):
            coterie.ask(with_tools)


def test_an_answer_that_is_cut_off_names_nobody(tmp_path):
    with Coterie.open(write(tmp_path, max_tokens=2)) as coterie:
        answer = coterie.ask(BALANCED)
    assert (answer.expert, answer.route.is_fallback) == ("maybe", True)


def test_real_tokens_in_modelled_time_route_alike_and_made_up_ones_are_refused(tmp_path):
    with Coterie.open(write(tmp_path), Options(device="modelled:toy-tiers")) as coterie:
        assert coterie.ask(UNBALANCED).expert == "no"
    with Coterie.open(write(tmp_path), Options(device="synthetic:toy-tiers")) as coterie:
        with pytest.raises(UnsupportedError, match="this device's tokens are synthetic; name the expert"):
            coterie.ask(BALANCED)
        assert coterie.ask(f"@yes {BALANCED}").expert == "yes"


def test_the_commands_ask_too(tmp_path):
    path = write(tmp_path)
    routed = run("route", path, BALANCED, NEITHER, "--json")
    assert routed.exit_code == 0, routed.output
    assert [row["expert"] for row in json.loads(routed.stdout)] == ["yes", "maybe"]
    answered = run("run", path, UNBALANCED, "--json")
    assert answered.exit_code == 0, answered.output
    assert json.loads(answered.stdout)["expert"] == "no"
    checked = run("check", path)
    assert "for the router's model" in checked.stdout
    shapes = run("route", "samba-coe-150", "hello")
    assert shapes.exit_code == 2
    assert "has a config but no weights" in shapes.stderr
