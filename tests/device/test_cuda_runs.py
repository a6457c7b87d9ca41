"""Runs of the CUDA device on a GPU that is none: what is queued in which order, what is captured, and how runs are cut.

Kernels are the CPU's, so its tokens must be the same to the bit. Knows nothing about what programs compute.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from hypothesis import given
from hypothesis import strategies as st
from tests.device.cuda_devices import making
from tests.device.expert import Expert
from tests.device.lazy_gpu import LazyDriver
from tests.device.programs import Desk, decode, loaded, rows, tiny_graph, write_weights
from tests.system.tiny import write_expert

from coterie.core.shapes import Sizes
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda import device as cuda_device
from coterie.devices.cuda.inputs import bucket_of
from coterie.devices.cuda.run import Binder
from coterie.models.model import open_model
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
PROMPT = [3, 14, 15, 9, 26]
SEEDS = range(4)


@pytest.fixture
def make():
    with making() as make_device:
        yield make_device


# ---- order


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_runs_queued_behind_each_other_do_not_share_what_crosses(make, on_cpu, layout, seed, orchestration):
    """Nothing is waited for between them: the words of a later run must not reach an earlier one, nor its tokens."""
    desk = loaded(Desk(make(orchestration, seed), layout))
    steps = [rows([([token, token + 1], 0)], [WARM]) for token in range(1, 9)]
    steps += [rows([(list(range(size)), 0)], [WARM]) for size in (4, 8, 16)]  # each has more memory than the one before
    events = [desk.run(step) for step in steps]
    assert [desk.tokens(event) for event in events] == [on_cpu.tokens(on_cpu.run(step)) for step in steps]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cold_run_waits_on_its_stream_for_each_stage(make, on_cpu, layout, seed):
    """The copies of all stages and the run are queued before any is done."""
    desk = Desk(make(seed=seed, driver=LazyDriver(seed, eager=0.0)), layout)
    run = desk.run(rows([(PROMPT, 0)], [WARM]), gates=desk.fetch())
    assert desk.tokens(run) == on_cpu.tokens(on_cpu.run(rows([(PROMPT, 0)], [WARM])))


def test_an_interrupt_reaches_a_run_that_is_queued_whole(make, layout):
    """The stream that writes the word goes first whenever it may: so the run ends after its first step."""
    desk = loaded(Desk(make(driver=LazyDriver(newest_first=True)), layout))
    desk.wait(desk.run(rows([(PROMPT, 0)])))
    desk.device.interrupt()  # a run that is none ends the next one, and makes the stream for it
    free = desk.tokens(desk.run(decode(7, 5), steps=6))
    assert len(free) == 1
    whole = desk.tokens(desk.run(decode(7, 5), steps=6))
    assert len(whole) == 6
    driver = desk.device.driver
    for _ in range(3):
        driver.hold()
        run = desk.run(decode(7, 5), steps=6)
        driver.until_queued(6 * len(desk.exe.program.regions))
        desk.device.interrupt()
        driver.release()
        assert desk.tokens(run) == whole[:1]
        assert desk.tokens(desk.run(decode(7, 5), steps=6)) == whole


def test_who_interrupts_does_not_wait_for_a_bucket_that_is_made_ready(make, layout):
    """Its kernels may take minutes to compile, and a server's loop is among those that interrupt."""
    desk = loaded(Desk(make(), layout))
    begun, told = threading.Event(), threading.Event()

    def compile_all(launches):
        begun.set()
        assert told.wait(60)

    desk.device._shared.before_launch = compile_all
    run = desk.run(decode(7, 5), steps=6)
    assert begun.wait(60)
    other = threading.Thread(target=desk.device.interrupt)
    other.start()
    other.join(10)
    in_time = not other.is_alive()
    told.set()
    other.join()
    assert in_time
    assert len(desk.tokens(run)) == 1  # it was the next run, whose words say so


