"""Reads how a model embeds texts, from the files that sentence-transformers writes, if there are any.

    modules.json                         Transformer, Pooling (1_Pooling/config.json) and perhaps Dense and Normalize
    config_sentence_transformers.json    prompts (prefixes of a text) by name: "query", "document"
    sentence_bert_config.json            how many tokens of a text are read, and whether it is lowercased

Knows nothing about models. Source: the files that sentence-transformers writes (sbert.net, "Custom Models").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from coterie.checkpoint.dense import WEIGHTS, Dense, dense_config, read_dense
from coterie.checkpoint.files import parse_object, read_object, read_object_if_present, read_text
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError, shown

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
READING = "sentence_bert_config.json"
_FLAG = "pooling_mode_"
Pooling: TypeAlias = Literal["first", "last", "mean"]
# The supported kinds of pooling by their names in files: flags in older files, a value in newer ones.
POOLINGS: Mapping[str, Pooling] = {
    **{"cls_token": "first", "cls": "first", "lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}
}


@dataclass(frozen=True, slots=True)
class Embedding:
    """How a text becomes a vector.

    `prompts`: prefixes of a text, by name; `default_prompt`: the name of the default one, empty for none. `max_tokens`:
    tokens read of a text, special tokens included; 0: no limit. `lowered`: the text is lowercased. `layers`: dense
    layers applied to the pooled vector, in order.
    """

    pooling: Pooling
    normalized: bool = True
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_prompt: str = ""
    max_tokens: int = 0
    lowered: bool = False
    layers: tuple[Dense, ...] = ()

    def prompt(self, use: str) -> str:
        """The prompt for a text, by its name; "" for the default one. Raises RequestError for an unknown name."""
        name = use or self.default_prompt
        if name and name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            fact = f"is {shown(name)}, and the prompts of this expert are: {known}"
            raise RequestError("prompt_name", fact, "name one of them, or leave it out")
        return self.prompts.get(name, "")


def is_sentence_model(folder: Path) -> bool:
    """Whether a folder holds a sentence-transformers model."""
    return (folder / MODULES).is_file()


def read_embedding(folder: Path, default: Embedding) -> Embedding:
    """Read a folder's Embedding; `default` if it is not a sentence-transformers model.

    Raises CheckpointError for damaged files, UnsupportedError naming a setting that would change the vectors.
    """
    if not is_sentence_model(folder):
        return default
    pooling, normalized, layers = "", False, list[Dense]()
    for module in _modules(folder / MODULES):
        kind, own = _kind(module, folder / MODULES), _own_folder(module, folder)
        if normalized and kind != "Normalize":
            fact = f"has a module {kind} behind Normalize, which is not supported"
            raise UnsupportedError(str(folder / MODULES), fact, "use a model that normalizes last")
        if kind == "Pooling":
            pooling = _pooling(own / "config.json")
        elif kind == "Dense":
            layers.append(read_dense(own))
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            fact = f"has a module {kind}, which is not supported"
            raise UnsupportedError(
                str(folder / MODULES), fact, "use a model of Transformer, Pooling, Dense and Normalize"
            )
    if not pooling:
        raise CheckpointError(str(folder / MODULES), "names no Pooling", "download the folder again")
    max_tokens, lowered = reading_of(folder / READING)
    prompts, default_prompt = prompts_of(folder / PROMPTS)
    return Embedding(POOLINGS[pooling], normalized, prompts, default_prompt, max_tokens, lowered, tuple(layers))


def write_embedding(
    folder: Path, pooling: Pooling, width: int, dense_shapes: Sequence[tuple[int, ...]] = ()
) -> list[Path]:
    """Write sentence-transformers' files for a model whose vectors have `width` dimensions, this pooling and norm 1.

    `dense_shapes`: shapes [out, in] of matrices applied after pooling. Returns the paths of their weight files, which
    the caller writes.
    """
    flags = {"first": "cls_token", "last": "lasttoken", "mean": "mean_tokens"}
    found = {f"{_FLAG}{flag}": kind == pooling for kind, flag in flags.items()} | {"word_embedding_dimension": width}
    modules: list[tuple[str, Mapping[str, Any]]] = [("Transformer", {}), ("Pooling", found)]
    modules += [("Dense", dense_config(*shape)) for shape in dense_shapes] + [("Normalize", {})]
    paths = [f"{i}_{kind}" if i else "" for i, (kind, _) in enumerate(modules)]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, (kind, _)) in enumerate(zip(paths, modules, strict=True))
    ]
    (folder / MODULES).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    for path, (_, config) in zip(paths, modules, strict=True):
        if config:
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [folder / path / WEIGHTS for path in paths[2:-1]]


def module_kinds(folder: Path) -> list[str]:
    """The kinds of a folder's modules, in order. Raises CheckpointError."""
    return [_kind(module, folder / MODULES) for module in _modules(folder / MODULES)]


