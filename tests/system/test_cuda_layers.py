"""Experts with branches, or a recurrent state, on a GPU that is none, beside others and taking turns in its memory.

Kernels are the CPU's here, as in test_cuda.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.system.test_cuda import Gpu, lazy, query
from tests.system.tiny import write_delta_net, write_expert, write_mixture

from coterie.api import Coterie, Options
from coterie.models.model import FLOAT32

__all__ = ["lazy"]  # a fixture
NAMES = ("one", "two")


@pytest.fixture(scope="module", params=[write_mixture, write_delta_net], ids=["branches", "nets"])
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of one architecture of such layers, and one without."""
    root = tmp_path_factory.mktemp("experts")
    write_expert(root / "plain", 0)
    for seed, name in enumerate(NAMES):
        request.param(root / name, seed)
    return root


@pytest.mark.parametrize("shares_memory", [False, True])
def test_answers_are_the_cpus_with_and_without_switches(experts: Path, lazy: Gpu, shares_memory: bool) -> None:
    """All at once, and again one by one in blocks that are full of what others kept; prefixes of nets are not shared.

    What moves with a switch: weights, rows, and the tables that say where matrices of branches are.
    """
    queries = [query("one"), query("two", temperature=0.9, seed=3), query("plain"), query("one", "again"), query("two")]
    largest = max((experts / name / "model.safetensors").stat().st_size for name in NAMES)
    near_bytes = 3 * largest // 2 if shares_memory else None
    found = {}
    for device in ("cpu", "cuda"):
        with Coterie.open(str(experts), Options(device=device, near_bytes=near_bytes, activations=FLOAT32)) as coterie:
            found[device] = [answer.token_ids for answer in coterie.ask_all(queries)]
            found[device] += [coterie.ask(one).token_ids for one in queries]
            evicted = any(what == "evict" for what, *_ in coterie.parts.cache.decisions)
            assert evicted == shares_memory
    assert found["cuda"] == found["cpu"]
    assert lazy.driver.replayed > 0
