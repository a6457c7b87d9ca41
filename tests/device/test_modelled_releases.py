"""Families without a place in the zoo, in the sizes of released models: each modelled machine prices their steps.

Knows nothing about lanes or events.
"""

from __future__ import annotations

import pytest

from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import roofline_s, step_time
from coterie.devices.modelled.shard import rank_program
from coterie.graph.backward.build import training_graph
from coterie.graph.compile import compile_graph
from coterie.graph.eager.rewrite import expand
from coterie.graph.verify import verify
from coterie.models.model import synthetic_model
from coterie.spec.load import load_machine

GEMMA_2B = {"hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 18, "num_attention_heads": 8}
GEMMA2_2B = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
OLMO2_7B = {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32}
FAMILIES = {
    "olmo2": OLMO2_7B | {"vocab_size": 100_352},
    "olmo3": OLMO2_7B | {"vocab_size": 100_352},
    "exaone4": OLMO2_7B | {"vocab_size": 102_400},
    "vaultgemma": GEMMA2_2B | {"vocab_size": 256_000},
    "gemma": GEMMA_2B | {"vocab_size": 256_000, "num_key_value_heads": 1},
    "gemma2": GEMMA2_2B | {"vocab_size": 256_000, "num_key_value_heads": 4},
    "gemma3_text": GEMMA2_2B | {"vocab_size": 262_144, "num_key_value_heads": 4},
}
STEPS = {"prefill": Sizes.prefill(1, 512), "decode": Sizes.decode(4, 2048)}


def model_of(name):
    return synthetic_model(FAMILIES[name] | {"model_type": name, "dtype": "bfloat16"}, name)


@pytest.mark.parametrize("machine", ["epyc-2core", "h100", "dgx-h100", "sn40l-node"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_machine_prices_a_step(name, machine):
    spec, model = load_machine(machine), model_of(name)
    program = rank_program(spec, compile_graph(model.graph, spec.rule_set))
    for sizes in STEPS.values():
        priced = step_time(spec, program, sizes)
        assert [row.region for row in priced.rows] == [region.name for region in program.regions]
        assert priced.seconds >= roofline_s(spec, program, sizes) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_in_the_kernels_of_pytorch_is_legal(name):
    verify(expand(model_of(name).graph))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("olmo2", "a norm over all heads together, or with an offset, has no gradient"),
        ("gemma", "a norm over all heads together, or with an offset, has no gradient"),
        ("gemma2", "op softcap has no gradient"),
    ],
)
def test_what_is_not_trained_is_refused_in_a_sentence(name, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        training_graph(model_of(name).graph)
