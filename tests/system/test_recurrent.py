"""Experts whose sequences keep a state of one size, served beside others: each answer is that of the request alone.

Such a state is never shared, and never that of who had the blocks before.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.system.tiny import write_delta_net, write_expert, write_state_space
from typer.testing import CliRunner

from coterie.cli.main import app
from coterie.core.errors import CapacityError, OversizeError
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import Plan, Settings, page_bytes, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Request, SamplingParams
from coterie.models.model import open_model, synthetic_model
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine

NAMES = ("net-0", "net-1", "plain")
TIGHT = Policy(max_batch=3, max_step_tokens=7, turn_steps=8, quantum_steps=2)


@pytest.fixture(scope="module", params=["qwen3_5_text", "mamba2", "falcon_h1"])
def models(request, tmp_path_factory):
    """Two of one architecture, and a Llama, all in one KV pool."""
    root = tmp_path_factory.mktemp("experts")
    own = () if request.param == "qwen3_5_text" else (request.param,)
    write = write_state_space if own else write_delta_net
    folders = [write(root / name, seed, *own) for seed, name in enumerate(NAMES[:2])]
    return {folder.name: open_model(folder) for folder in (*folders, write_expert(root / "plain", 2))}


def parts_of(models, device, policy, kv_blocks=60):
    block = max(page_bytes(model.kv) for model in models.values())
    sizes = {name: model.layout.size_bytes for name, model in models.items()}
    made = Plan(device.spec, sizes, sum(sizes.values()), kv_blocks * block, block)
    return wire(models, made, Settings(policy=policy), device)


def run(parts, requests, cancel=()):
    """Submit them all and serve to the end; tokens, the log, and how many tokens were taken from others."""
    tokens, cached = {}, 0
    for request in requests:
        parts.engine.submit(request)
    steps = 0
    while not parts.engine.idle:
        for output in parts.engine.step():
            assert output.error is None
            tokens[output.request_id] = tokens.get(output.request_id, ()) + output.token_ids
            cached += output.timings.cached_tokens if output.timings else 0
        steps += 1
        if steps == 9:
            for request_id in cancel:
                parts.engine.cancel(request_id)
        parts.engine.check_integrity()
    assert parts.kv.free_blocks == parts.kv.num_blocks
    return SimpleNamespace(tokens=tokens, log=list(parts.engine.decisions), cached=cached)


def asked(count=18, new=12):
    """Prompts that begin alike, of all experts."""
    rng = np.random.default_rng(0)
    head = rng.integers(0, 256, 80).tolist()
    made = []
    for number in range(count):
        prompt = (*head[: int(rng.choice([1, 7, 33, 70, 80]))], *rng.integers(0, 256, int(rng.integers(1, 4))).tolist())
        sampling = SamplingParams(temperature=0.8 * (number % 2), seed=number)
        made.append(Request(f"r{number}", NAMES[number % 3], prompt, 1 + number % new, sampling, ignore_end=True))
    return made


@pytest.fixture(scope="module")
def alone(models):
    """Each request with nothing else going on, on a device of its own; of the recurrent experts."""
    found = {}
    for request in asked():
        if request.expert_id != "plain":
            device = CpuDevice(threads=1)
            found |= run(parts_of({request.expert_id: models[request.expert_id]}, device, Policy()), [request]).tokens
            device.close()
    return found


def test_answers_are_those_of_each_request_alone(models, alone):
    device = CpuDevice(threads=2)
    parts = parts_of(models, device, TIGHT)
    first = run(parts, asked())
    assert {name: tokens for name, tokens in first.tokens.items() if name in alone} == alone
    again = run(parts, asked(), cancel=("r3", "r4", "r9"))  # blocks are full of what others kept
    kept = {name: tokens for name, tokens in again.tokens.items() if name not in ("r3", "r4", "r9")}
    assert kept == {name: tokens for name, tokens in first.tokens.items() if name in kept}
    shared = {entry[1] for entry in again.log if entry[0] == "reuse"}
    assert shared
    assert {name for name in shared if NAMES[int(name[1:]) % 3] != "plain"} == set()
    device.close()


def test_a_modelled_device_decides_alike_and_computes_the_same(models):
    policy = Policy(max_batch=3, max_step_tokens=7, overlap=False, prefetch=0)
    found = []
    for device in (CpuDevice(threads=1), ModelledDevice(load_machine("h100"), CpuDevice(threads=1))):
        found.append(run(parts_of(models, device, policy), asked(9)))
        device.close()
    assert found[0].tokens == found[1].tokens
    assert found[0].log == found[1].log


def test_what_does_not_fit_is_refused_with_its_state(models):
    model = {"net-0": models["net-0"]}
    device = CpuDevice(threads=1)
    block = page_bytes(model["net-0"].kv)
    state = model["net-0"].kv.state_blocks(block)
    parts = parts_of(model, device, Policy(), kv_blocks=state + 2)
    tokens = 2 * model["net-0"].kv.tokens_per_block(block)
    if tokens > model["net-0"].max_context:
        pytest.skip("a block holds more tokens than its context: no layer attends")
    with pytest.raises(OversizeError, match="set max_tokens to at most 1 or"):
        parts.engine.submit(Request("long", "net-0", tuple(range(tokens)), 9, ignore_end=True))
    assert len(run(parts, [Request("r", "net-0", (1, 2), tokens - 1, ignore_end=True)]).tokens["r"]) == tokens - 1
    none = parts_of(model, device, Policy(), kv_blocks=state)
    with pytest.raises(OversizeError, match="it and max_tokens may have 1 tokens together"):
        none.engine.submit(Request("none", "net-0", (1,), 1, ignore_end=True))
    device.close()


def test_check_says_what_a_sequence_keeps(models):
    folder = models["net-0"].path
    result = CliRunner().invoke(app, ["check", str(folder)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "a sequence" in result.output


def test_blocks_too_small_for_a_unit_of_state(models):
    model = models["net-0"]
    device = CpuDevice(threads=1)
    made = Plan(this_machine(), {"net-0": model.layout.size_bytes}, model.layout.size_bytes, 64 * 512, 512)
    parts = wire({"net-0": model}, made, Settings(), device)
    with pytest.raises(CapacityError, match="one unit of recurrent state"):
        parts.engine.submit(Request("r", "net-0", (1, 2), 3))
    device.close()


PRICED = {
    "qwen3_5_text": {"architectures": ["Qwen3_5ForCausalLM"]},
    "granitemoehybrid": {
        **{"architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": ["mamba"] * 7 + ["attention"]},
        **{"num_local_experts": 4, "shared_intermediate_size": 256, "mamba_n_heads": 16},
    },
    "mamba2": {"architectures": ["Mamba2ForCausalLM"], "num_heads": 16},
}


@pytest.mark.parametrize("machine", ["h100", "a100", "sn40l-socket"])
@pytest.mark.parametrize("family", PRICED)
def test_one_without_bytes_is_priced(family, machine):
    raw = {"model_type": family, "num_hidden_layers": 8, **PRICED[family]}
    raw |= {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4}
    model = synthetic_model(raw, "net")
    device = ModelledDevice(load_machine(machine))
    parts = parts_of({"net": model}, device, Policy(), kv_blocks=200)
    found = run(parts, [Request(f"r{i}", "net", tuple(range(50)), 9, ignore_end=True) for i in range(3)])
    assert {name: len(tokens) for name, tokens in found.tokens.items()} == {"r0": 9, "r1": 9, "r2": 9}
    assert device.now() > 0
