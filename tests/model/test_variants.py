"""Adapters of one base in one step: each sequence as with its own adapter alone, to the bit, and as the reference."""

from dataclasses import replace

import numpy as np
import pytest
from tests.device.mixed_reference import run_mixed
from tests.model import adapters, tiny
from tests.model.runner import Stepper, block_bytes_for, on_cpu, wait
from tests.model.theirs import most_lost, relative_error
from tests.system.tiny import lengthen

from coterie.core.dtypes import DType
from coterie.device import Variants
from coterie.graph.reference import KvState, Reference
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.model import load_weights_f32, open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

NAMES = (*adapters.ALL, "lm_head")
OF_B = ((0, 1, 2, 1, 0), (2, 2, 0, 1, 1))


def opened(row, folder_of, tmp_path, dtype="fp32", packing=None):
    """Three adapters of a base, of which the second's file begins elsewhere: its offsets are others."""
    base, found = folder_of(row), []
    parts = [adapters.parts(tiny.load(base), NAMES, rank=3, seed=seed) for seed in range(3)]
    if packing is not None:
        base = quantize_folder(base, tmp_path / "packed", packing).folder
    for number, its in enumerate(parts):
        folder = adapters.write(tmp_path / f"adapter-{number}", its, dtype=tiny.DTYPES[dtype], r=3)
        if number == 1:
            lengthen(folder / "adapter_model.safetensors")
        found.append(open_adapted(open_model(base), folder))
    assert len({model.key for model in found}) == 1
    return found


def bound(backends, rows, expert_B):
    """A binding whose sequences are of these backends."""
    first, *others = [backend.binding(rows) for backend in backends]
    variants = Variants(tuple(b.weights for b in others), tuple(b.offsets for b in others), expert_B)
    return replace(first, variants=variants)


def logits_of(backends, rows, expert_B):
    first = backends[0]
    return np.array(first.device.inspect(first._inspected, bound(backends, rows, expert_B))["head/logits"])


def steps_of(vocab_size):
    """Prompts of odd lengths, then prompts that go on beside tokens, then a token each."""
    rng = np.random.default_rng(3)
    lengths = ((3, 1, 18, 2, 7), (1, 5, 1, 1, 20), (1, 1, 1, 1, 1))
    return [[rng.integers(0, vocab_size, length).tolist() for length in step] for step in lengths]


def check(models, bound_of, rule_set="cache", on=on_cpu):
    """Mixed steps against each adapter's own steps on the device, and against the reference."""
    first, apart = on(models[0], rule_set), on(models[0], rule_set)
    backends = [first, *(first.beside(model) for model in models[1:])]
    by_themselves = [apart, *(apart.beside(model) for model in models[1:])]
    references = [Reference(model.graph, load_weights_f32(model)) for model in models]
    pages = models[0].kv.tokens_per_block(block_bytes_for(models[0]))
    for number, expert_B in enumerate(OF_B):
        stepper, state = Stepper(first, 1, 60, seed=number), KvState(models[0].graph, 64, pages)
        sequences = [stepper.sequence() for _ in expert_B]
        alone = [Stepper(backend, 1 + 20 * i, 20) for i, backend in enumerate(by_themselves)]
        own = [alone[number].sequence() for number in expert_B]
        for tokens in steps_of(models[0].config.vocab_size):
            rows = stepper.rows(*zip(sequences, tokens, strict=True))
            found = logits_of(backends, rows, expert_B)
            named = {"tokens": rows.tokens_T, "positions": rows.positions_T, "sequence": rows.sequence_T}
            named |= {"block_tables": rows.block_tables_BM, "rows": rows.rows_R}
            wanted = run_mixed(references, expert_B, named, rows.sampling, state)["head/logits"]
            assert relative_error(found, wanted) <= bound_of
            at = 0
            for sequence, new, whose in zip(own, tokens, expert_B, strict=True):
                mine = alone[whose].feed((sequence, new))
                np.testing.assert_array_equal(found[at : at + len(new)], mine)
                at += len(new)
    apart.close()
    return backends


@pytest.mark.parametrize("rule_set", ["cache", pytest.param("none", marks=pytest.mark.long)])
@pytest.mark.parametrize("row", ["llama", pytest.param("phi3-partial", marks=pytest.mark.long)])
def test_sequences_of_several_adapters_are_each_as_alone(row, rule_set, folder_of, tmp_path):
    backends = check(opened(row, folder_of, tmp_path), 1e-5, rule_set)
    first = backends[0]
    stepper = Stepper(first)
    rows = stepper.rows(*((stepper.sequence(), [5 + i, 9]) for i in range(4)), sample="last", ahead=4)
    expert_B = (1, 2, 0, 2)
    event = first.device.run(first.exe, bound(backends, rows, expert_B))
    wait(first.device, event)
    drawn = first.device.tokens(event)[0].tolist()
    alone = [Stepper(backends[whose]).greedy([5 + i, 9], 1) for i, whose in enumerate(expert_B)]
    assert [[token] for token in drawn] == alone
    first.close()


@pytest.mark.parametrize(
    "dtype", [pytest.param(DType.Q8, marks=pytest.mark.long), DType.Q4, pytest.param(DType.Q4Z, marks=pytest.mark.long)]
)
def test_a_packed_base_and_factors_of_half_precision(dtype, folder_of, tmp_path):
    models = opened("llama", folder_of, tmp_path, "fp16", Packing(dtype, DType.Q8))
    check(models, most_lost(models[0], 2e-3))[0].close()
