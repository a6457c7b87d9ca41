"""Greedy answers to many questions at once, and their scores.

Knows nothing about training: a model and questions in, texts out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data import END, PAD, prompt_ids
from model import TinyLlama

MAX_NEW_TOKENS = 160
_ROWS = 128


def _decode(ids: list[int]) -> str:
    return bytes(token for token in ids if token < 256).decode(errors="replace")


def _batch(model: TinyLlama, questions: Sequence[str]) -> list[str]:
    prompts = [prompt_ids(question) for question in questions]
    rows, longest = len(prompts), max(map(len, prompts))
    caches = model.caches(rows, longest + MAX_NEW_TOKENS + 1)
    lengths, done = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.bool)
    token = torch.tensor([prompt[0] for prompt in prompts])
    outputs: list[list[int]] = [[] for _ in prompts]
    for position in range(longest + MAX_NEW_TOKENS):
        best = model.step(token, caches, lengths).argmax(-1).tolist()
        lengths = lengths + 1
        following = []
        for row, prompt in enumerate(prompts):
            if position + 1 < len(prompt):
                following.append(prompt[position + 1])
                continue
            done[row] |= best[row] == END or len(outputs[row]) >= MAX_NEW_TOKENS
            if not done[row]:
                outputs[row].append(best[row])
            following.append(PAD if done[row] else best[row])
        if bool(done.all()):
            break
        token = torch.tensor(following)
    return [_decode(output) for output in outputs]


@torch.no_grad()
def complete(model: TinyLlama, questions: Sequence[str]) -> list[str]:
    """The model's whole output, working included, for each question."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    outputs = [""] * len(questions)
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        for i, text in zip(chosen, _batch(model, [questions[i] for i in chosen]), strict=True):
            outputs[i] = text
    return outputs


def last_line(text: str) -> str:
    """The part of an output that is scored."""
    return text.rsplit("\n", 1)[-1]
