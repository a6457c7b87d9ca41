"""Adapters of one base in one step of the CUDA device, on a GPU that is none: by the CPU's kernels, and by Triton's.

By the CPU's, each sequence has the bits of its own adapter alone; what differs would be tables, addresses or order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.interpreted import WIDE
from tests.device.mixed_reference import run_mixed
from tests.model.runner import NUM_BLOCKS, Stepper, block_bytes_for, on_cuda, wait
from tests.model.test_variants import bound, check, logits_of, opened
from tests.model.theirs import most_lost, relative_error

from coterie.core.dtypes import DType
from coterie.devices.cuda.kernels import TritonKernels
from coterie.graph.reference import KvState, Reference
from coterie.kernels.triton.tiles import H100
from coterie.models.model import load_weights_f32
from coterie.models.packing import Packing

LOW = replace(WIDE, low_rank=16, low_weights=512)
PROMPTS = ([5, 6, 7], [8], [9, 10, 11, 12], [13, 14])
OF_B = (1, 2, 0, 2)


def closing(backends):
    """The first one's device is that of all."""
    backends[0].close()


@pytest.mark.long
@pytest.mark.parametrize("orchestration", ["device", "host"])
def test_sequences_of_several_adapters_are_each_as_alone(orchestration, folder_of, tmp_path):
    models = opened("llama", folder_of, tmp_path)
    closing(check(models, 1e-5, on=partial(on_cuda, orchestration=orchestration)))


@pytest.mark.long
@pytest.mark.parametrize(("row", "rule_set"), [("llama", "none"), ("phi3-partial", "cache")])
def test_other_rules_and_joined_matrices(row, rule_set, folder_of, tmp_path):
    closing(check(opened(row, folder_of, tmp_path), 1e-5, rule_set, on_cuda))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4, DType.Q4Z])
def test_a_packed_base_and_factors_of_half_precision(dtype, folder_of, tmp_path):
    models = opened("llama", folder_of, tmp_path, "fp16", Packing(dtype, DType.Q8))
    closing(check(models, most_lost(models[0], 2e-3), on=on_cuda))


def answers(backends, expert_B, steps):
    """Tokens behind the prompts: one step of all of them, then `steps` more in one run."""
    first = backends[0]
    stepper = Stepper(first)
    sequences = [stepper.sequence() for _ in PROMPTS]
    rows = stepper.rows(*zip(sequences, PROMPTS, strict=True), sample="last", ahead=steps)
    found = [tokens_of(backends, rows, expert_B, 1)]
    more = stepper.rows(*((s, [int(t)]) for s, t in zip(sequences, found[0][0], strict=True)), ahead=steps)
    return np.concatenate([*found, tokens_of(backends, more, expert_B, steps)]).T.tolist()


def tokens_of(backends, rows, expert_B, steps):
    device, exe = backends[0].device, backends[0].exe
    event = device.run(exe, bound(backends, rows, expert_B), steps=steps)
    wait(device, event)
    return device.tokens(event)


@pytest.mark.parametrize("orchestration", ["device", "persistent", pytest.param("host", marks=pytest.mark.long)])
def test_a_captured_step_serves_other_adapters_and_other_shares(orchestration, folder_of, tmp_path):
    """Runs of several steps, again with others in the same places, and again alone; nothing is captured for that."""
    models = opened("llama", folder_of, tmp_path)
    first = on_cuda(models[0], orchestration=orchestration)
    backends = [first, *(first.beside(model) for model in models[1:])]
    alone = [[Stepper(one).greedy(prompt, 4, 3) for prompt in PROMPTS] for one in backends]
    for expert_B in (OF_B, (0, 0, 1, 1)):
        for _ in range(2):
            assert answers(backends, expert_B, 3) == [alone[whose][i] for i, whose in enumerate(expert_B)]
    captured = first.device.driver.captured
    for expert_B in ((2, 1, 0, 1), (0, 1, 2, 0), (1, 1, 1, 0)):
        assert answers(backends, expert_B, 3) == [alone[whose][i] for i, whose in enumerate(expert_B)]
    backends[1].move_weights()
    assert answers(backends, OF_B, 3) == [alone[whose][i] for i, whose in enumerate(OF_B)]
    assert first.device.driver.captured == captured
    assert Stepper(backends[2]).greedy(PROMPTS[0], 4, 3) == alone[2][0]
    assert first.device.remarks == ()
    first.close()


def check_triton(models, bound_of, tiles, lengths=(4, 1, 2)):
    """Logits of mixed steps by Triton's kernels beside the reference's, and the tokens of adapters of their own."""
    first = on_cuda(models[0], kernels=TritonKernels(tiles))
    backends = [first, *(first.beside(model) for model in models[1:])]
    references = [Reference(model.graph, load_weights_f32(model)) for model in models]
    stepper = Stepper(first)
    state = KvState(models[0].graph, NUM_BLOCKS, models[0].kv.tokens_per_block(block_bytes_for(models[0])))
    sequences, expert_B, rng = [stepper.sequence() for _ in lengths], (1, 2, 1), np.random.default_rng(0)
    for counts in (lengths, (1, 1, 1)):
        tokens = [rng.integers(0, models[0].config.vocab_size, count).tolist() for count in counts]
        rows = stepper.rows(*zip(sequences, tokens, strict=True))
        named = {"tokens": rows.tokens_T, "positions": rows.positions_T, "sequence": rows.sequence_T}
        named |= {"block_tables": rows.block_tables_BM, "rows": rows.rows_R}
        wanted = run_mixed(references, expert_B, named, rows.sampling, state)["head/logits"]
        assert relative_error(logits_of(backends, rows, expert_B), wanted) <= bound_of
    return backends


@pytest.mark.long
def test_logits_by_tritons_kernels(folder_of, tmp_path):
    closing(check_triton(opened("llama", folder_of, tmp_path), 1e-5, LOW))


@pytest.mark.long
@pytest.mark.parametrize("tiles", [WIDE, LOW, H100])
@pytest.mark.parametrize(("dtype", "bound_of"), [("fp32", 1e-5), ("fp16", 1e-2), ("bf16", 6e-2)])
def test_every_type_by_tritons_kernels(dtype, bound_of, tiles, folder_of, tmp_path):
    closing(check_triton(opened("llama", folder_of, tmp_path, dtype), bound_of, tiles, (7, 1, 3)))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4, DType.Q4Z])
def test_a_packed_base_by_tritons_kernels(dtype, folder_of, tmp_path):
    models = opened("llama", folder_of, tmp_path, "bf16", Packing(dtype, DType.Q8))
    closing(check_triton(models, 6e-2, LOW))


@pytest.mark.long
def test_tokens_by_tritons_kernels_are_those_of_each_adapter_alone(folder_of, tmp_path):
    models = opened("llama", folder_of, tmp_path)
    first = on_cuda(models[0], kernels=TritonKernels(LOW))
    backends = [first, *(first.beside(model) for model in models[1:])]
    alone = [Stepper(backends[whose]).greedy(prompt, 4, 3) for whose, prompt in zip(OF_B, PROMPTS, strict=True)]
    assert answers(backends, OF_B, 3) == alone
    first.close()
