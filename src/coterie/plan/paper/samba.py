"""Samba-CoE on modelled machines: what an expert, a router and a switch cost on each, from its file and Llama-2-7B.

The pipeline is the paper's (section V, Fig. 9): the router once for all prompts, then each prompt's expert is copied
and run, one after the other, at batch 1. Unlike the paper's arithmetic, the router of 8 prompts is a batch of 8.

Knows nothing about published results.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from coterie.devices.modelled import Orchestration
from coterie.models.zoo import zoo_model
from coterie.plan.paper.arithmetic import BATCHES, LONG, NODES, SHORT, Node
from coterie.plan.paper.machine import CACHE, SECTION, Expert, spec, switch_s, weight_bytes, with_link_share
from coterie.plan.paper.row import Kind
from coterie.spec.machine import MachineSpec

MODEL = "llama-2-7b"
PROMPTS = {SHORT: 128, LONG: 200}  # tokens in: NVIDIA's page for chat; for translation as many as come out
# The node's file takes its share of DDR from the paper's switch time, which is a result; section VI-C gives a rate.
DDR_RATE_BYTES_PER_S = 1e12
DDR_SOURCE = "over 1 TB/s from DDR to HBM: arXiv 2405.07518, section VI-C"
HOW: Mapping[str, tuple[str, Orchestration]] = {
    "SN40L": (SECTION, "device"),
    "A100": (CACHE, "host"),
    "H100": (CACHE, "host"),
}


@cache
def node_spec(name: str) -> MachineSpec:
    """The machine of a node, with no result of the paper in it."""
    machine = spec(name)
    if name != "SN40L":
        return machine
    link = machine.link(machine.weight_tiers[1], machine.run_tier)
    return with_link_share(machine, DDR_RATE_BYTES_PER_S / link.bytes_per_s, DDR_SOURCE)


def expert(name: str) -> Expert:
    """The model on a node, all units together on one prompt."""
    rule_set, orchestration = HOW[name]
    return Expert(node_spec(name), MODEL, rule_set, orchestration)


@cache
def modelled_nodes() -> Mapping[str, Node]:
    """The three machines."""
    return {name: _node(name) for name in NODES}


def _node(name: str) -> Node:
    machine, model, run = node_spec(name), zoo_model(MODEL), expert(name)
    size_gb = weight_bytes(MODEL) / 1e9
    return Node(
        name=name,
        hbm_gb=machine.tier(machine.run_tier).capacity_bytes / 1e9,
        far_gb=machine.tier(machine.weight_tiers[1]).capacity_bytes / 1e9,
        expert_gb=size_gb,
        kv_gb=model.kv.bytes_per_token * model.max_context / 1e9,
        resident_gb=size_gb,  # the router
        expert_ms={tokens: 1e3 * run.answer_s(PROMPTS[tokens], tokens) for tokens in (SHORT, LONG)},
        router_ms={batch: 1e3 * run.answer_s(PROMPTS[SHORT], SHORT, batch) for batch in BATCHES},
        switch_ms=1e3 * switch_s(machine, weight_bytes(MODEL)),
        kind=Kind.PREDICTED,
    )
