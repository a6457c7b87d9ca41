"""Which ways to quantise are understood, and which one a folder's config.json names.

Knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coterie.checkpoint.files import read_object_if_present
from coterie.checkpoint.folder import CONFIG
from coterie.core.paths import user_path
from coterie.models.fields import Fields
from coterie.models.packing import KEY, OTHERS
from coterie.models.quantised.awq import awq_method
from coterie.models.quantised.compressed import compressed_method
from coterie.models.quantised.float8 import fp8_method
from coterie.models.quantised.gptq import gptq_method
from coterie.models.quantised.matrix import refused
from coterie.models.quantised.method import Method

METHODS: dict[str, Callable[[Fields], Method]] = {
    "gptq": gptq_method,
    "awq": awq_method,
    "fp8": fp8_method,
    "compressed-tensors": compressed_method,
}


def is_quantised_by_others(source: str | Path) -> bool:
    """Whether a folder's config.json names a method of others that is understood. Raises CheckpointError."""
    section = read_object_if_present(user_path(source) / CONFIG).get(KEY)
    return isinstance(section, dict) and section.get("quant_method") in OTHERS


def method_of(config: Fields) -> Method:
    """How the weights of this config are quantised. Raises UnsupportedError and CheckpointError."""
    section = config.section(KEY)
    method = None if section is None else section.get("quant_method")
    if section is None or not isinstance(method, str) or method not in METHODS:
        raise refused(config.where, f"{KEY} is of {method!r}, where {', '.join(METHODS)} are understood")
    return METHODS[method](section)
