"""Where each weight of a model is in a GGUF file, the type it is converted to, and its bytes in that type.

The target of a quantised type was chosen by measurement (docs/log.md): the smallest packed type that adds an error of
less than 1% of the weights. That is int4, int4z or int6 if it holds the codes unchanged (blocks.py), and int8 for all
others, where int4z would add 5 to 7% and int6 1.7%. MXFP4 stays MXFP4.
Knows nothing about config.json or how a file is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.packed import F32, encode, unpack
from coterie.core.text import first_few
from coterie.models.config import ModelConfig
from coterie.models.gguf.blocks import codes_kept, packed_codes
from coterie.models.gguf.config import HEAD
from coterie.models.gguf.encoders import DENSE, head_of
from coterie.models.gguf.file import GgufFile, GgufTensor, gguf_package
from coterie.models.gguf.rope import TENSORS
from coterie.models.gguf.routed import HeadRows
from coterie.models.gguf.source import Architecture
from coterie.models.joined import joined_names
from coterie.models.new_folder import row_pieces
from coterie.models.packing import BY_NAME, CHOOSERS, HEADS, Packing, may_be_packed
from coterie.models.packing_error import ErrorSums
from coterie.models.registry import weight_shapes

_SUFFIXES = (".weight", ".bias")
_SAME_ANSWER = "check that the file is whole"


@dataclass(frozen=True, slots=True)
class Source:
    """A weight of this `shape` as rows of a tensor, from `first` on; with `heads`, permuted within heads.

    `offset` is subtracted. `stays`: never packed; true for a scoring head, which is not part of the graph.
    """

    tensor: GgufTensor
    shape: tuple[int, ...]
    first: int = 0
    heads: int = 0
    offset: float = 0.0
    stays: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows to be packed; a single row is treated as a vector."""
        return len(self.shape) == 2 and self.shape[0] > 1

    def rows(self, start: int, stop: int) -> Any:
        """The tensor's rows that hold rows `start` to `stop` of the weight: a slice, or an array of indices."""
        if not self.heads:
            return slice(self.first + start, self.first + stop)
        row, per_head = np.arange(start, stop), self.shape[0] // self.heads
        head, channel = np.divmod(row, per_head)
        half, pair = np.divmod(channel, per_head // 2)
        return self.first + head * per_head + 2 * pair + half

    def values(self, start: int, stop: int) -> F32:
        """Rows of the weight as float32 [rows, columns]."""
        values = self.tensor.values(self.rows(start, stop)).reshape(stop - start, -1)
        return values - np.float32(self.offset) if self.offset else values


def sources_of(file: GgufFile, row: Architecture, config: ModelConfig, samples_tokens: bool) -> dict[str, Source]:
    """Every weight of the model by its name, in order of first use; without a head if it samples no tokens.

    Raises CheckpointError for one that is missing or of another shape, UnsupportedError for unused tensors.
    """
    gguf = gguf_package(file.where)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[file.metadata["general.architecture"]], config.num_layers)
    heads = {config.names.q: config.num_heads, config.names.k: config.num_kv_heads} if row.permuted else {}
    shapes, found = weight_shapes(config, samples_tokens), {}
    joined = _joined(file, names, config, shapes) | _stacked(names, config, shapes)
    for name, shape in shapes.items():
        theirs, first, rows = joined.get(name) or (_called(name, names, file), 0, shape[0])
        tensor = file.tensors.get(theirs or "") or _head_rows(name, theirs, file)
        if tensor is None:
            missing = f"tensor {theirs or name}, {name} of the model, is missing"
            raise CheckpointError(file.where, missing, _SAME_ANSWER)
        tensor = _in_rows(tensor, shape, config)
        if tensor.shape != (rows, *shape[1:]):
            fact = f"tensor {theirs} has shape {list(tensor.shape)}, where {[rows, *shape[1:]]} is expected"
            raise CheckpointError(file.where, fact, _SAME_ANSWER)
        part = name.rpartition(".")[0]
        permuted_heads = next((count for end, count in heads.items() if part.endswith(f".{end}")), 0)
        offset = config.norm_offset if part.endswith("norm") else 0.0
        found[name] = Source(tensor, shape, first, permuted_heads, offset)
    for name, theirs in head_of(file.tensors, config.family, file.where).items():
        found[name] = Source(file.tensors[theirs], file.tensors[theirs].shape, stays=True)
    extra = range(config.num_layers, config.num_layers + config.extra_layers)
    of_heads = [] if samples_tokens else [HEAD, *DENSE]
    _refuse_leftovers(file, found, (*of_heads, *[f"blk.{layer}." for layer in extra]))
    return found


