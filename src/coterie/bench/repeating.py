"""A synthetic expert of any shape that repeats itself at an adjustable rate, for measuring speculative decoding.

    FEW tokens in a ring: after each, the next one is likeliest; the temperature sets how likely all the others are

Attention and feed-forward add zero to the residual stream, and each row of the head is the embedding of the preceding
token in the ring. All weights are still read and multiplied as usual.
Knows nothing about engines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import log, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from coterie.bench.experts import check_room, write_expert
from coterie.checkpoint.folder import SINGLE
from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import UsageError
from coterie.engine.request import SamplingParams
from coterie.models.config import ModelConfig
from coterie.models.model import Model, open_model
from coterie.models.registry import weight_shapes

FEW = 64  # tokens of the ring
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
RESIDUAL = ("o_proj.weight", "down_proj.weight")  # their outputs are added to the residual stream
RING_SHARE = 0.5  # share of the ring's summed rows in each head row, which keeps other tokens out of the likeliest
HOT = 100.0  # a temperature at which all tokens are about equally likely

Tensors = Mapping[str, npt.NDArray[np.uint16]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ring:
    """The ring's tokens in order; `gap`: the logit of the next one minus the others' in the ring."""

    tokens: tuple[int, ...]
    gap: float

    def num_following(self, tokens: Sequence[int]) -> int:
        """How many of these tokens follow their predecessor in the ring."""
        after = dict(zip(self.tokens, (*self.tokens[1:], self.tokens[0]), strict=True))
        return sum(after.get(before) == token for before, token in pairwise(tokens))

    def sampling(self, share: float, seed: int) -> SamplingParams:
        """Sampling settings with which about this share of tokens follow the ring; 1: greedy; 0: uniformly random."""
        if share == 1:
            return SamplingParams()
        if share == 0:
            return SamplingParams(temperature=HOT, seed=seed)
        return SamplingParams(self.gap / log((FEW - 1) * share / (1 - share)), top_k=FEW, seed=seed)


@contextmanager
def repeating_expert(config: Mapping[str, Any]) -> Iterator[tuple[Model, Ring]]:
    """A repeating expert in a temporary checkpoint folder of bf16 weights.

    Raises UsageError for an unsuitable shape, CapacityError without room.
    """
    with bigram_expert(config, _turn) as made:
        yield made


@contextmanager
def bigram_expert(config: Mapping[str, Any], turn: Callable[[Tensors], T]) -> Iterator[tuple[Model, T]]:
    """An expert whose logits depend only on the last token, in a temporary checkpoint folder of bf16 weights.

    `turn` fills in its embedding and its head (initially zeros); its result is yielded with the model. Raises
    UsageError for an unsuitable shape, CapacityError without room.
    """
    untied = {**config, "tie_word_embeddings": False}
    shapes = weight_shapes(ModelConfig.from_hf(untied, "--shape"))
    lacking = next((name for name in (EMBEDDING, HEAD, NORM) if name not in shapes), None)
    if lacking is not None:
        fact = f"has no {lacking}, of which an expert whose answers are known is made"
        raise UsageError("--shape", fact, "use 135m, 1b or another Llama")
    check_room([(untied, 1)])
    with TemporaryDirectory(prefix="coterie-bench-") as root:
        folder = Path(root) / "bigram"
        write_expert(folder, untied, shapes, 0)
        tensors = _opened(folder / SINGLE, shapes)
        for name, bits in tensors.items():
            if name.endswith(RESIDUAL) or name == HEAD:
                bits[:] = 0
        said = turn(tensors)
        yield open_model(folder), said


def _opened(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The file's tensors, memory-mapped for writing."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    bits, found = np.memmap(file, np.uint16, "r+", offset=8 + size), {}
    for name, shape in shapes.items():
        first = header[name]["data_offsets"][0] // 2
        found[name] = bits[first : first + prod(shape)].reshape(shape)
    return found


def _turn(tensors: Tensors) -> Ring:
    ring = np.random.default_rng(1).permutation(len(tensors[EMBEDDING]))[:FEW]
    rows = to_f32(tensors[EMBEDDING][ring], DType.BF16)
    tensors[HEAD][np.roll(ring, -1)] = from_f32(rows + RING_SHARE * rows.sum(axis=0), DType.BF16).view(np.uint16)
    normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True)) * to_f32(tensors[NORM], DType.BF16)
    own = (normed * rows).sum(axis=1).mean()
    others = (normed @ rows.T).mean() * FEW / (FEW - 1) - own / (FEW - 1)
    return Ring(tuple(ring.tolist()), float(own - others))
