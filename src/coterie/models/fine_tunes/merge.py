"""Merges a LoRA adapter into a base: writes an ordinary expert folder, whose file can be read as a slab.

Tensors that the adapter does not change are copied byte for byte. If an adapter changes a tied embedding or its head,
the two become separate matrices, as they were in its training. Memory is bounded (merged.py).
Knows nothing about an adapter's files (adapter.py), the numbers (merged.py) or packed differences (merge_delta.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from coterie.checkpoint.chat import TEMPLATE
from coterie.checkpoint.files import read_object
from coterie.checkpoint.folder import SINGLE, Checkpoint, is_delta
from coterie.checkpoint.safetensors import TensorInfo
from coterie.checkpoint.tokenizer import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.paths import user_path
from coterie.core.text import nearest_hint
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT, TABLES
from coterie.models.fine_tunes.adapter import Adapter, Change, open_adapter
from coterie.models.fine_tunes.merge_delta import check_delta, merge_delta
from coterie.models.fine_tunes.merged import Merged, Sums, changed_kinds, check_opens, pieces
from coterie.models.joined import own_name
from coterie.models.model import Model, open_model
from coterie.models.new_folder import Entry, copy_other_files, free_path, new_folder, write_config, write_tensors
from coterie.models.packing import KEY
from coterie.models.scores import refuse_head
from coterie.models.tensors import equal_bytes, map_bytes

_OTHER_TOKENIZER_FILES = ("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.json")
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, TEMPLATE, *_OTHER_TOKENIZER_FILES)
_METADATA = {"format": "pt"}  # older versions of transformers require it


@dataclass(frozen=True, slots=True)
class _Plan:
    """The tensors to write, in order of first use: each from a tensor of the base, if any, and a change, if any."""

    stored: Checkpoint
    model: Model
    adapter: Adapter
    entries: tuple[Entry, ...]
    sources: Mapping[str, TensorInfo]
    changes: Mapping[str, Change]
    untied: bool
    vocab_size: int


def check_merge(base: str | Path, adapter: str | Path) -> None:
    """Raise what `merge_folder` would raise before it writes anything; reads only headers and a few bytes."""
    if is_delta(user_path(adapter)):
        check_delta(base, adapter)
    else:
        _plan(base, adapter)


def merge_folder(base: str | Path, adapter: str | Path, target: str | Path) -> Merged:
    """Add a LoRA adapter, or a packed difference, to the weights of a checkpoint folder, and write a new folder.

    The base's files other than weights are copied; tokenizer files come from the adapter if it has them. For a packed
    difference see `merge_delta`.
    Raises UsageError if `target` exists or an adapter's base is quantised, CheckpointError if the two do not fit,
    CapacityError if the disk is full, and whatever `open_model`, `open_adapter` and `open_delta` raise. A partly
    written folder is removed on any failure.
    """
    if is_delta(user_path(adapter)):
        return merge_delta(base, adapter, target)
    out = free_path(target)
    plan = _plan(base, adapter)
    sums: dict[str, Sums] = {}

    def write(file: BinaryIO, entry: Entry) -> None:
        source, change = plan.sources.get(entry.name), plan.changes.get(entry.name)
        if change:
            for piece in pieces(source, change, entry.dtype, sums.setdefault(entry.name, Sums())):
                file.write(piece)
        elif source:
            file.write(map_bytes(source).data)

    size_bytes = sum(entry.dtype.tensor_bytes(entry.shape) for entry in plan.entries)
    with new_folder(out, "the merged expert", size_bytes) as begun:
        copy_other_files(plan.stored.path, begun)
        _copy_tokenizer(plan.adapter.path, begun)
        write_config(begun, _config(plan))
        write_tensors(begun / SINGLE, plan.entries, _METADATA, write)
        check_opens(begun, plan.adapter.path)
    return Merged(out, size_bytes, plan.untied, plan.vocab_size, changed_kinds(plan.entries, sums))


def _plan(base: str | Path, adapter_folder: str | Path) -> _Plan:
    stored = Checkpoint.open(base)
    if stored.config.get(KEY):
        fact = "is quantised, and an adapter is added to the weights that it was trained on"
        raise UsageError(str(stored.path), fact, "merge into the unquantised base, and quantise what comes out")
    model, adapter = open_model(base), open_adapter(adapter_folder)
    if model.part_of:
        fact = f"holds a {model.part_of}, and adapters are merged into text models that stand alone"
        raise UnsupportedError(str(stored.path), fact, "save the text model by itself, or merge with PEFT")
    refuse_head(model.head, str(stored.path))
    names = {own_name(name, model.config.names): name for name in stored.tensors}
    sources, tied = _in_order(model, stored.tensors), model.config.tied_embeddings
    changes = {names.get(own := own_name(name, model.config.names), own): c for name, c in adapter.changes.items()}
    if tied and model.config.names.stored and any(names.get(name) in changes for name in TABLES):
        fact = f"changes the embedding, which is the head too, of a base of {model.config.family}"
        raise UnsupportedError(str(adapter.path), fact, "merge it with PEFT, and save the whole model")
    untied = tied and _comes_apart(adapter, changes)
    if tied:
        sources.pop(HEAD_WEIGHT, None)  # some folders store the tied head as well
    if untied:
        sources[HEAD_WEIGHT] = sources[EMBED_WEIGHT]
    for name, change in changes.items():
        _check_fits(name, change, sources, adapter)
    entries = tuple(_entry(name, info, changes.get(name)) for name, info in sources.items())
    tables = {names.get(name, name): name for name in TABLES}
    rows = {tables[entry.name]: entry.shape[0] for entry in entries if entry.name in tables}
    if len(set(rows.values())) > 1:
        sizes = " and ".join(f"{name} with {n} rows" for name, n in rows.items())
        fact = f"would make {sizes}, which must be as many"
        raise CheckpointError(str(adapter.path), fact, "save the adapter with embedding and head")
    return _Plan(stored, model, adapter, entries, sources, changes, untied, rows[EMBED_WEIGHT])


def _in_order(model: Model, stored: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors of the base's files in order of first use; a joined one is placed where its first part is used."""
    by_place = {(info.shard, info.offset): info for info in stored.values()}
    used = [model.checkpoint.tensors[value.name] for value in model.graph.weights]
    first = [by_place[place] for info in used if (place := (info.shard, info.offset)) in by_place]
    return {info.name: info for info in (*first, *stored.values())}


