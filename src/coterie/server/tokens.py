"""POST /tokenize and /detokenize: the tokens of a prompt, and the text of tokens, without running the expert.

Knows nothing about HTTP. The fields are those of vLLM's endpoints of these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.api import Message, Query, Serving
from coterie.api.texts import Text, speaker
from coterie.api.types import prompt_of
from coterie.core.errors import ContextError, RequestError
from coterie.server import fields
from coterie.server.messages import CONTINUING, SWITCHES, continues, messages, switches
from coterie.server.tools import offered

LISTED = 65536  # texts with certainly more tokens than this are refused: a million characters take about 130 MB
RUN = 4096  # tokens encoded at a time: half a millisecond
SKIPS = "skip_special_tokens"
SUPPORTED = ("model", "prompt", "messages", "tools", SWITCHES)
# Fixed settings: a prompt gets its tokenizer's special tokens, a conversation the generation prompt.
OF_PROMPTS: Mapping[str, tuple[object, ...]] = {"add_special_tokens": (True,), "return_token_strs": (False,)}
OF_MESSAGES: Mapping[str, tuple[object, ...]] = {
    "add_special_tokens": (False,),
    "return_token_strs": (False,),
}


def tokenize(body: object, coterie: Serving) -> dict[str, Any]:
    """The prompt tokens of a completion of `prompt`, or of a chat of `messages`.

    Raises RequestError, NotFoundError.
    """
    given = fields.as_object(body, "model and prompt or messages")
    chat = given.get("messages") is not None
    fields.check_names(given, *(((*SUPPORTED, *CONTINUING), OF_MESSAGES) if chat else (SUPPORTED, OF_PROMPTS)))
    if chat and given.get("prompt") is not None:
        raise RequestError("prompt", "and messages were both given", "give one of them")
    model = fields.model(given)
    if chat:
        check_one_template(coterie, model)
        tools, onwards = offered(given), continues(given)
        query = Query(messages(given), model, tools=tools, switches=switches(given), continues=onwards)
    else:
        query = _raw(given, model)
    text = speaker(coterie.texts, coterie.composition, model)
    tokens = tokens_of(text, query, coterie)
    return {"count": len(tokens), "max_model_len": coterie.models[text.expert].max_context, "tokens": list(tokens)}


def tokens_of(text: Text, query: Query, coterie: Serving) -> tuple[int, ...]:
    """A prompt's tokens, for inspection only: it may be too long to be answered.

    Raises RequestError, also for a text too long to be tokenised.
    """
    max_tokens = max(coterie.models[text.expert].max_context, LISTED)
    try:
        return text.encode(query, prompt_of(query), limit=max_tokens)
    except ContextError:
        fact = f"has more than {max_tokens} tokens, and no more are counted in one text"
        raise RequestError("prompt", fact, "send it in parts") from None


def check_one_template(coterie: Serving, model: str) -> None:
    """Raise RequestError if a router would choose the expert, as its chat template is not known in advance."""
    experts = len(coterie.texts)
    if model == coterie.composition.name and experts > 1:
        fact = f"{model} has {experts} experts, each with a chat template of its own"
        raise RequestError("model", fact, "name the expert")


def detokenize(body: object, coterie: Serving) -> dict[str, Any]:
    """The text of `tokens`, with special ones by name, as in vLLM and llama-server, or without, as in SGLang.

    Raises RequestError, NotFoundError.
    """
    given = fields.as_object(body, "model and tokens")
    fields.check_names(given, ("model", "tokens", SKIPS), {})
    model, tokens = fields.model(given), fields.get(given, "tokens", list, "a list of token ids")
    if tokens is None or not all(type(token) is int for token in tokens):
        raise RequestError("tokens", "is missing, or holds what is no token id", "give a list of token ids")
    text = speaker(coterie.texts, coterie.composition, model)
    return {"prompt": text.decode(tokens, "tokens", not fields.flag(given, SKIPS))}


def _raw(given: Mapping[str, object], model: str) -> Query:
    prompt = fields.get(given, "prompt", str, "a string")
    if prompt is None:
        raise RequestError("prompt", "is missing", "give a prompt, or messages")
    for name, fact in (("tools", "are offered"), (SWITCHES, "are read")):
        if given.get(name) is not None:
            raise RequestError(name, f"{fact} by a chat template alone", "give messages, or leave them out")
    return Query((Message("user", prompt),), model, raw=True)
