"""Guessed tokens on devices: the same bits in the KV cache, the same answers and the same decisions everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.system.test_decisions import EVERYTHING, STEADY, Move, entries, models, serve, workload
from tests.system.test_reuse import Server
from tests.system.tiny import write_expert, write_latent, write_mixture

from coterie.core.dtypes import DType
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.policy import MAX_GUESSES, Policy
from coterie.engine.request import SamplingParams
from coterie.graph.ops import INT16
from coterie.models.model import open_model, with_activations, with_kv_type
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine

__all__ = ["models"]  # a fixture
FEW = 9  # tokens of a vocabulary: few, so that some guesses are right and some are wrong
WINDOW = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7}
PACKED = {"int8": Packing(DType.Q8, DType.Q8), "int4": Packing(DType.Q4, DType.Q8)}


def opened(folder, kind):
    """A random expert of few tokens: stored in bfloat16 or packed, and what that meets; a window; or branches."""
    shape = {"vocab_size": FEW, "eos_token_id": 2, "hidden_size": 64, "intermediate_size": 96}
    weights, _, activations = kind.partition(" ")
    if weights == "branches":
        write_mixture(folder / "whole", 3, vocab_size=FEW, eos_token_id=2)
    elif weights == "latent":
        write_latent(folder / "whole", 3, vocab_size=FEW, eos_token_id=2)
    else:
        write_expert(folder / "whole", 3, **shape, **(WINDOW if weights == "window" else {}))
    (folder / "whole" / "tokenizer.json").unlink()  # of more tokens
    if weights == "kept":
        return with_kv_type(open_model(folder / "whole"), activations)
    if weights not in PACKED:
        return with_activations(open_model(folder / "whole"), activations or INT16)
    packed = open_model(quantize_folder(folder / "whole", folder / "packed", PACKED[weights]).folder)
    return with_activations(packed, activations)


def groups(rng):
    """What is asked at once: alone, in batches, beginning as what was asked before; every other one greedy."""
    head, number, made = rng.integers(0, FEW, 20).tolist(), 0, []
    for group in ([9], [5, 14, 20], [20], [3, 7, 12, 20, 1]):
        asked = []
        for length in group:
            sampling = SamplingParams(temperature=1.5 * (number % 2), top_p=1 - 0.1 * (number % 3), seed=number)
            prompt = [*head[:length], *rng.integers(0, FEW, number % 3).tolist()]
            asked.append((f"r{number}", prompt, int(rng.integers(30, 70)), sampling))
            number += 1
        made.append(asked)
    return made


LONG = [pytest.param(kind, marks=pytest.mark.long) for kind in ("window", "branches", "int8 int8", "int4 int16")]


@pytest.mark.parametrize(
    "kind", ["bf16", "bf16 bf16", "branches bf16", "latent", "kept int8", "int8 int16", "int4 int8", *LONG]
)
def test_the_bits_are_those_without_guesses(tmp_path, kind):
    model, served = opened(tmp_path, kind), {}
    for guesses in (0, MAX_GUESSES):
        server = served[guesses] = Server(model, True, threads=1 + bool(guesses), max_steps=1, max_guesses=guesses)
        for group in groups(np.random.default_rng(5)):
            server.ask(*group)
        server.device.close()
    plain, guessed = served[0], served[MAX_GUESSES]
    assert guessed.tokens == plain.tokens
    for name, state in plain.state.items():
        assert np.array_equal(guessed.state[name], state), name
    counted, before = guessed.parts.engine.metrics, plain.parts.engine.metrics
    assert counted.steps < before.steps
    assert counted.guessed_tokens - counted.accepted_tokens > 40
    assert counted.accepted_tokens > 80
    assert before.guessed_tokens == 0
    assert counted.cached_tokens > 20


def twice(models, seed):
    """A workload of test_decisions in which prompts say everything twice, and answers are long."""
    asked = [move for move in workload(models, seed) if move.what == "ask"][:20]
    return [replace(move, prompt=move.prompt * 2, max_tokens=3 * move.max_tokens) for move in asked]


def guessed(served):
    """Tokens guessed, and those of them that were right."""
    metrics = served.engine.metrics
    return metrics.guessed_tokens, metrics.accepted_tokens


@pytest.mark.parametrize("schedule", ["grouped", pytest.param("fcfs", marks=pytest.mark.long)])
def test_decisions_are_the_same_on_every_device_that_computes(models, schedule):
    """Of machines with one balance: it is what guesses are priced by."""
    moves = twice(models, 3)
    policy = replace(STEADY, schedule=schedule, max_guesses=MAX_GUESSES, flops_per_byte=4)
    ways = CpuDevice(threads=1), ModelledDevice(load_machine("toy"), numerics=CpuDevice(threads=1))
    real, modelled = (serve(device, models, policy, moves) for device in ways)
    plain = serve(ways[0], models, STEADY, moves)
    for device in ways:
        device.close()
    assert (modelled.log, modelled.tokens, guessed(modelled)) == (real.log, real.tokens, guessed(real))
    assert plain.tokens == real.tokens
    assert 0 < guessed(real)[1] < guessed(real)[0]
    assert any(1 < T == rows for (_, _, T, rows) in entries(real.log, "run"))


def test_a_real_run_with_guesses_replayed_gives_its_own_log(models):
    """Where the replaying device computes: guesses depend on the tokens."""
    moves, policy = twice(models, 6), replace(EVERYTHING, max_guesses=MAX_GUESSES)
    device = CpuDevice(threads=1)
    real = serve(device, models, policy, moves, record=1 << 16)
    durations = real.parts.recorded().durations()
    device.close()
    replaying = ModelledDevice(this_machine(), CpuDevice(threads=1), durations)
    again = serve(replaying, models, policy, moves)
    replaying.close()
    assert (again.log, again.tokens, guessed(again)) == (real.log, real.tokens, guessed(real))
    assert 0 < guessed(real)[1] < guessed(real)[0]


def test_made_up_tokens_are_not_guessed(models):
    served = serve(ModelledDevice(load_machine("toy")), models, replace(STEADY, max_guesses=9), twice(models, 3))
    assert guessed(served) == (0, 0)


def test_a_modelled_step_with_guesses_takes_longer_than_one_without(models):
    """Its rows are priced as those of a prompt."""
    seconds = {}
    for guesses in (0, 3):
        policy = Policy(max_steps=1, max_guesses=guesses, flops_per_byte=1e9)
        device = ModelledDevice(load_machine("toy"), CpuDevice(threads=1))
        served = serve(device, models, policy, [Move(0, "ask", "deep-0", 0, (1, 2, 3) * 9, 30)], record=1 << 10)
        works = [work for work in served.parts.recorded().works if work.lane == "compute"]
        for work in works[1:]:
            seconds.setdefault(int(work.args["tokens"]), work.end_s - work.start_s)
        device.close()
    assert max(seconds) == 4
    assert seconds[1] < seconds[4] < 4 * seconds[1]
