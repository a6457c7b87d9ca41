"""`--device cuda` from end to end on a GPU that is none: the same answers, the same decisions, and faults as sentences.

Kernels are the CPU's here; tests/device/test_cuda_programs.py runs Triton's.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

import torch
from starlette.testclient import TestClient
from tests.device.cuda_devices import cuda
from tests.device.lazy_gpu import LazyDriver
from tests.device.native_kernels import NativeKernels
from tests.system.adapting import NAMES
from tests.system.test_decisions import EVERYTHING, STEADY, entries, models, serve, workload
from tests.system.test_reuse import alike
from typer.testing import CliRunner

from coterie.api import Coterie, Message, Options, Query
from coterie.cli.check import budget_line
from coterie.cli.main import app
from coterie.core.errors import CapacityError, DeviceError, UsageError
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda import device as device_file
from coterie.devices.cuda import gpu
from coterie.devices.cuda.device import CudaDevice
from coterie.devices.cuda.torch_driver import TorchDriver
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.policy import Policy
from coterie.engine.request import SamplingParams
from coterie.models.model import FLOAT32
from coterie.server.app import make_app
from coterie.spec.load import load_machine

ONE_EXPERT = 100 * 1024
__all__ = ["models"]  # a fixture


class Gpu:
    """The lazy GPU that `--device cuda` finds."""

    def __init__(self) -> None:
        self.driver = LazyDriver(total_bytes=2**30, settle_s=2e-4)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()
    monkeypatch.setattr(gpu, "open_driver", lambda index=0: found.driver)
    monkeypatch.setattr(device_file, "TritonKernels", lambda tiles: NativeKernels())
    return found


def query(expert: str, text: str = "hello", **sampling: float) -> Query:
    return Query((Message("user", text),), expert, SamplingParams(**sampling), max_tokens=7)


QUERIES = [query("ada"), query("bob", temperature=0.9, seed=3), query("cyd"), query("ada", "again"), query("dan")]


@pytest.mark.parametrize("near_bytes", [None, ONE_EXPERT])
def test_answers_are_the_cpus_with_and_without_switches(folder: Path, lazy: Gpu, near_bytes: int | None) -> None:
    """Kernels are the CPU's: so what differs would be bytes, addresses, rows or their order."""
    found = {}
    for device in ("cpu", "cuda"):
        with Coterie.open(str(folder), Options(device=device, near_bytes=near_bytes, activations=FLOAT32)) as coterie:
            found[device] = [answer.token_ids for answer in coterie.ask_all(QUERIES)]
            found[device] += [coterie.ask(one).token_ids for one in QUERIES]
            coterie.parts.engine.check_integrity()
            coterie.parts.cache.check_integrity()
    assert found["cuda"] == found["cpu"]
    assert lazy.driver.replayed > 0


@pytest.mark.parametrize("near_bytes", [pytest.param(None, marks=pytest.mark.long), ONE_EXPERT])
def test_adapters_beside_a_base_are_the_cpus(experts: Path, lazy: Gpu, near_bytes: int | None) -> None:
    """Weights in two arenas, of which one is filled once; adapters come from the pool, in room for some or all."""
    queries, found = [query(name, text) for text in ("hello", "again") for name in (*NAMES, "base")], {}
    for device in ("cpu", "cuda"):
        with Coterie.open(str(experts), Options(device=device, near_bytes=near_bytes, activations=FLOAT32)) as coterie:
            found[device] = [answer.token_ids for answer in coterie.ask_all(queries)]
            for name in NAMES:
                coterie.unload(name)
            found[device] += [coterie.ask(one).token_ids for one in queries]
            coterie.parts.all_weights.check_integrity()
    assert found["cuda"] == found["cpu"]
    assert len(set(found["cpu"][:4])) == 4


@pytest.mark.parametrize(("machine", "seed"), [("toy", 3), ("toy-tiers", 6)])
def test_decisions_are_those_of_every_other_device(models: dict, machine: str, seed: int) -> None:
    """Lengths fixed, no overlap, no prefetch: no decision depends on how long anything takes. And tokens are equal."""
    moves = workload(models, seed)
    served = []
    for device in (
        cuda(machine=machine, driver=LazyDriver(settle_s=2e-4)),
        ModelledDevice(load_machine(machine)),
        ModelledDevice(load_machine(machine), numerics=CpuDevice(load_machine("toy"), threads=1)),
        *([CpuDevice(threads=1)] if machine == "toy" else []),
    ):
        served.append(serve(device, models, STEADY, moves))
        device.close()
    real = served[0]
    assert all(other.log == real.log for other in served[1:])
    assert all(other.tokens == real.tokens for other in served[2:])
    assert len(entries(real.log, "evict")) > 3


def on_both(models: dict, policy: Policy, moves: list, device: CudaDevice | None = None) -> list:
    """A workload on the GPU and on a CPU, whose tokens are equal."""
    served = []
    for one in (device or cuda(machine="toy-tiers", driver=LazyDriver(settle_s=2e-4)), CpuDevice(threads=1)):
        served.append(serve(one, models, policy, moves))
        one.close()
    assert served[0].tokens == served[1].tokens
    return served


