"""Matrices that a file stores fused, as the parts that a graph reads: rows of the stored tensor, in place.

    stored   self_attn.qkv_proj.weight   | rows of q | rows of k | rows of v |
    parts    self_attn.q_proj.weight ...   an offset in the file and a number of rows each: nothing is copied

A file may also hold the parts separately, as those written by `coterie quantize` do.
Knows nothing about which family joins what (family.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.errors import CheckpointError
from coterie.models.family import Names


def own_names(tensors: Mapping[str, TensorInfo], names: Names) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint under the names used here, if a family's files use other prefixes."""
    found = {own_name(name, names): info for name, info in tensors.items()}
    return {name: info if info.name == name else replace(info, name=name) for name, info in found.items()}


def own_name(name: str, names: Names) -> str:
    """The name used here for one tensor."""
    for stored, here in names.stored:
        name = here + name.removeprefix(stored) if name.startswith(stored) else name
    return name


def joined_names(
    names: Names, num_layers: int, kinds: Sequence[str] = (".weight",)
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of each joined tensor of the layers, of these kinds, and of its parts in order."""
    for layer in range(num_layers if names.joined else 0):
        prefix = names.layer.format(layer)
        for stored, parts in names.joined.items():
            for kind in kinds:
                yield f"{prefix}{stored}{kind}", tuple([f"{prefix}{part}{kind}" for part in parts])


def split_joined(
    where: Path, tensors: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]], names: Names, num_layers: int
) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint with parts in place of joined tensors; `wanted` has the shape of each part.

    Raises CheckpointError if a joined tensor is missing or its shape does not match its parts.
    """
    found = dict(tensors)
    for stored, parts in joined_names(names, num_layers, (".weight", ".bias")):
        own = [part for part in parts if part in wanted]
        if own and not all(name in tensors for name in own):
            found |= _parts(where, found, stored, {name: wanted[name] for name in own})
            found.pop(stored)
    return found


def _parts(
    where: Path, tensors: Mapping[str, TensorInfo], stored: str, parts: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorInfo]:
    """The parts of one tensor, in order."""
    rows, (_, *rest) = [shape[0] for shape in parts.values()], next(iter(parts.values()))
    whole = tensors.get(stored)
    if whole is None:
        fact = f"tensor {stored} {[sum(rows), *rest]} is missing"
        raise CheckpointError(str(where), fact, "check that config.json belongs to these weights")
    if whole.shape != (sum(rows), *rest):
        fact = f"tensor {stored} has shape {list(whole.shape)} but config.json wants {[sum(rows), *rest]}"
        raise CheckpointError(str(where), fact, "check that config.json belongs to these weights")
    return consecutive_rows(whole, 0, parts)


def consecutive_rows(whole: TensorInfo, first: int, parts: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """Tensors of these shapes that follow one another in a stored one, from its row `first` on; by name."""
    found = {}
    for name, shape in parts.items():
        found[name] = whole.rows(name, first, shape)
        first += shape[0]
    return found
