"""Addresses, experts named as models, conversations that stay, and compositions without a router."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.composition.composition import load_composition
from coterie.composition.router import Prompt, Route, ranked
from coterie.composition.routers.features import HashSettings
from coterie.composition.routers.lexical import OTHER, LexicalWeights, write_weights
from coterie.composition.routing import (
    Routing,
    always_fits,
    make_router,
    with_affinity,
    with_capability,
    with_residency,
)
from coterie.core.errors import CompositionError, NotFoundError, RequestError, UsageError

FILE = """
name = "small"
[router]
kind = "rules"
fallback = "general"
[[router.rule]]
expert = "arithmetic"
keywords = ["plus"]
[[router.rule]]
expert = "roman"
keywords = ["roman"]
confidence = 0.4
[[expert]]
name = "arithmetic"
config = "llama-2-7b"
[[expert]]
name = "roman"
config = "llama-2-7b"
[[expert]]
name = "v1.0"
config = "llama-2-7b"
[[expert]]
name = "general"
config = "llama-2-7b"
"""


@pytest.fixture(scope="module")
def routing(tmp_path_factory):
    file = tmp_path_factory.mktemp("routing") / "c.toml"
    file.write_text(FILE)
    return Routing(load_composition(str(file)))


def chat(*texts):
    messages = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return Prompt.from_messages([{"role": "system", "content": "one plus one"}, *messages[:-1]])


@pytest.mark.parametrize(
    ("text", "expert", "rest"),
    [
        ("@roman what is 3 plus 4?", "roman", "what is 3 plus 4?"),
        ("  @roman\n4", "roman", "4"),
        ("@roman: 4", "roman", "4"),
        ("@roman, 4", "roman", "4"),
        ("@v1.0 4", "v1.0", "4"),
        ("ask @roman 3 plus 4", "arithmetic", "ask @roman 3 plus 4"),
        ("@everyone 3 plus 4", "arithmetic", "@everyone 3 plus 4"),
        ("@ roman", "roman", "@ roman"),
        ("@property plus", "arithmetic", "@property plus"),
        ("hello", "general", "hello"),
    ],
)
def test_address(routing, text, expert, rest):
    route, prompt = routing.route(Prompt(text))
    assert (route.expert, prompt.text) == (expert, rest)


def test_address_says_so(routing):
    route, _ = routing.route(Prompt("@roman 4"))
    assert (route.confidence, route.reason, route.is_fallback) == (1.0, "the prompt is addressed to @roman", False)


@pytest.mark.parametrize("text", ["@romans 4", "@Roman 4", "@arithmatic 1 plus 1"])
def test_misspelt_address_is_refused(routing, text):
    with pytest.raises(NotFoundError, match=r"there is no expert @.*; did you mean (roman|arithmetic)"):
        routing.route(Prompt(text))


@pytest.mark.parametrize("text", ["", "  \n", "@roman", " @roman  "])
def test_no_text(routing, text):
    with pytest.raises(RequestError, match="has no text; write a question"):
        routing.route(Prompt(text))


def test_expert_as_model(routing):
    route, prompt = routing.route(Prompt("@arithmetic 3 plus 4"), model="roman")
    assert (route.expert, route.confidence, route.reason) == ("roman", 1.0, "roman was named as the model")
    assert prompt.text == "@arithmetic 3 plus 4"


def test_composition_as_model(routing):
    assert routing.route(Prompt("3 plus 4"), model="small")[0].expert == "arithmetic"


def test_unknown_model(routing):
    with pytest.raises(NotFoundError, match=r"there is no expert 'romann' .*did you mean roman"):
        routing.route(Prompt("x"), model="romann")
    with pytest.raises(NotFoundError, match="no expert 'nobody'"):
        routing.route(Prompt("x"), previous="nobody")


def test_last_user_message_is_read(routing):
    prompt = chat("hello", "3 plus 4")
    assert prompt.text == "3 plus 4"
    assert routing.route(prompt)[0].expert == "arithmetic"
    assert Prompt.from_messages([{"role": "system", "content": "plus"}]).text == ""


def test_addresses_are_taken_off_everywhere(routing):
    _, prompt = routing.route(chat("@roman 4", "@roman 5"))
    assert [m["content"] for m in prompt.messages] == ["one plus one", "4", "ok", "5"]


def test_conversation_stays_with_its_expert(routing):
    assert routing.route(chat("3 plus 4", "and 7?"))[0].expert == "arithmetic"
    assert routing.route(chat("3 plus 4", "roman"))[0].expert == "arithmetic"
    assert routing.route(Prompt("and 7?"), previous="arithmetic")[0].expert == "arithmetic"
    assert routing.route(chat("@roman 4", "and 7?"))[0].expert == "roman"
    assert routing.route(chat("hello", "roman"))[0].expert == "roman"
    assert routing.route(chat("roman", "3 plus 4"))[0].expert == "arithmetic"


def test_stay_needs_a_lead():
    route = Route("b", 0.7, (("a", 0.25),), "because")
    assert with_affinity(route, "a", "f", 0.4) == route
    kept = with_affinity(route, "a", "f", 0.5)
    assert (kept.expert, kept.confidence, kept.runners_up) == ("a", 0.25, (("b", 0.7),))
    assert kept.reason == "the conversation stays: b leads by 45%, less than 50%"
    assert with_affinity(route, "f", "f", 1.0) == route
    assert with_affinity(route, None, "f", 1.0) == route
    assert with_affinity(route, "c", "f", 0.9).confidence == 0.0


ROUTE = Route("a", 0.5, (("b", 0.25), ("c", 0.125), ("d", 0.0625)), "because")


@pytest.mark.parametrize(
    ("resident", "margin", "expert"),
    [
        ("", 1.0, "a"),
        ("abc", 1.0, "a"),
        ("b", 0.25, "b"),
        ("b", 0.24, "a"),
        ("dc", 0.4, "c"),
        ("d", 0.4, "a"),
        ("dc", 1.0, "c"),
        ("z", 1.0, "a"),
        ("b", 0.0, "a"),
    ],
)
def test_the_best_runner_up_in_memory_is_preferred_within_the_margin(resident, margin, expert):
    assert with_residency(ROUTE, frozenset(resident), margin).expert == expert


def test_who_was_preferred_and_why_is_in_the_route():
    route = with_residency(ROUTE, {"c"}, 0.5)
    assert (route.expert, route.confidence, route.is_fallback) == ("c", 0.125, False)
    assert route.runners_up == (("a", 0.5), ("b", 0.25), ("d", 0.0625))
    assert route.reason == "c is in memory, a is not and leads by 38% only; because"


def test_equals_in_memory_and_not_need_a_margin_too():
    equal = Route("a", 0.5, (("b", 0.5),), "because")
    assert with_residency(equal, {"b"}, 0.0) == equal
    assert with_residency(equal, {"b"}, 1e-9).expert == "b"


def test_an_unsure_router_keeps_its_fallback():
    unsure = Route("f", 0.1, (("b", 0.4),), "below the threshold", is_fallback=True)
    assert with_residency(unsure, {"b"}, 1.0) == unsure


@given(
    st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 1), min_size=1),
    st.frozensets(st.sampled_from("abcde")),
    st.floats(0, 1),
)
def test_preferring_loses_at_most_the_margin(shares, resident, margin):
    total = sum(shares.values())
    confidences = {name: share / total for name, share in shares.items()}
    best = max(confidences, key=lambda name: confidences[name])
    route = Route(best, confidences[best], ranked(confidences, best), "because")
    found = with_residency(route, resident, margin)
    assert found.confidence >= route.confidence - margin
    assert found == route or (found.expert in resident and best not in resident)
    assert {found.expert: found.confidence, **dict(found.runners_up)} == {best: route.confidence} | dict(
        route.runners_up
    )
    assert with_residency(found, resident, margin) == found


WEIGHED = FILE.replace("[router]", '[router]\nmatch = "weight"\nprefer_resident = PREFER\nmargin = 0.5')


def weighed(tmp_path, prefer_resident):
    file = tmp_path / "c.toml"
    file.write_text(WEIGHED.replace("PREFER", str(prefer_resident)))
    return Routing(load_composition(str(file)))


def routed(routing, prompt, resident, **more):
    return routing.finish(routing.begin(prompt, resident=frozenset(resident), **more))


def test_residency_is_weighed_only_where_the_composition_says_so(tmp_path):
    both = Prompt("roman 3 plus 4")
    assert not weighed(tmp_path, 0.0).prefers_resident
    assert routed(weighed(tmp_path, 0.0), both, ["roman"]).expert == "arithmetic"
    routing = weighed(tmp_path, 0.05)
    assert routing.prefers_resident
    assert routed(routing, both, []).expert == "arithmetic"
    assert routed(routing, both, ["roman", "general"]).expert == "roman"
    assert routed(routing, both, ["roman", "arithmetic"]).expert == "arithmetic"
    assert routed(routing, Prompt("3 plus 4"), ["roman"]).expert == "arithmetic"
    assert routed(routing, Prompt("@arithmetic roman 3 plus 4"), ["roman"]).expert == "arithmetic"
    assert routed(routing, both, ["roman"], model="arithmetic").expert == "arithmetic"


def test_a_conversation_stays_though_another_expert_is_in_memory(tmp_path):
    routing = weighed(tmp_path, 0.05)
    both = Prompt("roman 3 plus 4")
    assert routed(routing, both, ["roman"], previous="arithmetic").expert == "arithmetic"
    assert routed(routing, both, ["arithmetic"], previous="roman").expert == "roman"
    # who was preferred for the first message has the conversation, as long as it is in memory
    assert routed(routing, chat("roman 3 plus 4", "hello roman plus"), ["roman"]).expert == "roman"
    assert routed(routing, chat("roman 3 plus 4", "hello roman plus"), []).expert == "arithmetic"


NO_TOOLS = "takes no tools"


@pytest.mark.parametrize(
    ("unfit", "expert"),
    [
        ((), "arithmetic"),
        (("roman", "general"), "arithmetic"),
        (("arithmetic",), "roman"),
        (("arithmetic", "roman"), "general"),
        (("arithmetic", "roman", "general"), "v1.0"),
        (("arithmetic", "roman", "general", "v1.0"), "arithmetic"),
    ],
)
def test_who_cannot_take_a_request_is_passed_over(tmp_path, unfit, expert):
    routing, both = weighed(tmp_path, 0.0), Prompt("roman 3 plus 4")
    route = routed(routing, both, [], unfit=lambda name: NO_TOOLS if name in unfit else "")
    assert route.expert == expert
    assert ("arithmetic takes no tools; " in route.reason) == (route.expert != "arithmetic")
    assert route.confidence == routed(routing, both, []).confidence_in(expert)
    assert not route.is_fallback
    assert expert not in dict(route.runners_up)
    assert "arithmetic" in (expert, *dict(route.runners_up))
    assert routed(routing, both, [], model="arithmetic", unfit=lambda name: NO_TOOLS).expert == "arithmetic"


def test_a_fallback_that_cannot_take_a_request_is_passed_over(routing):
    route = routed(routing, Prompt("hello"), [])
    assert (route.expert, route.is_fallback) == ("general", True)
    assert (
        with_capability(route, {"general": NO_TOOLS, "arithmetic": ""}.__getitem__, routing.composition.names).expert
        == "arithmetic"
    )
    assert with_capability(route, always_fits, routing.composition.names) == route


def test_ranked_leaves_out_the_unlikely():
    assert ranked({"a": 0.5, "b": 0.2, "c": 0.2, "d": 0.001}, "a") == (("b", 0.2), ("c", 0.2))


@given(st.text(max_size=60), st.booleans())
def test_any_text_has_a_route_or_a_sentence(routing, text, address):
    prompt = Prompt(f"@{text}" if address else text)
    try:
        route, _ = routing.route(prompt)
    except (NotFoundError, RequestError):
        return
    assert route.expert in routing.composition.names
    assert routing.route(prompt)[0] == route


def without_router(tmp_path, count):
    file = tmp_path / "c.toml"
    file.write_text(f'name = "s"\n[[expert]]\nname = "e{{i}}"\nconfig = "l"\ncount = {count}\n')
    return Routing(load_composition(str(file)))


def test_one_expert_needs_no_router(tmp_path):
    assert make_router(without_router(tmp_path, 1).composition) is None
    route, _ = without_router(tmp_path, 1).route(Prompt("x"))
    assert (route.expert, route.reason) == ("e0", "it is the only expert")


def test_experts_without_a_router_must_be_named(tmp_path):
    routing = without_router(tmp_path, 3)
    with pytest.raises(UsageError, match="no router to choose among 3 experts; name an expert \\(e0, e1, e2\\)"):
        routing.route(Prompt("x"))
    assert routing.route(Prompt("@e1 x"))[0].expert == "e1"
    assert routing.route(Prompt("x"), model="e2")[0].expert == "e2"
    said = tuple({"role": "user", "content": text} for text in ("@e1 x", "y", "@e2 x", "y", "z"))
    for count, who in enumerate(("e1", "e1", "e2", "e2", "e2"), 1):  # who was addressed keeps the conversation
        route = routing.route(Prompt(said[count - 1]["content"], said[:count]))[0]
        assert (route.expert, "there is no router" in route.reason) == (who, said[count - 1]["content"][0] != "@")
    assert routing.route(Prompt("x"), previous="e0")[0].expert == "e0"


def write_lexical(tmp_path, classes):
    weights = np.zeros((len(classes), 8), np.float32)
    bias = np.arange(len(classes), dtype=np.float32)
    write_weights(tmp_path / "r.npz", LexicalWeights(classes, weights, bias, 1.0, 0.3, HashSettings(1, 2, 8), {}))
    rules = FILE[FILE.index("[[router.rule]]") : FILE.index("[[expert]]")]
    text = FILE.replace(rules, 'weights = "r.npz"\n').replace('"rules"', '"lexical"')
    (tmp_path / "c.toml").write_text(text)
    return load_composition(str(tmp_path / "c.toml"))


def test_lexical_router_is_made_with_its_own_threshold(tmp_path):
    composition = write_lexical(tmp_path, ("arithmetic", "roman", OTHER))
    assert make_router(composition).threshold == 0.3
    assert Routing(composition).route(Prompt("x"))[0].expert == "general"
    (tmp_path / "c.toml").write_text((tmp_path / "c.toml").read_text().replace("[router]", "[router]\nthreshold = 0.0"))
    assert make_router(load_composition(str(tmp_path / "c.toml"))).threshold == 0.0


def test_lexical_router_of_other_experts(tmp_path):
    composition = write_lexical(tmp_path, ("arithmetic", "weekday"))
    with pytest.raises(
        CompositionError, match=r"r.npz\] it was trained for 'weekday', which this composition does not have"
    ):
        make_router(composition)
