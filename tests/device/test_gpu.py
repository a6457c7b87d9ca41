"""What to run first on a GPU: the driver, stored values and tokens beside the CPU's, and the limits.

    COTERIE_TEST_GPU=1 TRITON_INTERPRET=0 python -m pytest -k gpu tests/device/test_gpu.py tests/device/test_contract*

Without that variable the same tests run here on a GPU that is none, so that they are known to work.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

import torch
from tests.device.devices import gpu
from tests.device.expert import Expert
from tests.device.programs import rows
from tests.system.tiny import write_expert

from coterie.core.dtypes import DType
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda.limits import MachineLimits
from coterie.graph.compile import compile_graph
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
SIZE, LARGE = 1 << 20, 1 << 28
BOUND = 0.03  # of the largest value, for products in bfloat16 of more than four tokens; see test_triton_programs.py
FEW_BOUND = 0.005  # of few tokens, whose products are in float32, and keys and values in bfloat16


@pytest.fixture
def device():
    made = gpu()
    yield made
    made.close()


@pytest.fixture
def driver(device):
    return device.driver


def test_bytes_go_down_one_stream_and_up_another_behind_a_mark(driver):
    there, host, back = driver.device_memory(SIZE), driver.pinned_memory(SIZE), driver.pinned_memory(SIZE)
    down, up = driver.stream(), driver.stream()
    host.copy_(torch.arange(SIZE, dtype=torch.int64).to(torch.uint8))
    back.zero_()
    first = driver.mark(down)
    driver.copy(there, host, down)
    last = driver.mark(down)
    driver.follow(up, last)
    driver.copy(back, there, up)
    driver.wait(driver.mark(up))
    assert torch.equal(host, back)
    assert driver.seconds(first, last) >= 0
    assert driver.lost() == ""


def test_words_cross_in_both_directions(driver):
    there, host, back = driver.device_memory(SIZE), driver.pinned_memory(SIZE), driver.pinned_memory(SIZE)
    host.copy_(torch.arange(SIZE, dtype=torch.int64).to(torch.uint8))
    back.zero_()
    stream = driver.stream()
    driver.copy_words([(there, host)], stream)
    driver.copy_words([(back[: SIZE // 2], there[: SIZE // 2]), (back[SIZE // 2 :], there[SIZE // 2 :])], stream)
    driver.wait(driver.mark(stream))
    assert torch.equal(host, back)


def test_pieces_of_memory_that_was_pinned_cross(driver):
    """Of the pool, which CUDA did not allocate."""
    memory, there, back = np.zeros(SIZE, np.uint8), driver.device_memory(SIZE), driver.pinned_memory(SIZE)
    pinned, table = driver.pin(memory), driver.pinned_memory(4096)
    memory[:] = np.arange(SIZE)
    sizes, at, to, pieces = (4, 4096, 100_000, 0, 300_004), 64, 128, []
    for size in sizes:
        pieces.append((there.data_ptr() + to, pinned.data_ptr() + at, size))
        at, to = at + size + 8, to + size + 8
    table.view(torch.int64)[: 3 * len(pieces)] = torch.tensor(pieces, dtype=torch.int64).view(-1)
    stream = driver.stream()
    driver.launch(stream, [there.zero_])
    driver.copy_pieces(table[: 24 * len(pieces)], stream)
    driver.copy(back, there, stream)
    driver.wait(driver.mark(stream))
    wanted = np.zeros(SIZE, np.uint8)
    for to, at, size in pieces:
        first, of = to - there.data_ptr(), at - pinned.data_ptr()
        wanted[first : first + size] = memory[of : of + size]
    np.testing.assert_array_equal(back.numpy(), wanted)
    driver.unpin(memory)


def test_words_do_not_wait_for_a_copy_that_was_queued_before(driver):
    """An expert on its way up is queued whole; a step of another must not wait for it."""
    if driver.facts.software == "no CUDA":
        pytest.skip("streams of the GPU that is none are late as they like")
    large, there = driver.device_memory(LARGE), driver.device_memory(64)
    source, word = driver.pinned_memory(LARGE), driver.pinned_memory(64)
    copies, words = driver.stream(), driver.stream()
    driver.copy_words([(there, word)], words)  # compiles
    driver.wait(driver.mark(words))
    first = driver.mark(copies)
    for _ in range(8):
        driver.copy(large, source, copies)
    behind = driver.mark(copies)
    driver.copy_words([(there, word)], words)
    crossed = driver.mark(words)
    driver.wait(behind)
    driver.wait(crossed)
    assert driver.seconds(first, crossed) < driver.seconds(first, behind) / 2


def test_torch_has_the_calls_that_the_driver_makes_of_it():
    """By name and parameter: without a GPU no more than that can be asked."""
    for call, names in (
        (torch.cuda.CUDAGraph.capture_begin, {"capture_error_mode"}),
        (torch.cuda.CUDAGraph.capture_end, set()),
        (torch.cuda.CUDAGraph.replay, set()),
        (torch.cuda.Event.__new__, {"enable_timing", "blocking"}),
        (torch.cuda.Event.record, {"stream"}),
        (torch.cuda.Event.elapsed_time, {"end_event"}),
        (torch.cuda.Event.synchronize, set()),
        (torch.cuda.Stream.wait_event, {"event"}),
        (torch.cuda.current_stream, set()),
        (torch.cuda.set_stream, {"stream"}),
        (torch.cuda.mem_get_info, {"device"}),
        (torch.cuda.memory_reserved, {"device"}),
        (torch.cuda.memory_allocated, {"device"}),
    ):
        assert names <= set(inspect.signature(call).parameters), call
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    source = inspect.getsource(torch.cuda.memory) + inspect.getsource(torch.cuda)
    assert "cudart" in source


def test_memory_that_exists_can_be_pinned(driver):
    memory = np.full(SIZE, 7, np.uint8)
    pinned, there, back = driver.pin(memory), driver.device_memory(SIZE), driver.pinned_memory(SIZE)
    stream = driver.stream()
    driver.copy(there, pinned, stream)
    driver.copy(back, there, stream)
    driver.wait(driver.mark(stream))
    assert (back.numpy() == 7).all()
    driver.unpin(memory)


def test_what_is_captured_runs_when_it_is_replayed_and_not_before(driver):
    memory, host = driver.device_memory(16), driver.pinned_memory(16)
    number = memory.view(torch.int32)
    stream = driver.stream()
    host.zero_()
    driver.copy(memory, host, stream)
    adds = [lambda: number.add_(1), lambda: number.mul_(2)]
    driver.launch(stream, adds)
    captured = driver.capture(stream, adds)
    for _ in range(3):
        driver.replay(stream, captured)
    driver.copy(host, memory, stream)
    driver.wait(driver.mark(stream))
    assert host.view(torch.int32).tolist() == [30] * 4


@pytest.mark.parametrize("way", ["disk", "pool"])
@pytest.mark.parametrize("rules", ["none", "cache"])
def test_stored_values_and_tokens_are_the_cpus(device, tmp_path, way, rules):
    """A ragged prefill, a step of three and a decoded answer. Few tokens are not rounded, so greedy ones are equal."""
    model = open_model(write_expert(tmp_path / "one", 3, hidden_size=64, num_key_value_heads=1))
    on_cpu = CpuDevice(load_machine("toy"), threads=1)
    ours, theirs = Expert(device, model, rules, way), Expert(on_cpu, model, rules)
    for step in (rows([([3, 14, 15, 9, 26], 0), ([9], 0)]), rows([([7], 5), ([1, 2], 1)])):
        if rules == "none":
            got, expected = ours.inspect(step), theirs.inspect(step)
            got.pop("next_tokens"), expected.pop("next_tokens")
            for name, values in expected.items():
                assert np.abs(got[name] - values).max() <= BOUND * np.abs(values).max(), name
        else:
            ours.tokens(step), theirs.tokens(step)
    answer = rows([([5], 0), ([8], 0)], [Sampling(), WARM])
    assert ours.tokens(answer, steps=6) == theirs.tokens(answer, steps=6)
    on_cpu.close()


def test_values_with_weights_of_six_bits_are_the_cpus(device, tmp_path):
    """One token, three, a batch's tile and a prompt's; rows with a shorter last block, which begin at odd places.

    A CPU rounds what meets them to 15 bits, so bounds are that of products in bfloat16 for more than four tokens alone.
    """
    shape = {"hidden_size": 320, "intermediate_size": 256, "num_attention_heads": 20, "num_key_value_heads": 1}
    plain, six = write_expert(tmp_path / "one", 3, **shape), Packing(DType.Q6, DType.Q6)
    model = open_model(quantize_folder(plain, tmp_path / "six", six).folder)
    on_cpu = CpuDevice(load_machine("toy"), threads=1)
    ours, theirs = (Expert(one, model, "none") for one in (device, on_cpu))
    for count, bound in ((1, FEW_BOUND), (3, FEW_BOUND), (9, BOUND), (100, BOUND)):
        step = rows([([(7 * i + 3) % 50 for i in range(count)], 0)], blocks_per_sequence=8)
        got, expected = ours.inspect(step), theirs.inspect(step)
        got.pop("next_tokens"), expected.pop("next_tokens")
        for name, values in expected.items():
            assert np.abs(got[name] - values).max() <= bound * np.abs(values).max(), (count, name)
    on_cpu.close()


@pytest.mark.parametrize("width", [64, 128])
def test_a_prompt_in_large_tiles_has_the_cpus_values_captured_or_not(device, tmp_path, width):
    """More tokens than tiles of a batch have: descriptors copy them where there are such, and values are staged ahead.

    Rows of one step of a product, and of two.
    """
    shape = {"hidden_size": width, "intermediate_size": 3 * width // 4, "num_attention_heads": width // 16}
    model = open_model(write_expert(tmp_path / "one", 3, num_key_value_heads=1, **shape))
    on_cpu = CpuDevice(load_machine("toy"), threads=1)
    ours, theirs = Expert(device, model), Expert(on_cpu, model)
    step = rows([([(7 * i + 3) % 50 for i in range(120)], 0)])
    drawn = [ours.tokens(step)]  # launch by launch, as its weights come
    ours.events.clear()
    drawn += [ours.tokens(step) for _ in range(3)]  # launch by launch, captured, and replayed
    assert drawn == [theirs.tokens(step)] * 4
    for expert in (ours, theirs):  # values that overwrite no others
        expert.exe = expert.device.load(compile_graph(model.graph, "cache", share_buffers=False))
    got, expected = ours.inspect(step), theirs.inspect(step)
    got.pop("next_tokens"), expected.pop("next_tokens")
    for name, values in expected.items():
        assert np.abs(got[name] - values).max() <= BOUND * np.abs(values).max(), name
    on_cpu.close()


def test_limits_read_multiply_and_copy(driver):
    limits = MachineLimits(driver, SIZE, edge=64)
    for seconds in (
        *(loop() for loop in limits.read_loops().values()),
        limits.multiply_seconds(),
        limits.copy_seconds(),
    ):
        assert seconds >= 0
    assert (limits.size_bytes, limits.product_flops) == (SIZE, 2 * 64**3)
