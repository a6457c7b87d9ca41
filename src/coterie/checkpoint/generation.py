"""What generation_config.json says: which tokens end an answer, and how the model's authors would draw its tokens.

    eos_token_id                  else config.json's, else the tokenizer's end token
    do_sample, temperature, ...   false: greedy; else nothing, which whoever asks may have an answer to

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
from coterie.core.sampling import NOTHING_SAID, PartialSampling, check_setting

GENERATION = "generation_config.json"
DRAWN = ("temperature", "top_k", "top_p", "min_p")  # what these say holds where do_sample is true
WARM = 1.0  # the temperature of a file that samples and names none, as transformers has it
REPETITION = "repetition_penalty"


@dataclass(frozen=True, slots=True)
class Advised:
    """How a checkpoint's authors would draw its tokens; `notes`: what is left out of it, and why."""

    sampling: PartialSampling = NOTHING_SAID
    notes: tuple[str, ...] = ()


NOT_ADVISED = Advised()


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


def advised(folder: Path) -> Advised | None:
    """How the folder's generation_config.json would have tokens drawn; None where it says nothing of that.

    A setting that cannot be had is left out with a note: what is wrong there is no reason to do without the model.
    Raises CheckpointError for a file that is no JSON object.
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
    """A number as it is meant: some files say a whole number as 20.0, and no limit as -1. Raises RequestError."""
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
