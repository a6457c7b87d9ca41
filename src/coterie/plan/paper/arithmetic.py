"""The paper's own arithmetic for Samba-CoE: latency = router + prompts x (expert + switch), all in sequence.

    T(BS) = t_router + BS * t_expert(tokens) (+ BS * W / link  if experts do not fit in HBM)

The router takes as long as an expert with 20 output tokens at batch 1, even for a batch of 8 and 200 output tokens;
an expert runs its prompts one by one. The paper states the pipeline (section V, Fig. 9) but not these two rules, which
were chosen because the figures then agree. DGX latencies at 20 tokens are NVIDIA's; the SN40L's, and all at 200 tokens,
are fitted to the paper's results by least squares, so rows that use them agree by construction.

Knows nothing about graphs or machine files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np

from coterie.plan.paper.published import data, published
from coterie.plan.paper.row import Fitted, Kind

DGX = ("A100", "H100")
NODES = (*DGX, "SN40L")
SHORT, LONG = 20, 200  # output tokens of chat and translation
BATCHES = (8, 1)  # numbers of prompts


@dataclass(frozen=True, slots=True)
class Node:
    """One machine's capacities and times in ms: of an expert by output tokens, of the router by number of prompts.

    `far_gb`: memory for all experts on the SN40L, for those beyond HBM on a DGX. `kind`: the provenance of its times.
    """

    name: str
    hbm_gb: float
    far_gb: float
    expert_gb: float
    kv_gb: float
    resident_gb: float
    expert_ms: Mapping[int, float]
    router_ms: Mapping[int, float]
    switch_ms: float
    kind: Kind

    def latency_ms(self, batch: int, tokens: int, miss: bool) -> float:
        """Time of a batch until its last answer; `miss`: every prompt needs a switch."""
        return self.router_ms[batch] + batch * (self.expert_ms[tokens] + (self.switch_ms if miss else 0.0))

    def fits_hbm(self, experts: int, batch: int) -> bool:
        """Whether all experts, a KV cache per prompt and what is always resident fit in HBM."""
        return self.resident_gb + self.expert_gb * experts + self.kv_gb * batch <= self.hbm_gb

    def fits(self, experts: int) -> bool:
        """Whether the node can hold all experts, in all its memories."""
        near = 0.0 if self.name == "SN40L" else self.hbm_gb - self.resident_gb
        return self.expert_gb * experts <= near + self.far_gb


def constant(name: str) -> float:
    """An input that is not specific to a node."""
    return float(data("samba-coe")[name]["value"])


@cache
def nodes() -> dict[str, Node]:
    """The three machines, including the fitted times."""
    t20, switch = least_squares(*_sn40l_equations())
    raw = data("samba-coe")
    times = {name: float(raw[name]["expert_20_ms"]["value"]) for name in DGX} | {"SN40L": t20}
    copies = {n: 1000 * constant("expert_gb") / float(raw[n]["link_gb_per_s"]["value"]) for n in DGX}
    copies["SN40L"] = switch
    long = dict(zip(NODES, least_squares(*_long_equations(times, copies)), strict=True))
    return {
        name: Node(
            name=name,
            hbm_gb=float(raw[name]["hbm_gb"]["value"]),
            far_gb=float(raw[name]["far_gb"]["value"]),
            expert_gb=constant("expert_gb"),
            kv_gb=constant("kv_gb"),
            resident_gb=0.0,
            expert_ms={SHORT: times[name], LONG: long[name]},
            router_ms=dict.fromkeys(BATCHES, times[name]),
            switch_ms=copies[name],
            kind=Kind.FITTED if name == "SN40L" else Kind.GIVEN,
        )
        for name in NODES
    }


def dgx_nodes(experts: int) -> int:
    """Number of DGX nodes to hold these experts and a router in HBM (Fig. 13)."""
    held = experts + int(constant("dgx_resident_experts"))
    return math.ceil(held * constant("expert_gb") / nodes()["A100"].hbm_gb)


def sn40l_nodes(experts: int) -> int:
    """Number of SN40L nodes to hold these experts in DDR (Fig. 13)."""
    return math.ceil(experts * constant("expert_gb") / nodes()["SN40L"].far_gb)


def fitted_latencies() -> tuple[Fitted, ...]:
    """The fitted times, with the values they were fitted to."""
    node = nodes()
    to = "the SN40L plateaus of Fig. 12 (three values, two constants)"
    short = left_out_error(*_sn40l_equations())
    times = {name: node[name].expert_ms[SHORT] for name in NODES}
    copies = {name: node[name].switch_ms for name in NODES}
    long = left_out_error(*_long_equations(times, copies))
    return (
        Fitted("SN40L, one expert of 20 tokens", node["SN40L"].expert_ms[SHORT], "ms", to, short),
        Fitted("SN40L, one switch", node["SN40L"].switch_ms, "ms", to, short),
        *(
            Fitted(
                f"{name}, one expert of 200 tokens",
                node[name].expert_ms[LONG],
                "ms",
                "the 200-token ratios of Table V (six values, three constants)",
                long,
            )
            for name in NODES
        ),
    )


def fitted_rules(*names: str) -> tuple[Fitted, ...]:
    """Rules and sizes chosen to match the published answers; `name` or `machine.name` as in the data file."""
    found = []
    for name in names:
        raw: Any = data("samba-coe")
        for part in name.split("."):
            raw = raw[part]
        found.append(Fitted(raw["name"], float(raw["value"]), raw["unit"], raw["source"]))
    return tuple(found)


_Equations = tuple[list[list[float]], list[float], list[float]]


def _sn40l_equations() -> _Equations:
    values = published("figure-12")
    rows = {
        "BS=1, experts in HBM": [2, 0],
        "BS=1, every prompt a switch": [2, 1],
        "BS=8, every prompt a switch": [9, 8],
    }
    target = [values[f"SN40L, {row}"].value for row in rows]
    return [[float(x) for x in row] for row in rows.values()], target, target


def _long_equations(times: dict[str, float], copies: dict[str, float]) -> _Equations:
    """ratio = T_dgx / T_sn, multiplied out to be linear in the unknown times; scaled so that errors are relative."""
    values = published("table-5")
    matrix, target, scale = [], [], []
    for column, name in enumerate(DGX):
        for batch in (8, 1):
            ratio = values[f"overall, BS={batch}, 200 tokens, vs {name}"].value
            row = [0.0, 0.0, -ratio * batch]
            row[column] = float(batch)
            matrix.append(row)
            ours = times["SN40L"] + batch * copies["SN40L"]
            theirs = times[name] + batch * copies[name]
            target.append(ratio * ours - theirs)
            scale.append(ratio * (ours + batch * 5 * times["SN40L"]))
        ratio = values[f"expert only, BS=1, 200 tokens, vs {name}"].value
        row = [0.0, 0.0, -ratio]
        row[column] = 1.0
        matrix.append(row)
        target.append(0.0)
        scale.append(ratio * 5 * times["SN40L"])
    return matrix, target, scale


def least_squares(matrix: Sequence[Sequence[float]], target: Sequence[float], scale: Sequence[float]) -> list[float]:
    """The x that minimises the squares of (matrix @ x - target) / scale. Raises ValueError if it is not unique."""
    weights = 1.0 / np.asarray(scale, dtype=float)
    a, b = np.asarray(matrix, dtype=float) * weights[:, None], np.asarray(target, dtype=float) * weights
    found, _, rank, _ = np.linalg.lstsq(a, b, rcond=None)
    if rank < a.shape[1]:
        raise ValueError(f"{a.shape[1]} constants cannot be told from {a.shape[0]} values of rank {rank}")
    return [float(x) for x in found]


def left_out_error(matrix: Sequence[Sequence[float]], target: Sequence[float], scale: Sequence[float]) -> float | None:
    """Leave-one-out error: the median over rows of the error, relative to `scale`, when fitting all other rows.

    Rows without which the fit is not unique are skipped; None if that applies to all.
    """
    errors = []
    for out in range(len(target)):
        keep = [i for i in range(len(target)) if i != out]
        try:
            x = least_squares([matrix[i] for i in keep], [target[i] for i in keep], [scale[i] for i in keep])
        except ValueError:
            continue
        miss = sum(a * b for a, b in zip(matrix[out], x, strict=True)) - target[out]
        errors.append(abs(miss) / scale[out])
    return median(errors) if errors else None
