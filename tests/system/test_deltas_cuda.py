"""Fine-tunes as packed differences from one base, served by a GPU that is none: weights in two arenas.

Kernels are the CPU's here, as in test_cuda.py, but for one test by Triton's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.interpreted import WIDE
from tests.system.adapting import greedy
from tests.system.commands import run
from tests.system.test_cuda import Gpu, lazy, query
from tests.system.test_deltas import NAMES, write_tuned
from tests.system.tiny import write_expert

from coterie.api import Coterie, Options
from coterie.devices.cuda import device as device_file
from coterie.devices.cuda.kernels import TritonKernels
from coterie.graph import delta
from coterie.models.model import FLOAT32

__all__ = ["lazy"]  # a fixture


@pytest.fixture(autouse=True)
def as_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a CPU rounds to 8 bits what meets a difference of a few, and a GPU leaves it as it is."""
    monkeypatch.setattr(delta, "_FEW_BITS", 0)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base packed to mxfp4, and deltas of 2 bits, of 4 with zeros and of small floats beside it."""
    root = tmp_path_factory.mktemp("deltas")
    plain = write_expert(root / "plain", 1)
    assert run("quantize", plain, root / "office" / "base", "--bits", "mxfp4").exit_code == 0
    for seed, (name, bits) in enumerate(zip((*NAMES, "law"), ("2", "4z", "mxfp4"), strict=True), 2):
        tuned = write_tuned(root / name, plain, seed)
        written = run("delta", root / "office" / "base", tuned, root / "office" / name, "--bits", bits, "--json")
        assert written.exit_code == 0, written.output
        assert json.loads(written.stdout)["kinds"]
    shutil.rmtree(root / "plain")
    return root / "office"


def answers(office: Path, device: str, near_bytes: int | None) -> list[tuple[int, ...]]:
    """Of all together, then one after the other."""
    names = (NAMES[0], "base", "law", NAMES[1], NAMES[0])
    queries = [query(name) for name in names] + [query(NAMES[1], temperature=0.9, seed=3)]
    with Coterie.open(office, Options(device=device, near_bytes=near_bytes, activations=FLOAT32)) as coterie:
        found = [answer.token_ids for answer in coterie.ask_all(queries)]
        found += [coterie.ask(one).token_ids for one in queries]
        evicted = any(what == "evict" for what, *_ in coterie.parts.cache.decisions)
        assert evicted == (near_bytes is not None)
        assert coterie.status().expert("law").base == "base"
        coterie.parts.engine.check_integrity()
        coterie.parts.all_weights.check_integrity()
    return found


@pytest.mark.parametrize("switching", [pytest.param(False, marks=pytest.mark.long), True])
def test_answers_are_the_cpus_with_and_without_switches(office: Path, lazy: Gpu, switching: bool) -> None:
    """What moves with a switch: a delta, and rows that say where each weight lies, its own or the base's."""
    near = None
    if switching:
        with Coterie.open(office) as coterie:
            models = coterie.models
            near = models["base"].layout.size_bytes
            near += max(model.layout.size_bytes for model in models.values() if model.base)
    assert answers(office, "cuda", near) == answers(office, "cpu", near)
    assert lazy.driver.replayed > 0


@pytest.mark.long
def test_a_run_by_the_kernels_of_a_gpu_gives_the_cpus_tokens(
    office: Path, lazy: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted: up to four tokens at once nothing is rounded."""
    monkeypatch.setattr(device_file, "TritonKernels", lambda tiles: TritonKernels(WIDE))
    found = {}
    for device in ("cpu", "cuda"):
        with Coterie.open(office, Options(device=device, activations=FLOAT32)) as coterie:
            found[device] = [coterie.ask(greedy("rows?", name)).token_ids for name in NAMES]
    assert found["cuda"] == found["cpu"]
