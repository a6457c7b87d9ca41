"""Which tokens end an answer: generation_config.json, else config.json, else the tokenizer's end token.

Knows nothing about sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.tokenizer import TOKENIZER, Tokenizer, special_tokens
from coterie.core.errors import CheckpointError

GENERATION = "generation_config.json"


def own_end_ids(folder: Path) -> tuple[int, ...] | None:
    """What the folder's generation_config.json says, or None. Raises CheckpointError."""
    return _ids(read_object_if_present(folder / GENERATION), folder / GENERATION)


def end_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids of the tokens that end an answer, each once; empty when the folder names none. Raises CheckpointError."""
    found = own_end_ids(folder)
    found = _ids(config, folder / "config.json") if found is None else found
    if found is not None:
        return found
    text = special_tokens(folder).get("eos_token")
    if text is None or not (folder / TOKENIZER).exists():
        return ()
    token = Tokenizer.from_folder(folder).token_id(text)
    if token is None:
        fact = f"eos_token {text!r} is not a token of {TOKENIZER}"
        raise CheckpointError(str(folder), fact, "use the tokenizer that belongs to the weights")
    return (token,)


def _ids(raw: Mapping[str, Any], file: Path) -> tuple[int, ...] | None:
    value = raw.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(str(file), f"eos_token_id is {value!r}", "it must be token ids")
    return tuple(dict.fromkeys(ids))
