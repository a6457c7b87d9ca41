"""Fixtures for peers beside a GPU's benches: a small model, and torch.compile made cheap, or nothing.

Knows nothing about what is compared.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'coterie[peers]'")

import torch
from tests.system.tiny import MEASURED

from coterie.bench import gpu_peers
from coterie.bench.experts import random_experts
from coterie.bench.peers import transformers as peer_file
from coterie.bench.peers.transformers import Transformers
from coterie.models.model import Model

PEER = ("--peer", "transformers")


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Collecting garbage, and torch's threads where others have work too, would take most of the time."""
    Transformers("cpu")  # its packages are imported
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_peers, "allowed_cpus", lambda: (1, "for a test"))
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with random_experts(MEASURED, 1) as (made,):
        yield made


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile traces, run op by op: the same calls in a second, without a compiler."""
    monkeypatch.setattr(peer_file, "BACKEND", "eager")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is traced either: for what is done with a compiled model, whoever compiles it."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
