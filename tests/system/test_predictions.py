"""The prediction of a chat request, asked by the official OpenAI client: the same answer, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from tests.system.serving import served

from coterie.api import Coterie, Message, Query
from coterie.api.assemble import Options
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.engine.policy import MAX_GUESSES, Policy

ASKED: Any = [{"role": "user", "content": "for ada, please"}]


def ask(composition: Path, guesses: int | None, *predictions: Any, **options: Any) -> list[Any]:
    """Answers to the same question with each of these predictions."""
    opened = Coterie.open(str(composition), Options(policy=Policy(max_guesses=guesses, max_steps=1)))
    with served(opened) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions.create
        return [
            create(model="ada", messages=ASKED, max_tokens=40, **options, **({"prediction": said} if said else {}))
            for said in predictions
        ]


def counts(answer: Any) -> tuple[int, int]:
    found = answer.usage.completion_tokens_details
    return found.accepted_prediction_tokens, found.rejected_prediction_tokens


@pytest.fixture(scope="module")
def tokenizer(composition: Path) -> Tokenizer:
    with Coterie.open(str(composition)) as coterie:
        found = coterie.texts["ada"].tokenizer
    assert found is not None
    return found


@pytest.mark.parametrize("warmth", [{}, {"temperature": 0.9, "seed": 5, "n": 2}], ids=["greedy", "sampled"])
def test_a_prediction_changes_no_token_and_is_counted(
    composition: Path, tokenizer: Tokenizer, warmth: dict[str, Any]
) -> None:
    (plain,) = ask(composition, 0, None, **warmth)
    said = plain.choices[0].message.content
    changed = said[:10] + "!!!" + said[10:]
    parts = [{"type": "text", "text": said[:7]}, {"type": "text", "text": said[7:]}]
    predictions = [None, *({"type": "content", "content": content} for content in (said, parts, changed, ""))]
    found = ask(composition, MAX_GUESSES, *predictions, **warmth)
    for answer in found:
        assert [one.message.content for one in answer.choices] == [one.message.content for one in plain.choices]
    size, more = (len(tokenizer.encode(text, add_special_tokens=False)) for text in (said, changed))
    assert counts(found[0]) == counts(found[4]) == (0, 0)
    assert sum(counts(found[1])) == size * len(plain.choices)
    assert sum(counts(found[3])) == more * len(plain.choices)
    assert counts(found[1]) == counts(found[2])
    assert counts(found[3])[0] > 5
    if not warmth:
        # Of made-up text some bytes are no letter, and what stands for them is not what came.
        assert counts(found[1])[0] >= size - 4 * said.count("\ufffd")
        assert found[1].choices[0].finish_reason == "length"
        assert found[1].coterie["accepted_tokens"] > 5
    # Where nothing is guessed, as of such a small expert by itself, it is taken and ignored.
    for guesses in (0, None):
        (answer,) = ask(composition, guesses, predictions[1], **warmth)
        assert counts(answer) == (0, 0)
        assert answer.choices[0].message.content == said


@pytest.mark.parametrize(
    ("prediction", "said"),
    [
        ({"type": "diff", "content": "x"}, "prediction.type. is 'diff'; give content"),
        ({"type": "content"}, "prediction. has content that is not text"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "a part of type 'image_url'"),
        ({"type": "content", "content": "x", "contents": 1}, "did you mean content"),
        ("x", "give an object"),
    ],
)
def test_what_is_no_prediction_is_one_clear_400(composition: Path, prediction: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        ask(composition, None, prediction)


def test_in_python(composition: Path) -> None:
    with Coterie.open(str(composition), Options(policy=Policy(max_guesses=MAX_GUESSES, max_steps=1))) as coterie:
        query = Query((Message("user", "for ada, please"),), "ada", max_tokens=40)
        plain = coterie.ask(query)
        answer = coterie.ask(Query(query.messages, "ada", max_tokens=40, prediction=plain.text))
    assert answer.text == plain.text
    assert answer.predicted_tokens > 5
    assert (plain.predicted_tokens, plain.unpredicted_tokens) == (0, 0)
