"""Reads the fields of a request body that all endpoints share: sampling settings, stop strings, the number of choices.

Knows nothing about what an endpoint does with them.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from coterie.api import Query
from coterie.api.types import draw_seed
from coterie.core.errors import CoterieError, RequestError, UsageError, shown
from coterie.core.sampling import SETTINGS, PartialSampling

# Accepted without effect on the answer, by origin. `priority` and `service_tier` only affect when it comes.
IGNORED = frozenset(
    (
        # OpenAI's clients: the caller, and what the service should store.
        *("user", "metadata", "store", "priority", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
        # Codex, LiteLLM, Open WebUI, agents behind gateways: the caller again.
        *("client_metadata", "access_programs", "litellm_metadata", "litellm_session_id"),
        *("chat_id", "session_id", "request_id", "trace_id"),
        # Clients of Ollama or LM Studio: how long a model stays loaded, and on what hardware.
        *("keep_alive", "ttl", "num_ctx", "num_thread", "num_gpu", "num_batch", "main_gpu", "use_mmap", "use_mlock"),
        # llama-server: its cache, and additional reports.
        *("cache_prompt", "n_cache_reuse", "id_slot", "timings_per_token", "return_progress"),
        # vLLM and SGLang: caches, request ids, and the library for constrained decoding.
        *("cache_salt", "rid", "guided_decoding_backend"),
        # OpenRouter: the choice of provider, and the cost.
        *("provider", "usage"),
        # Settings of samplers that are off (see NEUTRAL).
        *("mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    )
)
# Features that Coterie does not implement, with the values that request nothing, which clients send by default.
NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        # llama-server's, and those of clients for it, Ollama or text-generation-webui (SillyTavern, say).
        **dict.fromkeys(("mirostat", "mirostat_mode", "dynatemp_range", "xtc_probability", "dry_multiplier"), (0,)),
        **dict.fromkeys(("top_a", "min_keep", "n_probs", "n_indent", "t_max_predict_ms", "no_repeat_ngram_size"), (0,)),
        **dict.fromkeys(("typical_p", "tfs_z", "tfs"), (1,)),
        **dict.fromkeys(("penalize_nl", "post_sampling_probs", "return_tokens"), (False,)),
        "top_n_sigma": (-1, 0),
        "parse_tool_calls": (True,),
        "reasoning_format": ("auto", "deepseek"),
        # vLLM's and SGLang's.
        "min_tokens": (0,),
        "length_penalty": (1,),
        **dict.fromkeys(("use_beam_search", "early_stopping", "include_stop_str_in_output", "no_stop_trim"), (False,)),
        **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids", "return_hidden_states"), (False,)),
        **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), (True,)),
        **dict.fromkeys(("include_reasoning", "separate_reasoning", "stream_reasoning"), (True,)),
        **dict.fromkeys(("stop_token_ids", "bad_words", "documents", "transforms"), ([],)),
        "echo": (False,),
        "best_of": (1,),
    }
)
# Other names, of llama-server, LM Studio and Ollama.
SYNONYMS = {"repeat_penalty": "repetition_penalty", "n_predict": "max_tokens", "num_predict": "max_tokens"}
SHARED = (
    "model",
    "stream",
    "stream_options",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "stop",
)
VERBOSITY = ("low", "medium", "high")  # the wished length of answers: no chat template here has a variable for it
IGNORE_END = "ignore_eos"  # for chats and completions: generate exactly max_tokens; named as in vLLM, SGLang, llama.cpp
SEEDS = 2**64  # clients' seeds are signed: a negative one is reinterpreted as unsigned
NO_LIMIT = -1  # for top_k in vLLM's clients; for max_tokens and repeat_last_n in those of llama-server and LM Studio
DEFAULT_REPEAT_LAST_N = 64  # in Ollama and llama-server
PENALTIES_OFF = ("presence_penalty", "frequency_penalty")  # in those servers they, too, apply to the last tokens only
MAX_STOP = 16
_AS_IT_IS: Mapping[str, str] = MappingProxyType({})
TIERS: Mapping[object, int] = MappingProxyType({"flex": 1, "priority": -1})  # OpenAI's, as priorities; others: 0
MAX_CHOICES = 128  # per prompt, as in OpenAI's API


def as_object(body: object, fields: str) -> dict[str, Any]:
    """The decoded JSON body, if it is an object. Raises RequestError that says which fields to send."""
    if not isinstance(body, dict):
        raise RequestError("body", f"is a JSON {type(body).__name__}", f"send an object with {fields}")
    return body


def without_synonyms(given: dict[str, Any]) -> dict[str, Any]:
    """A body with synonyms of fields replaced. Raises RequestError if both are given and differ.

    `repeat_last_n` limits penalties to the last tokens. Here a repetition penalty always applies to the whole prompt
    and answer; the default, which clients send unasked, is accepted as that. 0 disables penalties.
    """
    found = dict(given)
    for name, ours in SYNONYMS.items():
        value = found.pop(name, None)
        if value is not None and found.get(ours) not in (None, value):
            raise RequestError(name, f"is {shown(value)}, while {ours} is {shown(found[ours])}", "give one of them")
        if value is not None:
            found[ours] = value
    last, penalty = integer(found, "repeat_last_n"), found.get("repetition_penalty")
    found.pop("repeat_last_n", None)
    if last == 0:
        found |= dict.fromkeys(PENALTIES_OFF, 0) | {"repetition_penalty": 1}
    elif last not in (None, NO_LIMIT, DEFAULT_REPEAT_LAST_N) and penalty not in (None, 1):
        fact = f"is {last}, but a repetition penalty is of all tokens in prompt and answer"
        raise RequestError("repeat_last_n", fact, "leave it out, or give -1, or 0 for no penalty")
    return found


def check_names(
    body: Mapping[str, object],
    supported: Collection[str],
    refused: Mapping[str, tuple[object, ...]],
    within: str = "",
) -> None:
    """Refuse unknown fields, and unimplemented ones unless their value requests nothing. Raises RequestError.

    `within`: the path of an object in the body, with a trailing dot.
    """
    for name, value in body.items():
        if value is None or name in supported or name in IGNORED:
            continue  # many clients send null for what their user left out
        if name in refused or name in NEUTRAL:
            if value not in refused.get(name, NEUTRAL.get(name, ())):
                fact = f"is {shown(value)}, which Coterie does not implement"
                raise RequestError(within + name, fact, "leave it out")
            continue
        near = difflib.get_close_matches(name, supported, 1)
        raise RequestError(
            within + name, "is not a known field", f"did you mean {near[0]}?" if near else "leave it out"
        )


def translate_error(
    error: CoterieError, names: Mapping[str, str], parts: Mapping[str, str], remedies: Mapping[str, str] = _AS_IT_IS
) -> CoterieError:
    """An error about a body, translated from chat's field names to another endpoint's.

    `names`: whole fields; `parts`: substrings of a field's path, replaced in order; `remedies`: those of the remedy.
    """
    if not isinstance(error, UsageError):
        return error
    where, remedy = names.get(error.where, error.where), error.remedy
    for chats, own in parts.items():
        where = where.replace(chats, own)
    for chats, own in remedies.items():
        remedy = remedy.replace(chats, own)
    return type(error)(where, error.fact.removeprefix(f"{error.where} "), remedy)


def model(body: Mapping[str, object]) -> str:
    """The model asked. Raises RequestError."""
    found = get(body, "model", str, "a string")
    if not found:
        raise RequestError("model", "is missing", "give the composition's name, or an expert's to bypass the router")
    return str(found)


def sampling(body: Mapping[str, object]) -> PartialSampling:
    """Sampling settings, as far as given; a missing seed is drawn. Raises RequestError."""
    seed, top_k = integer(body, "seed"), integer(body, "top_k")
    settings: dict[str, Any] = {name: float_of(body, name) for name in SETTINGS if name != "top_k"}
    return PartialSampling(
        **settings,
        top_k=0 if top_k == NO_LIMIT else top_k,
        seed=draw_seed() if seed is None else seed % SEEDS,
    )


def priority(body: Mapping[str, object], may_go_first: bool) -> int:
    """The request's priority: lower is served first; the default is 0. Raises RequestError."""
    requested, tier = integer(body, "priority"), get(body, "service_tier", str, "a text")
    if requested is not None and requested < 0 and not may_go_first:
        fact = f"is {requested}, but only requests with a key of --urgent-key may be below 0"
        raise RequestError("priority", fact, "give 0 or more")
    return max(TIERS.get(tier, 0), 0 if not may_go_first else -1) if requested is None else requested


