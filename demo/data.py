"""Tokens and batches: examples become ids, and ids become microbatches of similar length.

Knows nothing about the model. Everything is a function of (expert, seed, step), so a restarted run sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

from tasks import TASKS, Example

END, USER, ANSWER, PAD = 256, 257, 258, 259
SPECIALS = {"<|end|>": END, "<|user|>": USER, "<|answer|>": ANSWER, "<|pad|>": PAD}
GENERAL = "general"
BASE = "base"
POOL_STEPS = 8
IGNORE = -100


def byte_symbols() -> list[str]:
    """The printable stand-in for each byte value, as byte-level BPE vocabularies write it."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(spare)) for byte in range(256)]


def prompt_ids(question: str) -> list[int]:
    """What the chat template and the tokenizer make of one question; a byte's id is its value."""
    return [USER, *question.encode(), ANSWER]


def task_names(expert: str) -> list[str]:
    """The tasks an expert is trained on: its own, or all of them for the base and the single model."""
    return list(TASKS) if expert in {GENERAL, BASE} else [expert]


def _row(example: Example) -> tuple[list[int], int]:
    prompt = prompt_ids(example.question)
    return [*prompt, *example.completion.encode(), END], len(prompt)


def _batch(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.full((len(rows), width), PAD, dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORE, dtype=torch.long)
    for i, (ids, start) in enumerate(rows):
        inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[i, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return inputs, targets


def steps(expert: str, seed: int, first: int, batch: int, micro: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Endless training steps from step `first` on: each a list of `micro` (inputs, targets) [batch/micro, T].

    A pool of some steps' rows is sorted by length and cut into `micro` bands; each step takes one slice of each band,
    so rows are padded little while every step still sees short and long questions.
    """
    names, size = task_names(expert), batch // micro
    for pool in range(first // POOL_STEPS, 1 << 30):
        rng = Random(f"{expert}/{seed}/{pool}")
        rows = [_row(TASKS[rng.choice(names)].sample(rng, "train")) for _ in range(batch * POOL_STEPS)]
        rows.sort(key=lambda row: len(row[0]))
        bands = [
            [rows[i : i + size] for i in range(start, start + size * POOL_STEPS, size)]
            for start in range(0, len(rows), size * POOL_STEPS)
        ]
        for band in bands:
            rng.shuffle(band)
        for step in range(POOL_STEPS):
            if pool * POOL_STEPS + step >= first:
                yield [_batch(band[step]) for band in bands]