def _named(name: str, names: Any) -> str | None:
    found = names.get_name(name, _SUFFIXES) or names.get_name(name.removeprefix("model."), _SUFFIXES)
    return None if found is None else str(found)


def _head_rows(name: str, theirs: str | None, file: GgufFile) -> GgufTensor | None:
    """The weight of latent attention that newer files store as two tensors; None for any other."""
    keys, values = (file.tensors.get(str(theirs).replace("kv_b", part)) for part in ("k_b", "v_b"))
    return HeadRows.of(keys, values) if name.endswith(HEADS) and keys and values else None


def _called(name: str, names: Any, file: GgufFile) -> str | None:
    """A weight's name in the file: some have a suffix there that they lack in a folder, or a different one."""
    ends = [name, name.removesuffix("_bias") + ".bias"]
    found = next((theirs for end in ends if (theirs := _named(end, names))), None)
    longer = [f"{found}{end}" for end in ("", *_SUFFIXES)]
    return next((theirs for theirs in longer if theirs in file.tensors), found)


def _joined(
    file: GgufFile, names: Any, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, int, int]]:
    """Weights that are rows of a joined tensor: its name, their first row in it, and its number of rows."""
    found = {}
    for stored, whole in joined_names(config.names, config.num_layers):
        parts = [name for name in whole if name in shapes]  # some layers lack such a block
        theirs = names.get_name(stored, _SUFFIXES)
        rows, first = sum(shapes[name][0] for name in parts), 0
        if theirs not in file.tensors or file.tensors[theirs].shape[0] != rows:
            continue  # stored separately
        for name in parts:
            found[name] = (theirs, first, rows)
            first += shapes[name][0]
    return found


def _stacked(names: Any, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int, int]]:
    """The same for branch matrices, which are stacked in one tensor for each of gate, up and down."""
    if config.branches is None:
        return {}
    found, branch = {}, config.branches.names.branch
    before, after = branch.split("{}")
    for name, shape in shapes.items():
        prefix, mark, rest = name.partition(f".{before}")
        number, _, part = rest.partition(after)
        if mark and number.isdigit():
            theirs = _named(f"{prefix}{mark}{part}", names) or name
            found[name] = (theirs, int(number) * shape[0], config.branches.count * shape[0])
    return found


def _in_rows(tensor: GgufTensor, shape: tuple[int, ...], config: ModelConfig) -> GgufTensor:
    """A tensor with the shape expected here: stacked branches as rows, a vector as a matrix of one row, and so on."""
    if config.branches is not None and len(tensor.shape) == 3 and tensor.shape[0] == config.branches.count:
        return replace(tensor, shape=(tensor.shape[0] * tensor.shape[1], tensor.shape[2]))
    if len(shape) == 3 and tensor.shape == shape[::2] and shape[1] == 1:  # taps of a convolution
        return replace(tensor, shape=shape)
    if len(shape) == 2 and tensor.shape == shape[1:]:
        return replace(tensor, shape=(1, *tensor.shape), rows=tensor.rows.reshape(1, -1))
    return tensor


def _refuse_leftovers(file: GgufFile, found: Mapping[str, Source], unread: tuple[str, ...]) -> None:
    tensors = [source.tensor for source in found.values()]
    used = {tensor.name for tensor in tensors} | {one.latent.name for one in tensors if isinstance(one, HeadRows)}
    left = file.tensors.keys() - used - {*TENSORS}
    leftovers = sorted(name for name in left if not name.startswith(unread))
    if leftovers:
        fact = f"holds tensors that the model does not use: {first_few(leftovers)}"
        raise UnsupportedError(file.where, fact, "leaving them out could change the answers")


@dataclass(frozen=True, slots=True)
class Types:
    """The type of every weight; `packing` is the one for config.json."""

    by_name: Mapping[str, DType]
    packing: Packing | None