def test_shared_prefixes_are_those_of_every_other_device(models: dict) -> None:
    """Most prompts begin as others do: the GPU reads pages that another sequence wrote."""
    served = on_both(models, STEADY, alike(models, 3))
    assert entries(served[0].log, "reuse") == entries(served[1].log, "reuse")
    assert len(entries(served[0].log, "reuse")) > 10


def test_with_everything_on_tokens_are_the_same(models: dict) -> None:
    """Prefetch, overlap and several steps a run: cold runs on gates, and interrupts by whoever arrives."""
    on_both(models, EVERYTHING, workload(models, 6))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(24))
def test_whatever_the_order_tokens_are_the_same(models: dict, seed: int) -> None:
    """Other workloads, other orders of streams, host and device orchestration, two tiers and three."""
    orchestration, machine = ("host", "device")[seed % 2], ("toy", "toy-tiers")[seed // 2 % 2]
    driver = LazyDriver(seed, eager=(0.0, 0.3, 1.0)[seed % 3], settle_s=1e-3)
    on_both(models, EVERYTHING, workload(models, seed), cuda(orchestration, machine=machine, driver=driver))


def test_a_cuda_error_fails_the_requests_of_a_step_and_the_server_goes_on(folder: Path, lazy: Gpu) -> None:
    coterie = Coterie.open(str(folder), Options(device="cuda"))
    with TestClient(make_app(coterie)) as client:

        def post(expert: str) -> tuple[int, str]:
            body = {"model": expert, "max_tokens": 6, "messages": [{"role": "user", "content": "hello"}]}
            answer = client.post("/v1/chat/completions", json=body)
            return answer.status_code, answer.text

        status, said = post("ada")
        assert status == 200
        lazy.driver.fail_at = 30
        status, told = post("ada")
        assert status == 500
        assert "an illegal memory access was encountered" in told
        assert "the GPU goes on" in told
        status, again = post("ada")
        assert status == 200
        assert again.split('"content"')[1][:20] == said.split('"content"')[1][:20]
        lazy.driver.fail_at, lazy.driver.is_fatal = 3, True
        assert "the GPU no longer answers" in post("bob")[1]
        status, told = post("cyd")
        assert status == 500
        assert "start Coterie again" in told
        coterie.parts.engine.check_integrity()


def test_a_budget_that_the_gpu_does_not_have_is_refused_at_start(folder: Path, lazy: Gpu) -> None:
    with pytest.raises(CapacityError, match="hbm"):
        Coterie.open(str(folder), Options(device="cuda", kv_bytes=2**31))
    lazy.driver.taken_bytes = 2**30 - 2**16
    with pytest.raises(CapacityError, match="hbm"):
        Coterie.open(str(folder), Options(device="cuda"))


def test_a_small_pool_is_the_cpus_answers_too_and_one_that_is_not_pinned_is_remarked(folder: Path, lazy: Gpu) -> None:
    with Coterie.open(str(folder), Options(activations=FLOAT32)) as coterie:
        expected = [coterie.ask(one).token_ids for one in QUERIES]
    lazy.driver.pin_limit_bytes = ONE_EXPERT // 2
    for pool in (ONE_EXPERT, None):
        with Coterie.open(str(folder), Options(device="cuda", near_bytes=ONE_EXPERT, pool_bytes=pool)) as coterie:
            assert "note: the system does not pin the pool of" in budget_line(coterie)
            lazy.driver.pin_limit_bytes = None
            assert [coterie.ask(one).token_ids for one in QUERIES] == expected
            evicted = {tier for what, _, tier in coterie.parts.cache.decisions if what == "evict"}
            assert evicted == ({"hbm", "dram"} if pool else {"hbm"})
        lazy.driver.pin_limit_bytes = lazy.driver.pinned_bytes + ONE_EXPERT // 2
    with pytest.raises(UsageError, match=r"--pool\] cpu has no memory between dram and the files; leave it out"):
        Coterie.open(str(folder), Options(pool_bytes=2**20))


def test_a_file_that_changes_between_two_loads(folder: Path, lazy: Gpu, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    with Coterie.open(str(mine), Options(device="cuda", near_bytes=ONE_EXPERT)) as coterie:
        before = coterie.ask(query("ada")).token_ids
        coterie.ask(query("bob"))
        path = mine / "ada" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-2])
        # The pool below has a copy that was read before: it is what is served.
        assert coterie.ask(query("ada")).token_ids == before
        (mine / "cyd" / "model.safetensors").unlink()
        with pytest.raises(DeviceError, match=r"cyd.*model\.safetensors"):
            coterie.ask(query("cyd"))
        assert coterie.ask(query("bob")).token_ids


