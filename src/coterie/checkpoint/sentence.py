"""What a folder says of how its model makes vectors of texts: the files of sentence-transformers, where there are.

    modules.json                         Transformer, Pooling (1_Pooling/config.json) and perhaps Normalize
    config_sentence_transformers.json    what is put before a text, by the name of its use: "query", "document"

Knows nothing about models. Source: the files that sentence-transformers writes (sbert.net, "Custom Models").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from coterie.checkpoint.files import parse_object, read_object, read_object_if_present, read_text
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError, shown

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
READING = "sentence_bert_config.json"
_FLAG = "pooling_mode_"
# What files call the two that are run: older ones have a flag each, newer ones a word.
_POOLINGS: Mapping[str, Literal["last", "mean"]] = {"lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}


@dataclass(frozen=True, slots=True)
class Embedding:
    """How a text becomes a vector. `prompts`: what stands before a text, by the name of its use; `usual`: the name of
    the one where none is given, empty for none.
    """

    pooling: Literal["last", "mean"]
    normalized: bool = True
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    usual: str = ""

    def before(self, use: str) -> str:
        """What is put before a text of this use; "" is the usual one. Raises RequestError for one without a name."""
        name = use or self.usual
        if name and name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            fact = f"is {shown(name)}, and the prompts of this expert are: {known}"
            raise RequestError("prompt_name", fact, "name one of them, or leave it out")
        return self.prompts.get(name, "")


def is_sentence_model(folder: Path) -> bool:
    """Whether a folder holds a model that was made to give vectors."""
    return (folder / MODULES).is_file()


def read_embedding(folder: Path, default: Embedding) -> Embedding:
    """What a folder says, or `default` where it says nothing.

    Raises CheckpointError for files that are damaged, UnsupportedError naming what would give other vectors.
    """
    if not is_sentence_model(folder):
        return default
    pooling, normalized = "", False
    for module in _modules(folder / MODULES):
        kind = _kind(module, folder / MODULES)
        if kind == "Pooling":
            pooling = _pooling(folder / Path(str(module.get("path", ""))).name / "config.json")
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            fact = f"has a module {kind}, which is not run"
            raise UnsupportedError(str(folder / MODULES), fact, "use a model of Transformer, Pooling and Normalize")
    if not pooling:
        raise CheckpointError(str(folder / MODULES), "names no Pooling", "download the folder again")
    if (read_object_if_present(folder / READING) or {}).get("do_lower_case"):
        fact = "do_lower_case is true, which is not run"
        raise UnsupportedError(str(folder / READING), fact, "use a model that reads capitals")
    return Embedding(_POOLINGS[pooling], normalized, *_prompts(folder / PROMPTS))


def _modules(where: Path) -> list[Any]:
    found = parse_object(f'{{"modules": {read_text(where)}}}', str(where))["modules"]
    if not isinstance(found, list):
        raise CheckpointError(str(where), f"holds {shown(found)}, where a list is wanted", "download the folder again")
    return found


def _kind(module: Any, where: Path) -> str:
    """The class of a module, without where it is defined."""
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise CheckpointError(str(where), f"holds {shown(module)}, where a module with a type is wanted", "mend it")
    return str(module["type"]).rpartition(".")[2]


def _pooling(where: Path) -> str:
    """The one pooling that is on, of those that are run."""
    config = read_object(where)
    word = config.get("pooling_mode")
    on = [key.removeprefix(_FLAG) for key, value in config.items() if key.startswith(_FLAG) and value is True]
    found = [word] if isinstance(word, str) else on
    if len(found) != 1 or found[0] not in _POOLINGS:
        fact = f"pools by {' and '.join(found) or 'nothing'}, which is not run"
        raise UnsupportedError(str(where), fact, "use a model that pools by its last token, or by the mean of all")
    if _POOLINGS[found[0]] == "mean" and config.get("include_prompt", True) is not True:
        fact = "include_prompt is false, so that the mean leaves tokens out, which is not run"
        raise UnsupportedError(str(where), fact, "use a model whose mean is of all tokens")
    return str(found[0])


def _prompts(where: Path) -> tuple[Mapping[str, str], str]:
    """Prompts by name, and the name of the usual one."""
    config = read_object_if_present(where) or {}
    prompts, usual = config.get("prompts") or {}, config.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(str(where), f"prompts is {shown(prompts)}", "it must be an object of texts")
    if usual and usual not in prompts:
        raise CheckpointError(str(where), f"default_prompt_name is {shown(usual)}, which is no prompt", "mend it")
    return MappingProxyType(dict(prompts)), str(usual)