@pytest.mark.parametrize("seed", range(8))
def test_an_interrupt_that_comes_late_does_not_end_the_next_run(make, layout, seed):
    """The stream that writes the word does nothing before the run that it is for has ended."""
    desk = loaded(Desk(make(driver=LazyDriver(seed)), layout))
    whole, driver = desk.tokens(desk.run(decode(7, 5), steps=6)), desk.device.driver
    for _ in range(3):
        driver.hold()
        run = desk.run(decode(7, 5), steps=6)
        driver.until_queued(6 * len(desk.exe.program.regions))
        desk.device.interrupt()
        driver.eager = 0.0
        driver.release()
        assert desk.tokens(run) == whole
        driver.eager = 0.5
        assert desk.tokens(desk.run(decode(7, 5), steps=6)) == whole


# ---- captured steps


def test_a_step_is_captured_once_for_a_bucket_and_a_switch_captures_nothing(make, layout, tmp_path):
    desk = loaded(Desk(make(), layout))
    other = write_weights(tmp_path / "other.weights", tiny_graph(), seed=9)
    twin = desk.device.reserve("hbm", other.size_bytes)
    desk.layout = other
    desk.wait(*desk.fetch(weights=twin).values())

    def drawn(weights, steps):
        event = desk.device.run(desk.exe, desk.binding(decode(7, 0, blocks_per_sequence=8), weights), steps=steps)
        return desk.tokens(event)

    first, second = drawn(desk.weights, 1), drawn(twin, 1)
    driver, kernels = desk.device.driver, desk.device._shared.kernels
    assert (driver.captured, driver.replayed) == (1, 1)  # the first step ever is launched, kernel by kernel
    found, launched = kernels.rows_found, driver.launched
    assert [drawn(desk.weights, 4)[0], drawn(twin, 4)[0]] == [first[0], second[0]]
    assert first != second
    assert (driver.captured, driver.replayed) == (1, 9)
    assert kernels.rows_found == found, "launches were worked out again"
    assert driver.launched - launched == 8 * (len(desk.exe.program.regions) + 1)


def test_a_prompt_is_captured_when_its_bucket_is_met_again_but_not_where_it_waits_for_layers(make, on_cpu, layout):
    desk = loaded(Desk(make(), layout))
    driver, prompts = desk.device.driver, [rows([(ids, 0)], [WARM]) for ids in (PROMPT, PROMPT[::-1], [*PROMPT, 7, 8])]
    expected = [on_cpu.tokens(on_cpu.run(prompt)) for prompt in prompts]
    counts = []
    for prompt, wanted in zip(prompts, expected, strict=True):
        assert desk.tokens(desk.run(prompt)) == wanted
        counts.append((driver.captured, driver.replayed))
    assert counts == [(0, 0), (1, 1), (1, 2)], "prompts of 5 and of 7 tokens are one bucket"
    assert desk.tokens(desk.run(prompts[0], gates=desk.fetch())) == expected[0]
    assert (driver.captured, driver.replayed) == (1, 2)
    host = loaded(Desk(make("host"), layout))
    assert [host.tokens(host.run(prompt)) for prompt in prompts] == expected
    assert host.device.driver.captured == 0


def test_prompts_of_many_sizes_do_not_take_the_place_of_a_decode_step(make, on_cpu, layout):
    desk = loaded(Desk(make(), layout))
    driver, desk.device._runs.binder = desk.device.driver, Binder(desk.device._shared, most=2)
    prompts = [rows([([3] * size, 0)], [WARM]) for size in (2, 4, 8, 16)]
    expected, one = [on_cpu.tokens(on_cpu.run(prompt)) for prompt in prompts], decode(7, 0)
    wanted = on_cpu.tokens(on_cpu.run(one, steps=3))
    assert desk.tokens(desk.run(one, steps=3)) == wanted
    assert driver.captured == 1
    for _ in range(2):  # each has gone when it comes again
        assert [desk.tokens(desk.run(prompt)) for prompt in prompts] == expected
        assert desk.tokens(desk.run(one, steps=3)) == wanted
    assert (driver.captured, len(desk.device._runs.binder._kept[False])) == (1, 2)
    assert [desk.tokens(desk.run(prompts[-1])) for _ in range(2)] == expected[-1:] * 2
    assert driver.captured == 2


