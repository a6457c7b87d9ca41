"""What clients ask of the choice of tokens, asked by the official OpenAI client and compared with the Python face."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.system.scripted import END_ID

from coterie.api import Coterie, Message, Query
from coterie.api.logprobs import TokenLogprob, spell
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.engine.request import ChoiceParams, SamplingParams, TokenLogprobs
from coterie.server.text_logprobs import TextLogprobs

ASKED = [{"role": "user", "content": "for ada, please"}]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="ada", messages=ASKED, max_tokens=12, **options)


@pytest.mark.parametrize("warmth", [{"temperature": 0}, {"temperature": 0.9, "seed": 5}], ids=["greedy", "sampled"])
def test_logprobs_come_with_the_same_answer_whole_and_streamed(client: openai.OpenAI, warmth: dict[str, Any]) -> None:
    plain = ask(client, **warmth)
    assert plain.choices[0].logprobs is None
    whole = ask(client, **warmth, logprobs=True, top_logprobs=5).choices[0]
    assert whole.message.content == plain.choices[0].message.content
    content = whole.logprobs.content
    assert len(content) == 12 - (whole.finish_reason == "stop")
    assert b"".join(bytes(one.bytes) for one in content).decode(errors="replace") == whole.message.content
    for one in content:
        assert one.logprob <= 0
        assert one.token == bytes(one.bytes).decode(errors="replace")
        likeliest = [other.logprob for other in one.top_logprobs]
        assert len(likeliest) == 5
        assert likeliest == sorted(likeliest, reverse=True)
        assert sum(map(math.exp, likeliest)) <= 1
        if not warmth["temperature"]:
            assert one.top_logprobs[0].bytes == one.bytes
            assert one.top_logprobs[0].logprob == one.logprob
    chunks = [chunk.choices[0] for chunk in ask(client, **warmth, logprobs=True, top_logprobs=5, stream=True)]
    streamed = [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content]
    assert streamed == content
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


def test_logprobs_without_alternatives(client: openai.OpenAI) -> None:
    content = ask(client, logprobs=True).choices[0].logprobs.content
    assert content
    assert all(one.top_logprobs == [] for one in content)


def test_bias_and_penalties_change_what_is_said(client: openai.OpenAI, composition: Path) -> None:
    only = ask(client, logit_bias={"65": 100}).choices[0].message.content
    assert only == "A" * 12
    assert ask(client, logit_bias={"65": 100}, frequency_penalty=2).choices[0].message.content == "A" * 12
    plain = ask(client).choices[0].message.content
    changes: dict[str, dict[str, Any]] = {
        "presence_penalty": {"presence_penalty": 2},
        "frequency_penalty": {"frequency_penalty": 2},
        "repetition_penalty": {"extra_body": {"repetition_penalty": 50}},
    }
    with Coterie.open(str(composition)) as coterie:
        for name, options in changes.items():
            value = float(options.get(name, 50))
            query = Query((Message("user", ASKED[0]["content"]),), "ada", max_tokens=12)
            choice = ChoiceParams(**{name: value})
            here = coterie.ask(Query(query.messages, "ada", SamplingParams(), 12, choice=choice)).text
            assert ask(client, **options).choices[0].message.content == here
    strong = ask(client, presence_penalty=2, frequency_penalty=2, extra_body={"repetition_penalty": 50})
    assert strong.choices[0].message.content != plain


def test_text_completions_take_bias_and_penalties(client: openai.OpenAI) -> None:
    def complete(**options: Any) -> str:
        return client.completions.create(model="ada", prompt="so", max_tokens=8, **options).choices[0].text

    assert complete(logit_bias={"66": 100}) == "B" * 8
    assert (
        complete(logit_bias={"66": 1, "67": 1}, extra_body={"repetition_penalty": 50}, frequency_penalty=2) != "B" * 8
    )
    with pytest.raises(openai.BadRequestError, match="presence_penalty is 3"):
        complete(presence_penalty=3)


@pytest.mark.parametrize("number", [0, 3])
def test_text_completions_list_logprobs_whole_and_streamed(
    client: openai.OpenAI, composition: Path, number: int
) -> None:
    def complete(**options: Any) -> Any:
        return client.completions.create(model="ada", prompt=["so", "for"], max_tokens=12, n=2, **warm, **options)

    warm: dict[str, Any] = {"temperature": 0.9, "seed": 5}
    plain, whole = complete().choices, complete(logprobs=number).choices
    parts: dict[int, list[Any]] = {index: [] for index in range(4)}
    events = list(complete(logprobs=number, stream=True))
    assert len({event.id for event in events}) == 1
    for event in events:
        parts[event.choices[0].index].append(event.choices[0])
    with Coterie.open(str(composition)) as coterie:
        for index, choice in enumerate(whole):
            assert plain[index].logprobs is None
            assert choice.text == plain[index].text
            message = Message("user", ("so", "for")[index // 2])
            sampling = SamplingParams(0.9, seed=5 + index % 2)
            params = ChoiceParams(top_logprobs=number)
            here = coterie.ask(Query((message,), "ada", sampling, 12, raw=True, choice=params)).logprobs
            found = choice.logprobs
            assert found.token_logprobs == [one.logprob for one in here]
            for top, one in zip(found.top_logprobs, here, strict=True):
                assert list(top.values()) == list({o.token_id: o.logprob for o in (*one.top, one)}.values())
            assert all(token in top for token, top in zip(found.tokens, found.top_logprobs, strict=True))
            if number == 0:
                assert all(len(top) == 1 for top in found.top_logprobs)
            for name, listed in found.to_dict().items():
                streamed = [one for part in parts[index] if part.logprobs for one in getattr(part.logprobs, name)]
                assert streamed == listed
            assert found.text_offset[0] == 0
            assert found.text_offset == sorted(found.text_offset)


SAID = "for ada: " + "a prompt that takes several steps to be scored, " * 2  # more tokens than a step has rows


def worth(client: openai.OpenAI, before: str, token: int) -> float:
    """The model's own logprob of a token behind a text: of one that is forced, as each is the last of its step."""
    options: dict[str, Any] = {"max_tokens": 1, "logprobs": 0, "logit_bias": {str(token): 100}}
    found = client.completions.create(model="ada", prompt=before, **options).choices[0]
    assert found.logprobs.tokens == [chr(token)]
    return found.logprobs.token_logprobs[0]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_a_prompts_tokens(client: openai.OpenAI, stream: bool) -> None:
    """Tokens are bytes here. Which step computes a token does not change its bits."""
    texts = [SAID, "so", "x"]
    options: dict[str, Any] = {"echo": True, "logprobs": 1, "stream": stream}
    for max_tokens in (0, 3):
        got = client.completions.create(model="ada", prompt=texts, max_tokens=max_tokens, **options)
        parts = [choice for event in got for choice in event.choices] if stream else got.choices
        for index, text in enumerate(texts):
            own = [part for part in parts if part.index == index]
            said = "".join(part.text for part in own)
            found = {key: [] for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
            for part in own:
                for key in found if part.logprobs else ():
                    found[key] += getattr(part.logprobs, key)
            assert said.startswith(text)
            assert found["tokens"][: len(text)] == list(text)
            assert found["text_offset"][: len(text)] == list(range(len(text)))
            assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
            for at in {1, len(text) // 2, len(text) - 1} & set(range(1, len(text))):
                assert found["token_logprobs"][at] == worth(client, text[:at], ord(text[at]))
                assert found["token_logprobs"][at] in found["top_logprobs"][at].values()
            if not max_tokens:
                assert (said, len(found["tokens"]), own[-1].finish_reason) == (text, len(text), "length")
    assert stream or got.usage.completion_tokens == sum(len(c.logprobs.tokens) for c in got.choices) - sum(
        map(len, texts)
    )


def test_a_scored_prompts_answer_is_as_without(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="ada", prompt=SAID, max_tokens=9, logprobs=2).choices[0]
    echoed = client.completions.create(model="ada", prompt=list(SAID.encode()), max_tokens=9, logprobs=2, echo=True)
    (choice,) = echoed.choices
    assert choice.text == SAID + plain.text
    assert choice.logprobs.token_logprobs[len(SAID) :] == plain.logprobs.token_logprobs


def test_with_echo_there_is_one_entry_for_each_token_drawn(client: openai.OpenAI) -> None:
    """Evaluation harnesses ask for one token and take the last entry away, whichever it is."""
    end = {str(END_ID): 100}
    options: dict[str, Any] = {"max_tokens": 1, "logprobs": 1, "echo": True, "logit_bias": end}
    choice = client.completions.create(model="ada", prompt="so", **options).choices[0]
    assert (choice.text, choice.logprobs.tokens) == ("so", ["s", "o", "<|end|>"])
    assert choice.finish_reason == "stop"
    choice = client.completions.create(model="ada", prompt="so", **{**options, "max_tokens": 0}).choices[0]
    assert (choice.logprobs.tokens, choice.finish_reason) == (["s", "o"], "length")


def token(spelled: bytes, special: bool = False) -> TokenLogprob:
    return TokenLogprob(0, spelled.decode(errors="replace"), spelled, -math.inf, special=special)


def test_offsets_count_the_characters_of_whole_and_broken_tokens() -> None:
    writer = TextLogprobs()
    first = writer.write([], [token("a\u00e9".encode()), token(b"\xe2\x82")])
    then = writer.write([], [token(b"\xac"), token(b"!")])
    assert first["text_offset"] + then["text_offset"] == [0, 2, 2, 3]
    assert first["tokens"] + then["tokens"] == ["a\u00e9", r"bytes:\xe2\x82", r"bytes:\xac", "!"]
    assert then["token_logprobs"] == [-9999.0, -9999.0]
    assert then["top_logprobs"] == [{r"bytes:\xac": -9999.0}, {"!": -9999.0}]
    assert writer.write([], []) == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def test_a_special_token_is_told_from_text_that_spells_it(folder: Path) -> None:
    found = TokenLogprobs(END_ID, -1.0, ((ord("a"), -2.0),))
    spelled = spell(Tokenizer.from_folder(folder / "ada"), found)
    assert (spelled.text, spelled.special, spelled.top[0].special) == ("<|end|>", True, False)


@pytest.mark.parametrize(
    ("prompt", "tokens", "offsets"),
    [
        ("Hi you", [token(b"<s>", True), token(b" Hi"), token(b" you")], [0, 0, 2]),  # as Llama 2's tokenizer has it
        (" Hi you", [token(b"<s>", True), token(b" Hi"), token(b" you")], [0, 0, 3]),
        ("<s>Hi<s>", [token(b"<s>", True), token(b"Hi"), token(b"<s>", True)], [0, 3, 5]),  # spelled there
        ("a you", [token(b"a"), token(b"<s>", True), token(b" you")], [0, 1, 1]),  # given in tokens
        ("ﬁ b", [token(b"fi"), token(b" b")], [0, 2]),  # normalized: the answer begins where it does all the same
    ],
)
def test_offsets_in_a_prompt_are_those_of_its_text(prompt: str, tokens: list[TokenLogprob], offsets: list[int]) -> None:
    got = TextLogprobs(prompt).write(tokens, [token(b"!"), token(b" ")])
    assert got["text_offset"] == [*offsets, len(prompt), len(prompt) + 1]


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ({"x": 1}, "names 'x', which is no token id"),
        ({"-1": 1}, "names '-1', which is no token id"),
        ({"5": "x"}, "is 'x'; give a number"),
        ({"5": True}, "is True; give a number"),
        ({"5": 100.5}, "of token 5 is 100.5; give -100 to 100"),
        ({"999": 1}, "names token 999 but the vocabulary has"),
    ],
)
def test_a_bias_that_is_none_is_refused_by_its_field(client: openai.OpenAI, bias: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, logit_bias=bias)
    assert caught.value.param == "logit_bias"
    assert f"[logit_bias] {words}" in caught.value.message


def test_an_end_token_has_no_logprob(client: openai.OpenAI) -> None:
    end = {str(END_ID): 100}
    choice = ask(client, logprobs=True, logit_bias=end).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.logprobs.content) == ("stop", "", [])
    text = client.completions.create(model="ada", prompt="so", logprobs=2, logit_bias=end).choices[0]
    assert (text.finish_reason, text.text) == ("stop", "")
    assert set(map(len, text.logprobs.to_dict().values())) == {0}