def _comes_apart(adapter: Adapter, changes: dict[str, Change]) -> bool:
    """Whether embedding and head, tied in the base, must be untied; may edit `changes`.

    Equal whole tensors for both stay tied. If one of the two has both factors and a whole tensor, that tensor is the
    base's as PEFT saw it, so it replaces the other one too. Raises UnsupportedError for an adapter that was trained
    with tied weights, unless it has both whole and equal.
    """
    touched = [name for name in TABLES if name in changes]
    wholes = [changes[name].whole for name in touched if not changes[name].low_rank]
    if len(wholes) == 2 and wholes[0] and wholes[1] and equal_bytes(wholes[0], wholes[1]):
        del changes[HEAD_WEIGHT]
        return False
    if touched and adapter.ties:
        names = " and ".join(touched)
        fact = f"ensure_weight_tying is true, and it changes {names}, one matrix in the base, not into one again"
        raise UnsupportedError(str(adapter.path), fact, "merge it with PEFT, and save the whole model")
    for name, other in (TABLES, TABLES[::-1]):
        change = changes.get(name, Change())
        if change.whole and change.low_rank and other not in changes:
            changes[other] = Change(whole=change.whole)
    return bool(touched)


def _check_fits(name: str, change: Change, sources: Mapping[str, TensorInfo], adapter: Adapter) -> None:
    source = sources.get(name)
    if source is None:
        fact = f"changes {name}, which the base does not have{nearest_hint(name, sources)}"
        raise CheckpointError(str(adapter.path), fact, adapter.other_base)
    start = source
    if change.whole:
        start = change.whole
        grows = name in TABLES and len(start.shape) == 2 and start.shape[1] == source.shape[1]
        if (start.shape != source.shape and not grows) or not start.dtype.is_float:
            fact = f"has {name} as {start.dtype.value} {list(start.shape)}, but the base's is {list(source.shape)}"
            raise CheckpointError(str(adapter.path), fact, adapter.other_base)
    if change.low_rank:
        adapter.check_shape(name, change.low_rank, start.shape)


def _entry(name: str, info: TensorInfo, change: Change | None) -> Entry:
    return Entry(name, info.dtype, change.whole.shape if change and change.whole else info.shape)


def _config(plan: _Plan) -> dict[str, Any]:
    changed: dict[str, Any] = {"tie_word_embeddings": False} if plan.untied else {}
    if plan.vocab_size != plan.model.config.vocab_size:
        changed["vocab_size"] = plan.vocab_size
    return dict(plan.stored.config) | changed


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy an adapter's tokenizer files; its chat template wins over the base's, in whichever file each is stored."""
    own = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if TEMPLATE not in own and TOKENIZER_CONFIG in own and read_object(source / TOKENIZER_CONFIG).get("chat_template"):
        (target / TEMPLATE).unlink(missing_ok=True)
    for name in own:
        shutil.copyfile(source / name, target / name)
