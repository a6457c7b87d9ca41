"""Adapters and deltas that share steps on a GPU that is none: decisions as on every device, tokens as each alone.

Kernels are the CPU's here, as in test_cuda.py.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.cuda_devices import cuda
from tests.device.lazy_gpu import LazyDriver
from tests.system.adapting import greedy
from tests.system.commands import run
from tests.system.test_cuda import Gpu, lazy
from tests.system.test_decisions import STEADY, entries, models, office, serve, workload
from tests.system.test_deltas import write_tuned
from tests.system.tiny import write_expert

from coterie import Coterie
from coterie.api.assemble import Options
from coterie.devices.cpu.device import CpuDevice
from coterie.engine.variants import variant_groups_of
from coterie.models.model import FLOAT32

__all__ = ["lazy", "models", "office"]  # fixtures


@pytest.mark.parametrize("near_blocks", [4, pytest.param(12, marks=pytest.mark.long)])
def test_decisions_about_variants_are_the_cpus_and_so_are_tokens(office: dict, near_blocks: int) -> None:
    """Prompts beside decode; they come and go meanwhile, and each token is as without that."""
    moves = [move for move in workload(office, 6) if move.what == "ask"]
    near_bytes, served = office["small-0"].layout.size_bytes + 4096 * near_blocks, []
    for device in (cuda(machine="toy", driver=LazyDriver(settle_s=2e-4)), CpuDevice(threads=1)):
        served.append(serve(device, office, STEADY, moves, near_bytes=near_bytes))
        device.close()
    real, other = served
    assert real.log == other.log
    assert real.tokens == other.tokens
    assert any(len(entry) > 5 for entry in entries(real.log, "run"))
    device = cuda(machine="toy", driver=LazyDriver(settle_s=2e-4))
    apart = serve(device, office, replace(STEADY, share_steps=False), moves, near_bytes=near_bytes)
    device.close()
    assert apart.tokens == real.tokens
    assert len(entries(apart.log, "run")) > len(entries(real.log, "run"))


@pytest.mark.parametrize("bits", ["4z", pytest.param("8", marks=pytest.mark.long)])
def test_deltas_share_steps(tmp_path: Path, lazy: Gpu, bits: str) -> None:
    """Packed differences of two experts in one step, each as alone; of 8 bits as on the CPU, which rounds for fewer."""
    folder, names = tmp_path / "office", ("sql", "tax")
    base = write_expert(folder / "base", 1)
    for seed, name in enumerate(names, 5):
        tuned = write_tuned(tmp_path / name, base, seed, only="proj")
        assert run("delta", base, tuned, folder / name, "--bits", bits).exit_code == 0
        shutil.rmtree(tuned)
    queries = [greedy(prompt, name) for prompt in ("how many rows?", "and columns?", "which tax?") for name in names]
    with Coterie.open(folder, Options(device="cuda")) as coterie:
        assert variant_groups_of(coterie.parts.engine._experts).keys() == set(names)
        found = [answer.token_ids for answer in coterie.ask_all(queries)]
        assert any(len(entry) > 4 for entry in entries(coterie.parts.engine.decisions, "run"))
        assert [coterie.ask(query).token_ids for query in queries] == found
    with Coterie.open(folder, Options(activations=FLOAT32)) as coterie:
        assert ([coterie.ask(query).token_ids for query in queries] == found) == (bits == "8")
    assert len(set(found)) == len(found)
