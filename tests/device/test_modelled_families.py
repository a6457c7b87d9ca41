"""What families cost on modelled machines beside a Llama of the same sizes: what differs is small, and is counted.

Knows nothing about lanes or events.
"""

from __future__ import annotations

import pytest

from coterie.core.dtypes import DType
from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import step_time
from coterie.devices.modelled.shard import rank_program
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.models.model import synthetic_model
from coterie.spec.load import load_machine

SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": {},
    "phi3": {},
    "phi3 in part": {"partial_rotary_factor": 0.75},
    "smollm3": {},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
}
STEPS = {"decode": Sizes.decode(1, 512), "prefill": Sizes.prefill(1, 512)}


def program_of(name, spec):
    raw = {"model_type": name.split()[0], **SIZES, **FAMILIES[name]}
    model = synthetic_model(raw, name, DType.BF16)
    return rank_program(spec, compile_graph(model.graph, spec.rule_set))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("machine", ["toy", "sn40l-node", "dgx-h100", "h100"])
def test_a_family_costs_what_a_llama_of_its_sizes_does_and_what_is_its_own(machine, step):
    spec, sizes = load_machine(machine), STEPS[step]
    programs = {name: program_of(name, spec) for name in FAMILIES}
    llama, *others = (program_cost(program, sizes) for program in programs.values())
    flops = [cost.flops - llama.flops for cost in others]
    ranks = spec.units if spec.peers else 1
    turned = 3 * sizes.T * (16 + 8) * 128 // ranks  # of a layer
    assert flops[0] == 0
    assert flops[1] == -turned * 4 // 4
    assert flops[2] == -turned
    # Of the embedding, two sums of each layer, which every rank has whole, and its part of the logits.
    assert flops[3] == 2048 * sizes.T * (1 + 2 * 4) + 32_000 // ranks * sizes.R
    assert {cost.weight_bytes for cost in others} == {llama.weight_bytes}
    seconds = {name: step_time(spec, program, sizes).seconds for name, program in programs.items()}
    assert seconds["phi3"] == seconds["llama"] >= seconds["smollm3"] > 0
    for found in seconds.values():
        assert found == pytest.approx(seconds["llama"], rel=0.02)


@pytest.mark.parametrize("step", STEPS)
def test_layer_norms_cost_two_more_a_value_and_a_bias_each(step):
    sizes = STEPS[step]
    layered = {"model_type": "stablelm", **SIZES, "partial_rotary_factor": 1.0}
    costs = []
    for raw in (layered, {"model_type": "llama", **SIZES}):
        program = compile_graph(synthetic_model(raw, "x", DType.BF16).graph, "cache")
        assert [region.kernel for region in program.regions].count("layer_norm") == 0
        costs.append(program_cost(program, sizes))
    assert costs[0].flops - costs[1].flops == 2 * 2048 * (2 * 4 * sizes.T + sizes.R)
    assert costs[0].weight_bytes - costs[1].weight_bytes == 2 * 2048 * (2 * 4 + 1)


def test_caps_cost_two_products_and_a_tanh():
    """Of each score, and of each logit."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    raw = {"model_type": "gemma2", **SIZES, "head_dim": 128, "query_pre_attn_scalar": 128, "tie_word_embeddings": True}
    sizes = STEPS["prefill"]
    costs = []
    for found in (caps, dict.fromkeys(caps)):
        graph = synthetic_model({**raw, **found}, "gemma2", DType.BF16).graph
        costs.append(program_cost(compile_graph(graph, "cache"), sizes))
    assert costs[0].flops - costs[1].flops == 5 * (4 * 16 * sizes.pairs + 32_000 * sizes.R)
    assert costs[0].kv_read_bytes == costs[1].kv_read_bytes