def test_a_step_that_cannot_be_captured_is_launched(make, on_cpu, layout):
    driver = LazyDriver()
    desk = loaded(Desk(make(driver=driver), layout))
    driver.capture = lambda *_: (_ for _ in ()).throw(RuntimeError("operation not permitted when stream is capturing"))
    expected = on_cpu.tokens(on_cpu.run(decode(7, 0), steps=4))
    assert desk.tokens(desk.run(decode(7, 0), steps=4)) == expected
    assert "not permitted" in desk.device.remarks[0]


@pytest.mark.parametrize("shape", ["small", "wide"])
def test_every_way_to_orchestrate_gives_the_same(make, tmp_path, shape):
    """unfused/host, fused/host, fused/device; stored values and tokens, beside the CPU's."""
    changes = {"wide": {"hidden_size": 64, "intermediate_size": 160, "num_key_value_heads": 1}}.get(shape, {})
    model = open_model(write_expert(tmp_path / "one", 3, **changes))
    steps = [rows([(PROMPT, 0), ([9], 0)], [Sampling(), WARM]), rows([([7], 5), ([1], 1)], [Sampling(), WARM])]
    found, stored = [], {}
    for rules, device in (
        ("none", CpuDevice(load_machine("toy"), threads=1)),
        ("none", make("host")),
        ("cache", make("host")),
        ("cache", make("device")),
    ):
        expert = Expert(device, model, rules)
        found.append([expert.tokens(step, steps=1 + 3 * number) for number, step in enumerate(steps)])
        if rules == "none":
            for name, value in expert.inspect(steps[0]).items():
                np.testing.assert_array_equal(value, stored.setdefault(name, value), err_msg=name)
        device.close()
    assert found[1:] == found[:1] * 3


@given(st.integers(0, 600), st.integers(0, 40), st.integers(0, 40), st.integers(1, 5000))
def test_a_bucket_has_room_for_its_step_and_says_decode_only_of_decode(T, B, R, context):
    B, R = min(B, T), min(R, T)
    sizes = Sizes(T, B, R, 0, 0)
    bucket = bucket_of(sizes, context)
    assert bucket.tokens >= T
    assert bucket.sequences >= B
    assert bucket.sampled >= R
    assert bucket.context >= context
    assert bucket.decodes == (T == B)


@pytest.mark.parametrize("rows_read", [[0, 1, 2, 3], [3, 1, 2], [2, 2], [0], []], ids=str)
def test_rows_that_follow_one_another_come_up_in_one_copy(make, on_cpu, layout, monkeypatch, rows_read):
    """A text's vectors have a row for each of its tokens; two rows' worth of pinned memory is enough for all."""
    step = rows([([token], 0) for token in PROMPT[:4]])
    desk, copies = loaded(Desk(make(), layout)), []
    event = desk.run(step)
    desk.wait(event)
    copy = desk.device.driver.copy
    desk.device.driver.copy = lambda *how: copies.append(how[0].numel()) or copy(*how)
    expected = on_cpu.run(step)
    on_cpu.wait(expected)
    wanted = on_cpu.device.logits(expected, rows_read)
    np.testing.assert_array_equal(desk.device.logits(event, rows_read), wanted)
    assert len(copies) == sum(at == 0 or row != rows_read[at - 1] + 1 for at, row in enumerate(rows_read))
    copies.clear()
    row_bytes = 4 * wanted.shape[1]
    monkeypatch.setattr(cuda_device, "READ_BYTES", 2 * row_bytes)
    np.testing.assert_array_equal(desk.device.logits(event, rows_read), wanted)
    assert max(copies, default=0) <= 2 * row_bytes
