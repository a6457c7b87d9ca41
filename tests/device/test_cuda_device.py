"""The CUDA device on a GPU that is none, beyond what every device must keep: order, memory, captured steps, faults.

Kernels are the CPU's, so its tokens must be the same to the bit. Knows nothing about what programs compute.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.device.cuda_devices import cuda, making
from tests.device.lazy_gpu import LazyDriver
from tests.device.programs import Desk, loaded, rows, tiny_graph, write_weights
from tests.system.tiny import write_expert

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, DeviceError, TransferError
from coterie.device import Binding, Buffer, Sampling
from coterie.devices.cpu import CpuDevice
from coterie.devices.cuda_inputs import bucket_of
from coterie.devices.cuda_memory import Placed
from coterie.graph.compile import compile_graph
from coterie.memory.transfer import copy_layout, fetch_layout, stage_gates
from coterie.models.model import open_model
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
PROMPT = [3, 14, 15, 9, 26]
SEEDS = range(4)


@pytest.fixture
def make():
    with making() as make_device:
        yield make_device


def decode(token, at, **options):
    return rows([([token], at)], **options)


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


class Expert:
    """A model in the run tier of any device; `tier` says by which way its bytes come."""

    def __init__(self, device, model, rules="cache", way="disk"):
        self.device, self.model = device, model
        self.exe = device.load(compile_graph(model.graph, rules, share_buffers=rules != "none"))
        layout, tiers = model.layout, device.spec.weight_tiers
        self.weights = device.reserve(tiers[0], layout.size_bytes)
        self.events = []
        if way == "disk":
            fetch_layout(device, layout, self.weights, self.events)
        else:
            below, arrivals = device.reserve(tiers[1], layout.size_bytes), []
            fetch_layout(device, layout, below, arrivals)
            copy_layout(device, layout, self.weights, below, arrivals, self.events)
        self.kv = device.reserve(tiers[0], 8 * 4096)

    def binding(self, step):
        return Binding(self.weights, self.model.layout.offsets(self.exe.program.weights), self.kv, 4096, step)

    def tokens(self, step, **options):
        gates = stage_gates(self.model.layout, self.events)
        event = self.device.run(self.exe, self.binding(step), gates, **options)
        while not self.device.done(event):
            self.device.wait_any([event])
        return self.device.tokens(event).tolist()

    def inspect(self, step):
        self.tokens(step)
        return self.device.inspect(self.exe, self.binding(step))


# ---- memory


@pytest.mark.parametrize("gap", [0, 4, 6], ids=["aligned", "words", "no words"])
@pytest.mark.parametrize("pins", [True, False])
def test_parts_of_a_range_go_where_all_of_it_would(make, gap, pins):
    """By one kernel where they are whole words of pinned memory, else as other copies; beside them nothing changes."""
    driver = LazyDriver()
    driver.pin_limit_bytes = None if pins else 0
    device, size = make(driver=driver), 12 * BLOCK_BYTES
    pool, whole, some = (device.reserve(tier, size) for tier in ("ddr", "hbm", "hbm"))
    device.memory(pool).copy_(torch.arange(size, dtype=torch.int64).mul_(7).to(torch.uint8))
    at, spans = gap, []
    for tensor in (3 * BLOCK_BYTES + 40, 5 * BLOCK_BYTES + 2 * gap, 2 * BLOCK_BYTES):
        spans.append((at, tensor))
        at += tensor + gap
    called = []
    by_kernel = driver.copy_pieces
    driver.copy_pieces = lambda *given: (called.append(1), by_kernel(*given))
    for dst in (whole, some):
        device.place(dst, spans)
    parts = [(0, BLOCK_BYTES), (2 * BLOCK_BYTES, 3 * BLOCK_BYTES), (8 * BLOCK_BYTES, BLOCK_BYTES)]
    wait_all(device, device.copy(whole, pool), device.copy(some, pool, parts=parts))
    assert len(called) == (pins and gap != 6)
    moved = np.zeros(size, bool)
    for offset, count in parts:
        for start, stop, shift in Placed.of(some, spans).pieces(offset, count):
            moved[start + shift : stop + shift] = True
    got, wanted = device.memory(some).numpy(), device.memory(whole).numpy()
    np.testing.assert_array_equal(got, np.where(moved, wanted, 0))


@pytest.mark.parametrize("pins", [True, False])
def test_a_copy_of_pinned_memory_is_queued_by_who_asks_for_it(make, pins):
    """In order, behind what is queued; where the host would wait for its end, the lane's own thread queues it."""
    driver = LazyDriver()
    driver.pin_limit_bytes = None if pins else 0
    device = make(driver=driver)
    pool, near = device.reserve("ddr", 8 * BLOCK_BYTES), device.reserve("hbm", 4 * BLOCK_BYTES)
    device.memory(pool).copy_(torch.arange(8 * BLOCK_BYTES, dtype=torch.int64).div(BLOCK_BYTES).to(torch.uint8))
    threads, by_driver = [], driver.copy
    driver.copy = lambda *given: (threads.append(threading.current_thread()), by_driver(*given))
    events = []
    for number in (0, 1, 0, 1):
        part = pool.view(4 * number * BLOCK_BYTES, 4 * BLOCK_BYTES)
        events.append(device.copy(near, part, after=events[-1:]))
    wait_all(device, *events)
    assert [thread is threading.main_thread() for thread in threads] == [pins] * 4
    assert device.memory(near).view(-1, BLOCK_BYTES)[:, 0].tolist() == [4, 5, 6, 7]


