"""A cheap fingerprint of a model's weights: names, types, shapes, and a few bytes of every tensor.

    tensor   |xx|..................|xx|..................|xx|      x: the bytes read, 64 at each place

Further training changes every tensor, so it is detected; a change of a few numbers may not be. How the tensors are
spread over files does not matter. Knows nothing about what it is compared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.errors import CheckpointError
from coterie.models.model import Model

WINDOW_BYTES = 64
_KEPT = 64  # cached fingerprints: experts of one base ask for the same one


def fingerprint(model: Model) -> str:
    """The fingerprint of the graph's weights, 32 hexadecimal digits. Raises CheckpointError for a lost file."""
    infos = (model.checkpoint.tensors[weight.name] for weight in model.graph.weights)
    return _of(tuple(sorted(infos, key=lambda info: (info.shard.path, info.offset))))


@lru_cache(_KEPT)
def _of(infos: tuple[TensorInfo, ...]) -> str:
    found, by_shard = hashlib.sha256(), groupby(infos, key=lambda info: info.shard.path)
    windows: dict[str, bytes] = {}
    for path, own in by_shard:
        try:
            with Path(path).open("rb") as file:
                windows |= {info.name: b"".join(_windows(file, info)) for info in own}
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror}", "check the file") from None
    for info in sorted(infos, key=lambda info: info.name):
        found.update(f"{info.name} {info.dtype.value} {info.shape}\n".encode() + windows[info.name])
    return found.hexdigest()[:32]


def _windows(file: BinaryIO, info: TensorInfo) -> Iterator[bytes]:
    last = max(0, info.size_bytes - WINDOW_BYTES)
    for start in (0, last // 2, last):
        file.seek(info.offset + start)
        yield file.read(min(WINDOW_BYTES, info.size_bytes))
