"""Branch matrices that a file stores as one tensor, as the parts that a graph reads: rows of it, in place.

    stored   mlp.experts.gate_up_proj [E, 2 F, D]   | gate of 0 | up of 0 | gate of 1 | up of 1 ...
    parts    mlp.experts.0.gate_proj.weight ...       an offset in the file and a number of rows each: nothing is copied

Most files have one tensor per matrix. Knows nothing about which family stores what (branches.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.branches import Branches
from coterie.models.joined import consecutive_rows


def unstacked(
    where: Path, tensors: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]], layer: str, found: Branches
) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint, with each branch's matrices in place of stacked tensors.

    `layer`: prefix of a layer's tensors, to be formatted with its number. A stacked tensor that the file also holds in
    parts stays, and is refused later as a leftover. Raises CheckpointError if a stacked tensor's shape does not match
    its parts, UnsupportedError if it is stored transposed.
    """
    tensors, names = usually_named(tensors, layer, found), found.names
    for prefix in (layer.format(number) for number in sorted(found.layers)):
        if transposed := [prefix + name for name in names.transposed if prefix + name in tensors]:
            fact = f"tensor {transposed[0]} holds the matrices of its branches transposed, which no kernel reads"
            remedy = "write an expert of them once: coterie quantize FOLDER OUT, or with --bits 8, 4z, 4 or mxfp4"
            raise UnsupportedError(str(where), fact, remedy)
        for name, parts in names.stacked:
            apart = f"{prefix}{names.branch.format(0)}{parts[0]}.weight"
            if prefix + name not in tensors or apart in tensors:
                continue
            whole = tensors.pop(prefix + name)
            for branch in range(found.count):
                place = prefix + names.branch.format(branch)
                shapes = {f"{place}{part}.weight": wanted[f"{place}{part}.weight"] for part in parts}
                tensors |= _parts(where, whole, branch, found.count, shapes)
    return tensors


def usually_named(tensors: Mapping[str, TensorInfo], layer: str, found: Branches) -> dict[str, TensorInfo]:
    """The tensors by the names that a graph uses; a bias stored as one row becomes a vector."""
    tensors, names = dict(tensors), found.names
    for prefix in (layer.format(number) for number in sorted(found.layers)):
        for name, stored in ((prefix + name, prefix + other) for name, other in names.aliases):
            if stored in tensors and name not in tensors:
                tensors[name] = replace(tensors.pop(stored), name=name)
        bias = tensors.get(prefix + names.bias)
        if bias is not None and bias.shape == (1, found.count):
            tensors[bias.name] = replace(bias, shape=(found.count,))
    return tensors


def _parts(
    where: Path, whole: TensorInfo, branch: int, count: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorInfo]:
    """The parts of one branch, in order."""
    rows, columns = sum(shape[0] for shape in shapes.values()), next(iter(shapes.values()))[1]
    if whole.shape != (count, rows, columns):
        fact = f"tensor {whole.name} has shape {list(whole.shape)} but config.json wants {[count, rows, columns]}"
        raise CheckpointError(str(where), fact, "check that config.json belongs to these weights")
    return consecutive_rows(whole, branch * rows, shapes)
