"""Reads generation_config.json: the tokens that end an answer, and the sampling that the model's authors recommend.

    eos_token_id                  if missing, config.json's; if that is missing, the tokenizer's end token
    do_sample, temperature, ...   do_sample false: greedy; missing: no recommendation

Knows nothing about requests. Source: transformers' GenerationConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.tokenizer import TOKENIZER, Tokenizer, special_tokens
from coterie.core.errors import CheckpointError, RequestError, shown
from coterie.core.sampling import UNSET, PartialSampling, check_setting

GENERATION = "generation_config.json"
DRAWN = ("temperature", "top_k", "top_p", "min_p")  # count only if do_sample is true
WARM = 1.0  # temperature if do_sample is true and none is given, as in transformers
REPETITION = "repetition_penalty"


@dataclass(frozen=True, slots=True)
class Advised:
    """The sampling that a checkpoint's authors recommend; `notes`: which settings were ignored, and why."""

    sampling: PartialSampling = UNSET
    notes: tuple[str, ...] = ()


NOT_ADVISED = Advised()


def own_end_ids(folder: Path) -> tuple[int, ...] | None:
    """The end tokens in the folder's generation_config.json, or None if it has none. Raises CheckpointError."""
    return _ids(read_object_if_present(folder / GENERATION), folder / GENERATION)


def end_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Distinct ids of the tokens that end an answer; empty if the folder names none. Raises CheckpointError."""
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


def advised(folder: Path) -> Advised | None:
    """The sampling recommended by the folder's generation_config.json; None if it recommends none.

    An invalid setting is ignored with a note: it is no reason to refuse the model. Raises CheckpointError if the file
    is not a JSON object.
    """
    raw = read_object_if_present(folder / GENERATION)
    if "do_sample" not in raw and raw.get(REPETITION) is None:
        return None
    said, notes = dict[str, Any](), list[str]()
    for name in (*(DRAWN if raw.get("do_sample") is True else ()), REPETITION):
        if (value := raw.get(name)) is None:
            continue
        try:
            number = _number(name, value)
            check_setting(name, number)
            said[name] = number
        except RequestError as error:
            notes.append(f"{error.fact} in {GENERATION}, which is ignored: {error.remedy}")
    if raw.get("do_sample") is True:
        said.setdefault("temperature", WARM)
    elif raw.get("do_sample") is False:
        said["temperature"] = 0.0
    return Advised(PartialSampling(**said), tuple(notes))


def _number(name: str, value: object) -> float:
    """A setting as a number. For top_k, some files write 20.0, or -1 for no limit. Raises RequestError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(name, f"{name} is {shown(value)}", "it must be a number")
    if name != "top_k":
        return value
    if not isinstance(value, int) and not value.is_integer():
        raise RequestError(name, f"{name} is {shown(value)}", "it must be a whole number")
    return max(int(value), 0) if value >= -1 else int(value)


def _ids(raw: Mapping[str, Any], file: Path) -> tuple[int, ...] | None:
    value = raw.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(str(file), f"eos_token_id is {value!r}", "it must be token ids")
    return tuple(dict.fromkeys(ids))