def test_diff_compares_a_gpu_with_the_reference(folder: Path, lazy: Gpu) -> None:
    code, text = run("diff", str(folder / "ada"), "--prompt", "hello", "--device", "cuda", "--json")
    assert code == 0, text
    got = json.loads(text)
    assert got["tolerance"] == 0.03
    assert {row["rule_set"] for row in got["rows"]} == {"cache", "none"}
    assert max(row["max_error"] for row in got["rows"]) < 1e-4  # these kernels are the CPU's
    code, text = run("check", str(folder), "--device", "cuda")
    assert code == 0
    assert "hbm: " in text


# ---- what is missing


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*words])
    return result.exit_code, " ".join(result.output.split())


def missing(name: str) -> str:
    raise gpu.PackageNotFoundError(name)


def test_without_pytorch_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "version", missing)
    code, text = run("run", "demo", "hello", "--device", "cuda")
    assert code == 2
    assert "[--device cuda] PyTorch is not installed; install the extra cuda, in the folder of" in text
    assert "pip install -e '.[cuda]'" in text


def test_without_its_cuda_build_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "version", lambda name: "2.13.0+cpu")
    code, text = run("run", "demo", "hello", "--device", "cuda")
    assert code == 2
    assert "this PyTorch (2.13.0+cpu) was built without CUDA" in text
    monkeypatch.setattr(gpu, "version", lambda name: "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    code, text = run("run", "demo", "hello", "--device", "cuda")
    assert code == 2
    assert "was built without CUDA; install" in text


def test_without_a_gpu_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "version", lambda name: "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, text = run("run", "demo", "hello", "--device", "cuda")
    assert code == 2
    assert "finds no NVIDIA GPU that works; see nvidia-smi" in text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"cuda:3\] there are 2 GPUs, from 0 on; use cuda:0 to cuda:1"):
        TorchDriver(3)


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1", "cuda2", "gpu"])
def test_a_device_that_is_none_is_named(name: str) -> None:
    code, text = run("run", "demo", "hello", "--device", name)
    assert code == 2
    assert f"'{name}' is not a device; use cpu, cuda," in text


def test_info_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "version", missing)
    code, text = run("info")
    assert code == 0
    assert "gpu: none for --device cuda: PyTorch is not installed" in text


def test_info_says_what_gpu_there_is(lazy: Gpu) -> None:
    code, text = run("info", "--json")
    assert code == 0
    assert '"gpu": "lazy (no CUDA), 1 multiprocessors of capability 9.0, 1.00 GiB free of 1.00 GiB"' in text


def test_released_memory_is_the_gpus_and_comes_back_at_another_place(folder: Path, lazy: Gpu) -> None:
    """Weights and pages are words of rows, so what was captured stays; experts below come from their files again."""
    with Coterie.open(str(folder), Options(device="cuda", activations=FLOAT32)) as coterie:
        driver, plan = lazy.driver, coterie.parts.plan
        first = [answer.token_ids for answer in coterie.ask_all(QUERIES)]
        before, pinned, captured = driver.taken_bytes, driver.pinned_bytes, driver.captured
        kv, experts = coterie.parts.kv.buffer, coterie.parts.cache.ledgers[0].holes
        assert coterie.release_idle() > plan.near_bytes + kv.size_bytes
        assert driver.trimmed_at <= before - plan.near_bytes - kv.size_bytes, experts
        assert driver.pinned_bytes < pinned
        assert coterie.resident() == ()
        assert [coterie.ask(one).token_ids for one in QUERIES] == first
        assert driver.taken_bytes >= before
        assert driver.pinned_bytes == pinned
        coterie.release_idle()
        assert [answer.token_ids for answer in coterie.ask_all(QUERIES)] == first
        assert driver.captured <= captured + 4
        coterie.parts.engine.check_integrity()


def test_released_memory_that_others_have_taken_is_a_sentence_until_they_end(folder: Path, lazy: Gpu) -> None:
    with Coterie.open(str(folder), Options(device="cuda", activations=FLOAT32)) as coterie:
        driver, room = lazy.driver, lazy.driver.facts
        first = coterie.ask(QUERIES[0]).token_ids
        coterie.release_idle()
        kv = coterie.parts.kv.buffer.size_bytes
        for left in (0, coterie.parts.plan.near_bytes + kv // 2):  # for neither, and for the experts alone
            driver.facts = replace(room, total_bytes=driver.taken_bytes + left)
            with pytest.raises(CapacityError, match=r"hbm\] a slab needs .* can be had; .*end other programs"):
                coterie.ask(QUERIES[0])
        driver.facts = room
        assert coterie.ask(QUERIES[0]).token_ids == first


def test_of_a_slab_that_is_used_in_part_all_stays(folder: Path, lazy: Gpu) -> None:
    with Coterie.open(str(folder), Options(device="cuda", activations=FLOAT32)) as coterie:
        first = [answer.token_ids for answer in coterie.ask_all(QUERIES)]
        coterie.pin("bob")
        before, kv = lazy.driver.taken_bytes, coterie.parts.kv.buffer.size_bytes
        coterie.release_idle()
        assert before - 2 * kv < lazy.driver.taken_bytes <= before - kv  # its pages alone are gone
        assert coterie.resident() == ("bob",)
        assert [coterie.ask(one).token_ids for one in QUERIES] == first


# ---- benches