def test_a_thread_that_is_stopped_while_it_queues_a_copy_leaves_the_lane_to_others(make):
    device = make()
    pool, near = device.reserve("ddr", BLOCK_BYTES), device.reserve("hbm", BLOCK_BYTES)
    by_driver, device.driver.copy = device.driver.copy, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        device.copy(near, pool)
    device.driver.copy = by_driver
    wait_all(device, device.copy(near, pool))


def wait_all(device, *events):
    for event in events:
        while not device.done(event):
            device.wait_any([event])
        assert device.failure(event) is None


def shift_tensors(path):
    """Lengthen a file's header until its tensors begin at 8 modulo 16."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    spaces = length % 16
    path.write_bytes(
        (length + spaces).to_bytes(8, "little") + content[8 : 8 + length] + b" " * spaces + content[8 + length :]
    )


@pytest.mark.parametrize("way", ["disk", "pool"])
@pytest.mark.parametrize("odd", [{}, {"hidden_size": 34, "num_attention_heads": 1, "num_key_value_heads": 1}])
def test_weights_that_a_file_has_at_odd_places_are_aligned_on_the_way(make, tmp_path, way, odd):
    """A header that ends at 8 modulo 16, as half of them do; and rows of 68 bytes, so that what follows is anywhere."""
    folder = write_expert(tmp_path / "odd", 5, **odd)
    shift_tensors(folder / "model.safetensors")
    model = open_model(folder)
    assert any(offset % 16 for offset, _ in model.layout.spans)
    step = rows([(PROMPT, 0)], [WARM])
    device = CpuDevice(load_machine("toy"), threads=1)
    expected = Expert(device, model).tokens(step)
    device.close()
    expert = Expert(make(), model, way=way)
    assert expert.tokens(step) == expected
    twin = expert.device.reserve("hbm", model.layout.size_bytes)
    expert.events = [expert.device.copy(twin, expert.weights)]
    expert.weights = twin
    event = expert.device.run(expert.exe, expert.binding(step), after=expert.events)
    while not expert.device.done(event):
        expert.device.wait_any([event])
    assert expert.device.tokens(event).tolist() == expected


def test_weights_that_nobody_placed_are_refused_when_they_are_odd(make, layout):
    desk = loaded(Desk(make(), layout))
    good = desk.binding(rows([(PROMPT, 0)]))
    odd = Binding(good.weights, (good.offsets[0] + 2, *good.offsets[1:]), good.kv, good.block_bytes, good.rows)
    with pytest.raises(ValueError, match=r"embed\.table is at \d+, no multiple of 16"):
        desk.device.run(desk.exe, odd)
    pages = good.kv.view(8, good.kv.size_bytes - 8)
    with pytest.raises(ValueError, match="KV pages are at"):
        desk.device.run(desk.exe, Binding(good.weights, good.offsets, pages, good.block_bytes, good.rows))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 90)), min_size=1, max_size=10),
    st.lists(st.integers(1, 100), max_size=10),
)
def test_pieces_of_ranges_put_every_byte_of_a_tensor_in_its_place(gaps, cuts):
    spans, at = [], 0
    for gap, size in gaps:
        spans.append((at + gap, size))
        at += gap + size
    placed = Placed.of(Buffer(0, "hbm", 0, at + 16 * len(spans)), spans)
    content = np.random.default_rng(at).integers(1, 256, at, dtype=np.uint8)
    arena = np.zeros(at + 16 * len(spans), np.uint8)
    first = 0
    for size in [*cuts, at]:
        for start, stop, shift in placed.pieces(first, min(size, at - first)):
            arena[start + shift : stop + shift] = content[start:stop]
        first = min(first + size, at)
    offsets = np.array([offset for offset, _ in spans], np.int64)
    for (offset, size), moved in zip(spans, placed.moved(offsets).tolist(), strict=True):
        assert moved % 16 == 0
        np.testing.assert_array_equal(arena[moved : moved + size], content[offset : offset + size])


@given(st.integers(0, 600), st.integers(0, 40), st.integers(0, 40), st.integers(1, 5000))
def test_a_bucket_has_room_for_its_step_and_says_decode_only_of_decode(T, B, R, context):
    B, R = min(B, T), min(R, T)
    sizes = rows([]).sizes.__class__(T, B, R, 0, 0)
    bucket = bucket_of(sizes, context)
    assert bucket.tokens >= T
    assert bucket.sequences >= B
    assert bucket.sampled >= R
    assert bucket.context >= context
    assert bucket.decodes == (T == B)


def test_an_arena_is_zero_and_its_pieces_have_fixed_addresses(make):
    device = make()
    buffer = device.reserve("hbm", 3 * BLOCK_BYTES)
    assert not device.memory(buffer).any()
    base = device.memory(buffer).data_ptr()
    assert device.memory(buffer.view(BLOCK_BYTES, 8)).data_ptr() == base + BLOCK_BYTES


# ---- faults


def test_a_gpu_without_room_for_a_slab_says_how_much_there_is(make):
    device = make(driver=LazyDriver(total_bytes=2**20))
    with pytest.raises(CapacityError, match=r"hbm\] a slab needs 2.00 MiB but 1.00 MiB can be had; reserve less or"):
        device.reserve("hbm", 2 * 2**20)
    device.reserve("hbm", 2**19)


def test_a_step_without_room_fails_and_smaller_ones_go_on(make, layout):
    driver = LazyDriver()
    desk = loaded(Desk(make(driver=driver), layout))
    expected = desk.tokens(desk.run(decode(7, 0)))
    driver.facts = driver.facts.__class__("full", driver.taken_bytes + 100, 1, (9, 0), "")
    failed = desk.run(rows([(list(range(16)), 0)]))
    desk.wait(failed)
    assert isinstance(desk.device.failure(failed), CapacityError)
    assert "100 B can be had" in str(desk.device.failure(failed))
    assert desk.tokens(desk.run(decode(7, 0))) == expected


def test_a_pool_that_the_system_does_not_pin_works_and_is_remarked(make, tmp_path):
    driver = LazyDriver()
    driver.pin_limit_bytes = 2**19
    model = open_model(write_expert(tmp_path / "one", 3))
    expert = Expert(make(driver=driver, machine="toy-tiers"), model, way="pool")
    device = expert.device
    assert device.remarks == ()
    device.reserve("ddr", 2**20)
    assert "does not pin the pool of 1.00 MiB (cudaErrorMemoryAllocation)" in device.remarks[0]
    assert expert.tokens(rows([(PROMPT, 0)]))


def test_staging_that_the_system_does_not_pin_is_a_sentence(make, layout):
    driver = LazyDriver()
    desk = Desk(make(driver=driver), layout)
    driver.pin_limit_bytes = driver.pinned_bytes
    with pytest.raises(DeviceError, match=r"the system pins no 128.00 KiB of memory for staging .*locked memory"):
        desk.fetch()
    driver.pin_limit_bytes = None
    desk.wait(*desk.fetch().values())


@pytest.mark.parametrize("at", [0, 5, 17])
@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_an_error_in_the_middle_of_a_step_fails_the_run_and_the_next_one_works(make, layout, at, orchestration):
    driver = LazyDriver()
    desk = loaded(Desk(make(orchestration, driver=driver), layout))
    expected = [desk.tokens(desk.run(decode(7, 0), steps=3)) for _ in range(2)]
    driver.fail_at = at
    failed, behind = desk.run(decode(7, 0), steps=3), desk.run(decode(7, 0), steps=3)
    desk.wait(failed)
    failure = desk.device.failure(failed)
    assert isinstance(failure, DeviceError)
    assert "run tiny failed: CUDA error: an illegal memory access" in str(failure)
    assert "the GPU goes on" in str(failure)
    assert desk.tokens(behind) == expected[0] == expected[1]


def test_a_gpu_that_disappears_fails_everything_at_once_with_one_sentence(make, layout):
    driver = LazyDriver()
    driver.is_fatal = True
    desk = loaded(Desk(make(driver=driver), layout))
    desk.tokens(desk.run(decode(7, 0)))
    driver.fail_at = 3
    runs = [desk.run(decode(7, 0), steps=2) for _ in range(3)]
    desk.wait(*runs)
    for run in runs:
        assert "the GPU no longer answers (CUDA error: device lost)" in str(desk.device.failure(run))
    fetches = list(desk.fetch().values())
    desk.wait(*fetches)
    assert "start Coterie again" in str(desk.device.failure(fetches[0]))
    with pytest.raises(DeviceError, match="no longer answers"):
        desk.tokens(desk.run(decode(7, 0)))
    desk.device.close()


def test_a_damaged_read_in_the_middle_of_a_range_fails_it_and_what_follows_and_gives_blocks_back(make, layout):
    bad = [5]

    def read(file, buffers, offset):
        bad[0] -= 1
        if bad[0] == 0:
            raise OSError(5, "Input/output error")
        return os.preadv(file, buffers, offset)

    desk = Desk(make(read=read), layout)
    placed, events = desk.layout.ranges, []
    for one in placed:
        view = desk.weights.view(one.offset, one.source.size_bytes)
        events.append(desk.device.fetch(view, one.source, events[-1:]))
    desk.wait(*events)
    failures = [desk.device.failure(event) for event in events]
    first = next(i for i, failure in enumerate(failures) if failure is not None)
    assert isinstance(failures[first], TransferError)
    assert all(failure is failures[first] for failure in failures[first:])
    expected = desk.tokens(desk.run(rows([(PROMPT, 0)]), gates=desk.fetch()))
    assert expected == desk.tokens(desk.run(rows([(PROMPT, 0)])))
    assert len(desk.device._staged._free) == 16


@pytest.mark.parametrize("refused", [0, 1])
def test_a_lane_whose_threads_did_not_start_can_be_started_later(make, on_cpu, layout, monkeypatch, refused):
    desk, real, asked = Desk(make(), layout), threading.Thread.start, []

    def refuse(thread):
        asked.append(thread)
        if len(asked) > refused:
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(DeviceError, match="the thread of lane compute could not be started"):
            desk.run(rows([(PROMPT, 0)]))
    assert desk.tokens(desk.run(rows([(PROMPT, 0)]), gates=desk.fetch())) == on_cpu.tokens(
        on_cpu.run(rows([(PROMPT, 0)]))
    )


def test_closing_with_work_queued_fails_it_and_ends_threads(layout):
    device = cuda(driver=LazyDriver(settle_s=0.02))
    desk = Desk(device, layout)
    gates = desk.fetch()
    runs = [desk.run(rows([(PROMPT, 0)]), gates=gates) for _ in range(5)]
    device.close()
    for event in (*gates.values(), *runs):
        assert device.done(event)
    assert isinstance(device.failure(runs[-1]), DeviceError)
    with pytest.raises(DeviceError, match=r"\[cuda\] the device was closed"):
        desk.run(rows([(PROMPT, 0)]))


def test_what_a_copy_down_would_be_is_refused(make):
    device = make()
    up, down = device.reserve("hbm", BLOCK_BYTES), device.reserve("ddr", BLOCK_BYTES)
    with pytest.raises(ValueError, match="read-only"):
        device.copy(down, up)
    with pytest.raises(ValueError, match="not reserved"):
        device.reserve("disk", BLOCK_BYTES)