KEEP, KEEP8, BF16 = "keep", "keep8", "bf16"  # keep8: int8 instead of int6
WEIGHTS = (KEEP, KEEP8, BF16, *BY_NAME)


def types_of(sources: Mapping[str, Source], weights: str) -> Types:
    """The types for `weights`, one of WEIGHTS. With `keep` and `keep8`, unquantised matrices keep their types."""
    heads = {name: source for name, source in sources.items() if source.stays}
    sources = {name: source for name, source in sources.items() if not source.stays}
    may = {name: source for name, source in sources.items() if may_be_packed(name, source.shape)}
    matrices = may | {name: source for name, source in sources.items() if source.is_matrix}
    packing = None
    if weights in (KEEP, KEEP8):
        packing = Packing.of({name: _kept(source.tensor, weights == KEEP8) for name, source in may.items()})
    elif weights != BF16:
        packing = Packing(BY_NAME[weights], DType.Q8)
    ranked = {name: source for name, source in sources.items() if name.endswith(CHOOSERS) and len(source.shape) == 1}
    plain = {name: source for name, source in sources.items() if name not in ranked}
    by_name = dict.fromkeys(sources, DType.BF16 if weights == BF16 else _small(plain))
    for name, source in (matrices | ranked).items():
        packed = packing.dtype_of(name, source.shape) if packing else None
        own = source.tensor.float_type if weights != BF16 else None
        by_name[name] = packed or own or DType.BF16
    by_name |= {name: source.tensor.float_type or DType.BF16 for name, source in heads.items()}
    return Types(by_name, packing)


def _kept(tensor: GgufTensor, none_of_six: bool) -> DType | None:
    """The packed type that a matrix is converted to; None if it is not quantised."""
    if tensor.float_type:
        return None
    kept = codes_kept(tensor.type) or DType.Q8
    return DType.Q8 if none_of_six and kept is DType.Q6 else kept


def _small(sources: Mapping[str, Source]) -> DType:
    """The type for vectors, which a file holds as float32: the smallest that represents all of them exactly.

    Exact with respect to the file: it stores norms as float32(w + offset), which w must reproduce.
    """
    exact = [DType.BF16, DType.F16]
    matrices = {s.tensor.float_type for s in sources.values() if s.is_matrix}
    if matrices == {DType.F16}:
        exact.reverse()
    for source in sources.values():
        if not source.is_matrix:
            exact = [dtype for dtype in exact if _holds(source, dtype)]
    return exact[0] if exact and matrices != {DType.F32} else DType.F32


def _holds(source: Source, dtype: DType) -> bool:
    values, stored = source.values(0, source.shape[0]), source.tensor.values(source.rows(0, source.shape[0]))
    return bool(np.array_equal(to_f32(from_f32(values, dtype), dtype) + np.float32(source.offset), stored))


def pieces(source: Source, dtype: DType, sums: ErrorSums) -> Iterator[bytes]:
    """The bytes of a weight in a type, some rows at a time; the error is added to `sums`.

    Raises CheckpointError for a number that is not finite in that type.
    """
    rows, columns = source.shape[0], prod(source.shape[1:])
    for taken in row_pieces(rows, columns):
        start, stop = taken.start, taken.stop
        if source.tensor.float_type is dtype and not source.offset:
            bits: Any = source.tensor.bits(source.rows(start, stop))
            sums.num_weights += (stop - start) * columns
            sums.num_bytes += bits.nbytes
        else:
            values = source.values(start, stop)
            bits, after = _stored(source, values, start, stop, dtype)
            if not np.isfinite(after).all():
                fact = f"a weight is infinite or not a number in {dtype.value}"
                raise CheckpointError(source.tensor.where, fact, "get the file again, or choose other --weights")
            sums.add(values, after, bits.nbytes)
        yield bits.tobytes()


def _stored(source: Source, values: F32, start: int, stop: int, dtype: DType) -> tuple[Any, F32]:
    """The stored bits of these rows, and the values that they represent."""
    try:
        if dtype is not codes_kept(source.tensor.type):
            return encode(values, dtype)
        packed = packed_codes(source.tensor.type, source.tensor.rows[source.rows(start, stop)], values)
    except ValueError as error:
        raise CheckpointError(source.tensor.where, str(error), "get the file again") from None
    return packed, unpack(packed, dtype, values.shape[1])
