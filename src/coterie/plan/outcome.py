"""The outcome of a workload on a machine, as a row of plain values.

Knows nothing about how the workload was served, or how rows are shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coterie.plan.mix import F64
from coterie.plan.simulate import Served
from coterie.plan.slo import Slo
from coterie.plan.workload import Workload

PERCENTILES = (50, 90, 95, 99)
SYNTHETIC = "routes given, tokens synthetic"


def outcome(
    name: str, policy: str, workload: Workload, served: Served, slo: Slo | None, wall_s: float
) -> dict[str, Any]:
    """One row. Times are seconds since a request's arrival; TTFT and e2e include the router and any switch.

    A time that does not apply is None: TPOT if all answers have one token, switch time without switches.
    """
    metrics, made, use, count = served.metrics, served.plan, served.use, len(workload)
    tpot_s = tpots(workload, served)
    row: dict[str, Any] = {
        "machine": name,
        "policy": policy,
        "requests": count,
        "elapsed_s": served.elapsed_s,
        "requests_per_s": count / served.elapsed_s,
        "tokens_per_s": int(workload.new_tokens.sum()) / served.elapsed_s,
        **_percentiles("ttft", served.first_s),
        **_percentiles("tpot", tpot_s[workload.new_tokens > 1]),
        **_percentiles("e2e", served.last_s),
        **_percentiles("routed", served.routed_s),
        "switches": metrics.switches,
        "switches_per_request": metrics.switches / count,
        "hit_rate": float(served.hit.mean()),
        "switch_mean_s": metrics.switch.sum_s / metrics.switch.total if metrics.switch.total else None,
        "utilisation": use.utilisation,
        "occupied": use.occupied,
        "bound": use.bound,
        "footprint": footprint(served),
        "warm_up_s": served.warm_up_s,
        "router_requests": metrics.admitted - count if made.router_bytes else 0,
        "steps": metrics.steps,
        "wall_s": wall_s,
        "note": SYNTHETIC,
    }
    if len(of := workload.by_priority) > 1:
        row["priorities"] = {
            priority: {
                "requests": len(its),
                **_percentiles("ttft", served.first_s[its]),
                **_percentiles("e2e", served.last_s[its]),
            }
            for priority, its in of.items()
        }
    if slo is not None:
        first = workload.ranks == workload.ranks.min()  # the SLO applies to requests of the best priority
        kept = float(slo.met_by(served.first_s, tpot_s, served.last_s)[first].mean())
        row |= {"slo": str(slo), "slo_kept": kept, "slo_met": kept >= slo.share}
    return row


def tpots(workload: Workload, served: Served) -> F64:
    """Seconds per token after the first; 0 for answers of one token."""
    later = np.maximum(workload.new_tokens - 1, 1)
    return np.where(workload.new_tokens > 1, (served.last_s - served.first_s) / later, 0.0)


def footprint(served: Served) -> dict[str, Any]:
    """Memory in bytes: demand of the experts, and the split of the run tier."""
    made = served.plan
    tier = made.spec.tier(made.spec.run_tier)
    return {
        "experts": len(made.expert_bytes),
        "experts_bytes": made.total_bytes,
        "run_tier": tier.name,
        "run_tier_bytes": tier.capacity_bytes,
        **{name: getattr(made, name) for name in ("near_bytes", "kv_bytes", "router_bytes", "bases_bytes")},
        "near_share": min(1.0, made.near_bytes / made.total_bytes),
    }


def _percentiles(name: str, values: F64) -> dict[str, float | None]:
    if not len(values):
        return {f"{name}_p{p}_s": None for p in PERCENTILES}
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return {f"{name}_p{p}_s": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