def module_config(folder: Path, kind: str) -> Mapping[str, Any] | None:
    """The config of the first module of this kind; None if there is none. Raises CheckpointError."""
    listed = _modules(folder / MODULES) if is_sentence_model(folder) else []
    found = [module for module in listed if _kind(module, folder / MODULES) == kind]
    return read_object(_own_folder(found[0], folder) / "config.json") if found else None


def module_folders(folder: Path) -> list[Path]:
    """The subfolders of a folder's modules; none if it is not a sentence-transformers model. Raises CheckpointError."""
    listed = _modules(folder / MODULES) if is_sentence_model(folder) else []
    found = [_own_folder(module, folder) for module in listed if isinstance(module, dict)]
    return [own for own in dict.fromkeys(found) if own != folder]


def _own_folder(module: Mapping[str, Any], folder: Path) -> Path:
    """A module's folder: always directly inside the model's, whatever path the file names."""
    name = Path(str(module.get("path", ""))).name
    return folder / name if name not in ("", "..") else folder


def reading_of(where: Path) -> tuple[int, bool]:
    """The maximum number of tokens of a text, 0 for no limit, and whether it is lowercased."""
    config = read_object_if_present(where) or {}
    most, lowered = config.get("max_seq_length") or 0, config.get("do_lower_case") or False
    if type(most) is not int or most < 0:
        raise CheckpointError(str(where), f"max_seq_length is {shown(most)}", "it must be a number of tokens")
    return most, bool(lowered)


def _modules(where: Path) -> list[Any]:
    found = parse_object(f'{{"modules": {read_text(where)}}}', str(where))["modules"]
    if not isinstance(found, list):
        raise CheckpointError(
            str(where), f"holds {shown(found)}, where a list is expected", "download the folder again"
        )
    return found


def _kind(module: Any, where: Path) -> str:
    """The class name of a module, without its package."""
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise CheckpointError(str(where), f"holds {shown(module)}, where a module with a type is expected", "mend it")
    return str(module["type"]).rpartition(".")[2]


def _pooling(where: Path) -> str:
    """The pooling that is switched on. Raises UnsupportedError if there are several, or one that is not supported."""
    config = read_object(where)
    word = config.get("pooling_mode")
    on = [key.removeprefix(_FLAG) for key, value in config.items() if key.startswith(_FLAG) and value is True]
    found = [word] if isinstance(word, str) else on
    if len(found) != 1 or found[0] not in POOLINGS:
        fact = f"pools by {' and '.join(found) or 'nothing'}, which is not supported"
        raise UnsupportedError(str(where), fact, "use a model that pools by one token or the mean")
    if POOLINGS[found[0]] == "mean" and config.get("include_prompt", True) is not True:
        fact = "include_prompt is false, so that the mean leaves tokens out, which is not supported"
        raise UnsupportedError(str(where), fact, "use a model whose mean is of all tokens")
    return str(found[0])


def prompts_of(where: Path) -> tuple[Mapping[str, str], str]:
    """Prompts by name, and the name of the default one."""
    config = read_object_if_present(where) or {}
    prompts, default_prompt = config.get("prompts") or {}, config.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(str(where), f"prompts is {shown(prompts)}", "it must be an object of texts")
    if default_prompt and default_prompt not in prompts:
        raise CheckpointError(
            str(where), f"default_prompt_name is {shown(default_prompt)}, which is no prompt", "mend it"
        )
    return MappingProxyType(dict(prompts)), str(default_prompt)
