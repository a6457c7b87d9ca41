"""Prompts of made-up words, and a tokenizer in which each word is one token.

    " baku dimo fe ..."    a syllable is a consonant and a vowel; a word has one or two; a space belongs to its word

Knows nothing about models or servers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.tokenizer import TOKENIZER

SYLLABLES = [f"{consonant}{vowel}" for consonant, vowel in product("bdfghjklmnprstvz", "aeiou")]
WORDS = [*SYLLABLES, *map("".join, product(SYLLABLES, repeat=2))]
SPACE = "\u0120"  # a space in byte-level vocabularies


def prompt(rng: np.random.Generator, tokens: int, count: Callable[[str], int] | None = None) -> str:
    """At least one word, and at most `tokens` tokens by `count`; without `count` each word is one token."""
    words = [WORDS[number] for number in rng.integers(0, len(WORDS), tokens)]
    if count is None:
        return as_text(words)
    fits, most = 1, tokens
    while fits < most:
        middle = (fits + most + 1) // 2
        if count(as_text(words[:middle])) <= tokens:
            fits = middle
        else:
            most = middle - 1
    return as_text(words[:fits])


def as_text(words: Sequence[str]) -> str:
    """The words as text, each preceded by a space, like their tokens."""
    return "".join(f" {word}" for word in words)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a byte-level tokenizer with `vocab_size` tokens at most: printable ASCII, then words."""
    pairs = islice(_merges(), max(0, vocab_size - len(_letters())))
    merges = list(pairs)
    vocabulary = [*_letters(), *("".join(pair) for pair in merges)][:vocab_size]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocabulary)}, "merges": merges},
    }
    (folder / TOKENIZER).write_text(json.dumps(made), encoding="utf-8")


def _letters() -> list[str]:
    return [SPACE, *(chr(byte) for byte in range(33, 127))]


def _merges() -> chain[tuple[str, str]]:
    """BPE merges: letters to syllables, syllables with a space before them, then two and three syllables."""
    one = [f"{SPACE}{syllable}" for syllable in SYLLABLES]
    two = ((first, second) for first in one for second in SYLLABLES)
    three = ((f"{first}{second}", third) for first in one for second in SYLLABLES for third in SYLLABLES)
    return chain(((s[0], s[1]) for s in SYLLABLES), ((SPACE, s) for s in SYLLABLES), two, three)
