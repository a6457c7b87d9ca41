"""Operators timed from the host by others: a call, its kernel, and the synchronisation with the host.

    seconds   calls * (call + kernel)
    call      published by the same authors: the time of an operator on a single element (LLMCompass, A100)
    kernel    GEMMs: the measured tables; element-wise: bytes at one rate, fitted to the same authors' single operators

Knows nothing about graphs or programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from coterie.plan.validate.rows import CALIBRATION, GPU_KERNEL, Row
from coterie.spec.kernel import ELEMENT_WISE, Kernel
from coterie.spec.load import load_machine
from coterie.spec.measured import ANALYTIC, INTERPOLATED, ideal_s, kernels_of, read_table

# LLMCompass, hardware_model/compute_module.py, overhead_dict, A100: matmul 21 us, layernorm and GELU 45 us
CALL_S = {"gemm": 21e-6, ELEMENT_WISE: 45e-6}


def gemm_piece(device: str, m: int, n: int, k: int) -> tuple[float, float, str]:
    """A GEMM's modelled time, its lower bound by the peaks, and the provenance."""
    kernel = Kernel("gemm", (m, n, k))
    ideal, speed = ideal_s(device, kernel), kernels_of(device).speed(kernel)
    if speed is None:
        return ideal / load_machine(device).flops_share, ideal, ANALYTIC
    return ideal / speed.util, ideal, speed.provenance


def called_piece(raw: dict[str, str]) -> tuple[float, float, str]:
    """As `gemm_piece`, for a row of layers.csv that was timed from the host."""
    device, family, calls = raw["device"], raw["family"], int(raw["calls"])
    if family == "gemm":
        seconds, floor_s, provenance = gemm_piece(device, int(raw["m"]), int(raw["n"]), int(raw["k"]))
        return calls * (CALL_S[family] + seconds), calls * floor_s, provenance
    size_bytes = float(raw["bytes"])
    floor_s = ideal_s(device, Kernel(ELEMENT_WISE, (round(size_bytes), 0)))
    return calls * (CALL_S[family] + size_bytes / called_bytes_per_s(device)), calls * floor_s, INTERPOLATED


@cache
def called_bytes_per_s(device: str) -> float:
    """The bandwidth of element-wise kernels without call time, fitted to all single operators of a device."""
    return fit_bytes_per_s([(size, seconds) for of, _, size, seconds in _single() if of == device])


def fit_bytes_per_s(points: Sequence[tuple[float, float]]) -> float:
    """Fit the rate of seconds = call + bytes / rate, by least squares of relative errors."""
    call_s = CALL_S[ELEMENT_WISE]
    above = sum(size / seconds * (1 - call_s / seconds) for size, seconds in points)
    return sum((size / seconds) ** 2 for size, seconds in points) / above


def called_rows() -> list[Row]:
    """Rows of the single operators; all are calibration."""
    call_s = CALL_S[ELEMENT_WISE]
    return [
        Row(
            "LLMCompass, single operators", GPU_KERNEL, f"{device} {name}", CALIBRATION, seconds,
            call_s + size / called_bytes_per_s(device), INTERPOLATED,
        )
        for device, name, size, seconds in _single()
    ]  # fmt: skip


def _single() -> Iterator[tuple[str, str, float, float]]:
    """(device, name, bytes, seconds) of each single operator."""
    for raw in read_table("coterie.plan.validate", "data/called.csv"):
        yield raw["device"], raw["name"], float(raw["bytes"]), float(raw["us"]) * 1e-6
