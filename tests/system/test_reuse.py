"""Shared prefixes on devices: the same bits in the KV cache and in the answers as when everything is computed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.system.test_decisions import (
    EVERYTHING,
    STEADY,
    Move,
    check_replayed,
    entries,
    models,
    serve_everywhere,
    workload,
)
from tests.system.tiny import write_expert, write_latent

from coterie.core.dtypes import DType
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import Plan, Settings, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Request, SamplingParams
from coterie.graph.ops import BF16
from coterie.kernels.cpu import ISAS
from coterie.models.model import ACTIVATIONS, open_model, with_activations, with_kv_type
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder
from coterie.spec.load import load_machine

__all__ = ["models"]  # a fixture
Z = 5  # tokens in a block

FAMILIES = {
    "llama": {},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7},
    "latent": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / request.param
    write = write_latent if request.param == "latent" else write_expert
    return open_model(write(folder, 3, num_hidden_layers=3, **FAMILIES[request.param]))


class Server:
    """The engine on a CPU device; keeps what each sequence left in the KV cache, token by token."""

    def __init__(self, model, reuse, threads=1, isa=ISAS[-1], **policy):
        self.device, self.model = CpuDevice(threads=threads, isa=isa), model
        block_bytes = Z * model.kv.bytes_per_token + 6
        sizes = {"one": model.layout.size_bytes}
        settings = Settings(policy=Policy(**policy), reuse=reuse)
        made = Plan(self.device.spec, sizes, model.layout.size_bytes, 200 * block_bytes, block_bytes)
        self.parts = wire({"one": model}, made, settings, self.device)
        self.state, self.tokens, self.cached = {}, {}, {}
        self._numbers = {}
        self._free, self.parts.kv.free = self.parts.kv.free, self._note_and_free

    def ask(self, *asked):
        """Serve these (name, prompt, new tokens, all about drawing them) at once."""
        for name, prompt, count, sampling in asked:
            request = Request(name, "one", tuple(prompt), count, sampling, ignore_end=True)
            self._numbers[self.parts.engine.metrics.submitted] = name
            self.parts.engine.submit(request)
        while not self.parts.engine.idle:
            for output in self.parts.engine.step():
                self.tokens[output.request_id] = self.tokens.get(output.request_id, ()) + output.token_ids
                if output.timings is not None:
                    self.cached[output.request_id] = output.timings.cached_tokens
            self.parts.engine.check_integrity()

    def _note_and_free(self, owner, tokens=()):
        self.state[self._numbers[owner]] = self._read(owner, len(tokens))
        self._free(owner, tokens)

    def _read(self, owner, count):
        """The KV state of the first tokens [tokens, everything else], as bytes."""
        kv, pool = self.model.kv, self.parts.kv
        pages = []
        for block in pool.blocks(owner):
            raw = self.device.memory(pool.buffer.view(block * pool.block_bytes, Z * kv.bytes_per_token))
            page = np.array(raw).reshape(kv.num_layers, kv.parts, kv.num_kv_heads, Z, -1)
            pages.append(page.transpose(3, 0, 1, 2, 4).reshape(Z, -1))
        return np.concatenate(pages)[:count]


def turns(rng):
    """Prompts, in groups that are asked at once: at borders of blocks, whole ones again, single tokens, pairs."""
    head = rng.integers(0, 256, 40).tolist()
    groups, number = [], 0
    for group in ([11], [10, 11, 12], [1], [1, 2], [35], [34, 36], [35], [40, 40], [9], [5], [6, 4]):
        asked = []
        for length in group:
            extra = rng.integers(0, 256, rng.integers(0, 3)).tolist()
            sampling = SamplingParams(temperature=0.9 * (number % 2), seed=number)
            asked.append((f"r{number}", [*head[:length], *extra], int(rng.integers(1, 9)), sampling))
            number += 1
        groups.append(asked)
    return groups


@pytest.mark.parametrize("policy", [{}, {"max_batch": 3, "max_step_tokens": 7}])
def test_the_bits_are_those_without_sharing(model, policy):
    served = []
    for reuse in (True, False):
        server = Server(model, reuse, threads=1 + reuse, **policy)
        for group in turns(np.random.default_rng(5)):
            server.ask(*group)
        server.device.close()
        served.append(server)
    shared, computed = served
    assert shared.tokens == computed.tokens
    for name, state in computed.state.items():
        assert np.array_equal(shared.state[name], state), name
    assert sum(count > 0 for count in shared.cached.values()) > 10
    assert not any(computed.cached.values())


def converse(server, rng, num_turns=4):
    """A conversation: each prompt is all that was said, and a little more."""
    said = []
    for turn in range(num_turns):
        said += rng.integers(0, 256, 8).tolist()
        server.ask((f"turn {turn}", said, 9, SamplingParams(temperature=0.8, seed=turn)))
        said += server.tokens[f"turn {turn}"]
    return server


def test_the_next_turn_of_a_conversation_shares_the_answer_too(model):
    shared, computed = (converse(Server(model, reuse), np.random.default_rng(2)) for reuse in (True, False))
    assert shared.tokens == computed.tokens
    assert all(np.array_equal(shared.state[name], state) for name, state in computed.state.items())
    assert list(shared.cached.values()) == [0, 15, 30, 50]  # of 16, 33 and 50 that were fed to the model
    for server in (shared, computed):
        server.device.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("activations", "kv_type"), [*((to, "auto") for to in ACTIVATIONS), ("int16", "int8")])
def test_where_numbers_are_rounded_the_bits_are_those_without_sharing(tmp_path, isa, activations, kv_type):
    """Sharing leaves one token of the prompt, which is then computed alone."""
    write_expert(tmp_path / "whole", 3, hidden_size=64, intermediate_size=96)
    folder = tmp_path / "whole"
    if activations != BF16:
        folder = quantize_folder(folder, tmp_path / "packed", Packing(DType.Q4, DType.Q8)).folder
    model = with_kv_type(with_activations(open_model(folder), activations), kv_type)
    prompt = np.random.default_rng(1).integers(0, 256, 3 * Z + 1).tolist()
    served = {}
    for reuse in (True, False):
        server = served[reuse] = Server(model, reuse, isa=isa)
        server.ask(("first", prompt, 1, SamplingParams()))
        server.ask(("again", prompt, 4, SamplingParams()))
        assert server.cached["again"] == 3 * Z * reuse
        server.device.close()
    assert served[True].tokens == served[False].tokens
    assert len(served[True].state["again"]) > 3 * Z
    assert np.array_equal(served[True].state["again"], served[False].state["again"])


def alike(models, seed):
    """A workload of test_decisions in which most prompts begin as others of their expert do."""
    rng, moves = np.random.default_rng(seed), []
    heads = rng.integers(0, 256, (2, 40)).tolist()
    for move in workload(models, seed):
        head = heads[int(rng.integers(2))][: int(rng.choice([0, 33, 40]))]
        moves.append(replace(move, prompt=(*head, *move.prompt)) if move.what == "ask" else move)
    return moves


@pytest.mark.parametrize("schedule", ["grouped", "fcfs"])
def test_decisions_are_the_same_on_every_device(models, schedule):
    served = serve_everywhere(models, replace(STEADY, schedule=schedule), alike(models, 3))
    assert served["modelled"].log == served["modelled with numerics"].log == served["cpu"].log
    assert served["modelled with numerics"].tokens == served["cpu"].tokens
    assert len(entries(served["cpu"].log, "reuse")) > 10


@pytest.mark.parametrize("seed", [3, 6])
def test_a_real_run_replayed_gives_its_own_log(models, seed):
    moves = [*alike(models, seed), Move(10**6, "ask", "small-0", 40, (1, 2, 3), 13)]
    real, _ = check_replayed(models, EVERYTHING, moves)
    assert len(entries(real.log, "reuse")) > 10


def test_modelled_time_falls_with_what_is_not_computed(models):
    first_s = {}
    for reuse in (True, False):
        device = ModelledDevice(load_machine("toy"))
        made = Plan(device.spec, {}, 1 << 20, 64 * 4096, 4096)
        parts = wire(models, made, Settings(reuse=reuse), device)
        for name in "rs":
            parts.engine.submit(Request(name, "deep-0", tuple(range(100)), 2, ignore_end=True))
            while not parts.engine.idle:
                done = [output.timings for output in parts.engine.step() if output.timings is not None]
            (last,) = done
            first_s[reuse, name] = SimpleNamespace(ttft_s=last.ttft_s, cached=last.cached_tokens)
    assert [first_s[True, "s"].cached, first_s[False, "s"].cached] == [96, 0]
    assert first_s[True, "r"].ttft_s == first_s[False, "r"].ttft_s
    assert first_s[True, "s"].ttft_s < 0.9 * first_s[False, "s"].ttft_s