def stops(body: Mapping[str, object], name: str = "stop") -> tuple[str, ...]:
    """The stop strings, without empty ones, which some user interfaces send for none. Raises RequestError."""
    stop = body.get(name)
    found = stop if isinstance(stop, list) else [] if stop is None else [stop]
    texts = [text for text in found if isinstance(text, str)]
    if len(found) > MAX_STOP or len(texts) < len(found):
        raise RequestError(name, f"is {shown(stop)}", f"give a string or a list of at most {MAX_STOP} strings")
    return tuple([text for text in texts if text])


def choices(body: Mapping[str, object]) -> int:
    """The number of answers to each prompt. Raises RequestError."""
    wanted = integer(body, "n")
    if wanted is not None and not 1 <= wanted <= MAX_CHOICES:
        raise RequestError("n", f"is {wanted}", f"ask for 1 to {MAX_CHOICES} choices")
    return 1 if wanted is None else wanted


def choices_of(query: Query, n: int, seeded: bool) -> tuple[Query, ...]:
    """The same prompt n times. Seeds count up from the caller's, if given; otherwise each is drawn."""
    first = query.sampling

    def seed(index: int) -> int:
        return ((first.seed or 0) + index) % SEEDS if seeded or index == 0 else draw_seed()

    return tuple(replace(query, sampling=replace(first, seed=seed(index))) for index in range(n))


