"""The quantization_config of config.json: which packed type each matrix of an expert has.

    {"quant_method": "coterie", "version": 1, "bits": 4, "embedding_bits": 8}     int4; embedding and head int8
    {"quant_method": "coterie", "version": 2, "layers": "int4", "tables": null,   embedding and head as they were
     "exceptions": {"model.layers.0.mlp.down_proj.weight": "int8"}}               by the tensor's name; null as above

Version 1 is written whenever it suffices. Knows nothing about files or bytes (core.packed does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from coterie.core.dtypes import PACKED, DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.blocks import TABLES
from coterie.models.delta_net import DELTA_NAMES
from coterie.models.families import FAMILIES
from coterie.models.latent import LATENT_NAMES
from coterie.models.layered import LAYERED_NAMES
from coterie.models.state_space import ScanNames

_T = TypeVar("_T")

KEY, METHOD, VERSIONS = "quantization_config", "coterie", (1, 2)
REPACKED_METHODS = (
    "gptq",
    "awq",
    "fp8",
    "compressed-tensors",
    "mxfp4",
)  # methods that coterie quantize converts (repack.py)
_OF_ENCODERS = {table for f in FAMILIES.values() if f.encoder for table in f.names.tables}
ALL_TABLES = (*TABLES, LAYERED_NAMES.input_table, *sorted(_OF_ENCODERS))  # tables whose rows are looked up
# Not packed: they are small, and rounding them could choose another branch.
CHOOSERS = tuple(sorted({f".{one}" for f in FAMILIES.values() if f.branches for one in f.branches.names.choosers}))
# Not packed: they are small too, and an error there accumulates in the recurrent state.
GATES = tuple(f".{name}.weight" for name in (DELTA_NAMES.a, DELTA_NAMES.b, DELTA_NAMES.ba, ScanNames().dt))
HEADS = (f".{LATENT_NAMES.up}.weight",)  # not packed: read head by head, as rows and as columns
NAMES: Mapping[DType, str] = {
    **{DType.Q8: "int8", DType.Q6: "int6", DType.Q4: "int4", DType.Q4Z: "int4z", DType.Q2: "int2", DType.MX4: "mxfp4"},
}
BY_NAME: Mapping[str, DType] = {name: dtype for dtype, name in NAMES.items()}
WITHOUT_BYTES: Mapping[str, DType] = {"fp8": DType.F8_E4M3}  # priced by modelled machines; real devices do not run them
_NAMES = {**NAMES, **{dtype: name for name, dtype in WITHOUT_BYTES.items()}}
BY_BITS: Mapping[int, DType] = {8: DType.Q8, 4: DType.Q4}  # in version 1


@dataclass(frozen=True, slots=True)
class Packing:
    """Packed types of the layers' matrices, of embedding and head, and of single tensors. None: unchanged."""

    layers: DType | None
    tables: DType | None
    exceptions: Mapping[str, DType | None] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(types: Mapping[str, DType | None]) -> Packing | None:
        """The packing with the fewest exceptions that gives these matrices these types; None if none is packed."""
        if not any(types.values()):
            return None
        layers, tables = (
            Counter(dtype for name, dtype in types.items() if (name in ALL_TABLES) is are).most_common(1)
            for are in (False, True)
        )
        usual, of_tables = (found[0][0] if found else None for found in (layers, tables))
        odd = {
            name: dtype for name, dtype in types.items() if dtype is not (of_tables if name in ALL_TABLES else usual)
        }
        return Packing(usual, of_tables, odd)

    def dtype_of(self, name: str, shape: tuple[int, ...]) -> DType | None:
        """The packed type of a weight; None for norms, biases, choosers of branches and unchanged matrices."""
        if not may_be_packed(name, shape):
            return None
        return self.exceptions.get(name, self.tables if name in ALL_TABLES else self.layers)

    def check(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        """Raise CheckpointError for an exception that names no matrix of a model with these weights."""
        for name in self.exceptions:
            if not may_be_packed(name, shapes.get(name, ())):
                fact = f"{KEY}: exceptions names {name}, which is no matrix of the model that may be packed"
                raise CheckpointError(where, fact, "check that config.json belongs to these weights")

    def words(self) -> dict[str, Any]:
        """The packing with types by their public names."""
        named = {name: dtype and _NAMES[dtype] for name, dtype in self.exceptions.items()}
        return {
            "layers": self.layers and _NAMES[self.layers],
            "tables": self.tables and _NAMES[self.tables],
            "exceptions": named,
        }

    def to_config(self) -> dict[str, Any]:
        """The section of config.json, with group sizes spelled out for readers."""
        bits: dict[DType | None, int | None] = {dtype: bits for bits, dtype in BY_BITS.items()}
        section: dict[str, Any]
        if self.layers in bits and self.tables in (*bits, None) and not self.exceptions:
            section = {"bits": bits[self.layers], "embedding_bits": bits.get(self.tables)}
            groups = {str(bits): PACKED[dtype][1] for bits, dtype in BY_BITS.items()}
            more = {"group_size_by_bits": groups, "scales": "bfloat16", "zero_point": False}
            return {"quant_method": METHOD, "version": 1} | section | more
        used = {self.layers, self.tables, *self.exceptions.values()}
        groups = {NAMES[dtype]: PACKED[dtype][1] for dtype in NAMES if dtype in used}
        return {"quant_method": METHOD, "version": 2} | self.words() | {"group_sizes": groups, "scales": "bfloat16"}


def packing_of(raw: Mapping[str, Any], where: str, *, has_bytes: bool = True) -> Packing | None:
    """The packing that a config declares, None without one. `has_bytes`: the weights exist and are to be run.

    Raises UnsupportedError for another method or version, CheckpointError for invalid values.
    """
    section = raw.get(KEY)
    if not section:
        return None
    method = section.get("quant_method") if isinstance(section, dict) else section
    version = section.get("version") if isinstance(section, dict) else None
    if method != METHOD or type(version) is not int or version not in VERSIONS:
        found = f"version {version!r} of {METHOD}" if method == METHOD else f"{method!r}"
        fact = f"{KEY} of {found} means quantised weights, which are not supported"
        remedy = "quantise the unquantised checkpoint with coterie quantize"
        if method in REPACKED_METHODS:
            remedy = "make an expert of them: coterie quantize FOLDER OUT, which says whether that takes --bits"
        raise UnsupportedError(where, fact, remedy)
    if version == 1:
        tables = _one_of(section, "embedding_bits", {**BY_BITS, None: None}, where)
        return Packing(_one_of(section, "bits", BY_BITS, where), tables)
    maybe: Mapping[Any, DType | None] = {**BY_NAME, **({} if has_bytes else WITHOUT_BYTES), None: None}
    exceptions = section.get("exceptions", {})
    if not isinstance(exceptions, dict):
        fact = f"{KEY}: exceptions is {exceptions!r}"
        raise CheckpointError(where, fact, "it must be an object of tensors' names and types")
    layers, tables = _one_of(section, "layers", maybe, where), _one_of(section, "tables", maybe, where)
    odd = {name: _one_of(exceptions, name, maybe, where) for name in exceptions}
    return Packing(layers, tables, odd)


def may_be_packed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a matrix that may be packed.

    Not one that chooses branches, gates a recurrent state or is read head by head, and no table of biases.
    """
    return len(shape) == 2 and not name.endswith((*CHOOSERS, *GATES, *HEADS, "bias", "bias.weight"))


def _one_of(section: Mapping[str, Any], name: str, allowed: Mapping[Any, _T], where: str) -> _T:
    found = section.get(name)
    if isinstance(found, bool | float | list | dict) or found not in allowed:
        raise CheckpointError(where, f"{KEY}: {name} is {found!r}", f"it must be one of {tuple(allowed)}")
    return allowed[found]
