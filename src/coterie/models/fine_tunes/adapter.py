"""Reads a PEFT folder with a LoRA adapter: its adapter_config.json, and which of its tensors changes what.

    base_model.model.model.layers.3.mlp.up_proj.lora_A.weight     [rank, in]    a pair per module: scale * B A is added
    base_model.model.model.layers.3.mlp.up_proj.lora_B.weight     [out, rank]   to its weight
    base_model.model.lm_head.weight                               a whole tensor, which replaces the base's

Knows nothing about the base. Source: PEFT's developer guide, "PEFT checkpoint format", and its LoraConfig.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import ADAPTER_CONFIG
from coterie.checkpoint.safetensors import TensorInfo, read_header
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.paths import user_path
from coterie.models.blocks import HEAD_WEIGHT
from coterie.models.fields import Fields
from coterie.models.fine_tunes.patterns import matches

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"

# Keys that turn on variants which are not supported.
_REFUSED = {
    "layer_replication": "layers that are used more than once",
    "alora_invocation_tokens": "an adapter that acts from certain tokens on",
    "trainable_token_indices": "single rows of an embedding",
    "target_parameters": "parameters that are no layer's weight",
    "lora_bias": "biases of the adapter itself",
    "use_qalora": "inputs that are pooled in groups",
    "use_bdlora": "factors in diagonal blocks",
    "megatron_config": "layers of Megatron",
    "arrow_config": "several adapters with a router",
    "velora_config": "a variant of LoRA",
    "monteclora_config": "a variant of LoRA",
    "kasa_config": "a variant of LoRA",
}
# Values of init_lora_weights that leave the base unchanged; all others subtract something from its weights first.
_KEEPS_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
_PART = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)")
_MAGNITUDE = "lora_magnitude_vector"
_LINEAR, _EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of a module's weight: scale * B A, transposed if `is_embedding`.

    `a` is [rank, in] and `b` [out, rank]; for an embedding `in` is the vocabulary. With `magnitude` [out] (DoRA) each
    row of the sum is then scaled to that length.
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    scale: float
    is_embedding: bool = False
    magnitude: TensorInfo | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it changes."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.is_embedding else shape


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one tensor of the base: `whole`, if any, replaces it; `low_rank`, if any, is added."""

    whole: TensorInfo | None = None
    low_rank: LowRank | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """Changes by the name of the base's tensor. `base`: the adapter's own reference to its base; may be empty.

    `ties`: embedding and head were tied in training.
    """

    path: Path
    base: str
    ties: bool
    changes: Mapping[str, Change]

    @property
    def other_base(self) -> str:
        """The remedy if it does not fit the base."""
        return "use the base that it was trained on" + (f": {self.base}" if self.base else "")

    def check_shape(self, name: str, factors: LowRank, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError if factors are not for a matrix of this shape."""
        if factors.shape != shape:
            a, b = list(factors.a.shape), list(factors.b.shape)
            fact = f"{name}: A {a} and B {b} are for a matrix {list(factors.shape)}, but it is {list(shape)}"
            raise CheckpointError(str(self.path), fact, self.other_base)


@dataclass(frozen=True, slots=True)
class _Settings:
    fields: Fields
    rank: int
    alpha: float
    ranks: Mapping[str, Any] = field(default_factory=dict)
    alphas: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return self.fields.where

    def rank_of(self, module: str) -> int:
        key = self._key(self.ranks, module)
        return self.rank if key is None else Fields(self.ranks, f"{self.where}: rank_pattern").count(key)

    def scale_of(self, module: str) -> float:
        key, rank = self._key(self.alphas, module), self.rank_of(module)
        alpha = self.alpha if key is None else Fields(self.alphas, f"{self.where}: alpha_pattern").number(key)
        return alpha / rank**0.5 if self.fields.flag("use_rslora") else alpha / rank

    def _key(self, patterns: Mapping[str, Any], module: str) -> str | None:
        """The first pattern that matches the end of a module's name."""
        return next((p for p in patterns if matches(p, module, self.where, at_end=True)), None)


def open_adapter(path: str | Path) -> Adapter:
    """Read an adapter's config and the header of its weights.

    Raises CheckpointError if files are missing, damaged or disagree, UnsupportedError for unsupported variants.
    """
    folder = user_path(path)
    if not folder.is_dir():
        fact = f"{'is a file' if folder.exists() else 'does not exist'}, where an adapter's folder is expected"
        raise CheckpointError(str(folder), fact, "check the path")
    if not (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(str(folder), f"has no {ADAPTER_CONFIG}", "give the folder that PEFT saved")
    fields = Fields(read_object(folder / ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG))
    _refuse(fields)
    settings = _Settings(
        fields, fields.count("r", 8), fields.number("lora_alpha", 8), *(_patterns(fields, n) for n in ("rank", "alpha"))
    )
    if not (folder / ADAPTER_WEIGHTS).exists():
        others = ", ".join(sorted(p.name for p in folder.glob("*.bin")))
        fact = f"has no {ADAPTER_WEIGHTS}" + (f" (but {others})" if others else "")
        raise CheckpointError(str(folder), fact, "save it as safetensors")
    changes = _changes(read_header(folder / ADAPTER_WEIGHTS), settings)
    return Adapter(folder, str(fields.get("base_model_name_or_path", "")), fields.flag("ensure_weight_tying"), changes)


def _refuse(fields: Fields) -> None:
    kind, begun = fields.get("peft_type"), fields.get("init_lora_weights", True)
    if kind != "LORA":
        raise UnsupportedError(fields.where, f"peft_type is {kind!r}, which is not merged", "Coterie merges LORA")
    for key, feature in _REFUSED.items():
        if fields.get(key):
            fact = f"{key} = {str(fields.get(key))[:60]} means {feature}, which are not merged"
            raise UnsupportedError(fields.where, fact, "merge it with PEFT, and save the whole model")
    if (begun.lower() if isinstance(begun, str) else begun) not in _KEEPS_THE_BASE:
        fact = f"init_lora_weights is {begun!r}, so the adapter belongs to a base that this beginning has changed"
        raise UnsupportedError(fields.where, fact, "let PEFT convert it to a plain LoRA when it is saved")


def _patterns(fields: Fields, name: str) -> Mapping[str, Any]:
    section = fields.section(f"{name}_pattern")
    return section.raw if section else {}


def _changes(tensors: Mapping[str, TensorInfo], settings: _Settings) -> dict[str, Change]:
    """Changes by tensor of the base, in the order of the adapter's file."""
    found: dict[str, Change] = {}
    parts: dict[str, dict[str, TensorInfo]] = {}
    for key, info in tensors.items():
        name = key.removeprefix(PREFIX)
        if match := _PART.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = info
        elif ".lora_" in name:
            where, fact = f"{info.shard.path}: {key}", "is a kind of tensor that is not merged"
            raise UnsupportedError(where, fact, "Coterie merges LoRA as save_pretrained names it")
        else:  # a whole tensor; PEFT calls it base_layer if the module also has factors
            whole = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if whole in found:
                raise CheckpointError(f"{info.shard.path}: {key}", "is there twice", "save the adapter again")
            found[whole] = Change(whole=info)
    for module, by_part in parts.items():
        name = f"{module}.weight"
        found[name] = replace(found.get(name, Change()), low_rank=_low_rank(module, by_part, settings))
    if not found:
        raise CheckpointError(settings.where, f"there is no tensor in {ADAPTER_WEIGHTS}", "save the adapter again")
    return found


def _low_rank(module: str, parts: Mapping[str, TensorInfo], settings: _Settings) -> LowRank:
    where = f"{next(iter(parts.values())).shard.path}: {module}"
    is_embedding = not parts.keys().isdisjoint(_EMBEDDING)
    a_name, b_name = _EMBEDDING if is_embedding else _LINEAR
    if parts.keys() - {_MAGNITUDE} != {a_name, b_name}:
        fact = f"has {' and '.join(sorted(parts))}, where {a_name} and {b_name} belong together"
        raise CheckpointError(where, fact, "save the adapter again")
    a, b, rank = parts[a_name], parts[b_name], settings.rank_of(module)
    for info, name, axis in ((a, a_name, 0), (b, b_name, 1)):
        if len(info.shape) != 2 or not info.dtype.is_float:
            fact = f"{name} is {info.dtype.value} {list(info.shape)}, where a matrix of F32, F16 or BF16 is expected"
            raise UnsupportedError(where, fact, "Coterie merges adapters of linear layers and embeddings")
        if info.shape[axis] != rank:
            fact = f"{name} is {list(info.shape)}, of rank {info.shape[axis]}, but {ADAPTER_CONFIG} says {rank}"
            raise CheckpointError(where, fact, "use the config that belongs to this adapter")
    made = LowRank(module, a, b, settings.scale_of(module), is_embedding, _magnitude(where, parts, b, settings))
    if is_embedding and made.magnitude is not None:
        raise UnsupportedError(where, "is an embedding with use_dora, which is not merged", "merge it with PEFT")
    _check_target(where, module, is_embedding, settings)
    return made


def _magnitude(where: str, parts: Mapping[str, TensorInfo], b: TensorInfo, settings: _Settings) -> TensorInfo | None:
    magnitude, wanted = parts.get(_MAGNITUDE), settings.fields.flag("use_dora")
    if (magnitude is not None) != wanted:
        fact = f"{_MAGNITUDE} is {'missing' if wanted else 'there'} but use_dora is {str(wanted).lower()}"
        raise CheckpointError(where, fact, "use the config that belongs to this adapter")
    if magnitude is not None and (magnitude.shape != b.shape[:1] or not magnitude.dtype.is_float):
        fact = f"is {magnitude.dtype.value} {list(magnitude.shape)}, where {list(b.shape[:1])} floats are expected"
        raise CheckpointError(where, f"{_MAGNITUDE} {fact}", "save the adapter again")
    return magnitude


def _check_target(where: str, module: str, is_embedding: bool, settings: _Settings) -> None:
    """Refuse modules that target_modules does not name: PEFT would ignore them when loading the adapter."""
    targets = settings.fields.get("target_modules")
    if targets is None:
        return
    if targets == ALL_LINEAR:
        named = not is_embedding and f"{module}.weight" != HEAD_WEIGHT
    elif isinstance(targets, str):
        named = matches(targets, module, settings.where)
    elif isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        named = any(f".{module}".endswith(f".{target}") for target in targets)
    else:
        raise settings.fields.wrong("target_modules", f"is {targets!r}", "a text or a list of texts")
    if not named:
        fact = f"is adapted in {ADAPTER_WEIGHTS} but target_modules does not name it"
        raise CheckpointError(where, fact, "use the config that belongs to this adapter")
