"""The quantization_config of config.json: which weights of an expert are packed, and how many bits each has.

    {"quant_method": "coterie", "version": 1, "bits": 4, "embedding_bits": 8}      embedding_bits: embedding and head;
                                                                                  null: stored as they were
Knows nothing about files or bytes (core.packed does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.core.dtypes import PACKED, DType
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.families import FAMILIES

KEY, METHOD, VERSION = "quantization_config", "coterie", 1
OTHERS = ("gptq", "awq", "fp8", "compressed-tensors")  # of which coterie quantize makes experts (repack.py)
# Small, and what is lost there may choose another branch.
CHOOSERS = tuple(sorted({f".{f.branches.names.chooser}.weight" for f in FAMILIES.values() if f.branches}))
BY_BITS = {PACKED[dtype][0]: dtype for dtype in (DType.Q8, DType.Q4)}


@dataclass(frozen=True, slots=True)
class Packing:
    """Bits of the matrices of the layers, and of embedding and head; None where those stay as they are."""

    bits: int
    embedding_bits: int | None

    def dtype_of(self, name: str, shape: tuple[int, ...]) -> DType | None:
        """The packed type of a weight; None for norms, biases, what chooses branches and what stays as it is."""
        if len(shape) != 2 or name.endswith(CHOOSERS):
            return None
        if name in (EMBED_WEIGHT, HEAD_WEIGHT):
            return None if self.embedding_bits is None else BY_BITS[self.embedding_bits]
        return BY_BITS[self.bits]

    def to_config(self) -> dict[str, Any]:
        """The section of config.json, with the groups spelled out for people."""
        groups = {str(bits): PACKED[dtype][1] for bits, dtype in BY_BITS.items()}
        section = {"quant_method": METHOD, "version": VERSION, "bits": self.bits, "embedding_bits": self.embedding_bits}
        return section | {"group_size_by_bits": groups, "scales": "bfloat16", "zero_point": False}


def packing_of(raw: Mapping[str, Any], where: str) -> Packing | None:
    """The packing that a config declares, None without one.

    Raises UnsupportedError for another method or version, CheckpointError for numbers that make no sense.
    """
    section = raw.get(KEY)
    if not section:
        return None
    method = section.get("quant_method") if isinstance(section, dict) else section
    if method != METHOD or section.get("version") != VERSION:
        found = f"version {section.get('version')!r} of {METHOD}" if method == METHOD else f"{method!r}"
        fact = f"{KEY} of {found} means quantised weights, which are not run"
        remedy = "quantise the unquantised checkpoint with coterie quantize"
        if method in OTHERS:
            remedy = "make an expert of them: coterie quantize FOLDER OUT, which says whether that takes --bits"
        raise UnsupportedError(where, fact, remedy)
    bits, embedding_bits = section.get("bits"), section.get("embedding_bits")
    for name, found, allowed in (("bits", bits, (8, 4)), ("embedding_bits", embedding_bits, (8, 4, None))):
        if found not in allowed or isinstance(found, bool | float):
            raise CheckpointError(where, f"{KEY}: {name} is {found!r}", f"it must be one of {allowed}")
    return Packing(bits, embedding_bits)
