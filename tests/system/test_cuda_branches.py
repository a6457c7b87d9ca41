"""Experts with branches on a GPU that is none, served beside others and taking turns in its memory.

Kernels are the CPU's here, as in test_cuda.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.system.test_cuda import Gpu, lazy, query
from tests.system.tiny import write_expert, write_mixture

from coterie.api import Coterie, Options

__all__ = ["lazy"]  # a fixture
MOST_BYTES = 150 * 1024  # more than any one of them has, and less than two


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts with branches of one architecture, and one without."""
    root = tmp_path_factory.mktemp("mixtures")
    write_expert(root / "plain", 0)
    for seed, name in enumerate(("one", "two")):
        write_mixture(root / name, seed)
    return root


@pytest.mark.parametrize("near_bytes", [None, MOST_BYTES])
def test_answers_are_the_cpus_with_and_without_switches(mixtures: Path, lazy: Gpu, near_bytes: int | None) -> None:
    """What moves with a switch: weights, rows, and the tables that say where matrices of branches are."""
    queries = [query("one"), query("two", temperature=0.9, seed=3), query("plain"), query("one", "again"), query("two")]
    found = {}
    for device in ("cpu", "cuda"):
        with Coterie.open(str(mixtures), Options(device=device, near_bytes=near_bytes)) as coterie:
            found[device] = [answer.token_ids for answer in coterie.ask_all(queries)]
            found[device] += [coterie.ask(one).token_ids for one in queries]
            evicted = any(what == "evict" for what, *_ in coterie.parts.cache.decisions)
            assert evicted == (near_bytes is not None)
    assert found["cuda"] == found["cpu"]
    assert lazy.driver.replayed > 0
