"""GPU kernels: held-out rows of the calibration tables, and layers measured by others with other software.

    tables    every other number of tokens, context length or message size, and both ends, calibrate; the rest is
              predicted from them
    layers    all validation: the tables are of TensorRT-LLM (AIConfigurator), the layers of Vidur and LLMCompass
    called    LLMCompass times calls from the host, not kernels (called.py); its single operators calibrate its layer

Knows nothing about serving.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie.plan.validate.called import called_piece, called_rows, gemm_piece
from coterie.plan.validate.rows import CALIBRATION, GPU_KERNEL, VALIDATION, Dropped, Row, alternate
from coterie.spec.exchange import Exchanges, all_exchanges, exchange_rows
from coterie.spec.measured import (
    MEASURED,
    Kernels,
    measured_devices,
    measured_rows,
    read_table,
)

_NVLINK = {"a100": "a100/nccl", "h100": "h100/nccl"}


def table_rows() -> tuple[list[Row], list[Dropped]]:
    """Rows of the kernel tables, predicted from the calibration rows of the same device."""
    rows: list[Row] = []
    dropped: list[Dropped] = []
    for device in measured_devices():
        found = measured_rows(device)
        splits = {
            family: alternate(row.kernel.y for row in found if row.kernel.family == family)
            for family in dict.fromkeys(row.kernel.family for row in found)
        }
        kept = [row for row in found if splits[row.kernel.family][row.kernel.y] == CALIBRATION]
        known = Kernels(device, kept)
        for row in found:
            name = f"{device} {'x'.join(map(str, row.kernel.shape))}"
            dataset = f"{row.source.partition(',')[0].removeprefix('NVIDIA ')} {row.kernel.family}"
            if not row.possible:
                dropped.append(Dropped(dataset, name, _too_fast(row.seconds, row.ideal_s)))
                continue
            speed = known.speed(row.kernel)
            if speed is None:
                dropped.append(Dropped(dataset, name, "no calibration row is near"))
                continue
            split = splits[row.kernel.family][row.kernel.y]
            rows.append(Row(dataset, GPU_KERNEL, name, split, row.seconds, row.ideal_s / speed.util, speed.provenance))
    return rows, dropped


def exchange_table_rows() -> list[Row]:
    """All-reduces, predicted from the calibration sizes of the same device, library and number of GPUs."""
    series = dict.fromkeys((row.device, row.library, row.ranks) for row in exchange_rows())
    rows: list[Row] = []
    for key in series:
        mine = [row for row in exchange_rows() if (row.device, row.library, row.ranks) == key]
        splits = alternate(row.size_bytes for row in mine)
        known = Exchanges(row for row in mine if splits[row.size_bytes] == CALIBRATION)
        for row in mine:
            time = known.all_reduce(f"{row.device}/{row.library}", row.ranks, row.size_bytes)
            if time is not None:
                name = f"{row.device} {row.library} {row.ranks} GPUs {row.size_bytes} B"
                split = splits[row.size_bytes]
                args = (GPU_KERNEL, name, split, row.seconds, time.seconds, time.provenance)
                rows.append(Row("AIConfigurator all-reduce", *args))
    return rows


def layer_rows() -> tuple[list[Row], list[Dropped]]:
    """Parts of layers measured by others, predicted from the complete tables."""
    rows: list[Row] = []
    dropped: list[Dropped] = []
    for raw in read_table("coterie.plan.validate", "data/layers.csv"):
        name, measured_s = f"{raw['device']} {raw['name']}", float(raw["ms"]) * 1e-3
        dataset = f"{raw['source']}: {raw['family']}"
        modelled_s, floor_s, provenance = _piece(raw)
        if floor_s > measured_s:
            dropped.append(Dropped(dataset, name, _too_fast(measured_s, floor_s)))
        else:
            rows.append(Row(dataset, GPU_KERNEL, name, VALIDATION, measured_s, modelled_s, provenance))
    return rows, dropped


def _too_fast(measured_s: float, least_s: float) -> str:
    return f"{measured_s * 1e6:.4g} us, below the {least_s * 1e6:.4g} us that the peaks allow"


def _piece(raw: dict[str, str]) -> tuple[float, float, str]:
    """Modelled time of a part, its lower bound by the peaks, and the provenance."""
    if raw["calls"]:
        return called_piece(raw)
    device = raw["device"]
    if raw["family"] == "gemm":
        return gemm_piece(device, int(raw["m"]), int(raw["n"]), int(raw["k"]))
    if raw["family"] == "all-reduce":
        time = all_exchanges().all_reduce(_NVLINK[device], int(raw["ranks"]), int(raw["bytes"]))
        return (time.seconds, 0.0, time.provenance) if time else (0.0, 0.0, MEASURED)
    raise ValueError(f"{raw['name']}: nothing models {raw['family']} timed on the device")


def gpu_kernel_rows() -> Iterator[Row | Dropped]:
    """All rows of this module."""
    for rows, dropped in (table_rows(), (exchange_table_rows(), []), (called_rows(), []), layer_rows()):
        yield from rows
        yield from dropped
