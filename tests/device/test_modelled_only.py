"""Graphs that only modelled machines run are refused by a real device when it loads them, by the op that it lacks."""

from __future__ import annotations

import pytest
from tests.device.devices import cpu
from tests.pure.graphs import decoder, of_family

from coterie.core.errors import UnsupportedError
from coterie.graph.compile import compile_graph
from coterie.graph.eager.rewrite import expand
from coterie.graph.shard import shard
from coterie.models.monarch import monarch_example
from coterie.models.zoo import zoo_graph

REFUSED = {
    "bloom": (decoder(**of_family("bloom", num_kv_heads=4)), "none", "reads through take_heads"),
    "falcon": (decoder(**of_family("falcon", head_dim=4)), "cache", "reads through take_heads"),
    "opt": (decoder(**of_family("opt", num_kv_heads=4)), "none", "add_positions"),
    "sparse": (decoder(density=0.5), "cache", r"sparse \(50.0% of its elements\), which no real kernel reads"),
    "sharded": (shard(decoder(vocab_size=40), 2), "cache", "embed_part"),
    "kernels of PyTorch": (expand(decoder()), "none", "kernel to_float"),
    "sections": (decoder(), "section", "section"),
    "no language model": (monarch_example(), "none", "gemm0|rows of 1024B"),
    "half activations": (zoo_graph("llama-2-7b"), "cache", "stores embed/x as F16, but the CPU computes in F32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_real_device_refuses_what_it_has_no_kernels_for(what):
    graph, rule_set, words = REFUSED[what]
    device = cpu()
    with pytest.raises(UnsupportedError, match=words):
        device.load(compile_graph(graph, rule_set))
