"""Turns a prompt into hashed character n-grams: the same on every machine, and in training and serving.

Knows nothing about experts or weights.

    "What is 47 + 85?"  ->  " what is 00 + 00? "  ->  " ", "w", " w", .., "what ", .., "0 + 0"  ->  crc32 mod dimension
                                                                                   or 64-bit hashes, without buckets
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

MAX_CHARS = 4096  # of a longer prompt, only the first and last halves of this are read: the task is stated at its ends
MAX_DIGITS = 4  # longer runs of digits are treated alike; which digits they are never matters

_DIGITS = re.compile(r"\d+")

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, made odd: spreads values evenly (Fibonacci hashing)

_BATCH_BYTES = 1 << 20  # UTF-32 bytes of text hashed at once

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class HashSettings:
    """N-grams of `ngram_min` to `ngram_max` characters, hashed into `dimension` buckets."""

    ngram_min: int = 1
    ngram_max: int = 5
    dimension: int = 2**15


def normalise(text: str) -> str:
    """Lower case, one space between words and at both ends, each digit replaced by 0, runs of them cut to MAX_DIGITS.

    Compatibility forms are folded (NFKC), so that full-width letters become plain ones.
    """
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]} {text[-MAX_CHARS // 2 :]}"
    words = unicodedata.normalize("NFKC", text).lower().split()
    return _DIGITS.sub(lambda run: "0" * min(len(run[0]), MAX_DIGITS), f" {' '.join(words)} ") if words else ""


def bucket_list(text: str, settings: HashSettings) -> I64:
    """The distinct buckets of a prompt's n-grams, ascending; empty for a prompt without text."""
    normal = normalise(text)
    lengths = range(settings.ngram_min, settings.ngram_max + 1)
    grams = {normal[i : i + n] for n in lengths for i in range(len(normal) - n + 1)}
    return np.unique(np.fromiter((_bucket(gram, settings) for gram in grams), dtype=np.int64, count=len(grams)))


def gram_hashes(text: str, ngram_min: int, ngram_max: int) -> U64:
    """64-bit hashes of a prompt's distinct n-grams, ascending; empty for a prompt without text.

    Much faster than `bucket_list`, and practically without collisions, but not for features that are stored in a file.
    """
    codes = np.frombuffer(_code_points(text), dtype=np.uint32)
    hashes, found = np.zeros(len(codes), dtype=np.uint64), []
    for n in range(1, min(len(codes), ngram_max) + 1):
        hashes = hashes[: len(codes) - n + 1] * _FACTOR + codes[n - 1 :]
        if n >= ngram_min:
            found.append(hashes)
    every = np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)
    every.sort()
    distinct: U64 = every[np.append(True, every[1:] != every[:-1])[: len(every)]]
    return distinct


def gram_hashes_of(texts: Iterable[str], ngram_min: int, ngram_max: int) -> Iterator[U64]:
    """`gram_hashes` of each prompt, computed in batches, which is several times as fast."""
    batch: list[bytes] = []
    size_bytes = 0
    for text in texts:
        batch.append(_code_points(text))
        size_bytes += len(batch[-1])
        if size_bytes >= _BATCH_BYTES:
            yield from _hashed(batch, ngram_min, ngram_max)
            batch, size_bytes = [], 0
    yield from _hashed(batch, ngram_min, ngram_max)


def _code_points(text: str) -> bytes:
    return normalise(text).encode("utf-32-le", "surrogatepass")


def _hashed(batch: Sequence[bytes], ngram_min: int, ngram_max: int) -> Iterator[U64]:
    """The hashes of a batch of texts, each UTF-32 code points. N-grams that reach into the next text are dropped."""
    codes = np.frombuffer(b"".join(batch), dtype=np.uint32)
    sizes = np.asarray([len(text) // 4 for text in batch], dtype=np.int64)
    to_end = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(codes))  # characters left in the text, inclusive
    lengths = range(ngram_min, ngram_max + 1)
    hashes, grams = np.zeros(len(codes), dtype=np.uint64), np.empty((len(codes), len(lengths)), dtype=np.uint64)
    for n in range(1, ngram_max + 1):
        hashes *= _FACTOR
        hashes[: max(len(codes) - n + 1, 0)] += codes[n - 1 :]
        if n >= ngram_min:
            grams[:, n - ngram_min] = hashes
    found = grams[to_end[:, None] >= np.asarray(lengths)]
    ends = np.cumsum(sum(np.maximum(sizes - n + 1, 0) for n in lengths)).tolist()
    starts = [0, *ends][:-1]
    for start, end in zip(starts, ends, strict=True):
        found[start:end].sort()
    is_new = np.append(True, found[1:] != found[:-1])[: len(found)]
    is_new[[start for start, end in zip(starts, ends, strict=True) if start < end]] = True
    distinct, bounds = found[is_new], np.searchsorted(np.flatnonzero(is_new), [0, *ends]).tolist()
    return (distinct[start:end] for start, end in pairwise(bounds))


def word_buckets(text: str, settings: HashSettings) -> dict[str, I64]:
    """For each distinct word of a prompt, in order, the buckets of the n-grams whose middle lies in that word."""
    normal = normalise(text)
    owner = np.cumsum([char == " " for char in normal]) - 1 if normal else np.zeros(0, dtype=np.int64)
    words = normal.split()
    found: dict[str, set[int]] = {}
    for n in range(settings.ngram_min, settings.ngram_max + 1):
        for i in range(len(normal) - n + 1):
            word = words[min(int(owner[i + n // 2]), len(words) - 1)]
            found.setdefault(word, set()).add(_bucket(normal[i : i + n], settings))
    return {word: np.asarray(sorted(found[word]), dtype=np.int64) for word in dict.fromkeys(words) if word in found}


def _bucket(gram: str, settings: HashSettings) -> int:
    # surrogatepass: a lone surrogate is not valid text, but no reason to fail either
    return zlib.crc32(gram.encode("utf-8", "surrogatepass")) % settings.dimension
