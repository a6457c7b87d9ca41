"""The zoo: every model has the parameters that its publisher counts, compiles, and fuses into its sections."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from tests.pure.counting import calls_of

from coterie.composition.composition import load_composition
from coterie.core.dtypes import DType
from coterie.core.errors import CompositionError, NotFoundError, UsageError
from coterie.core.shapes import Sizes, trailing
from coterie.engine.experts import open_experts
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.graph.ir import Kind
from coterie.graph.verify import verify
from coterie.models.zoo import COMPUTATIONS, model_names, zoo_config, zoo_graph, zoo_model, zoo_names

# Parameters as the model pages on huggingface.co count them from the safetensors headers.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "bloom-176b": 176_247_271_424,
    "mixtral-8x7b": 46_702_792_704,
}


def parameters(graph):
    return sum(int(value.shape[0]) * trailing(value.shape) for value in graph.weights)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_that_are_published(name):
    assert parameters(zoo_graph(name)) == PARAMETERS[name]


def test_falcon_is_counted_without_its_second_copy_of_the_embedding():
    """Its files hold the head once more, though the config ties it to the embedding: 41.84e9 less 65024 * 8192."""
    assert parameters(zoo_graph("falcon-40b")) == 41_303_293_952


@pytest.mark.parametrize("name", model_names())
def test_every_file_says_where_its_numbers_are_from(name):
    source = json.loads((files("coterie.models") / "configs" / f"{name}.json").read_text())["_source"]
    assert "huggingface.co" in source
    if name == "sparse-gpt-13b":
        assert "assumed" in source, "nobody published its config"
    assert "_source" not in zoo_config(name)


def test_everything_in_the_zoo_is_legal():
    for name in zoo_names():
        verify(zoo_graph(name))


def test_a_computation_has_no_config():
    for name in COMPUTATIONS:
        assert name in zoo_names()
        with pytest.raises(NotFoundError, match="a computation without a config"):
            zoo_config(name)
    with pytest.raises(UsageError, match="phase 'train' is unknown; use prefill or decode"):
        zoo_graph("llama-2-7b", "train")


def test_an_unknown_model_is_named():
    with pytest.raises(NotFoundError, match=r"\[llama-9\] there is no such model; use one of .*llama-2-7b"):
        zoo_graph("llama-9")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_section_is_a_stage(name):
    graph = zoo_graph(name)
    program = compile_graph(graph, "section")
    assert [region.stage for region in program.regions] == list(graph.stages)
    assert {region.kernel for region in program.regions} == {"section"}
    # What crosses a border of sections: hidden states, and the tokens drawn.
    stored = [name for region in program.regions for name in region.outputs if name != "kv"]
    first = "embed/norm" if name == "bloom-176b" else "embed/x"
    assert stored == [first, *(f"layers.{i}/out" for i in range(len(program.regions) - 2)), "next_tokens"]


def test_a_decode_step_reads_every_weight_but_one_row_of_the_embedding():
    """Llama-3.1-8B at 4096 tokens. The half GiB of KV is also what arXiv 2410.23668 says."""
    program = compile_graph(zoo_graph("llama-3.1-8b"), "section")
    cost = program_cost(program, Sizes.decode(1, 4096))
    weights = parameters(program.graph) - 128256 * 4096 + 4096
    assert cost.weight_bytes == 2 * weights
    assert cost.kv_read_bytes == 4096 * 2 * 32 * 8 * 128 * 2
    assert abs(cost.kv_read_bytes / 2**30 - 0.5) < 0.01


def test_activations_are_of_the_weights_type():
    graph = zoo_graph("mistral-7b")
    assert {value.dtype for value in graph.values.values() if value.kind is Kind.TENSOR} == {DType.BF16}


def test_a_layer_costs_the_compiler_as_much_in_the_largest_model_as_in_a_small_one():
    """Nothing looks at all layers once for each of them."""
    small = calls_of(lambda: compile_graph(zoo_graph("llama-3.1-8b"), "section"))
    large = calls_of(lambda: compile_graph(zoo_graph("llama-3.1-405b"), "section"))
    assert small > 32 * 100
    assert large / 126 < 1.1 * small / 32
    assert large < 500_000  # a tenth of a second


def test_a_composition_names_a_model_of_the_zoo(tmp_path):
    text = 'name = "many"\n[[expert]]\nname = "llama-{i}"\nconfig = "NAME"\ncount = 3\n'
    file = tmp_path / "many.toml"
    file.write_text(text.replace("NAME", "llama-2-7b"))
    models = open_experts(load_composition(str(file)), synthetic=True)
    alone = zoo_model("llama-2-7b")
    assert [model.name for model in models.values()] == ["llama-0", "llama-1", "llama-2"]
    assert {model.key for model in models.values()} == {alone.key}
    assert alone.layout.size_bytes >= 2 * PARAMETERS["llama-2-7b"]
    file.write_text(text.replace("NAME", "llama-9"))
    with pytest.raises(CompositionError, match=r"config 'llama-9' of llama-0 is neither a file nor .*llama-2-7b"):
        open_experts(load_composition(str(file)), synthetic=True)
