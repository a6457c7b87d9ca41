"""A cold prompt's rows of the embedding come first: the same tokens as warm, on every device, and failures stay one."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from tests.system.tiny import write_expert

from coterie.api.assemble import Options
from coterie.core.errors import TransferError
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import Plan, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Request
from coterie.models.model import open_model
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine

POLICY = Policy(max_batch=4, max_step_tokens=8)
PROMPT, OTHER = tuple(range(4000, 4012)), (9, 8100, 77)
WAIT_S = 20


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def models(request, tmp_path_factory):
    """Two experts with an embedding of 1 MiB."""
    root = tmp_path_factory.mktemp("rows")
    shape = {"vocab_size": 8192, "hidden_size": 64, "tie_word_embeddings": request.param}
    return {name: open_model(write_expert(root / name, seed, **shape)) for seed, name in enumerate(("ada", "bob"))}


class HeldDevice(CpuDevice):
    """Holds the whole table back until a run needs it; remembers which runs awaited rows alone."""

    def __init__(self, model):
        self.table = model.layout.ranges[model.layout.table.range_index].source
        self.tied = bool(model.layout.table.later_stages)
        self.release, self.rows_only, self.broken, self.reads = threading.Event(), [], False, 0
        super().__init__(threads=2, read=self.read)

    def read(self, file, buffers, offset):
        size_bytes = sum(len(buffer) for buffer in buffers)
        if self.table.offset <= offset < self.table.offset + self.table.size_bytes:
            self.reads += 1
            if size_bytes > self.table.size_bytes // 2:
                self.release.wait(WAIT_S)
            elif self.broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.preadv(file, buffers, offset)

    def run(self, exe, binding, gates=None, steps=1, after=()):
        event = super().run(exe, binding, gates, steps, after)
        early = bool(gates) and gates["embed"].event_id < gates["layers.0"].event_id
        self.rows_only.append(early)
        if self.tied or not early:
            self.release.set()
        return event


def serve(models, device, record=0):
    near = max(model.layout.size_bytes for model in models.values())
    return wire(models, Plan(device.spec, {}, near, 64 * 4096, 4096), Options(policy=POLICY, record=record), device)


def ask(parts, name, prompt, max_tokens=5):
    parts.engine.submit(Request("r", name, prompt, max_tokens, ignore_end=True))
    tokens = []
    while not parts.engine.idle:
        for output in parts.engine.step():
            if output.error is not None:
                raise output.error
            tokens += output.token_ids
    return tokens


@pytest.fixture
def warm(models):
    """The tokens of both prompts, each asked twice: the second time everything is there."""
    device = CpuDevice(threads=2)
    parts = serve(models, device)
    answers = [[ask(parts, "ada", prompt) for prompt in (PROMPT, OTHER)] for _ in range(2)][1]
    device.close()
    return answers


def test_a_cold_chunked_prompt_and_another_request_while_the_table_loads(models, warm):
    device = HeldDevice(models["ada"])
    try:
        parts = serve(models, device)
        first = ask(parts, "ada", PROMPT, 1)
        assert device.rows_only[0]
        assert device.release.is_set() == device.tied
        if not device.tied:
            assert device.rows_only == [True, True]  # both chunks
            assert parts.cache.loading() == ("ada",)
        assert first == warm[0][:1]
        assert ask(parts, "ada", OTHER) == warm[1]
        assert ask(parts, "ada", PROMPT) == warm[0]
        assert not any(device.rows_only[2:])
    finally:
        device.release.set()
        device.close()


def test_a_cold_answer_goes_on_while_the_table_loads(models, warm):
    device = HeldDevice(models["ada"])
    try:
        assert ask(serve(models, device), "ada", PROMPT) == warm[0]
        assert device.rows_only[0]
    finally:
        device.release.set()
        device.close()


def test_rows_that_cannot_be_read_fail_the_load_once(models, warm):
    device = HeldDevice(models["ada"])
    try:
        parts = serve(models, device)
        device.broken = True
        with pytest.raises(TransferError, match="reading"):
            ask(parts, "ada", PROMPT)
        assert parts.engine.metrics.failed_fetches == 1
        device.broken = False
        assert ask(parts, "ada", PROMPT) == warm[0]
        assert parts.engine.metrics.failed_fetches == 1
    finally:
        device.release.set()
        device.close()


def test_modelled_numbers_and_a_replay_are_those_of_the_real_run(models, warm):
    numerics = ModelledDevice(load_machine("toy"), numerics=CpuDevice(threads=1))
    assert ask(serve(models, numerics), "ada", PROMPT) == warm[0]
    numerics.close()
    device = CpuDevice(threads=1)
    real = serve(models, device, record=1 << 10)
    for name in ("ada", "bob", "ada"):
        ask(real, name, PROMPT)
    durations = real.recorded().durations()
    fetches = sum(len(model.layout.ranges) + 1 for model in (models["ada"], models["bob"], models["ada"]))
    assert len(durations["disk->dram"]) == fetches
    device.close()
    replay = serve(models, ModelledDevice(this_machine(), durations=durations))
    for name in ("ada", "bob", "ada"):
        ask(replay, name, PROMPT)
    assert list(replay.engine.decisions) == list(real.engine.decisions)
