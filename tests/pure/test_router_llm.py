"""The llm router: what it asks, which expert an answer names, and how a composition file declares it."""

from __future__ import annotations

import json

import pytest

from coterie.composition.composition import load_composition
from coterie.composition.router import Prompt
from coterie.composition.routers.llm import ROUTER, LlmRouter
from coterie.composition.routing import Routing
from coterie.core.errors import CompositionError, UnsupportedError

EXPERTS = {"law": "statutes", "law-chat": "", "sums": "adds"}
FILE = """
name = "c"
[router]
kind = "llm"
config = "config.json"
fallback = "a-0"
{more}
[[expert]]
name = "a-{{i}}"
config = "config.json"
count = 3
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))

    def written(more=""):
        (tmp_path / "c.toml").write_text(FILE.format(more=more))
        return str(tmp_path / "c.toml")

    return written


def test_it_asks_its_own_model_with_experts_and_prompt_filled_in():
    router = LlmRouter(EXPERTS, "sums", "one of\n{experts}\nfor {prompt}", 7)
    (ask,) = router.ask(Prompt("a {experts} b"))
    assert (ask.expert, ask.max_tokens) == (ROUTER, 7)
    assert ask.text == "one of\nlaw: statutes\nlaw-chat\nsums: adds\nfor a {experts} b"
    assert router.instructions == "one of\nlaw: statutes\nlaw-chat\nsums: adds\nfor "


def test_it_asks_about_those_who_are_there():
    router = LlmRouter(EXPERTS, "sums", "one of {experts} for {prompt}", 7).among(("sums", "law", "new"))
    assert router.instructions == "one of law: statutes\nsums: adds for "
    assert router.ask(Prompt("?"))[0].max_tokens == 7
    assert router.decide(Prompt("?"), ("law-chat",)).is_fallback


@pytest.mark.parametrize(
    ("answer", "expert"),
    [
        ("law", "law"),
        ("I would ask LAW-CHAT.", "law-chat"),
        ("sums, clearly: sums", "sums"),
        ("The law.", "law"),
    ],
)
def test_the_expert_that_the_answer_names(answer, expert):
    route = LlmRouter(EXPERTS, "sums").decide(Prompt("?"), (answer,))
    assert (route.expert, route.confidence, route.is_fallback) == (expert, 1.0, False)


@pytest.mark.parametrize("answer", ["", "none of them", "lawful", "my-law", "law or sums", "a.law"])
def test_no_name_or_two_is_the_fallback(answer):
    route = LlmRouter(EXPERTS, "law-chat").decide(Prompt("?"), (answer,))
    assert (route.expert, route.confidence, route.is_fallback) == ("law-chat", 0.0, True)


def test_a_composition_declares_it(write):
    spec = load_composition(write('question = "who: {prompt}"\nmax_tokens = 3')).router
    assert spec.model.name == ROUTER
    assert spec.model.config.endswith("config.json")
    assert (spec.question, spec.max_tokens) == ("who: {prompt}", 3)


def test_routing_at_once_says_that_a_model_must_be_asked(write):
    routing = Routing(load_composition(write()))
    assert routing.begin(Prompt("hello")).asks[0].expert == ROUTER
    assert routing.route(Prompt("@a-1 hello"))[0].expert == "a-1"
    with pytest.raises(UnsupportedError, match="asks a model"):
        routing.route(Prompt("hello"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ('question = "who?"', r"router.question\] \{prompt\} is not in it"),
        ("max_tokens = 0", "max_tokens = 0 is out of range"),
        ('checkpoint = "x"', "checkpoint and config are both given"),
        ('revision = "main"', "revision = .* has no meaning without checkpoint"),
    ],
)
def test_refused(write, more, sentence):
    with pytest.raises(CompositionError, match=sentence):
        load_composition(write(more))


def test_the_preset_has_over_a_trillion_parameters():
    preset = load_composition("samba-coe-150")
    assert len(preset.experts) == 150
    assert preset.router.kind == "llm"
