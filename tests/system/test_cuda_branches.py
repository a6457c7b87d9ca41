"""Experts with branches on a GPU that is none, served beside others and taking turns in its memory.

Kernels are the CPU's here, as in test_cuda.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.system.test_cuda import Gpu, lazy, query
from tests.system.tiny import CONFIG, write_expert, write_safetensors, write_tokenizer

from coterie.api import Coterie, Options
from coterie.core.dtypes import DType, from_f32
from coterie.models.config import ModelConfig
from coterie.models.registry import weight_shapes

__all__ = ["lazy"]  # a fixture
MIXTURE = CONFIG | {
    **{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"},
    **{"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20, "sliding_window": None},
}
MOST_BYTES = 150 * 1024  # more than any one of them has, and less than two


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts with branches of one architecture, and one without."""
    root = tmp_path_factory.mktemp("mixtures")
    write_expert(root / "plain", 0)
    for seed, name in enumerate(("one", "two")):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(MIXTURE))
        write_tokenizer(root / name)
        rng, tensors = np.random.default_rng(seed), {}
        for tensor, shape in weight_shapes(ModelConfig.from_hf(MIXTURE, name)).items():
            values = (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
            bits = from_f32(1 + values if len(shape) == 1 else values, DType.BF16)
            tensors[tensor] = ("BF16", shape, bits.tobytes())
        write_safetensors(root / name / "model.safetensors", tensors)
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
