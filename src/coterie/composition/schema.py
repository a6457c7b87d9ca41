"""The keys of a composition file, in one table: validation and the published JSON Schema are both derived from it.

Knows nothing about what the values mean to a router or a model.

`python -m coterie.composition.schema` prints schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from coterie.composition.expert import ALIAS_PATTERN, ALIAS_RULE, NAME_PATTERN
from coterie.composition.routers.language import LANGUAGES
from coterie.core.sampling import MAX_PENALTY, MAX_REPETITION, MAX_TEMPERATURE
from coterie.models.packing import BY_NAME, WITHOUT_BYTES

KeyType = Literal["string", "integer", "number", "strings", "table", "tables"]
NOT_BLANK = r"\S"
SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its type, bounds and a short description. `pattern` must match the whole string."""

    name: str
    type: KeyType
    meaning: str
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    pattern_meaning: str = ""
    may_be_empty: bool = False
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The keys that a TOML table may have.

    `exactly_one`: exactly one of these keys must be present. `at_least_one`: one or more of these. `needs`: key -> the
    key that it requires. `variants`: value of the key `kind` -> further keys.
    """

    keys: tuple[Key, ...]
    exactly_one: tuple[str, ...] = ()
    at_least_one: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Table] = field(default_factory=dict)

    def with_variant(self, more: Table) -> Table:
        """This table's keys with the keys and the conditions of one of its variants."""
        return replace(more, keys=self.keys + more.keys)


_COUNTED_NAME = r"(?:[A-Za-z0-9]|\{i\})(?:[A-Za-z0-9._-]|\{i\}){0,63}"
_NAME_MEANING = "letters, digits, dot, dash and underscore, 64 at most, beginning with a letter or a digit"

RULE = Table(
    keys=(
        Key("expert", "string", "the expert that this rule chooses", required=True),
        Key("name", "string", "what the rule is called in explanations and errors"),
        Key("keywords", "strings", "words or phrases of which one must occur; upper and lower case are the same"),
        Key("pattern", "string", "a regular expression that must be found; write (?i) to ignore case"),
        Key("min_chars", "integer", "the prompt has at least this many characters", minimum=0),
        Key("max_chars", "integer", "the prompt has at most this many characters", minimum=0),
        Key("language", "string", "the prompt is in this language", choices=LANGUAGES),
        Key("weight", "number", 'what the rule counts for when match = "weight"', minimum=0),
        Key("confidence", "number", 'how sure the rule is when match = "first"', minimum=0, maximum=1),
    ),
    at_least_one=("keywords", "pattern", "min_chars", "max_chars", "language"),
)

RULES = Table(
    keys=(
        Key(
            "match",
            "string",
            "the first rule that holds, or the expert with the most weight",
            choices=("first", "weight"),
        ),
        Key("rule", "tables", "the rules, in order", required=True, table=RULE),
    )
)

LEXICAL = Table(keys=(Key("weights", "string", "the trained classifier, an .npz file; router.npz if left out"),))

LLM = Table(
    keys=(
        Key("checkpoint", "string", "the router's own model: a folder, or a Hugging Face id in the local cache"),
        Key("revision", "string", "branch, tag or commit of the Hugging Face id; main if left out"),
        Key("config", "string", "a config.json or a known shape: a model without bytes, for modelled devices only"),
        Key("question", "string", "what the model is asked, with {prompt}, and {experts} for their names"),
        Key("max_tokens", "integer", "tokens of its answer", minimum=1, maximum=4096),
    ),
    exactly_one=("checkpoint", "config"),
    needs={"revision": "checkpoint"},
)

KNN = Table(
    keys=(
        Key("examples", "string", 'examples besides those of experts: JSON lines {"expert", "prompt"}, "" for none'),
        Key("k", "integer", "how many of the nearest examples vote", minimum=1, maximum=1000),
        Key("similarity", "number", "below this similarity to the nearest example the fallback answers",
            minimum=0, maximum=1),
        Key("checkpoint", "string", "the router's own model, whose vectors are compared: as an llm router's"),
        Key("revision", "string", "branch, tag or commit of the Hugging Face id; main if left out"),
    ),
    needs={"revision": "checkpoint"},
)  # fmt: skip

ROUTER = Table(
    keys=(
        Key("kind", "string", "how prompts are routed", required=True),
        Key("fallback", "string", "the expert that answers when the router is unsure", required=True),
        Key("threshold", "number", "below this confidence the fallback answers", minimum=0, maximum=1),
        Key("margin", "number", "by how much confidence another expert must lead before a conversation moves to it",
            minimum=0, maximum=1),
        Key("prefer_resident", "number", "an expert in memory is preferred to another that leads by at most this",
            minimum=0, maximum=1),
    ),
    variants={"rules": RULES, "lexical": LEXICAL, "knn": KNN, "llm": LLM},
)  # fmt: skip

