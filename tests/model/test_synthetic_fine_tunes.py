"""Fine-tunes by config alone: the programs, sizes and prices of those that PEFT and `coterie delta` write."""

import json
from dataclasses import replace

import pytest
from tests.system.tiny import CONFIG, LATENT, MIXTURE, write_adapter, write_expert

from coterie.composition.composition import load_composition
from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import step_time
from coterie.engine.bases import bases_of, size_of
from coterie.engine.experts import open_experts
from coterie.graph.compile import compile_graph
from coterie.graph.ops import COLLECTIVES
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.delta import open_delta
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.fine_tunes.synthetic import synthetic_adapter, synthetic_delta
from coterie.models.model import open_model, synthetic_model
from coterie.models.packing import Packing
from coterie.spec.load import load_machine

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS = Sizes.prefill(1, 7), Sizes.decode(3, 19)


def bare(changes):
    return synthetic_model({**CONFIG, **changes}, "bare", DType.F32)


def own_bytes(model):
    """Of each tensor that is the fine-tune's own."""
    return {name: model.checkpoint.tensors[name].size_bytes for name in model.layout.tensors}


def seconds(model):
    program = compile_graph(model.graph, "cache")
    return [step_time(load_machine("h100"), program, sizes).seconds for sizes in STEPS]


@pytest.mark.parametrize(
    "changes", [{}, {"num_attention_heads": 1, "num_key_value_heads": 1}, {"num_hidden_layers": 1}]
)
def test_an_adapter_is_as_large_and_as_dear_as_peft_writes_it(changes, tmp_path):
    base = write_expert(tmp_path / "base", 1, **changes)
    theirs = open_adapted(open_model(base), write_adapter(tmp_path / "adapter", ALL_LINEAR, base=changes))
    ours = synthetic_adapter(bare(changes), 2, "ours")
    stored = {name: info.shape for name, info in theirs.checkpoint.tensors.items() if "lora" in name}
    assert {name: info.shape for name, info in ours.checkpoint.tensors.items() if "lora" in name} == stored
    assert ours.layout.tensors.keys() == theirs.layout.tensors.keys()
    assert sum(own_bytes(ours).values()) * 2 == sum(own_bytes(theirs).values())  # which was written in float32
    regions = [[(r.kernel, len(r.ops)) for r in compile_graph(m.graph, "cache").regions] for m in (ours, theirs)]
    assert regions[0] == regions[1]
    assert ours.base is not None
    assert ours.kv == theirs.kv


@pytest.mark.parametrize("packed", ["int4", "int2"])
def test_a_delta_is_the_program_and_the_bytes_that_coterie_delta_writes(packed, tmp_path):
    types = {"int4": DType.Q4, "int2": DType.Q2}
    base, tuned = (write_expert(tmp_path / str(seed), seed) for seed in (1, 2))
    write_delta(base, tuned, tmp_path / "delta", Packing(types[packed], types[packed]))
    theirs = open_delta(open_model(base), tmp_path / "delta")
    ours = synthetic_delta(bare({}), types[packed], "ours")
    assert own_bytes(ours) == own_bytes(theirs)
    assert ours.key == theirs.key
    assert seconds(ours) == pytest.approx(seconds(theirs))


def test_an_adapter_costs_more_than_its_base_and_less_than_a_delta():
    base = bare({})
    alone, adapter, delta = (
        seconds(m) for m in (base, synthetic_adapter(base, 2, "a"), synthetic_delta(base, DType.Q4, "d"))
    )
    assert all(a < b for a, b in zip(alone, adapter, strict=True))
    assert all(a < b for a, b in zip(alone, delta, strict=True))


@pytest.mark.parametrize("config", [MIXTURE, LATENT])
def test_other_families_have_them_too(config):
    base = synthetic_model(config, "bare", DType.F32)
    for model in (synthetic_adapter(base, 3, "a"), synthetic_delta(base, DType.Q4, "d")):
        program = compile_graph(model.graph, "cache")
        assert not any(op.kind in COLLECTIVES for region in program.regions for op in region.ops)
        assert model.layout.size_bytes > 0
        assert set(model.layout.tensors) <= set(program.weights)


def test_experts_of_a_file_share_one_base(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tables = {
        "whole-{i}": "",
        "lora-{i}": "rank = 2",
        "thin-{i}": 'packed = "int4"\nrank = 2',
        "d-{i}": 'delta = "int4"',
    }
    text = "".join(f'[[expert]]\nname = "{n}"\nconfig = "./config.json"\ncount = 3\n{k}\n' for n, k in tables.items())
    (tmp_path / "c.toml").write_text(f'name = "many"\n{text}')
    models = open_experts(load_composition(str(tmp_path / "c.toml")), synthetic=True)
    bases = bases_of(models)
    assert len(bases) == 2
    assert models["lora-0"].base is models["d-2"].base
    assert models["thin-0"].base is not models["lora-0"].base
    whole, thin = models["whole-0"].layout.size_bytes, models["thin-0"].base.layout.size_bytes
    assert thin < whole
    assert size_of(bases) >= whole + thin
    assert models["whole-0"].base is None


def test_a_base_without_products_is_refused():
    base = bare({})
    empty = tuple(op for op in base.graph.ops if op.kind != "linear")
    with pytest.raises(UnsupportedError, match="no product in its layers"):
        synthetic_adapter(replace(base, graph=replace(base.graph, ops=empty)), 2, "a")
