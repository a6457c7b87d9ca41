"""Random LoRA adapters of one base, as PEFT saves them, in a temporary place: gone afterwards.

Knows nothing about what is measured with them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.bench.experts import write_tensors
from coterie.checkpoint.folder import ADAPTER_CONFIG
from coterie.core.shapes import trailing
from coterie.graph.low_rank import linear_weights
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.adapter import ADAPTER_WEIGHTS
from coterie.models.model import Model

ADAPTED = "_proj.weight"  # what the weights of linear layers end in, but for the head


@contextmanager
def random_adapters(base: Model, count: int, rank: int) -> Iterator[list[Model]]:
    """`count` adapters of this rank of all linear layers of a base, removed at the end."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in linear_weights(base.graph):
        if name.endswith(ADAPTED):
            rows, columns = (trailing((1, dim)) for dim in base.graph.values[name].shape)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            shapes |= {f"{module}.lora_A.weight": (rank, columns), f"{module}.lora_B.weight": (rows, rank)}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": str(base.path)}
    config |= {"target_modules": sorted({name.split(".")[-3] for name in shapes})}
    with tempfile.TemporaryDirectory(prefix="coterie-bench-") as root:
        found = []
        for seed in range(count):
            folder = Path(root) / f"adapter-{seed}"
            folder.mkdir()
            (folder / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
            write_tensors(folder / ADAPTER_WEIGHTS, shapes, seed)
            found.append(open_adapted(base, folder))
        yield found
