"""Memory of the CUDA device on a GPU that is none: copies and parts of them, and where tensors are placed.

Knows nothing about runs.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.device.cuda_devices import making
from tests.device.expert import Expert
from tests.device.lazy_gpu import LazyDriver
from tests.device.programs import Desk, loaded, rows
from tests.system.tiny import write_expert

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.device import Binding, Buffer, Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda.memory import Placed
from coterie.models.model import open_model
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
PROMPT = [3, 14, 15, 9, 26]


@pytest.fixture
def make():
    with making() as make_device:
        yield make_device


def test_a_pool_that_comes_back_is_pinned_as_the_system_does_then(make):
    driver = LazyDriver()
    device, size = make(driver=driver), 4 * BLOCK_BYTES
    pool, arena = (device.reserve(tier, size) for tier in ("ddr", "hbm"))
    other = device.reserve("ddr", size)
    for limit, remarks in ((driver.pinned_bytes - size, 1), (None, 0)):
        device.give_back(pool)
        driver.pin_limit_bytes = limit
        wait_all(device, device.copy(arena, pool))
        assert len(device.remarks) == remarks
    wait_all(device, device.copy(arena, other))
    assert driver.pinned_bytes == 2 * size


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


@pytest.mark.parametrize("way", ["copy", "copy_pieces"])
def test_a_copy_whose_thread_is_stopped_behind_it_ends_before_its_event(make, way):
    """Its memory is given to others when the event ends, and the packet of a copy by a kernel before that."""
    device = make()
    pool, near = device.reserve("ddr", 2 * BLOCK_BYTES), device.reserve("hbm", 2 * BLOCK_BYTES)
    device.memory(pool).fill_(7)
    parts, ended, given_back = [(0, BLOCK_BYTES)] if way == "copy_pieces" else [], [], []
    by_driver, end, give_back = getattr(device.driver, way), device._lanes.end, device._shared.packets.give_back

    def there():
        return bool((device.memory(near)[:BLOCK_BYTES] == 7).all())

    def stop(*given):
        by_driver(*given)
        raise KeyboardInterrupt

    device._lanes.end = lambda *given: (ended.append(there()), end(*given))[1]
    device._shared.packets.give_back = lambda packet: (given_back.append(there()), give_back(packet))
    setattr(device.driver, way, stop)
    with pytest.raises(KeyboardInterrupt):
        device.copy(near, pool, parts=parts)
    setattr(device.driver, way, by_driver)
    wait_all(device, device.copy(near, pool))
    assert ended == [True, True]
    assert given_back == ([True] if parts else [])


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


def test_an_arena_is_zero_and_its_pieces_have_fixed_addresses(make):
    device = make()
    buffer = device.reserve("hbm", 3 * BLOCK_BYTES)
    assert not device.memory(buffer).any()
    base = device.memory(buffer).data_ptr()
    assert device.memory(buffer.view(BLOCK_BYTES, 8)).data_ptr() == base + BLOCK_BYTES