def streaming(body: Mapping[str, object]) -> tuple[bool, bool]:
    """Whether the answer is streamed, and whether its usage follows at the end. Raises RequestError."""
    options = get(body, "stream_options", dict, "an object") or {}
    # Padding against observers of lengths, and usage in each event (GuideLLM, vLLM's benchmark): neither is added.
    without = ("include_obfuscation", "continuous_usage_stats")
    check_names(options, ("include_usage", *without), {}, "stream_options.")
    for name in without:
        flag(options, name, "stream_options.")
    return flag(body, "stream"), flag(options, "include_usage", "stream_options.")


def are_tokens(item: object) -> bool:
    """Whether this is a list of token ids."""
    return isinstance(item, list) and bool(item) and all(type(token) is int for token in item)


def flag(body: Mapping[str, object], name: str, within: str = "") -> bool:
    """A boolean, false if missing. Raises RequestError."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{within}{name}", f"is {shown(value)}", "give true or false")
    return value is True


def get(body: Mapping[str, object], name: str, kind: type, words: str, within: str = "") -> Any:
    """A field's value, of the given type (`words` in the error), or None. Raises RequestError."""
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise RequestError(within + name, f"is {shown(value)}", f"give {words}")
    return value


def integer(body: Mapping[str, object], name: str) -> int | None:
    """A whole number, or None; 20.0 is accepted, as some languages write no other form. Raises RequestError."""
    value = body.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**64):
        raise RequestError(name, f"is {shown(value)}", "give a whole number of 64 bits")
    return value


def number(body: Mapping[str, object], name: str, default: float) -> float:
    """A number that a double can hold. Raises RequestError."""
    value = float_of(body, name)
    return default if value is None else value


def float_of(body: Mapping[str, object], name: str) -> float | None:
    """As `number`, or None if missing. Raises RequestError."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise RequestError(name, f"is {shown(value)}", "give a number")
    return float(value)
