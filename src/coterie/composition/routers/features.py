"""Turns a prompt into hashed character n-grams, the same way on every machine and in training as in serving.

Knows nothing about experts or weights.

    "What is 47 + 85?"  ->  words  what | is | 00 | + | 00?  ->  " wh", "wha", ...  ->  crc32 modulo the dimension
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_CHARS = (
    4096  # a prompt tells what it wants at its ends: of a longer one the first and the last half of this are read
)
MAX_WORD_CHARS = 48
MAX_DIGITS = 4  # longer runs of digits look alike; what the digits are never matters

_DIGITS = re.compile(r"\d+")
_WORD_MARKS = ".,;:!?\"'()[]{}=<>*/+-"


@dataclass(frozen=True, slots=True)
class HashSettings:
    """How features are made: n-grams of `ngram_min` to `ngram_max` characters in `dimension` buckets."""

    ngram_min: int = 1
    ngram_max: int = 5
    dimension: int = 2**14


@dataclass(frozen=True, slots=True)
class WordFeatures:
    """A word as a person would quote it, and the buckets of its n-grams."""

    word: str
    buckets: npt.NDArray[np.int64]


def normalise(text: str) -> str:
    """Lower case, compatibility forms folded, each digit 0 and runs of digits cut to MAX_DIGITS."""
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]} {text[-MAX_CHARS // 2 :]}"
    folded = unicodedata.normalize("NFKC", text).lower()
    return _DIGITS.sub(lambda run: "0" * min(len(run[0]), MAX_DIGITS), folded)


def word_features(text: str, settings: HashSettings) -> tuple[WordFeatures, ...]:
    """The n-grams of each word of a prompt; words are split at white space, with a blank at both of their ends."""
    return tuple(
        WordFeatures(word.strip(_WORD_MARKS) or word, _buckets(word[:MAX_WORD_CHARS], settings))
        for word in normalise(text).split()
    )


def _buckets(word: str, settings: HashSettings) -> npt.NDArray[np.int64]:
    padded = f" {word} "
    grams = {
        padded[i : i + n] for n in range(settings.ngram_min, settings.ngram_max + 1) for i in range(len(padded) - n + 1)
    }
    # surrogatepass: a lone surrogate is no valid text, but no reason to fail either
    hashes = [zlib.crc32(gram.encode("utf-8", "surrogatepass")) % settings.dimension for gram in grams]
    return np.unique(np.asarray(hashes, dtype=np.int64))


def distinct_buckets(words: tuple[WordFeatures, ...]) -> npt.NDArray[np.int64]:
    """The buckets of a whole prompt, each once, ascending."""
    if not words:
        return np.zeros(0, dtype=np.int64)
    return np.unique(np.concatenate([word.buckets for word in words]))
