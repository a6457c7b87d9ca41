"""The CUDA device with Triton's kernels, interpreted: cold, resident and captured steps give the CPU's tokens.

Knows nothing about what a GPU would take for it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.device import test_contract, test_contract_bytes, test_contract_steps
from tests.device.cuda_devices import making
from tests.device.interpreted import WIDE
from tests.device.lazy_gpu import LazyDriver
from tests.device.programs import Desk, rows, tiny_graph, write_weights
from tests.device.random_expert import BASE
from triton import jit
from triton import language as tl
from triton.runtime.errors import InterpreterError

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda.kernels import TritonKernels
from coterie.graph.compile import compile_graph
from coterie.graph.ops import BF16, INT8, INT8_OR_FINER
from coterie.graph.rounding import with_rounding
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph, weight_shapes
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)


@pytest.fixture
def make():
    with making(kernels=TritonKernels(WIDE)) as make_device:
        yield make_device


@pytest.fixture
def on_cpu(layout):
    device = CpuDevice(load_machine("toy"), threads=1)
    yield Desk(device, layout)
    device.close()


def test_a_cold_prompt_and_its_captured_answer_are_the_cpus_and_so_is_another_experts(make, on_cpu, layout, tmp_path):
    """Up to four tokens nothing is rounded, so that tokens can be compared as they are."""
    other = write_weights(tmp_path / "other.weights", tiny_graph(), seed=9)
    found = []
    for desk in (Desk(make(), layout), on_cpu):
        prompt = rows([([3, 14, 15], 0)], [WARM])
        ((first,),) = desk.tokens(desk.run(prompt, gates=desk.fetch()))
        answer = desk.tokens(desk.run(rows([([first], 3)], [WARM]), steps=3))
        twin = desk.device.reserve(desk.weights.tier, other.size_bytes)
        desk.layout = other
        gates = desk.fetch(weights=twin)
        binding = desk.binding(rows([([first], 3)], [WARM]), twin)
        switched = desk.tokens(desk.device.run(desk.exe, binding, gates=gates, steps=2))
        found.append((first, answer, switched))
    assert found[0] == found[1]


def test_rounded_activations_are_refused_when_the_program_is_loaded(make):
    device, config = make(), ModelConfig.from_hf(BASE, "packed")
    types = {name: DType.Q8 if len(shape) == 2 else DType.BF16 for name, shape in weight_shapes(config).items()}
    graph = decoder_graph(config, types)
    device.load(compile_graph(graph, "cache"))
    with pytest.raises(UnsupportedError, match="Q8 with int8 activations; leave out --activations int8"):
        device.load(compile_graph(with_rounding(graph, INT8), "cache"))
    device.load(compile_graph(with_rounding(graph, INT8_OR_FINER), "cache"))
    plain = decoder_graph(config, dict.fromkeys(types, DType.BF16))
    with pytest.raises(UnsupportedError, match="BF16 with bf16 activations; leave out --activations bf16"):
        device.load(compile_graph(with_rounding(plain, BF16), "cache"))
    six = decoder_graph(config, {name: DType.Q6 if dtype is DType.Q8 else dtype for name, dtype in types.items()})
    device.load(compile_graph(with_rounding(six, INT8), "cache"))  # which meet 15 bits, whatever is asked


@jit
def _copy_first(to, at, there, MULTIPLE: tl.constexpr):
    """Of a number of 8 bytes, where `there` is not 0."""
    at = tl.multiple_of(at, MULTIPLE)
    tl.store(to, tl.load(at, mask=there != 0, other=0))


@pytest.mark.parametrize(
    ("start", "there", "multiple", "fault"),
    [
        (0, 1, 16, ""),
        (64, 0, 16, ""),
        (64, 1, 16, "not the GPU's"),
        (8, 1, 16, "multiple"),
    ],
)
def test_a_kernel_touches_what_the_driver_gave_and_is_held_to_its_words(start, there, multiple, fault):
    """As a GPU would fault: memory of the host, what lies behind an arena, an address that is no such multiple."""
    driver = LazyDriver()
    memory, to = driver.device_memory(64), driver.device_memory(64)
    behind = np.lib.stride_tricks.as_strided(memory.numpy(), (start + 8,), (1,))
    at = torch.from_numpy(behind)[start:].view(torch.int64)
    stream = driver.stream()
    driver.launch(stream, [lambda: _copy_first[(1,)](to.view(torch.int64), at, there, multiple)])
    mark = driver.mark(stream)
    if not fault:
        driver.wait(mark)
        return
    with pytest.raises(InterpreterError, match=fault):
        driver.wait(mark)


def test_a_kernel_is_given_no_memory_of_the_host():
    driver = LazyDriver()
    to, stream = driver.device_memory(64), driver.stream()
    host = torch.zeros(8, dtype=torch.int64)
    driver.launch(stream, [lambda: _copy_first[(1,)](to.view(torch.int64), host, 1, 16)])
    with pytest.raises(InterpreterError, match="not the GPU's"):
        driver.wait(driver.mark(stream))


LONG = [
    test_contract.test_gated_tokens_equal_ungated_tokens,
    test_contract_bytes.test_a_copy_moves_bytes,
    test_contract_steps.test_steps_stop_after_an_end_token,
    test_contract_steps.test_an_interrupt_ends_one_run_after_a_step,
    test_contract_steps.test_a_batch_equals_each_alone,
    test_contract_steps.test_no_rows_is_a_step_without_tokens,
    test_contract_steps.test_tokens_that_are_not_sampled_need_no_row,
]


@pytest.mark.long
@pytest.mark.parametrize("orchestration", ["host", "device"])
@pytest.mark.parametrize("promise", LONG, ids=lambda promise: promise.__name__)
def test_what_every_device_must_keep(make, layout, promise, orchestration):
    promise(Desk(make(orchestration=orchestration), layout))
