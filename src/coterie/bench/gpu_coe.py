"""Defaults of `bench coe` on a GPU for the number of experts and the HBM budget, from the memory that is available.

    experts    as many as fit the pinned pool and the temporary folder that they are written to
    hbm        what KV cache and workspace leave free; less if that would hold so many that nothing is switched

Knows nothing about how they are served.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.bench.experts import kept_experts
from coterie.core.errors import CapacityError
from coterie.core.units import format_bytes
from coterie.engine.assembly import page_bytes, room_for_experts, work_bytes
from coterie.engine.policy import Policy, memories_below
from coterie.memory.slab import round_up
from coterie.models.model import synthetic_model
from coterie.spec.machine import MachineSpec

SHAPE = "1b"
NEAR_SHARE = 0.2  # upper bound on the HBM budget over all experts' bytes; the CPU's run has 2 GiB for 150 experts
LEAST = 3  # minimum in HBM, if there is room: with one, eviction has no choice and fetches cannot overlap
FOLDER_SHARE = 0.95  # of the temporary folder's free space


@dataclass(frozen=True, slots=True)
class Chosen:
    """The sizes of a run, and why, in words."""

    experts: int
    near_bytes: int
    why: str


def choose_sizes(
    spec: MachineSpec, config: Mapping[str, Any], sequences: int, tokens: int, experts: int | None, near: int | None
) -> Chosen:
    """Sizes for `sequences` at once of `tokens` each; given values are kept.

    Raises CapacityError if fewer than two experts fit.
    """
    model = synthetic_model(config)
    size = round_up(model.layout.size_bytes)
    reasons = []
    if experts is None:
        pool = memories_below(spec)[0]
        folder = tempfile.gettempdir()
        free = int(shutil.disk_usage(folder).free * FOLDER_SHARE)
        bounds = {
            f"the pinned pool of {format_bytes(spec.tier(pool).capacity_bytes)}": spec.tier(pool).capacity_bytes,
            f"the temporary folder {folder}": free + size * kept_experts(config),  # kept files need no more space
        }
        where = min(bounds, key=lambda name: bounds[name])
        experts = bounds[where] // size
        if experts < 2:
            levers = ("choose a smaller --shape", "set TMPDIR to a folder with more room")
            raise CapacityError("bench coe", f"2 experts in {where}", 2 * size, bounds[where], levers)
        reasons.append(f"{experts} experts of {format_bytes(size)}: as many as {where} holds")
    if near is None:
        block = page_bytes(model.kv)
        kv = sequences * model.kv.blocks_for(tokens, block) * block
        room = room_for_experts(spec, kv + work_bytes({"one": model}, spec.rule_set, Policy()))
        wanted = max(int(experts * size * NEAR_SHARE), min(LEAST, experts - 1) * size)
        near = max(min(room, wanted), size)
        held = f"{format_bytes(near)} of {spec.run_tier} for them"
        if near < room:
            small = f"{NEAR_SHARE:.0%} of their bytes, or {LEAST} of them"
            reasons.append(f"{held}: {small}, as {format_bytes(room)} would hold too many")
        else:
            reasons.append(f"{held}: what KV and a step leave of it")
    return Chosen(experts, near, "; ".join(reasons))