SAMPLING = Table(
    keys=(
        Key("temperature", "number", "divides the logits; 0 is greedy", minimum=0, maximum=MAX_TEMPERATURE),
        Key("top_k", "integer", "sample from this many of the likeliest tokens; 0 is no limit", minimum=0),
        Key("top_p", "number", "sample from the likeliest tokens that together have this probability",
            minimum=0, maximum=1),
        Key("min_p", "number", "exclude tokens less probable than this share of the likeliest", minimum=0, maximum=1),
        Key("presence_penalty", "number", "subtracted once from the logits of tokens that are in the answer",
            minimum=-MAX_PENALTY, maximum=MAX_PENALTY),
        Key("frequency_penalty", "number", "subtracted from a token's logit for each time it is in the answer",
            minimum=-MAX_PENALTY, maximum=MAX_PENALTY),
        Key("repetition_penalty", "number", "above 1, makes tokens of the prompt and the answer less likely; 1 is none",
            minimum=1 / MAX_REPETITION, maximum=MAX_REPETITION),
    )
)  # fmt: skip

EXPERT = Table(
    keys=(
        Key("name", "string", "the expert's name; {i} counts from 0 where count is given", required=True,
            pattern=_COUNTED_NAME, pattern_meaning=_NAME_MEANING),
        Key("aliases", "strings", "other names by which clients may ask for it, as model or by @",
            pattern=ALIAS_PATTERN, pattern_meaning=ALIAS_RULE),
        Key("checkpoint", "string",
            "a folder with config.json, a LoRA adapter's, a delta's, or a Hugging Face id in the local cache"),
        Key("revision", "string", "branch, tag or commit of the Hugging Face id; main if left out"),
        Key("base", "string", "the base model of an adapter or a delta; if left out, the one that it names"),
        Key("adapter", "string", "a LoRA adapter's folder, or a delta's, if the checkpoint is its base"),
        Key("config", "string", "a config.json or a known shape: an expert without bytes, for modelled devices only"),
        Key("packed", "string", "the type of the config's weights, as coterie quantize packs them, or fp8",
            choices=(*BY_NAME, *WITHOUT_BYTES)),
        Key("rank", "integer", "a LoRA adapter of this rank on the config's model, which such experts share",
            minimum=1, maximum=4096),
        Key("delta", "string", "a fine-tune as a difference of this type from the config's model, which they share",
            choices=tuple(BY_NAME)),
        Key("count", "integer", "how many experts of this config", minimum=1, maximum=100_000),
        Key("description", "string", "what the expert is good at, in a few words", may_be_empty=True),
        Key("examples", "strings", "prompts that it should answer, for a knn router"),
        Key("draft", "string", "a smaller expert with the same vocabulary, its draft in speculative decoding"),
        Key("sampling", "table", "sampling settings for what a request leaves out; they override its checkpoint's",
            table=SAMPLING),
    ),
    exactly_one=("checkpoint", "config"),
    needs={"count": "config", "packed": "config", "rank": "config", "delta": "config", "revision": "checkpoint",
           "base": "checkpoint", "adapter": "checkpoint"},
)  # fmt: skip

COMPOSITION = Table(
    keys=(
        Key("name", "string", "the composition's name, which is also a model id", required=True,
            pattern=NAME_PATTERN, pattern_meaning=_NAME_MEANING),
        Key("description", "string", "what the composition is for", may_be_empty=True),
        Key("router", "table", "how prompts find their expert; may be left out", table=ROUTER),
        Key("expert", "tables", "the experts", required=True, table=EXPERT),
    )
)  # fmt: skip


def json_schema() -> dict[str, Any]:
    """The composition file as a JSON Schema (draft 2020-12)."""
    return {"$schema": SCHEMA_ID, "title": "Coterie composition", **_table_schema(COMPOSITION)}


def schema_text() -> str:
    """The text of schema.json, as published."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _table_schema(table: Table) -> dict[str, Any]:
    if table.variants:
        return {"oneOf": [_variant_schema(table, kind, more) for kind, more in table.variants.items()]}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key.name: _key_schema(key) for key in table.keys},
        "required": [key.name for key in table.keys if key.required],
        "additionalProperties": False,
    }
    if table.exactly_one:
        schema["oneOf"] = [{"required": [name]} for name in table.exactly_one]
    if table.at_least_one:
        schema["anyOf"] = [{"required": [name]} for name in table.at_least_one]
    if table.needs:
        schema["dependentRequired"] = {name: [other] for name, other in table.needs.items()}
    return schema


def _variant_schema(table: Table, kind: str, more: Table) -> dict[str, Any]:
    schema = _table_schema(table.with_variant(more))
    schema["properties"]["kind"] = {"const": kind, "description": schema["properties"]["kind"]["description"]}
    return schema


def _key_schema(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": key.meaning}
    if key.table is not None:
        inner = _table_schema(key.table)
        return schema | (inner if key.type == "table" else {"type": "array", "minItems": 1, "items": inner})
    if key.type == "strings":
        pattern = f"^(?:{key.pattern})$" if key.pattern else NOT_BLANK
        return schema | {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": pattern}}
    schema["type"] = key.type
    if key.minimum is not None:
        schema["minimum"] = key.minimum
    if key.maximum is not None:
        schema["maximum"] = key.maximum
    if key.choices:
        schema["enum"] = list(key.choices)
    if key.pattern:
        schema["pattern"] = f"^(?:{key.pattern})$"
    if key.type == "string" and not (key.choices or key.pattern or key.may_be_empty):
        schema["pattern"] = NOT_BLANK
    return schema


if __name__ == "__main__":
    print(schema_text(), end="")
