"""Model: an expert's config, graph, layout and limits, opened from a checkpoint folder or from a config alone.

Knows nothing about devices, prompts or other experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.folder import CONFIG, Checkpoint
from coterie.checkpoint.generation import NOT_ADVISED, Advised, advised, end_ids
from coterie.checkpoint.layout import Layout
from coterie.checkpoint.place import place
from coterie.checkpoint.safetensors import without_bytes
from coterie.checkpoint.tokenizer import Tokenizer, has_tokenizer
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.packed import unpack
from coterie.core.shapes import Sizes, trailing
from coterie.graph.compile import kv_shape
from coterie.graph.ir import Graph, Value
from coterie.graph.ops import BF16, INT8, INT16, ROUNDING
from coterie.graph.program import KvShape, architecture_key
from coterie.graph.rounding import with_kept_kv, with_rounding
from coterie.graph.stored import value_bytes
from coterie.graph.vectors import samples_tokens
from coterie.models.architecture import architecture, shapes_of
from coterie.models.config import ModelConfig
from coterie.models.families import FAMILIES
from coterie.models.headless import with_model_prefix
from coterie.models.joined import own_names, split_joined
from coterie.models.nested import part_of, text_config
from coterie.models.packing import packing_of
from coterie.models.registry import decoder_graph
from coterie.models.scores import ScoreHead, score_head
from coterie.models.stacked import unstacked
from coterie.models.tensors import check_tensors, map_bytes, step_tensors
from coterie.models.text_model import text_model_of

AUTO, FLOAT32 = "auto", "float32"
# Rounding of activations. float32 and int16 are synonyms: float32, but up to 16 bits in products with packed weights;
# int8: 8 bits in most of those; bf16: bfloat16 in products with bfloat16 weights (docs/models.md has the table).
ACTIVATIONS = (FLOAT32, INT16, INT8, BF16)
KV_TYPES = (AUTO, INT8)  # types of cached keys and values: that of the weights, or 8 bits

_DTYPES = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16}


@dataclass(frozen=True, slots=True)
class Model:
    """One expert, ready to be compiled and fetched. Models with equal `key` share programs.

    `path` is None for a model made from a config alone, whose layout has no files. `part_of`: the model_type of the
    larger model whose text model this is; empty for a standalone model. `base`: an adapter's base, whose weights its
    graph also reads; `layout` has only the adapter's own weights, `checkpoint` has both. `advised`: the sampling
    settings that its authors recommend. `head`: the scoring head of a reranker, which returns neither tokens nor
    vectors. `draft`: the name of its draft expert (engine/speculate/draft.py); empty for none.
    """

    name: str
    path: Path | None
    config: ModelConfig
    graph: Graph
    key: str
    kv: KvShape
    layout: Layout
    end_ids: tuple[int, ...]
    max_context: int
    checkpoint: Checkpoint
    part_of: str = ""
    base: Model | None = None
    advised: Advised = NOT_ADVISED
    head: ScoreHead | None = None
    draft: str = ""

    @property
    def samples_tokens(self) -> bool:
        """Whether it samples tokens; a model that only returns vectors does not."""
        return samples_tokens(self.graph)

    @property
    def gives(self) -> Literal["tokens", "vectors", "scores"]:
        """What it was made to return: tokens (and vectors too); only vectors; or only scores of documents."""
        return "scores" if self.head else "tokens" if self.samples_tokens else "vectors"

    @property
    def activations(self) -> str:
        """The rounding of its activations: bf16 or int8 if any of its ops names that, else float32."""
        roundings = {op.attrs.get(ROUNDING) for op in self.graph.ops}
        return next((word for word in (BF16, INT8) if word in roundings), FLOAT32)

    @property
    def max_prompt_tokens(self) -> int:
        """Maximum prompt length in tokens: if a token is to be sampled, there must be room for it too."""
        return self.max_context - self.samples_tokens

    @property
    def written_s(self) -> int:
        """Modification time of the newest file of its own weights, in seconds since 1970; 0 without files."""
        return max((placed.source.identity.mtime_ns for placed in self.layout.ranges), default=0) // 1_000_000_000


def open_model(path: str | Path, name: str = "") -> Model:
    """Open a checkpoint folder: headers, config, end tokens; no weights are read.

    Raises CheckpointError if files are missing, damaged or disagree, UnsupportedError naming an unsupported feature.
    """
    whole = Checkpoint.open(path)
    alone = text_model_of(whole)
    head = score_head(alone)
    checkpoint, has_head = with_model_prefix(alone, head is not None)
    config = ModelConfig.from_hf(checkpoint.config, str(checkpoint.path / CONFIG))
    if FAMILIES[config.family].modelled_only:
        fact = f"{config.family} has ops that no real device has kernels for; only modelled machines run it"
        remedy = "name its config.json as config, without weights, and use --device synthetic:MACHINE"
        raise UnsupportedError(str(checkpoint.path / CONFIG), fact, remedy)
    if config.density != 1.0:
        fact = f"{1 - config.density:.1%} of the elements of its linears are left out; only modelled machines run that"
        raise UnsupportedError(str(checkpoint.path / CONFIG), fact, "use dense weights")
    if head is not None:
        head.check(config)
    packing = packing_of(checkpoint.config, str(checkpoint.path / CONFIG))
    shapes = shapes_of(config, has_head)
    read = step_tensors(own_names(checkpoint.tensors, config.names), config)
    tensors = split_joined(checkpoint.path, read, shapes, config.names, config.num_layers)
    if config.branches:
        tensors = unstacked(checkpoint.path, tensors, shapes, config.names.layer, config.branches)
    checkpoint = replace(checkpoint, tensors=tensors)
    dtypes = check_tensors(checkpoint.path, tensors, shapes, packing)
    ends = end_ids(checkpoint.path, checkpoint.config)
    check_vocabulary(checkpoint.path, config.vocab_size, ends)
    found = _model(name or checkpoint.path.resolve().name, checkpoint, config, dtypes, ends, has_head=has_head)
    return replace(found, part_of=part_of(whole.config), advised=advised(checkpoint.path) or NOT_ADVISED, head=head)


def synthetic_model(raw: Mapping[str, Any], name: str = "synthetic", activations: DType = DType.F32) -> Model:
    """A model with the shapes of a config (as in config.json) but no bytes, which only a modelled device accepts.

    `activations` is the type in which that device stores intermediates.
    Raises CheckpointError and UnsupportedError as `open_model` does.
    """
    config = ModelConfig.from_hf(raw, name)
    whole, raw = raw, text_config(raw, name)
    declared = declared_dtype(raw, name)
    packing, shapes = packing_of(raw, name, has_bytes=False), shapes_of(config)
    if packing:
        packing.check(shapes, name)
    dtypes: dict[str, DType] = {}
    stored: dict[str, tuple[DType, tuple[int, ...]]] = {}
    for weight, shape in shapes.items():
        packed = packing.dtype_of(weight, shape) if packing else None
        dtypes[weight] = packed or declared
        stored[weight] = dtypes[weight].stored(shape)
    if config.density != 1.0:
        stored |= _sparse(config, dtypes, packing is not None, name)
    found = _model(name, Checkpoint(Path(), raw, without_bytes(stored)), config, dtypes, (), activations)
    return replace(found, part_of=part_of(whole))


def _sparse(
    config: ModelConfig, dtypes: Mapping[str, DType], is_packed: bool, where: str
) -> dict[str, tuple[DType, tuple[int, ...]]]:
    """Sparse weights as bytes: the stored elements and their pattern. Raises UnsupportedError."""
    if is_packed:
        raise UnsupportedError(
            where, "its weights are both sparse and packed, which is not supported", "use one of the two"
        )
    sparse = (value for value in decoder_graph(config, dtypes).weights if value.density != 1.0)
    return {value.name: (DType.U8, (value_bytes(value, Sizes.decode(1, 1)),)) for value in sparse}


def declared_dtype(raw: Mapping[str, Any], where: str) -> DType:
    """The element type that a config declares for its weights, bfloat16 without one. Raises CheckpointError."""
    declared = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if declared not in _DTYPES:
        raise CheckpointError(where, f"dtype is {declared!r}", f"it must be one of {', '.join(_DTYPES)}")
    return _DTYPES[declared]


def with_activations(model: Model, activations: str) -> Model:
    """The model with its activations rounded as one of ACTIVATIONS says; float32 and int16 leave it unchanged.

    int8 applies to products with packed weights, bf16 to those with bfloat16 weights. Raises UsageError for any other
    word.
    """
    if activations not in ACTIVATIONS:
        fact = f"{activations!r} is not a type that activations can have"
        raise UsageError("--activations", fact, f"use one of {', '.join((AUTO, *ACTIVATIONS))}")
    if activations in (FLOAT32, INT16):
        return model
    graph = with_rounding(model.graph, activations)
    base = model.base and with_activations(model.base, activations)
    return replace(model, graph=graph, key=architecture_key(graph), base=base)


def with_kv_type(model: Model, kv_type: str) -> Model:
    """The model unchanged (auto), or with keys and values cached in 8 bits (int8).

    Raises UsageError for any other word, UnsupportedError for latent attention.
    """
    if kv_type not in KV_TYPES:
        fact = f"{kv_type!r} is not a type that keys and values are kept in"
        raise UsageError("--kv-type", fact, f"use one of {', '.join(KV_TYPES)}")
    if kv_type != AUTO and model.config.latent:
        fact = "its rows are keys and values at once (latent attention), and are kept in the weights' type alone"
        raise UnsupportedError(model.name, fact, "leave --kv-type out, or this expert")
    graph = model.graph if kv_type == AUTO else with_kept_kv(model.graph, DType.KV8)
    if graph is model.graph:
        return model
    base = model.base and with_kv_type(model.base, kv_type)
    return replace(model, graph=graph, key=architecture_key(graph), kv=kv_shape(graph), base=base)


def load_weights_f32(model: Model) -> dict[str, npt.NDArray[np.float32]]:
    """Every weight of the graph as float32, by name; for the reference interpreter. Raises CheckpointError."""
    return {value.name: weight_rows_f32(model, value, slice(None)) for value in model.graph.weights}


def weight_rows_f32(model: Model, value: Value, rows: slice) -> npt.NDArray[np.float32]:
    """Some rows of a weight as float32, packed or not. Raises CheckpointError if the file cannot be read any more."""
    info = model.checkpoint.tensors[value.name]
    if value.dtype.is_packed:
        stored = np.asarray(map_bytes(info).reshape(info.shape)[rows])
        return unpack(stored, value.dtype, trailing(value.shape))
    bits = np.asarray(map_bytes(info).view(info.dtype.numpy)).reshape(info.shape or (1,))[rows]
    return to_f32(bits, info.dtype).reshape(bits.shape if info.shape else ())


def _model(
    name: str,
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtypes: Mapping[str, DType],
    ends: tuple[int, ...],
    activations: DType = DType.F32,
    has_head: bool = True,
) -> Model:
    made, embed = architecture(config, dtypes, activations, has_head), config.names.embed
    layout = place(checkpoint, made.weight_stage, made.stages, embed, made.stages_reading_whole(embed))
    path = checkpoint.path if checkpoint.path != Path() else None
    return Model(name, path, config, made.graph, made.key, made.kv, layout, ends, config.max_context, checkpoint)


def check_vocabulary(folder: Path, vocab_size: int, ends: tuple[int, ...]) -> None:
    """Check end tokens and tokenizer against the embedding: a vocabulary may be smaller (padding), but not larger.

    Raises CheckpointError.
    """
    outside = [token for token in ends if not 0 <= token < vocab_size]
    if outside:
        fact = f"end token {outside[0]} is outside the vocabulary of {vocab_size} tokens"
        raise CheckpointError(str(folder), fact, "mend eos_token_id in generation_config.json or config.json")
    if has_tokenizer(folder):
        known = Tokenizer.from_folder(folder).vocab_size
        if known > vocab_size:
            fact = f"the tokenizer has token ids up to {known - 1} but config.json has vocab_size {vocab_size}"
            raise CheckpointError(str(folder), fact, "use the tokenizer that belongs to the weights")
