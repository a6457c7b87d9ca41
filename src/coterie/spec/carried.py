"""Kernel efficiencies for machines without published kernel measurements, carried over from machines that have them.

    fixed          time per kernel regardless of size; does not shrink with faster peaks
    flops, bytes   the shares of the peaks reached for the rest

A file (carried/*.toml) gives them per kernel family, fitted to measured kernels, each with its source; a machine's file
refers to it by name. A share measured on the machine itself takes precedence.
Knows nothing about graphs or programs; `coterie validate` reports their accuracy.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from coterie.core.errors import NotFoundError
from coterie.core.parsed import parse_toml
from coterie.core.paths import shipped_names
from coterie.spec import quantity as q
from coterie.spec.kernel import DECODE, GEMM, GEMM_FP8
from coterie.spec.machine import Carried, KernelRates

PREFILL = "attention-prefill"
FAMILIES = (GEMM, GEMM_FP8, PREFILL, DECODE)
_NUMBERS = {"fixed": q.TIME, "flops": q.SHARE, "bytes": q.SHARE}


def carried_names() -> tuple[str, ...]:
    """Names of the sets that ship with Coterie, sorted."""
    return shipped_names("coterie.spec", "carried", ".toml")


@cache
def load_carried(name: str) -> Carried:
    """Load a set by name. Raises NotFoundError for an unknown name, UsageError naming the key that is wrong."""
    if name not in carried_names():
        raise NotFoundError(name, "no kernels are carried over from there", f"use one of {', '.join(carried_names())}")
    where = f"carried/{name}.toml"
    raw = parse_toml((files("coterie.spec") / "carried" / f"{name}.toml").read_text(encoding="utf-8"), where)
    reader = q.Reader(where, {})
    reader.keys(raw, "", {"source", *FAMILIES}, {"source", *FAMILIES})
    rates = {}
    for family in FAMILIES:
        table = reader.typed(raw[family], family, dict, f"a table [{family}]")
        reader.keys(table, family, set(_NUMBERS), set(_NUMBERS))
        found = {key: reader.quantity(table[key], f"{family}.{key}", units).value for key, units in _NUMBERS.items()}
        rates[family] = KernelRates(found["fixed"], found["flops"], found["bytes"])
    return Carried(rates[GEMM], rates[GEMM_FP8], rates[PREFILL], rates[DECODE], reader.text(raw, "", "source"))


def on_machine(carried: Carried, flops_share: float | None, bytes_share: float | None) -> Carried:
    """Replace the GEMM shares by those measured on the machine, where known; the other families scale with them."""
    by_flops = flops_share / carried.gemm.flops_share if flops_share else 1.0
    by_bytes = bytes_share / carried.gemm.bytes_share if bytes_share else 1.0
    each = (carried.gemm, carried.gemm_fp8, carried.prefill, carried.decode)
    gemm, fp8, prefill, decode = (_scaled(rates, by_flops, by_bytes) for rates in each)
    return Carried(gemm, fp8, prefill, decode, carried.source, flops_share is not None, bytes_share is not None)


def _scaled(rates: KernelRates, flops: float, bytes_: float) -> KernelRates:
    return KernelRates(rates.fixed_s, min(1.0, rates.flops_share * flops), min(1.0, rates.bytes_share * bytes_))
