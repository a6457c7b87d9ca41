"""The supported quantisation formats, and the one that a folder's config.json names.

Knows nothing about what tensors mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.folder import CONFIG, Checkpoint
from coterie.core.paths import user_path
from coterie.models.families import FAMILIES
from coterie.models.fields import Fields
from coterie.models.packing import KEY, REPACKED_METHODS
from coterie.models.quantised.awq import awq_method
from coterie.models.quantised.compressed import compressed_method
from coterie.models.quantised.float8 import fp8_method
from coterie.models.quantised.gptq import gptq_method
from coterie.models.quantised.matrix import refused
from coterie.models.quantised.method import Method
from coterie.models.quantised.mxfp4 import mxfp4_method
from coterie.models.quantised.transposed import transposed_method

METHODS: dict[str, Callable[[Fields], Method]] = {
    "gptq": gptq_method,
    "awq": awq_method,
    "fp8": fp8_method,
    "compressed-tensors": compressed_method,
    "mxfp4": mxfp4_method,
}


def is_repacked(source: str | Path) -> bool:
    """Whether a folder must be repacked: quantised in one of these formats, or with transposed branch matrices.

    Raises CheckpointError.
    """
    config = Fields(read_object_if_present(user_path(source) / CONFIG), str(source))
    section = config.get(KEY)
    if isinstance(section, dict) and section.get("quant_method") in REPACKED_METHODS:
        return True
    transposed = () if section else _transposed(config)
    return bool(transposed) and any(name.endswith(transposed) for name in Checkpoint.open(source).tensors)


def method_of(config: Fields) -> Method:
    """The quantisation method of a config. Raises UnsupportedError and CheckpointError."""
    section = config.section(KEY)
    if section is None and _transposed(config):
        return transposed_method()
    method = None if section is None else section.get("quant_method")
    if section is None or not isinstance(method, str) or method not in METHODS:
        raise refused(config.where, f"{KEY} is of {method!r}, where {', '.join(METHODS)} are understood")
    return METHODS[method](section)


def _transposed(config: Fields) -> tuple[str, ...]:
    """Name suffixes of the tensors in which a config's family stores branch matrices transposed."""
    family = FAMILIES.get(str(config.get("model_type")))
    return family.branches.names.transposed if family and family.branches else ()
